"""Fetches a published file whole: resumed, checked, and there under its name only when it is right.

Standard library only; proxies are those of the environment (``https_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Callable, Iterator, Tuple

from ehrnet_model.errors import EhrnetError

ATTEMPTS = 6
_TIMEOUT_S = 30.0
_CHUNK = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)
# The last two: a proxy's address that is none.
_IN_VAIN = (socket.gaierror, ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError)
# Answers after which asking again may help: time out, too many requests, trouble of the server's.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class NoConnection(EhrnetError):
    """The server could not be reached, or not long enough."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its publisher describes it.

    Attributes:
        url: its address.
        size: in bytes.
        sha384: of its content, hexadecimal.
    """

    url: str
    size: int
    sha384: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return Path(urllib.parse.urlsplit(self.url).path).name


def fault(path: Path, file: RemoteFile) -> str:
    """Why a file on disk is not the published one, or an empty text. Raises EhrnetError."""
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"it has {size} bytes instead of {file.size}"
        digest = hashlib.sha384()
        with open(path, "rb") as opened:
            for chunk in iter(lambda: opened.read(1 << 20), b""):
                digest.update(chunk)
    except OSError as error:
        raise EhrnetError(f"{path} cannot be read: {error.strerror}.") from None
    if digest.hexdigest() != file.sha384:
        return f"its SHA-384 begins with {digest.hexdigest()[:12]} instead of {file.sha384[:12]}"
    return ""


def download(
    file: RemoteFile,
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
    pause_s: float = 1.0,
) -> Path:
    """Brings a file into a folder, which is made where it does not exist.

    What has come so far lies beside it with ``.part`` behind its name, and the next call goes on
    from there. A broken connection is taken up again, up to ATTEMPTS times with growing pauses.

    Args:
        file: which one.
        folder: where to.
        progress: told how many bytes are there, again and again.
        pause_s: seconds before the second attempt.

    Returns:
        Path of the file, with the right size and hash.

    Raises:
        NoConnection: the server cannot be reached, or the connection broke every time.
        EhrnetError: the server refuses or has other bytes, the disk is full or cannot be written,
            or another process is fetching the same file.
    """
    target = folder / file.name
    if os.path.isfile(target) and not fault(target, file):
        progress(file.size)
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = open(part, "ab", buffering=0, opener=_no_link)
    except OSError as error:
        why = "it is a link, remove it" if error.errno == errno.ELOOP else error.strerror
        raise EhrnetError(f"{part} cannot be written: {why}.") from None
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EhrnetError(
                f"another process is fetching {file.name} into {folder}: wait for it."
            ) from None
        except OSError:  # NFS without its lock daemon; the hash tells when two wrote into one file
            pass
        _complete(file, target, part, opened, progress, pause_s)
    return target


def _no_link(path: str, flags: int) -> int:
    """For open(): what is fetched goes to no place that a link names."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def proxy_of(url: str) -> str:
    """The proxy that an address is fetched through, without its password; empty without one."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if urllib.request.proxy_bypass(parts.netloc):
        return ""
    return proxy.rpartition("//")[2].rpartition("@")[2]


def _complete(
    file: RemoteFile,
    target: Path,
    part: Path,
    opened: FileIO,
    progress: Callable[[int], None],
    pause_s: float,
) -> None:
    """Fills, checks and renames the part."""
    with _without_empty(part, opened):
        resumed = opened.seek(0, os.SEEK_END) > 0
        _fill(opened, file, progress, pause_s)
        wrong = fault(part, file)
        if wrong and resumed:  # its beginning may be of another file
            opened.truncate(0)
            _fill(opened, file, progress, pause_s)
            wrong = fault(part, file)
        try:
            if wrong:
                opened.truncate(0)
                raise EhrnetError(
                    f"{file.url} is not what was published there ({wrong}): it was thrown away. "
                    "Something between here and there may have changed it; try another network, or "
                    "bring the file yourself."
                )
            os.fsync(opened.fileno())
            os.replace(part, target)
        except OSError as error:
            raise EhrnetError(f"{target} cannot be written: {error.strerror}.") from None


@contextlib.contextmanager
def _without_empty(path: Path, part: FileIO) -> Iterator[None]:
    """Leaves no file behind that nothing came into."""
    try:
        yield
    except BaseException:  # an interrupt leaves nothing behind either
        if os.fstat(part.fileno()).st_size == 0:
            path.unlink()
        raise


def _fill(part: FileIO, file: RemoteFile, progress: Callable[[int], None], pause_s: float) -> None:
    """Appends to a file until it has its size."""
    reason = ""
    for attempt in range(ATTEMPTS):
        start = part.seek(0, os.SEEK_END)
        if start > file.size:
            start = part.truncate(0)
        progress(start)
        if start == file.size:
            return
        _refuse_full_disk(part, file, file.size - start)
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            for done in _receive(part, file, start):
                progress(done)
            if os.fstat(part.fileno()).st_size == file.size:
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the server has no more than we have
                part.truncate(0)
            elif error.code not in _PASSING:
                raise EhrnetError(
                    f"{file.url} is not to be had: the server answers {error.code} {error.reason}."
                ) from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Of a refused or unknown host urllib tells the cause inside.
            cause = getattr(error, "reason", error)
            reason = getattr(cause, "strerror", "") or str(cause) or type(cause).__name__
            if (
                isinstance(cause, _IN_VAIN)
                or getattr(cause, "errno", None) in _NO_WAY
                or re.match(r"Tunnel connection failed: 4", str(cause))
            ):
                break  # the next attempt would end the same way
    host = urllib.parse.urlsplit(file.url).netloc
    proxy = proxy_of(file.url)
    through = f" through the proxy {proxy}" if proxy else ""
    have = os.fstat(part.fileno()).st_size
    kept = (
        f" {have / 1e6:.1f} of {file.size / 1e6:.1f} MB are here, the next call goes on from there."
    )
    raise NoConnection(
        f"{file.name} could not be fetched from {host}{through} ({reason}).{kept if have else ''}"
    )


def _receive(part: FileIO, file: RemoteFile, start: int) -> Iterator[int]:
    """One request; yields how many bytes are there. Ends early where the connection does."""
    headers = {"User-Agent": "ehrnet", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(file.url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        first, total = _extent(answer)
        if total not in (-1, file.size):
            raise EhrnetError(
                f"{file.url} is not what was published there: the server has {total} bytes instead "
                f"of {file.size}. Something between here and there may have changed it; try "
                "another network, or bring the file yourself."
            )
        if first not in (0, start):
            raise http.client.HTTPException("another part than asked for")
        if first != start:  # the server knows no ranges
            part.truncate(0)
            start = 0
        while start < file.size:
            chunk = answer.read(min(_CHUNK, file.size - start))
            if not chunk:
                return
            start += len(chunk)
            try:
                while chunk:
                    chunk = chunk[part.write(chunk) :]
            except OSError as error:
                raise _unwritable(part, file, error) from None
            yield start


def _extent(answer: http.client.HTTPResponse) -> Tuple[int, int]:
    """First byte of an answer and size of the whole file, -1 where the server does not say."""
    if answer.status == 206:
        found = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
        )
        if found is None:
            raise http.client.HTTPException("a part without saying which")
        return int(found.group(1)), -1 if found.group(2) == "*" else int(found.group(2))
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else -1


def _refuse_full_disk(part: FileIO, file: RemoteFile, missing: int) -> None:
    free = shutil.disk_usage(os.path.dirname(part.name)).free
    if free < missing:
        raise EhrnetError(
            f"the disk is too full for {file.name}: {missing / 1e6:.1f} MB are missing and "
            f"{free / 1e6:.1f} MB are free in {os.path.dirname(part.name)}; make room and try "
            "again."
        )


def _unwritable(part: FileIO, file: RemoteFile, error: OSError) -> EhrnetError:
    have = os.fstat(part.fileno()).st_size
    if error.errno in _FULL:
        return EhrnetError(
            f"the disk became full while fetching {file.name} ({have / 1e6:.1f} of "
            f"{file.size / 1e6:.1f} MB are in {part.name}): make room and try again, it goes on "
            "from there."
        )
    return EhrnetError(f"{part.name} cannot be written: {error.strerror}.")
