"""`ehrnet get-weights` from address or files to the model a node finds.

The published files are stood for by a pair of the same topology with random weights, behind a
server here; everything else is what a user runs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="making a model needs torch")
pytest.importorskip("onnx", reason="making a model needs onnx")
pytest.importorskip("tqdm", reason="the progress bar needs tqdm")

from omz_files import write_pair  # noqa: E402
from permissions import bound  # noqa: E402

from ehrnet_model import published as table  # noqa: E402
from ehrnet_model.download import RemoteFile  # noqa: E402
from ehrnet_model.inference.answers import read_answers  # noqa: E402
from ehrnet_model.inference.estimator import PoseEstimator  # noqa: E402
from ehrnet_model.inference.models import find_model  # noqa: E402
from ehrnet_model.inference.opening import open_runtime  # noqa: E402
from ehrnet_model.inference.reference import find_peaks  # noqa: E402
from ehrnet_model.inference.runtime import model_info  # noqa: E402
from ehrnet_model.inference.sizes import NAMED_SIZES  # noqa: E402
from ehrnet_model.network.checkpoint import load_network  # noqa: E402
from ehrnet_model.published import PUBLISHED, cache_folder  # noqa: E402
from ehrnet_ros.cli import main  # noqa: E402

FIRST = PUBLISHED[-2]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the publisher's server holds."""
    folder = tmp_path_factory.mktemp("publisher")
    write_pair(folder, (448, 448))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, address: str) -> None:
    """Makes the pair in a folder the published one."""
    files = []
    for suffix in ("bin", "xml"):
        path = folder / f"human-pose-estimation-0007.{suffix}"
        data = path.read_bytes()
        url = f"{address}/{path.name}"
        files.append(RemoteFile(url, len(data), hashlib.sha384(data).hexdigest()))
    ours = dataclasses.replace(FIRST, weights=files[0], graphs=(files[1],))
    monkeypatch.setitem(table.PUBLISHED, -2, ours)


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_one_command_brings_a_model_the_node_finds(
    folder, address, home, monkeypatch, capsys
) -> None:
    publish(monkeypatch, folder, address)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # else there is no bar
    assert main(["get-weights", "--phi", "-2"]) == 0
    model = home / "share/ehrnet/models/H-2.onnx"
    said = capsys.readouterr()
    assert said.out == f"{model}\n" and "100%" in said.err and "Apache-2.0" in said.err
    assert find_model(-2) == model
    written = ("answers.npz", "onnx", "safetensors")
    assert tree(home) == [f"share/ehrnet/models/H-2.{e}" for e in written]

    info = model_info(model)
    # What engines built of it are held to.
    assert len(read_answers(model, info).by_size) == len(NAMED_SIZES)
    assert (info.variant, info.phi, info.coordinates) == ("H-2-omz", -2, "first-pixel")
    assert (info.input_size, info.quality) == (448, "imported")
    assert info.decode == {"keypoint_threshold": 0.1, "tag_threshold": 1.0}
    assert "Apache-2.0" in info.extra["licence"] and "AP at 448" in info.extra["metrics"]
    network, meta = load_network(model.with_suffix(".safetensors"))
    assert meta.weights_sha256 == info.weights_sha256 != ""

    # The graph's peaks are those of the original's maps.
    openvino = pytest.importorskip("openvino", reason="the original runs in OpenVINO")
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    xml = folder / "human-pose-estimation-0007.xml"
    original = openvino.Core().compile_model(str(xml), "CPU", options)
    image = np.random.default_rng(5).integers(0, 256, (448, 448, 3), np.uint8)
    planes = image.transpose(2, 0, 1)[None].astype(np.float32)
    heat, tags = (out[0] for out in original({0: planes}).values())
    nothing = np.zeros((34, 112, 112), np.float32)
    expected = find_peaks(nothing, np.abs(heat) * 2, info.coordinates)
    runtime = open_runtime(model)
    found = runtime(image[None])[0]
    compared = 0
    for k in range(17):
        ours = {tuple(row[4:6].astype(int)): row for row in found[k] if row[0] > 0}
        theirs = {tuple(row[4:6].astype(int)): row for row in expected[k] if row[0] > 0}
        both = ours.keys() & theirs.keys()
        # The last place may go to another of almost the same value.
        assert len(both) >= max(len(ours), len(theirs)) - 1
        compared += len(both)
        for x, y in both:
            a, b = ours[x, y], theirs[x, y]
            assert a[0] == pytest.approx(b[0], rel=1e-4)
            assert a[3] == pytest.approx(tags[k, y, x, 0], rel=1e-3, abs=1e-4)
            if b[6:].all():  # the original has zeros for what is negative
                np.testing.assert_array_equal(a[1:3], b[1:3])
    assert compared > 250
    PoseEstimator(runtime)(image)  # and they are grouped without complaint

    # Again: there is nothing to do, and nothing is fetched.
    publish(monkeypatch, folder, "http://127.0.0.1:9")
    before = model.stat()
    assert main(["get-weights", "--phi", "-2"]) == 0 and model.stat() == before


