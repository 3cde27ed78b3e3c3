"""Windows shown again: against the reference that draws the changed plan, and across resumes."""

import csv
import dataclasses
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.training import echo
from ehrnet_model.training.batches import collate
from ehrnet_model.training.hardware import Hardware
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.plans import WindowPlan
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.states import load_state
from ehrnet_model.training.trainer import Trainer
from ehrnet_model.training.windows import draw

KINDS = {
    "single": SampleOptions(background=0.1, mosaic=0.0, pair=0.0, grey=0.3, fill=(0.5, 1.0)),
    "mosaic": SampleOptions(background=0.2, mosaic=1.0),
    "pair": SampleOptions(background=0.0, mosaic=0.0, pair=1.0),
    "cut": SampleOptions(cut=1.0, background=0.0, mosaic=0.2, rotate=0.5, fill=(0.2, 1.0)),
}


def changed_plans(plans, change):
    """The plans with their matrices, mirrors and colours as the change says, scene by scene."""
    out, scene = [], 0
    for plan in plans:
        parts = []
        for part in plan.scenes:
            back = np.vstack([change.back[scene].double().numpy(), [0, 0, 1]])
            first = np.array([[1, 0, part.columns[0]], [0, 1, 0], [0, 0, 1]], float)
            whole = first @ np.linalg.inv(back) @ np.linalg.inv(first)
            gamma, *gain, shift = change.tone[scene].double().numpy()
            values = np.arange(256)[:, None] / 255
            table = np.clip((values**gamma - 0.5) * gain + 0.5 + shift, 0, 1) * 255 + 0.5
            parts.append(
                dataclasses.replace(
                    part,
                    matrix=(whole @ np.vstack([part.matrix, [0, 0, 1]]))[:2],
                    mirror=bool(part.mirror ^ (np.linalg.det(back[:2, :2]) < 0)),
                    table=table.astype(np.uint8),
                    grey=bool(change.grey[scene]),
                )
            )
            scene += 1
        out.append(WindowPlan(plan.size, tuple(parts)))
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 160])
def test_shown_again_is_what_the_reference_draws(sampler, painter, packs, kind, size):
    options = KINDS[kind]
    plans = [sampler.plan(100 * size + i, size, options) for i in range(16)]
    batch = painter.gather(plans)
    change = echo.change(batch, options, np.random.default_rng(size))
    shown = echo.again(batch, change)
    drawn = painter(shown)
    windows = [draw(plan, packs) for plan in changed_plans(plans, change)]
    wanted = collate(windows)
    apart = np.abs(
        painter.pictures(shown).numpy().astype(int) - np.stack([w.picture for w in windows])
    )
    # Pictures are halved for the size of the first showing; where it was nearly enough for once
    # more or less, they differ by a little everywhere.
    assert np.quantile(apart, 0.9) <= 2 and apart.mean() < 1
    for name in ("low", "high"):
        torch.testing.assert_close(getattr(drawn, name), getattr(wanted, name), atol=1e-3, rtol=0)
    for name in ("tag_index", "tag_person", "image_of_person"):
        assert torch.equal(getattr(drawn, name), getattr(wanted, name)), name
    for name in ("low_mask", "high_mask"):
        # Regions are moved to the nearest cell; what comes in beyond the edge may be without loss.
        one, other = getattr(drawn, name).bool(), getattr(wanted, name).bool()
        assert (one & ~other).float().mean() < 0.01 and (other & ~one).float().mean() < 0.05
        free = shown.unbounded[shown.tiles].all(-1).all(-1)
        assert torch.equal(one[free], other[free])
    assert not torch.equal(drawn.images, painter(batch).images)


def test_changes_are_small_and_half_of_them_mirrors(sampler, painter):
    options = SampleOptions(mosaic=1.0, rotation=3.0)
    batch = painter.gather([sampler.plan(i, 64, options) for i in range(200)])
    change = echo.change(batch, options, np.random.default_rng(0))
    linear = change.back[..., :2].double().numpy()
    scale = np.sqrt(np.abs(np.linalg.det(linear)))
    assert 0.45 < (np.linalg.det(linear) < 0).mean() < 0.55
    assert 0.9 < scale.min() < 0.94 and 1.06 < scale.max() < 1.1
    turned = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 1, 1]))
    assert 2.5 < np.abs(turned).max() <= 3.0 + 1e-4  # no more than the options turn windows
    unturned = dataclasses.replace(options, rotate=0.0)
    change = echo.change(batch, unturned, np.random.default_rng(0))
    assert np.abs(change.back[:, 0, 1].numpy()).max() < 1e-6


