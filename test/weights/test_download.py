"""Downloads from a real server that misbehaves in the ways servers and networks do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ehrnet_model import download as room
from ehrnet_model.download import NoConnection, RemoteFile, download
from ehrnet_model.errors import EhrnetError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
ROOT = Path(__file__).resolve().parents[2]


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``faults`` are used up one per request, then it behaves.

    Faults: a number cuts the connection after so many bytes; ``no range`` ignores ranges; ``wrong
    range`` answers with another part; ``changed`` serves other bytes of the same size; ``longer``
    says it has more; ``endless`` says nothing and sends too much; any three digits are a status.
    """

    daemon_threads = True

    def __init__(self, faults: list) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults = faults
        self.asked: list[tuple[str, str]] = []

    def file(self, content: bytes = CONTENT) -> RemoteFile:
        url = f"http://127.0.0.1:{self.server_port}/models/net.bin"
        return RemoteFile(url, len(content), hashlib.sha384(content).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else None
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.path, wanted))
        if isinstance(fault, str) and fault.isdigit():
            self.send_error(int(fault))
            return
        content = CONTENT[::-1] if fault == "changed" else CONTENT
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted).group(1)) if wanted else 0
        if fault == "no range":
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        if start and fault == "wrong range":
            start += 1
        self.send_response(206 if start else 200)
        total = len(content) + (7 if fault == "longer" else 0)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
        if fault != "endless":
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        body = content[start:] + (content if fault == "endless" else b"")
        if isinstance(fault, int):
            self.wfile.write(body[:fault])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            with contextlib.suppress(OSError):
                self.wfile.write(body)
        self.close_connection = True


