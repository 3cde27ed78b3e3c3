"""A file is written whole, proved and described, or not at all."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import resource
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import dots  # noqa: E402

from ehrnet_model import __version__  # noqa: E402
from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.inference.models import find_model  # noqa: E402
from ehrnet_model.inference.opening import open_runtime  # noqa: E402
from ehrnet_model.inference.runtime import ModelInfo, model_info  # noqa: E402
from ehrnet_model.network import export as exporter  # noqa: E402
from ehrnet_model.network.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from ehrnet_model.network.export import export_onnx, parity_shapes  # noqa: E402
from ehrnet_ros.cli import export  # noqa: E402

INFO = ModelInfo(variant="H-4", phi=-4, input_size=256)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([*arguments]))


class SizeDependent(torch.nn.Module):
    """A network that tracing gets wrong: it looks at the size in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.dots = dots.make_dots_network()

    def forward(self, x):
        lowres, highres = self.dots(x)
        return lowres, highres * (0.5 if x.shape[3] > 200 else 1.0)


class Broken(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dots = dots.make_dots_network()
        self.dots.along[4] = float("nan")

    def forward(self, x):
        return self.dots(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [(SizeDependent, "differs from the network"), (Broken, "the weights are broken")],
)
def test_a_graph_that_is_not_the_network_is_not_written(network, message, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was here before")
    with pytest.raises(EhrnetError, match=message):
        export_onnx(network().eval(), path, INFO)
    assert path.read_bytes() == b"what was here before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


class NeverTraced(torch.nn.Module):
    def forward(self, x):
        raise AssertionError("it was traced")


def test_a_folder_that_takes_no_files_is_told_before_the_work() -> None:
    with pytest.raises(EhrnetError, match="/proc/m.onnx cannot be written: /proc takes no file"):
        export_onnx(NeverTraced(), Path("/proc/m.onnx"), INFO)


def test_targets_and_sizes_are_looked_at_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(EhrnetError, match="d.onnx cannot be written: it is a folder"):
        run("--weights", "missing.safetensors", "-o", str(tmp_path / "d.onnx"))
    with pytest.raises(EhrnetError, match="d.onnx cannot be written: it is a folder"):
        export_onnx(NeverTraced(), tmp_path / "d.onnx", INFO)
    (tmp_path / "m.answers.npz").mkdir()
    with pytest.raises(EhrnetError, match="m.answers.npz cannot be written: it is a folder"):
        export_onnx(NeverTraced(), tmp_path / "m.onnx", INFO)
    with pytest.raises(EhrnetError, match="input size 256x25600 is too large"):
        export_onnx(NeverTraced(), tmp_path / "e.onnx", INFO, sizes=["4:3", "100:1"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.onnx", "m.answers.npz"]


@pytest.mark.parametrize("before", [None, b"of an earlier model"])
def test_answers_do_not_stay_where_the_model_could_not_be_written(
    before, tmp_path: Path, monkeypatch
) -> None:
    if before is not None:
        (tmp_path / "m.answers.npz").write_bytes(before)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter, "write_atomically", full)
    with pytest.raises(EhrnetError, match="No space left on device; make room"):
        export_onnx(dots.make_dots_network(), tmp_path / "m.onnx", INFO)
    left = [p.name for p in tmp_path.iterdir()]
    assert left == ([] if before is None else ["m.answers.npz"])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on a process's files stands for the disk's end: the same failing write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(EhrnetError, match="cannot write .*m.onnx: File too large; make room"):
            export_onnx(dots.make_dots_network(), tmp_path / "m.onnx", INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_the_reference_convention_is_exported_and_described(tmp_path: Path) -> None:
    info = dataclasses.replace(INFO, coordinates="reference")
    path = export_onnx(dots.make_dots_network(), tmp_path / "dots.onnx", info)
    assert model_info(path).coordinates == "reference"
    person = dots.figure((192, 192), 300)
    image = dots.draw_people((384, 384), person[None])
    peaks = open_runtime(path)(image[None])[0]
    cells, xy = peaks[:, 0, 4:6], peaks[:, 0, 1:3]
    # Quarter cells around 2 i + 1.
    assert set(np.unique(xy - 2 * cells)) <= {0.5, 1.0, 1.5}


def test_metadata_carries_what_the_checkpoint_says(h4_weights: Path, h4_model: Path) -> None:
    info, (_, meta) = model_info(h4_model), load_checkpoint(h4_weights)
    assert (info.variant, info.phi, info.input_size) == ("H-4", -4, 384)
    assert info.weights_sha256 == meta.weights_sha256
    assert (info.weights_name, info.quality) == ("test-random", "random")
    # The checkpoint's own, and what the command was given beside.
    assert info.decode == {"keypoint_threshold": 0.25, "refine": False}
    assert info.extra["licence"] == "none"
    assert info.version == __version__


@pytest.mark.parametrize("size", [384, 416, 480, 512])
def test_parity_covers_square_wide_tall_small_and_batches(size: int) -> None:
    shapes = parity_shapes(size)
    assert all(v % 32 == 0 for _, h, w in shapes for v in (h, w))
    assert (1, size, size) in shapes
    ratios = [w / h for _, h, w in shapes]
    assert max(ratios) >= 16 / 9 and min(ratios) < 0.8
    assert {n for n, _, _ in shapes} == {1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phi", "-4", "-o", "m.onnx"], "give --weights FILE .* or --random"),
        (["--phi", "5", "--random", "-o", "m.onnx"], "phi 5 does not exist"),
        (["--random", "-o", "m.onnx"], "Give --phi"),
        (["--phi", "-4", "--random", "-o", "m.pt"], "should end in .onnx"),
        (["--weights", "missing.safetensors", "-o", "m.onnx"], "no file missing.safetensors"),
        (["--phi", "-4", "--random", "-o", "nowhere/m.onnx"], "there is no folder nowhere"),
        (
            ["--phi", "-4", "--random", "-o", "m.onnx", "--short-side", "100"],
            "100x100 does not work",
        ),
        (
            # Before the weights are looked at, let alone traced.
            ["--weights", "missing.safetensors", "--precision", "int8", "-o", "m.onnx"],
            "INT8 needs pictures .* --images",
        ),
        # Neither are these: the weights are missing, too.
        (["--weights", "missing.safetensors", "-o", "m.onnx", "--size", "4:3", "7x7"], "7x7 does"),
        (["--weights", "missing.safetensors", "-o", "/proc/m.onnx"], "/proc takes no file"),
        (["--weights", "missing.safetensors", "-o", "/dev/null/m.onnx"], "no folder /dev/null"),
        (["--phi", "-4", "--random", "-o", "m.onnx", "--smooth", "9"], "cells from 0 to 4"),
        (["--phi", "-4", "--random", "-o", "m.onnx", "--smooth", "nan"], "cells from 0 to 4"),
    ],
)
def test_wrong_use_is_answered_with_what_to_do(arguments, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EhrnetError, match=message):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_short_side_that_suits_the_weights_is_stored(
    h4_weights: Path, tmp_path: Path, capsys
) -> None:
    run("--weights", str(h4_weights), "--short-side", "160", "-o", str(tmp_path / "m.onnx"))
    assert model_info(tmp_path / "m.onnx").input_size == 160
    stages = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert stages == ["exporting", "tracing", "checking", "computing"]


def test_the_folder_where_models_are_looked_for_is_made(
    h4_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    mine = tmp_path / "data" / "ehrnet" / "models" / "H-4.onnx"
    run("--weights", str(h4_weights), "-o", str(mine))
    assert find_model(-4) == mine
    with pytest.raises(EhrnetError, match="there is no folder .*other"):
        run("--weights", str(h4_weights), "-o", str(tmp_path / "other" / "H-4.onnx"))


def test_smoothing_belongs_to_the_weights(h4_weights: Path, tmp_path: Path) -> None:
    """The graph smooths as they say, or as the command says; what it gives is said by its file."""
    state, meta = load_checkpoint(h4_weights)
    smooth = tmp_path / "smooth.safetensors"
    save_checkpoint(smooth, state, dataclasses.replace(meta, smooth=1.5))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    given = {}
    for weights, words in ((h4_weights, ()), (smooth, ()), (smooth, ("--smooth", "0"))):
        run("--weights", str(weights), *words, "-o", str(tmp_path / "m.onnx"))
        with contextlib.closing(open_runtime(tmp_path / "m.onnx", "onnxruntime")) as runtime:
            given[weights, words] = runtime.info.smooth, runtime(image)
        if not words:
            with contextlib.closing(open_runtime(weights, "torch")) as runtime:
                found = runtime(image)[..., 0]
            np.testing.assert_allclose(given[weights, words][1][..., 0], found, atol=1e-3)
    assert [smoothed for smoothed, _ in given.values()] == [0, 1.5, 0]
    plain, smoothed, again = (peaks for _, peaks in given.values())
    np.testing.assert_array_equal(again, plain)
    assert np.abs(smoothed[..., 0] - plain[..., 0]).max() > 1e-3
    with pytest.raises(EhrnetError, match="smoothed by -1 cells"):
        dataclasses.replace(meta, smooth=-1)


def test_weights_of_another_variant_than_asked_for(h4_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EhrnetError, match="weights of H-4, not of H-3: .* --phi -4"):
        run("--phi", "-3", "--weights", str(h4_weights), "-o", str(tmp_path / "m.onnx"))
