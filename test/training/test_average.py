"""The mean of several runs' weights: tools/average.py, as a process."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from ehrnet_model.network.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from ehrnet_model.training.sides import widen  # noqa: E402

ROOT = Path(__file__).parents[2]


def average(*words):
    command = [sys.executable, str(ROOT / "tools" / "average.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def runs(h4_weights, tmp_path):
    """Two checkpoints of one variant: random weights, and these with something added."""
    state, about = load_checkpoint(h4_weights)
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for number, file in enumerate(files):
        moved = {k: v + number if v.is_floating_point() else v for k, v in state.items()}
        named = dataclasses.replace(about, weights_name=f"run-{number}", recipe={"hours": number})
        save_checkpoint(file, moved, named)
    return state, files


def test_each_weight_is_the_mean_and_the_card_says_of_what(runs, tmp_path):
    state, files = runs
    out = tmp_path / "mean.safetensors"
    done = average(*files, "-o", out, "--side-gain", "ankles=4", "--short-side", 192, "--smooth", 1)
    assert done.returncode == 0, done.stderr
    mean, about = load_checkpoint(out)
    half = {k: v + 0.5 if v.is_floating_point() else v for k, v in state.items()}
    for key, value in widen(half, {"ankles": 4}).items():
        torch.testing.assert_close(mean[key], value)
    assert about.weights_name == "run-1-mean2" and (about.input_size, about.smooth) == (192, 1)
    gains = {"side_gain": {"ankles": 4}}
    assert about.recipe == {"hours": 1, "mean_of": ["run-0", "run-1"], **gains}
    # What has gains would have them twice.
    done = average(out, files[0], "-o", tmp_path / "again.safetensors")
    assert done.returncode == 2 and "mean.safetensors has gains of sides" in done.stderr


def test_one_file_is_no_mean(runs, tmp_path):
    done = average(runs[1][0], "-o", tmp_path / "mean.safetensors")
    assert (done.returncode, done.stderr) == (2, "average: a mean takes two files or more.\n")
    assert not (tmp_path / "mean.safetensors").exists()
