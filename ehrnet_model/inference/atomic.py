"""Files that are whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file so that a reader, a crash or a full disk never meets half of it.

    Args:
        path: the file; what was there before stays until the new one is complete.
        content: its bytes.
        mode: permissions of the new file.

    Raises:
        OSError: the folder cannot be written or is full; ``path`` is then as it was.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:  # an interrupt leaves nothing behind either
        os.unlink(temporary)
        raise
