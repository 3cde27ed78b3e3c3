"""What all rooms' tests share: `test/support` is importable, and its model is exported once."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))
# For `benchmarks`; last, so that no folder here hides a package.
sys.path.append(str(Path(__file__).parents[1]))


# A shell starts background jobs deaf to Ctrl-C, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def dots_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that finds the keypoints `dots.draw_people` drew; see test/support/dots.py."""
    pytest.importorskip("torch", reason="exporting the test model needs torch")
    pytest.importorskip("onnx", reason="exporting the test model needs onnx")
    import dots

    return dots.export_dots(tmp_path_factory.mktemp("dots") / "dots.onnx")


@pytest.fixture(scope="session")
def h4_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of H-4 with random weights; see test/support/models.py."""
    pytest.importorskip("torch", reason="a random network needs torch")
    pytest.importorskip("safetensors", reason="checkpoints need safetensors")
    import models

    return models.save_random_h4(tmp_path_factory.mktemp("h4"))


@pytest.fixture(scope="session")
def h4_model(h4_weights: Path) -> Path:
    """The ONNX file `ehrnet export` makes of h4_weights."""
    pytest.importorskip("onnx", reason="exporting needs onnx")
    import models

    return models.export_with_command(h4_weights)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures; see test/support/models.py."""
    import models

    return models.draw_pictures(tmp_path_factory.mktemp("pictures"))


def _lowered(precision: str, weights: Path, pictures: Path, folder: Path) -> Path:
    pytest.importorskip("onnx", reason="exporting needs onnx")
    import models

    options = ("--precision", precision, "--images", str(pictures))
    return models.export_with_command(weights, folder / f"h4.{precision}.onnx", *options)


@pytest.fixture(scope="session")
def fp16_model(h4_weights: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """h4_weights in float16, checked with pictures."""
    return _lowered("fp16", h4_weights, pictures, tmp_path_factory.mktemp("fp16"))


@pytest.fixture(scope="session")
def int8_model(h4_weights: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """h4_weights in INT8, calibrated on pictures."""
    return _lowered("int8", h4_weights, pictures, tmp_path_factory.mktemp("int8"))
