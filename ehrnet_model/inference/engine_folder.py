"""The folder of engines: where it is, that it is this user's alone, and who writes in it.

Engine files are code, so nothing that others could have written is to be loaded, and two processes
do not build the same engine at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import logging
import os
import pwd
import stat
import time
from pathlib import Path
from typing import Callable, Iterator, Optional, Tuple

from ehrnet_model.errors import EhrnetError

FOLDER_VARIABLE = "EHRNET_ENGINES"
# No room, no permission, a file too large for the limits, a disk gone read-only.
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_LOCK_POLL_S = 0.2

_log = logging.getLogger(__name__)


def engine_folder(folder: Optional[Path] = None) -> Path:
    """Where engines lie: as given, ``$EHRNET_ENGINES``, or the user's cache (XDG).

    Raises EhrnetError where there is no such variable and the user has no home.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if folder is not None or given:
        return Path(folder or given or "").expanduser()
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        raise EhrnetError(
            f"this user has no home folder for engines: set {FOLDER_VARIABLE} to a folder."
        ) from None
    return Path(base) / "ehrnet" / "engines"


def memory_folder() -> Path:
    """Where engines go when the disk takes none: a file system in memory, this user's alone."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        status = os.stat(base)
        # After su and sudo it may still be another user's.
        own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    except OSError:
        own = False
    return Path(base) / "ehrnet" / "engines" if own else Path(f"/dev/shm/ehrnet-{os.getuid()}")


def make_private(folder: Path) -> None:
    """Makes a folder for engines, which are code, of this user alone.

    Raises:
        OSError: it cannot be made.
        EhrnetError: it is there, and others can write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def check_private(place: Path) -> None:
    """Raises EhrnetError for a folder or file in which others could put an engine, which is code.

    OSError where there is none.
    """
    status = place.stat()
    by_group = status.st_mode & stat.S_IWGRP and not _is_of_user_alone(status.st_gid)
    if status.st_uid not in (os.getuid(), 0):
        raise EhrnetError(
            f"{place} is another user's (uid {status.st_uid}, this is {os.getuid()}), and engines "
            "are code: run as that user (docker run --user), or use another folder (--engines, "
            f"${FOLDER_VARIABLE})."
        )
    if status.st_mode & stat.S_IWOTH or by_group:
        raise EhrnetError(
            f"others can write to {place}, and engines are code: `chmod go-w` it or use another "
            f"folder (--engines, ${FOLDER_VARIABLE})."
        )


def _is_of_user_alone(gid: int) -> bool:
    """Whether a group has this user alone, as Ubuntu gives each user one and lets it write."""
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    mine = user.pw_gid == gid and group.gr_name == user.pw_name
    return mine and set(group.gr_mem) <= {user.pw_name}


def file_sha256(path: Path) -> str:
    """Hash of a file (hex). Raises EhrnetError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise EhrnetError(f"{path} cannot be read: {error.strerror or error}.") from None


def state_of(path: Path) -> Optional[Tuple[int, int]]:
    """What changes when a file is written anew; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


@contextlib.contextmanager
def locked(folder: Path, stem: str, waiting: Callable[[], None]) -> Iterator[bool]:
    """Holds the right to build this engine; gives whether another process had it before.

    The system lets go of it when the process ends, however it ends. Where the folder cannot be
    written there is nothing to protect; where it knows no locks, two may build the same engine.
    """
    try:
        make_private(folder)
        handle = os.open(str(folder / f"{stem}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise EhrnetError(f"the folder {folder} cannot be used: {error}.") from None
        yield False
        return
    waited = held = False
    try:
        while not held:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                waited = True
                waiting()
                time.sleep(_LOCK_POLL_S)
            except OSError as error:  # NFS without its lock daemon
                _log.warning("Going on without a lock in %s (%s).", folder, error.strerror)
                break
        # Of a process that was killed while writing; without a lock, perhaps of one that writes.
        for pattern in (f".{stem}.*", ".timing-*") if held else ():
            for left in folder.glob(pattern):
                with contextlib.suppress(OSError):
                    left.unlink()
        yield waited
    finally:
        os.close(handle)
