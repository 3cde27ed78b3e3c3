"""Weights compared, and their mean: tools/compare_weights.py and average.py, as processes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from ehrnet_model.held_back import held_back  # noqa: E402
from ehrnet_model.network.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from ehrnet_model.training.pack import write_pack  # noqa: E402
from ehrnet_model.training.sides import widen  # noqa: E402

ROOT = Path(__file__).parents[2]


def run(tool, *words):
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, words)]
    # Two threads on a busy machine wait for each other most of the time.
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=one)


def average(*words):
    return run("average.py", *words)


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


@pytest.fixture
def packs(figures, tmp_path):
    """The figures under ids that training does not hold back, and under those that it does."""
    files = []
    for kept in (False, True):
        data = json.loads((figures / "figures.json").read_text())
        ids = [i for i in range(9999) if held_back(i, 0.03) == kept][: len(data["images"])]
        for image in data["images"]:
            image["id"] = ids[image["id"]]
        for ann in data["annotations"]:
            ann["image_id"] = ids[ann["image_id"]]
        (tmp_path / "some.json").write_text(json.dumps(data))
        files.append(tmp_path / f"{'held' if kept else 'trained'}.pack")
        write_pack(files[-1], tmp_path / "some.json", [figures])
    return files


def test_weights_are_compared_on_what_is_held_back(runs, packs, tmp_path):
    """The same weights are no better, with gains of sides neither; others differ."""
    state, (one, two) = runs
    about = load_checkpoint(one)[1]
    gained = tmp_path / "gained.safetensors"
    gains = {"knees": 2.0}
    save_checkpoint(
        gained,
        widen(state, gains),
        dataclasses.replace(about, weights_name="g", recipe={"side_gain": gains}),
    )
    moved = {k: v * 1.1 if k.startswith("head") else v for k, v in state.items()}
    save_checkpoint(two, moved, dataclasses.replace(about, recipe={}))
    done = run("compare_weights.py", one, gained, two, "--pack", packs[0], f"{packs[1]}:0.5")
    assert done.returncode == 0, done.stderr
    apart = [float(re.search(r"; (\S+) \+- ", line)[1]) for line in done.stdout.splitlines()]
    losses = [float(re.search(r"loss (\S+)", line)[1]) for line in done.stdout.splitlines()]
    assert apart[0] == 0 and abs(apart[1]) < 1e-3 * losses[0]
    assert apart[2] == pytest.approx(losses[2] - losses[0], abs=2e-4) and apart[2] != 0


def test_packs_that_hold_nobody_back_compare_nothing(runs, packs):
    done = run("compare_weights.py", runs[1][0], "--pack", packs[0])
    assert done.returncode == 2
    assert done.stderr == "compare_weights: the packs hold nobody whom training held back.\n"
