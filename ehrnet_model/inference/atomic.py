"""Files that are whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ehrnet_model.errors import EhrnetError


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


def save_bytes(path: Path, content: bytes) -> None:
    """``write_atomically`` for files that a user named. Raises EhrnetError instead."""
    try:
        write_atomically(path, content)
    except OSError as error:
        why = error.strerror or error
        raise EhrnetError(f"{path} cannot be written ({why}): choose another place.") from None


def save_json(path: Path, value: Any) -> None:
    """The same with a value as indented JSON; NaN is refused, as JSON has none."""
    save_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def check_target(path: Path, made: bool = False) -> None:
    """Raises EhrnetError where no file can be written for sure, before work is done for it.

    With ``made`` its folder need not be there yet.
    """
    path = Path(path)
    folder = path.parent
    while made and not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise EhrnetError(f"{path} cannot be written: there is no folder {folder}.")
    if os.path.isdir(path):
        raise EhrnetError(f"{path} cannot be written: it is a folder; name a file in it.")
    try:
        # Tried, since what the permissions say holds neither in /proc nor on a read-only disk.
        tempfile.TemporaryFile(dir=str(folder)).close()
    except OSError as error:
        raise EhrnetError(
            f"{path} cannot be written: {folder} takes no file of yours ({error.strerror})."
        ) from None


def check_source(path: Path) -> None:
    """Raises EhrnetError where there is no file to read, before work is done for it."""
    if os.path.isdir(path):
        raise EhrnetError(f"{path} is a folder: name a file in it.")
    if not os.path.isfile(path):
        raise EhrnetError(f"there is no file {path}: check the path.")
    if not os.access(path, os.R_OK):
        raise EhrnetError(f"{path} is not yours to read: check its permissions.")
