import dataclasses

import numpy as np
import pytest
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.held_back import held_back
from ehrnet_model.network.checkpoint import load_checkpoint, load_network
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training import holdout
from ehrnet_model.training.batches import collate
from ehrnet_model.training.holdout import (
    PARTS,
    HeldBackPerson,
    HeldBackWindows,
    box_oks,
    held_back_people,
    partly_seen_people,
)
from ehrnet_model.training.init_lite0 import init_from_lite0
from ehrnet_model.training.labels import POSITIVE
from ehrnet_model.training.losses import LossOptions
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.presets import preset
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.states import load_state, read_compact, save_state
from ehrnet_model.training.trainer import Trainer
from ehrnet_model.variants import Variant
from ehrnet_ros.cli import main

STILL = SampleOptions(background=0.0, mosaic=0.0, rotate=0.0, colour=0.0, grey=0.0, group=0.0)


def small(pack_file, **more):
    defaults = dict(
        packs=((str(pack_file), 1.0),),
        steps=6,
        windows=((64, 2, 1.0), (96, 1, 1.0)),
        warmup_steps=2,
        holdout=0.0,
        bf16=False,
        log_steps=2,
        sample=STILL,
    )
    return TrainOptions(**{**defaults, **more})


def test_an_interrupted_run_ends_like_an_uninterrupted_one(pack_file, tmp_path):
    options = small(pack_file, drop_connect=0.3)
    Trainer(options, tmp_path / "whole").run()
    Trainer(options, tmp_path / "parts").run(steps=3)
    Trainer(options, tmp_path / "parts").run()
    whole, parts = load_state(tmp_path / "whole/state.pt"), load_state(tmp_path / "parts/state.pt")
    assert whole["step"] == parts["step"] == 6 and whole["images"] == parts["images"]
    for key in ("network", "average"):
        for name, value in whole[key].items():
            torch.testing.assert_close(parts[key][name], value, rtol=0, atol=0)
    assert (tmp_path / "parts/log.csv").read_text().startswith("step,images")


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_is_used_where_the_device_has_it(pack_file, tmp_path, monkeypatch, there):
    """The same options on either machine, so that a run may go on on another one."""
    monkeypatch.setattr("ehrnet_model.training.trainer.has_bfloat16", lambda device: there)
    said: list[str] = []
    runs = [Trainer(small(pack_file, bf16=bf16), tmp_path / str(bf16)) for bf16 in (True, False)]
    for run in runs:
        run.run(said.append, steps=1)
    weights = [run.network.state_dict() for run in runs]
    same = all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert same is not there
    assert ["CPU has no bfloat16" in line for line in said].count(True) == (0 if there else 1)


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_compact_state_carries_a_run_on(pack_file, tmp_path, optimiser):
    options = small(pack_file, optimiser=optimiser)
    first = Trainer(options, tmp_path / "first")
    first.run(steps=3)
    first.save_compact(tmp_path / "run.resume.safetensors")
    (tmp_path / "second").mkdir()
    save_state(read_compact(tmp_path / "run.resume.safetensors"), tmp_path / "second/state.pt")
    second = Trainer(options, tmp_path / "second")
    assert second.step == 3 and second.images == first.images
    for name, value in first.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], value, rtol=0, atol=0)
    kept, carried = first.optimiser.state_dict(), second.optimiser.state_dict()
    assert len(kept["state"]) == len(carried["state"])
    for index, moments in kept["state"].items():
        for key, value in moments.items():  # bfloat16 keeps 8 bits
            torch.testing.assert_close(carried["state"][index][key], value, rtol=0.01, atol=1e-30)
    before = {name: value.detach().clone() for name, value in first.network.named_parameters()}
    for run in (first, second):
        run.run(steps=1)
    moved, apart = [], []
    for one, (name, other) in zip(
        first.network.parameters(), second.network.named_parameters(), strict=True
    ):
        moved.append((one - before[name]).detach().norm())
        apart.append((one - other).detach().norm())
    # The next update is the same but for what the bfloat16 moments round.
    assert torch.stack(apart).norm() < 0.1 * torch.stack(moved).norm()
    second.run()
    assert second.step == 6
    (tmp_path / "cut").write_bytes((tmp_path / "run.resume.safetensors").read_bytes()[:1000])
    with pytest.raises(EhrnetError, match="not a compact training state"):
        read_compact(tmp_path / "cut")