@pytest.mark.parametrize("times", [1, 2, 5])
def test_every_batch_is_shown_so_often_and_far_apart(times):
    steps = list(itertools.islice(echo.order(0, times), 100 * times))
    begun = echo.APART * (times - 1)
    seen = Counter(steps)
    for batch in range(begun, 100 - begun):
        assert [seen[batch, showing] for showing in range(times)] == [1] * times
        at = [step for step, (number, _) in enumerate(steps) if number == batch]
        assert set(np.diff(at)) <= {echo.APART * times + 1}
    assert all(number == step // times for step, (number, _) in enumerate(steps[: times * 8]))


@given(st.integers(0, 400), st.integers(1, 9))
def test_what_is_kept_is_all_that_is_named(step, times):
    rest = [number for number, _ in itertools.islice(echo.order(step, times), 20 * times)]
    assert min(rest) == echo.oldest(step, times)
    assert list(itertools.islice(echo.order(0, times), step + 5))[step:] == list(
        itertools.islice(echo.order(step, times), 5)
    )


def test_echoes_reach_another_process_whole(sampler, painter):
    options = KINDS["pair"]
    plans = painter.gather([sampler.plan(i, 64, options) for i in range(3)])
    rng = np.random.default_rng(1)
    sent = echo.Echoes(plans, tuple(echo.change(plans, options, rng) for _ in range(2))).to_send()
    got = pickle.loads(pickle.dumps(sent))
    for showing in range(3):
        one, other = painter(sent.shown(showing)), painter(got.shown(showing))
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(other, name)), name
    assert {t.device.type for t in vars(got.to(torch.device("meta")).shown(1)).values()
            if isinstance(t, torch.Tensor)} == {"meta"}  # fmt: skip


def options_of(pack_file, **more):
    values = {
        "packs": ((str(pack_file), 1.0),), "steps": 9, "windows": ((64, 2, 1.0), (96, 1, 1.0)),
        "log_steps": 3, "warmup_steps": 2, "bf16": False, "holdout": 0.0, "echo": 3, "seed": 5,
    }  # fmt: skip
    return TrainOptions(**{**values, **more})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_goes_on_shows_what_the_whole_one_does(
    pack_file, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr(echo, "APART", 1)
    hardware = Hardware(windows_on="device", workers=workers)
    options = options_of(pack_file)
    Trainer(options, tmp_path / "whole", hardware=hardware).run()
    for _ in range(2):
        Trainer(options, tmp_path / "parts", hardware=hardware).run(steps=4)
    Trainer(options, tmp_path / "parts", hardware=hardware).run()
    whole, parts = (load_state(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 9 and whole["images"] == parts["images"]
    for name, value in whole["network"].items():
        assert torch.equal(value, parts["network"][name]), name
    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").open()))
    # A batch is made for every three steps, so for each line.
    assert all(0 < float(row["making_cpu_ms"]) <= 1.5 * float(row["making_ms"]) for row in rows)


def test_windows_shown_again_are_other_ones(pack_file, tmp_path):
    hardware = Hardware(windows_on="device")
    trainer = Trainer(options_of(pack_file, windows=((64, 2, 1.0),)), tmp_path, hardware=hardware)
    batches = trainer.batches()
    images = [next(batches).images for _ in range(6)]
    batches.close()
    for one, other in itertools.combinations(images, 2):
        assert (one - other).abs().max() > 0.05


def test_where_nothing_can_be_shown_again_is_said(pack_file, tmp_path):
    with pytest.raises(EhrnetError, match="--windows-on device"):
        Trainer(options_of(pack_file), tmp_path, hardware=Hardware(windows_on="host"))
    with pytest.raises(EhrnetError, match="leave --echo out"):
        options_of(pack_file, sample=SampleOptions(published=True))
    with pytest.raises(EhrnetError, match="echo"):
        options_of(pack_file, echo=0)