def test_files_that_were_brought_are_taken_under_any_name(
    folder, home, monkeypatch, capsys, tmp_path
) -> None:
    publish(monkeypatch, folder, "http://127.0.0.1:9")
    graph, weights = tmp_path / "one", tmp_path / "two"
    graph.write_bytes((folder / "human-pose-estimation-0007.xml").read_bytes())
    weights.write_bytes((folder / "human-pose-estimation-0007.bin").read_bytes())
    out = tmp_path / "new" / "mine.onnx"
    # Missing, damaged, and of another network: refused by name, and nothing is made.
    for files, message in (
        ([graph], "human-pose-estimation-0007.bin is missing"),
        ([weights], "human-pose-estimation-0007.xml is missing"),
        ([graph, tmp_path / "absent"], "no file"),
        ([graph, Path(__file__)], "none of the published files"),
    ):
        assert main(["get-weights", "--from", *map(str, files), "-o", str(out)]) == 2
        assert message in capsys.readouterr().err and not out.parent.exists()
    damaged = bytearray(weights.read_bytes())
    damaged[1000] ^= 1
    weights.write_bytes(damaged)
    assert main(["get-weights", "--from", str(weights), str(graph), "-o", str(out)]) == 2
    assert "SHA-384" in capsys.readouterr().err and not out.parent.exists()
    assert graph.exists() and weights.exists()  # they are the user's


def test_without_internet_it_says_what_to_bring(folder, home, monkeypatch, capsys) -> None:
    publish(monkeypatch, folder, "http://ehrnet.invalid")
    assert main(["get-weights"]) == 2
    said = capsys.readouterr().err
    assert "\r" not in said, "a bar, although nobody watches"
    names = [f"human-pose-estimation-0007.{suffix}" for suffix in ("xml", "bin")]
    assert all(f"http://ehrnet.invalid/{name}" in said for name in names)
    assert f"ehrnet get-weights --phi -2 --from {' '.join(names)}" in said
    assert "Behind a proxy, set https_proxy" in said
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": "http://me:secret@p:1"})
    assert main(["get-weights"]) == 2
    said = capsys.readouterr().err
    assert "the proxy p:1 (" in said and "Check https_proxy" in said and "secret" not in said
    assert tree(home) == []


def test_a_model_of_the_user_is_not_replaced(folder, home, monkeypatch, capsys, h4_model) -> None:
    publish(monkeypatch, folder, "http://127.0.0.1:9")
    model = home / "share/ehrnet/models/H-2.onnx"
    model.parent.mkdir(parents=True)
    for content, name in ((h4_model.read_bytes(), "test-random"), (b"x", "not readable")):
        model.write_bytes(content)
        assert main(["get-weights"]) == 2
        said = capsys.readouterr().err
        assert "--replace" in said and name in said and model.read_bytes() == content
    model.rename(model.with_suffix(".safetensors"))  # a checkpoint of that name is one, too
    assert main(["get-weights"]) == 2
    assert "--replace" in capsys.readouterr().err
    assert tree(home / "share")[-1].endswith("H-2.safetensors")
    assert model.with_suffix(".safetensors").read_bytes() == content


def test_another_network_in_the_files_leaves_nothing(
    folder, home, monkeypatch, capsys, tmp_path
) -> None:
    """Right bytes by the table, but not the network that the import knows."""
    other = tmp_path / "other"
    other.mkdir()
    for suffix in ("xml", "bin"):
        name = f"human-pose-estimation-0007.{suffix}"
        (other / name).write_bytes((folder / name).read_bytes().replace(b'"Swish"', b'"Mish"'))
    publish(monkeypatch, other, "http://127.0.0.1:9")
    files = [str(other / f"human-pose-estimation-0007.{s}") for s in ("xml", "bin")]
    assert main(["get-weights", "--from", *files]) == 2
    assert "no Swish at layer" in capsys.readouterr().err
    assert tree(home / "share") == []


@pytest.mark.parametrize(
    ("out", "said"),
    [("/proc/x.onnx", "/proc takes no file"), ("/dev/null/x.onnx", "no folder /dev/null")],
)
def test_a_target_that_takes_nothing_is_told_before_the_fetching(
    out, said, folder, home, monkeypatch, capsys
) -> None:
    publish(monkeypatch, folder, "http://127.0.0.1:9")
    assert main(["get-weights", "-o", out]) == 2
    assert f"{out} cannot be written" in (told := capsys.readouterr().err) and said in told
    assert not cache_folder().exists()


@pytest.mark.parametrize("closed", ["share/ehrnet/models", "share/ehrnet", "cache/ehrnet"])
def test_a_folder_that_is_closed_is_one_sentence(closed, home) -> None:
    command = bound()
    (home / closed).mkdir(parents=True)
    (home / closed).chmod(0)
    words = [sys.executable, "-m", "ehrnet_ros.cli", "get-weights"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT)
    (home / closed).chmod(0o700)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ehrnet: {home / closed}") and "Permission denied" in last


def test_without_torch_it_says_what_to_install(folder, address, home, monkeypatch, capsys) -> None:
    import sys

    publish(monkeypatch, folder, address)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["get-weights"]) == 2
    said = capsys.readouterr().err
    assert "needs torch" in said and "'.[export]'" in said and "H-2.onnx" in said
    assert not cache_folder().exists()  # nothing was fetched in vain


@pytest.mark.parametrize("phi", ["0", "-4"])
def test_variants_that_nobody_publishes(phi: str, capsys) -> None:
    assert main(["get-weights", "--phi", phi]) == 2
    assert "there are some for phi -2" in capsys.readouterr().err


def test_the_table_is_the_publishers() -> None:
    """As in the release's own description of the model."""
    graph, weights = FIRST.files
    assert weights.size == 32601720 and weights.sha384.startswith("5711b763909990db35f20ce3dc8")
    assert graph.size == 850306 and graph.sha384.startswith("52b32d13c47ce42db642283128b439ee9")
    assert all(len(file.sha384) == 96 for file in (*FIRST.graphs, weights))
    assert all(f.url.startswith("https://storage.openvinotoolkit.org/") for f in FIRST.files)