def test_without_a_run_there_is_nothing_to_save(pack_file, tmp_path, capsys):
    where = ["train", "--device", "cpu", "--pack", str(pack_file), "--holdout", "0", "--save-only"]
    assert main([*where, "--out", str(tmp_path / "none")]) == 2
    assert "none holds no run" in capsys.readouterr().err and not list(tmp_path.iterdir())
    packs = ((str(pack_file), 1.0),)
    options = dataclasses.replace(preset("ours", -4), packs=packs, holdout=0.0)
    Trainer(options, tmp_path / "run").save_compact(tmp_path / "a.resume.safetensors")
    unpack = ["--out", str(tmp_path / "new"), "--unpack", str(tmp_path / "a.resume.safetensors")]
    assert main([*where, *unpack]) == 0
    assert load_network(tmp_path / "new/H-4.safetensors", "H-4")
    assert main([*where, *unpack]) == 2
    assert "new already holds a run: leave --unpack out" in capsys.readouterr().err


def test_weights_of_a_run_are_a_checkpoint(pack_file, tmp_path):
    trainer = Trainer(small(pack_file), tmp_path)
    trainer.run(steps=2)
    trainer.save_weights(tmp_path / "w.safetensors", {"tag_threshold": 0.5}, {"AP": 0.0})
    network, meta = load_network(tmp_path / "w.safetensors", "H-4")
    assert meta.quality == "preview" and meta.decode == {"tag_threshold": 0.5}
    for name, value in trainer.average.state.items():
        torch.testing.assert_close(network.state_dict()[name], value)
    start = small(pack_file, start=str(tmp_path / "w.safetensors"))
    other = Trainer(start, tmp_path / "other")
    assert other.step == 0
    for name, value in trainer.average.state.items():
        torch.testing.assert_close(other.network.state_dict()[name], value)
    other.run(minutes=1e-6)  # one step tells that the time is up
    assert other.step == 1 and load_state(tmp_path / "other/state.pt")["step"] == 1