@contextlib.contextmanager
def serving(*faults) -> Iterator[Server]:
    server = Server(list(faults))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(server: Server, folder: Path, **options) -> Path:
    return download(server.file(), folder, pause_s=0.0, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_is_not_fetched_twice(tmp_path: Path) -> None:
    with serving() as server:
        seen: list[int] = []
        path = fetch(server, tmp_path / "new" / "folder", progress=seen.append)
        assert path.read_bytes() == CONTENT and names(path.parent) == ["net.bin"]
        assert seen[0] == 0 and seen[-1] == len(CONTENT) and seen == sorted(seen)
        assert fetch(server, path.parent, progress=seen.append) == path
        assert seen[-1] == len(CONTENT) and len(server.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    with serving(300_000, 0, 400_000) as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
    ranges = [wanted for _, wanted in server.asked]
    assert ranges == ["", "bytes=300000-", "bytes=300000-", "bytes=700000-"]


def test_a_connection_that_always_breaks_ends_and_the_next_call_goes_on(tmp_path: Path) -> None:
    with serving(*[10_000] * room.ATTEMPTS) as server:
        with pytest.raises(NoConnection, match=r"ended early\). 0\.1 of 1\.0 MB are here"):
            fetch(server, tmp_path)
        assert len(server.asked) == room.ATTEMPTS and names(tmp_path) == ["net.bin.part"]
        assert fetch(server, tmp_path).read_bytes() == CONTENT
        assert server.asked[-1][1] == f"bytes={10_000 * room.ATTEMPTS}-"


@pytest.mark.parametrize("fault", ["no range", "wrong range", "503", "429"])
def test_servers_without_ranges_and_passing_troubles(fault: str, tmp_path: Path) -> None:
    with serving(300_000, fault) as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["net.bin"]


@pytest.mark.parametrize("status", ["403", "404", "410"])
def test_a_refusal_is_reported_at_once(status: str, tmp_path: Path) -> None:
    with serving(status) as server, pytest.raises(EhrnetError, match=f"answers {status}"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1 and names(tmp_path) == []


@pytest.mark.parametrize("fault", ["changed", "longer"])
def test_wrong_bytes_are_thrown_away(fault: str, tmp_path: Path) -> None:
    with serving(fault) as server, pytest.raises(EhrnetError, match="not what was published"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_no_more_is_read_than_the_file_has(tmp_path: Path) -> None:
    with serving("endless") as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1, 500_000, len(CONTENT), len(CONTENT) + 1])
def test_a_beginning_of_something_else_is_not_built_upon(size: int, tmp_path: Path) -> None:
    (tmp_path / "net.bin.part").write_bytes(b"x" * size)
    (tmp_path / "net.bin").write_bytes(b"damaged")
    with serving() as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["net.bin"]


def test_two_at_once_do_not_write_into_one_file(tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / "net.bin.part", "ab") as held, serving() as server:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EhrnetError, match="another process"):
            fetch(server, tmp_path)
    assert not server.asked


def test_where_there_are_no_locks_it_comes_all_the_same(tmp_path: Path, monkeypatch) -> None:
    """As on NFS without its lock daemon."""

    def no_locks(*given):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(room.fcntl, "flock", no_locks)
    with serving() as server:
        assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_no_server_and_no_such_host(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/net.bin"
    for url in (address, "http://ehrnet.invalid/net.bin"):
        with pytest.raises(NoConnection, match=r"could not be fetched from .*\)\.$"):
            download(RemoteFile(url, 5, ""), tmp_path)
    assert names(tmp_path) == []


def in_process(server: Server, folder: Path, before: str = "", **environment: str):
    file = server.file()
    code = (
        f"{before}\nfrom pathlib import Path\n"
        "from ehrnet_model.download import RemoteFile, download\n"
        "from ehrnet_model.errors import EhrnetError\n"
        f"try: print(download({file!r}, Path({str(folder)!r}), pause_s=0.0))\n"
        "except EhrnetError as error: print('refused:', error)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_full_disk_is_named_and_what_came_is_kept(tmp_path: Path) -> None:
    """The limit on a process's files stands for the disk's end: the same failing write."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))"
    with serving() as server:
        done = in_process(server, tmp_path, limit)
        assert "refused: the disk became full" in done.stdout, done.stdout + done.stderr
        assert (tmp_path / "net.bin.part").read_bytes() == CONTENT[:600_000]
        assert in_process(server, tmp_path).stdout.strip() == str(tmp_path / "net.bin")
        assert server.asked[-1][1] == "bytes=600000-"


def test_too_small_a_disk_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with serving() as server:
        huge = RemoteFile(server.file().url, 1 << 60, "")
        with pytest.raises(EhrnetError, match="too full for net.bin"):
            download(huge, tmp_path)
    assert not server.asked and names(tmp_path) == []


def test_the_environments_proxy_is_used(tmp_path: Path) -> None:
    with serving() as server:
        file = server.file()
        other = RemoteFile("http://models.invalid/net.bin", file.size, file.sha384)
        proxy = f"http://127.0.0.1:{server.server_port}"
        code = (
            "from pathlib import Path\nfrom ehrnet_model.download import RemoteFile, download\n"
            f"download({other!r}, Path({str(tmp_path)!r}))"
        )
        environment = {**os.environ, "http_proxy": proxy, "no_proxy": "", "NO_PROXY": ""}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert server.asked == [("http://models.invalid/net.bin", "")]
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


@pytest.fixture
def https_proxy(monkeypatch):
    """Sets the environment's proxy, of which urllib otherwise knows what the first request saw."""

    def use(proxy: str, but_not_for: str = "") -> None:
        monkeypatch.setattr(room.urllib.request, "_opener", None)
        monkeypatch.setenv("https_proxy", proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, but_not_for)

    return use


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("http://user:secret@proxy..corp:8080", "label"),
        ("http://user:secret@proxy.corp:http", "nonnumeric port"),
        ("http://user:secret@127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_proxy_that_is_of_no_use_is_named_at_once(
    proxy, reason, tmp_path, monkeypatch, https_proxy
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(room.time, "sleep", pauses.append)
    https_proxy(proxy)
    address = proxy.rpartition("@")[2]
    with pytest.raises(NoConnection, match=f"the proxy {address} .*{reason}") as raised:
        download(RemoteFile("https://ehrnet.invalid/net.bin", 5, ""), tmp_path)
    assert "secret" not in str(raised.value)
    assert not pauses and names(tmp_path) == []
    https_proxy(proxy, "ehrnet.invalid")
    with pytest.raises(NoConnection, match=r"fetched from ehrnet.invalid \("):
        download(RemoteFile("https://ehrnet.invalid/net.bin", 5, ""), tmp_path)


@pytest.mark.parametrize(("status", "attempts"), [("407", 1), ("403", 1), ("502", room.ATTEMPTS)])
def test_a_proxy_that_refuses_is_asked_once(
    status, attempts, tmp_path, monkeypatch, https_proxy
) -> None:
    asked: list[str] = []

    def refuse(self: Handler) -> None:
        asked.append(self.path)
        self.send_error(int(status))

    monkeypatch.setattr(Handler, "do_CONNECT", refuse, raising=False)
    with serving() as server:
        https_proxy(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(NoConnection, match=f"the proxy 127.0.0.1:.*failed: {status}"):
            download(RemoteFile("https://ehrnet.invalid/net.bin", 5, ""), tmp_path, pause_s=0.0)
    assert asked == ["ehrnet.invalid:443"] * attempts


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "net.bin.part").symlink_to(other)
    with serving() as server, pytest.raises(EhrnetError, match="net.bin.part .*: it is a link"):
        fetch(server, folder)
    assert other.read_bytes() == b"mine" and not server.asked


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EhrnetError, match="cannot be written"):
        download(RemoteFile("http://ehrnet.invalid/net.bin", 5, ""), tmp_path / "file" / "x")


def test_needs_only_the_standard_library() -> None:
    code = (
        "import sys\nfor name in ('numpy', 'torch', 'cv2', 'tqdm'): sys.modules[name] = None\n"
        "import ehrnet_model.published, ehrnet_model.inference.models"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