def test_left_and_right_can_be_made_to_differ_more_in_what_is_written(pack_file, tmp_path):
    trainer = Trainer(small(pack_file), tmp_path)
    trainer.save_weights(tmp_path / "as_is.safetensors", {}, {})
    gain = {"knees": 2.0, "ankles": 5.0}
    trainer.save_weights(tmp_path / "wide.safetensors", {}, {}, side_gain=gain)
    plain, meta = load_network(tmp_path / "as_is.safetensors", "H-4")
    wide, wide_meta = load_network(tmp_path / "wide.safetensors", "H-4")
    assert "side_gain" not in meta.recipe and wide_meta.recipe["side_gain"] == gain
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.eval()(picture), wide.eval()(picture)
    assert (before[0][:, 15] - before[0][:, 16]).abs().max() > 1e-4
    for maps, wider in zip(before, after, strict=True):
        for left, factor in ((13, 2), (15, 5)):
            (a, b), (c, d) = maps[0, left : left + 2], wider[0, left : left + 2]
            torch.testing.assert_close(c - d, factor * (a - b), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(c + d, a + b, rtol=1e-3, atol=1e-5)
        rest = [k for k in range(maps.shape[1]) if k not in (13, 14, 15, 16)]
        torch.testing.assert_close(wider[:, rest], maps[:, rest])
    with pytest.raises(EhrnetError, match="no pair 'toes'.*ankles"):
        trainer.finished({"toes": 2})
    with pytest.raises(EhrnetError, match="knees cannot be 0"):
        trainer.finished({"knees": 0})


def test_a_recipe_counts_what_came_before(pack_file, tmp_path):
    first = Trainer(small(pack_file), tmp_path / "a")
    first.run(steps=2)
    first.save_weights(tmp_path / "a.safetensors", {}, {})
    options = small(pack_file, start=str(tmp_path / "a.safetensors"))
    Trainer(options, tmp_path / "b").run(steps=3)
    (tmp_path / "a.safetensors").unlink()  # the run knows by now
    second = Trainer(options, tmp_path / "b")
    second.save_weights(tmp_path / "b.safetensors", {}, {})
    recipe = load_checkpoint(tmp_path / "b.safetensors")[1].recipe
    assert recipe["images_seen"] == first.images + second.images
    assert recipe["backbone"] == "random"
    assert recipe["last_run"]["images_seen"] == second.images
    assert recipe["last_run"]["started_from"] == "H-4-0k"
    from_state = small(pack_file, start=str(tmp_path / "b/state.pt"))
    third = Trainer(from_state, tmp_path / "c")
    assert third.config["started_from"]["images_seen"] == recipe["images_seen"]
    # And goes on with windows that none before it has seen.
    here, there = (
        next(t.batches()).images for t in (Trainer(small(pack_file), tmp_path / "d"), third)
    )
    again = next(Trainer(small(pack_file), tmp_path / "e").batches()).images
    assert torch.equal(here, again) and not torch.equal(here, there)


def test_a_folder_of_another_run_is_refused(pack_file, rich_pack, tmp_path):
    Trainer(small(pack_file), tmp_path).run(steps=1)
    elsewhere = tmp_path / "moved.pack"
    elsewhere.write_bytes(pack_file.read_bytes())
    assert Trainer(small(elsewhere), tmp_path).step == 1
    elsewhere.write_bytes(rich_pack.read_bytes())
    with pytest.raises(EhrnetError, match="a run on other packs"):
        Trainer(small(elsewhere), tmp_path)
    with pytest.raises(EhrnetError, match=r"other options \(packs\)"):
        Trainer(small(pack_file, packs=((str(pack_file), 0.5),)), tmp_path)
    with pytest.raises(EhrnetError, match="lr"):
        Trainer(small(pack_file, lr=1e-3), tmp_path)
    changed = Trainer(small(pack_file, lr=1e-3, weight_decay=0.5), tmp_path, change=True)
    assert changed.step == 1
    assert {group["weight_decay"] for group in changed.optimiser.param_groups} == {0.0, 0.5}
    with pytest.raises(EhrnetError, match="a run of H-4, which cannot go on as H-3"):
        Trainer(small(pack_file, phi=-3), tmp_path, change=True)
    with pytest.raises(EhrnetError, match="moved.pack cannot be a run folder .File exists"):
        Trainer(small(pack_file), elsewhere)


def test_a_folder_that_cannot_be_written_is_refused(pack_file, tmp_path):
    """As one of another user, which nobody is for root."""
    (tmp_path / "config.json").mkdir()
    with pytest.raises(EhrnetError, match="config.json cannot be written .*choose another place"):
        Trainer(small(pack_file), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_few_pictures_are_learnt(pack_file, tmp_path):
    options = small(pack_file, steps=60, windows=((64, 3, 1.0),), lr=3e-3, warmup_steps=5)
    options = dataclasses.replace(options, loss=LossOptions(peak_weight=0.0))
    trainer = Trainer(options, tmp_path)
    batch = collate([trainer.sampler.sample(i, 64, options.sample) for i in range(3)])
    losses = [trainer.train_step(batch) for _ in range(60)]
    assert float(losses[-1]["rel4"]) < 0.5 < float(losses[0]["rel4"])


def test_a_failed_write_keeps_the_previous_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state({"step": 1}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(EhrnetError, match="previous state is untouched"):
        save_state({"step": 2}, path)
    assert load_state(path)["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_damaged_states_and_bad_options_are_refused(pack_file, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(EhrnetError, match="not a training state"):
        Trainer(small(pack_file), tmp_path)
    with pytest.raises(EhrnetError, match="multiples of 32"):
        Trainer(small(pack_file, windows=((100, 2, 1.0),)), tmp_path / "a")
    with pytest.raises(EhrnetError, match="no data"):
        Trainer(small(pack_file, packs=()), tmp_path / "b")


def lite0_tensors():
    """Random tensors with the names and shapes of a folded EfficientNet-Lite0."""
    rng = np.random.default_rng(0)
    widths, repeats = (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)
    kernels, tensors = (3, 3, 5, 3, 5, 5, 3), {}

    def put(name, *shape):
        scale = (2 / np.prod(shape[1:])) ** 0.5
        tensors[f"{name}.weight"] = (rng.normal(size=shape) * scale).astype(np.float16)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32) * 0.1

    put("stem", 32, 3, 3, 3)
    channels, block = 32, 0
    for stage in range(7):
        for _ in range(repeats[stage]):
            hidden = channels * (1 if block == 0 else 6)
            if block:
                put(f"blocks.{block}.expand", hidden, channels, 1, 1)
            put(f"blocks.{block}.dw", hidden, 1, kernels[stage], kernels[stage])
            put(f"blocks.{block}.project", widths[stage], hidden, 1, 1)
            channels, block = widths[stage], block + 1
    put("head", 1280, 320, 1, 1)
    return tensors


@pytest.mark.parametrize("phi", [-4, 0])
def test_the_backbone_starts_from_slices_of_lite0(tmp_path, phi):
    tensors = lite0_tensors()
    np.savez(tmp_path / "lite0.npz", **tensors)
    network = EfficientHRNet(Variant.from_phi(phi))
    pictures = torch.randn(2, 3, 64, 64)
    init_from_lite0(network, tmp_path / "lite0.npz", pictures)
    last = network.backbone.stages[6][0]
    rows, columns = last.project.conv.weight.shape[:2]
    source = tensors["blocks.15.project.weight"].astype(np.float32)
    kernel = last.project.conv.weight.detach().numpy()[..., 0, 0]
    # Every row is a row of the source with some columns left out.
    for row in kernel:
        assert any(np.isin(row, candidate).all() for candidate in source[..., 0, 0])
    assert rows <= 320 and columns <= 1152
    assert float(network.backbone.stem.norm.running_var.min()) > 0
    low, high = network.train()(pictures)
    assert torch.isfinite(low).all() and torch.isfinite(high).all()


def test_other_files_are_no_lite0(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])
    network = EfficientHRNet(Variant.from_phi(-4))
    for name in ("x.npz", "missing.npz", "empty.npz", "cut.npz"):
        with pytest.raises(EhrnetError, match="does not hold EfficientNet-Lite0"):
            init_from_lite0(network, tmp_path / name, torch.zeros(1, 3, 64, 64))


class _Answers(torch.nn.Module):
    """A network that gives stored maps."""

    def __init__(self, maps):
        super().__init__()
        self.maps = torch.nn.Parameter(maps)

    def forward(self, images):
        maps = self.maps.expand(len(images), -1, -1, -1)
        low = torch.nn.functional.avg_pool2d(maps, 2)
        return torch.cat([low, low], 1), maps


def test_people_held_back_are_whole_or_partly_seen(pack_file):
    pack = Pack(pack_file)
    whole, partly = held_back_people([pack], 1.0), partly_seen_people([pack], 1.0)
    assert len(whole) == len(partly) == 3 and not held_back_people([pack], 0.0)
    for number, (person, half) in enumerate(zip(whole, partly, strict=True)):
        seen = half.keypoints[:, 2] == POSITIVE
        assert 3 <= seen.sum() < 17 == (person.keypoints[:, 2] == POSITIVE).sum()
        # Of the first the upper half: nose but no ankles; of the second the lower one.
        assert bool(seen[0]) == (number % 2 == 0) and bool(seen[15]) == (number % 2 == 1)
        low, high = half.box[:2], half.box[2:]
        places = half.keypoints[seen, :2]
        assert (places >= low - 1).all() and (places <= high + 1).all()
        # Enlarged to the same share of the window, so half the area is more than half here.
        sides = [max(p.box[2:] - p.box[:2]) for p in (person, half)]
        np.testing.assert_allclose(sides, 128, atol=0.5)
        assert 0.49 < half.area / person.area < 2.1
        # Beyond the middle there is nothing.
        end = half.picture[: int(low[1]) - 2] if number % 2 else half.picture[int(high[1]) + 3 :]
        assert end.size and not end.any() and half.picture.any()


def test_the_loss_of_what_is_held_back_is_of_the_same_windows_always(pack_file, monkeypatch):
    monkeypatch.setattr(holdout, "_BATCHES", 4)
    packs = [(Pack(pack_file), 1.0)]
    assert not HeldBackWindows(packs, 0.0).num_people
    windows = HeldBackWindows(packs, 1.0)
    assert windows.num_people == 3
    torch.manual_seed(0)
    network = EfficientHRNet(Variant.from_phi(-4))
    some = windows.losses(network, bf16=False)
    assert some.shape[1] == len(PARTS) and len(some) > 1 and np.isfinite(some).all()
    np.testing.assert_array_equal(HeldBackWindows(packs, 1.0).losses(network, False), some)
    for head in (network.head_low, network.head_high):
        for values in head.parameters():
            torch.nn.init.zeros_(values)
    # Empty maps: all of the squared error is left; tags all alike: people cannot be told apart.
    none = dict(zip(PARTS, windows.losses(network, bf16=False).T, strict=True))
    np.testing.assert_allclose(none["rel4"], 1, atol=1e-6)
    np.testing.assert_allclose(none["rel2"], 1, atol=1e-6)
    assert not none["pull"].any() and 0 < none["push"].max() <= 0.5


def test_the_loss_of_what_is_held_back_is_recorded(pack_file, tmp_path, monkeypatch):
    monkeypatch.setattr(holdout, "_BATCHES", 2)
    share = next(
        s / 100 for s in range(1, 100) if 1 <= sum(held_back(i, s / 100) for i in range(3)) < 3
    )
    trainer = Trainer(small(pack_file, steps=1, holdout=share), tmp_path)
    measured = trainer.measure()
    header, row = (tmp_path / "holdout.csv").read_text().splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(found["loss"]) == pytest.approx(measured["loss"], rel=1e-5) and "rel2" in found
    # Once for each step and gain of sides, not again.
    assert trainer.measure() == measured
    trainer.measure({"knees": 2.0})
    trainer.run()
    assert trainer.measure() != measured
    steps = [row.split(",")[0] for row in (tmp_path / "holdout.csv").read_text().splitlines()]
    assert steps == ["step", "0", "0", "1"]


@pytest.mark.parametrize(("swapped", "ankles"), [((), 1.0), ((15, 16), 0.0)])
def test_held_back_people_are_measured_on_both_maps_and_by_sides(swapped, ankles):
    keypoints = np.ones((17, 3), np.float32)
    keypoints[:, 0] = 20.5 + 40 * (np.arange(17) % 2)  # left at one side, right at the other
    keypoints[:, 1] = 10.5 + 8 * (np.arange(17) // 2)
    maps = torch.zeros(1, 17, 64, 64)
    names = np.arange(17)
    if swapped:
        names[list(swapped)] = names[list(swapped)][::-1]
    for j, (x, y, _) in zip(names, keypoints, strict=True):
        maps[0, j, round((y - 0.5) / 2), round((x - 0.5) / 2)] = 1
    person = HeldBackPerson(
        np.zeros((128, 128, 3), np.uint8), keypoints, np.array([0, 0, 128, 128]), 5000.0
    )
    measured = box_oks(_Answers(maps), [person, person], bf16=False)
    assert (measured["knee_sides"], measured["ankle_sides"]) == (1.0, ankles)
    # Two of seventeen keypoints are where the other one is: 40 pixels away.
    assert measured["box_oks"] == pytest.approx(1 - 2 / 17 * (1 - ankles), abs=0.01)
    # The higher peak counts, whichever map has it: here a wrong one of the coarse maps.
    network = _Answers(maps)
    network.forward = lambda images: (4 * torch.ones(1, 34, 32, 32).cumsum(3), maps)
    assert box_oks(network, [person], bf16=False)["box_oks"] < 0.2
