"""What the options of a run do: recipes, schedules, frozen parts, decay, records."""

import argparse
import csv
import dataclasses
import json
import math
import sys

import pytest
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.checkpoint import load_network
from ehrnet_model.training.batches import collate
from ehrnet_model.training.holdout import told
from ehrnet_model.training.losses import LossOptions
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.presets import preset
from ehrnet_model.training.records import Records
from ehrnet_model.training.sampler import SampleOptions, Sampler
from ehrnet_model.training.trainer import Trainer
from ehrnet_model.variants import Variant
from ehrnet_ros.cli import main, train


def small(pack_file, **more):
    return TrainOptions(
        **{
            "packs": ((str(pack_file), 1.0),),
            "steps": 4,
            "windows": ((64, 2, 1.0),),
            "warmup_steps": 0,
            "holdout": 0.0,
            "bf16": False,
            **more,
        }
    )


def batch_of(trainer):
    options = trainer.options.sample
    return collate([trainer.sampler.sample(i, 64, options) for i in range(2)])


def test_the_paper_preset_is_the_published_recipe():
    for phi in (0, -1, -2, -3, -4):
        options = preset("paper", phi)
        side, batch, _ = options.windows[0]
        assert side == Variant.from_phi(phi).input_size and batch >= 1
        assert (options.lr, options.weight_decay, options.ema) == (1e-3, 0.0, 0.0)
        assert (options.epochs, options.schedule, options.warmup_steps) == (300, "steps", 0)
        assert options.loss == LossOptions(1.0, 1.0, 1.0, 0.0, 1e-3, place=0.0, sides=0.0)
    ours = TrainOptions(phi=-3, sample=SampleOptions(close=0.75))
    assert preset("ours", -3) == ours
    with pytest.raises(EhrnetError, match="no preset 'mine'"):
        preset("mine", -4)


def test_the_published_schedule_falls_at_200_and_260_of_300_epochs(pack_file, tmp_path):
    options = dataclasses.replace(
        preset("paper", -4), packs=((str(pack_file), 1.0),), windows=((64, 1, 1.0),), holdout=0.0
    )
    trainer = Trainer(options, tmp_path)
    assert trainer.sampler.epoch == 3  # three of the four pictures show somebody
    rates = {}
    for epoch in (0, 199, 200, 259, 260, 299):
        trainer.images = 3 * epoch
        rates[epoch] = trainer._rate()
    want = {0: 1e-3, 199: 1e-3, 200: 1e-4, 259: 1e-4, 260: 1e-5, 299: 1e-5}
    assert rates == pytest.approx(want)
    trainer.images = 900
    assert trainer.progress() == 1.0
    trainer.images = 0
    trainer.run(steps=1)
    for name, value in trainer.average.state.items():  # without memory: the weights themselves
        torch.testing.assert_close(value, trainer.network.state_dict()[name])
    trainer.save_weights(tmp_path / "w.safetensors", {}, {})
    assert load_network(tmp_path / "w.safetensors", "H-4")[1].coordinates == "reference"


def test_published_windows_show_each_picture_once_per_epoch(rich_pack, pack_file):
    packs = [Pack(rich_pack), Pack(pack_file)]
    sampler = Sampler([(pack, 1.0) for pack in packs], holdout=0.0)
    options = SampleOptions(published=True)
    seen = [sampler.plan(i, 64, options).scenes[0] for i in range(3 * sampler.epoch)]
    epochs = [
        [(s.pack, s.image) for s in seen[i : i + sampler.epoch]]
        for i in range(0, len(seen), sampler.epoch)
    ]
    people = {(n, i) for n, p in enumerate(packs) for i, x in enumerate(p.labels) if len(x.boxes)}
    assert all(set(epoch) == people and len(epoch) == len(people) for epoch in epochs)
    assert epochs[0] != epochs[1]
    # The same wherever one begins.
    again = Sampler([(pack, 1.0) for pack in packs], holdout=0.0).plan(len(people) + 1, 64, options)
    assert (again.scenes[0].matrix == seen[len(people) + 1].matrix).all()


def test_frozen_parts_keep_weights_and_statistics_until_they_are_unfrozen(pack_file, tmp_path):
    trainer = Trainer(small(pack_file, freeze=2, unfreeze_at=0.5, drop_connect=0.2), tmp_path)
    batch, backbone = batch_of(trainer), trainer.network.backbone

    def copy():
        return {k: v.clone() for k, v in trainer.network.state_dict().items()}

    def changed(before):
        return {k for k, v in trainer.network.state_dict().items() if not torch.equal(v, before[k])}

    frozen = {f"backbone.stem.{k}" for k in backbone.stem.state_dict()}
    for stage in (0, 1):
        frozen |= {f"backbone.stages.{stage}.{k}" for k in backbone.stages[stage].state_dict()}
    start = copy()
    for _ in range(2):
        trainer.train_step(batch)
    assert not changed(start) & frozen
    assert set(start) - changed(start) - frozen == set()
    middle = copy()
    trainer.train_step(batch)
    assert frozen <= changed(middle)


def test_weight_decay_shrinks_kernels_and_nothing_else(pack_file, tmp_path):
    """Without a gradient, AdamW leaves of a kernel 1 - lr * decay a step."""
    options = small(pack_file, weight_decay=0.5, lr=0.1, final=1.0, loss=LossOptions(scale=0.0))
    trainer = Trainer(options, tmp_path)
    before = {k: v.detach().clone() for k, v in trainer.network.named_parameters()}
    trainer.train_step(batch_of(trainer))
    for name, value in trainer.network.named_parameters():
        factor = 0.95 if value.ndim > 1 else 1.0
        torch.testing.assert_close(value.detach(), factor * before[name], rtol=1e-6, atol=1e-9)
    assert sum(p.ndim > 1 for p in trainer.network.parameters()) > 50


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"schedule": "line"}, "'cosine' or 'steps', not 'line'"),
        ({"freeze": 8}, "7 stages, 8 cannot"),
        ({"phi": 1}, "phi 1 does not exist"),
        ({"optimiser": "sgd"}, "'muon' or 'adamw', not 'sgd'"),
        ({"windows": ((64, 2, 1.0), (96, 1, -0.5))}, "96 pixels have the share -0.5"),
        ({"windows": ((64, 2, math.nan),)}, "share nan"),
        ({"windows": ((64, 2, 0.0),)}, "no window has a share"),
        ({"windows": ((64, 0, 1.0),)}, "batch 0"),
        ({"packs": (("a.pack", -1.0),)}, "a.pack has the weight -1"),
        ({"steps": 0, "hours": 0.0}, "hours 0 is not possible: give a number above 0"),
        ({"lr": math.inf}, "lr inf is not possible"),
        ({"steps": -1}, "steps -1 is not possible"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"final": 1.5}, "final 1.5"),
        ({"drop_connect": 1.0}, "drop_connect 1"),
        ({"holdout": 1.0}, "holdout 1"),
        ({"unfreeze_at": math.nan}, "unfreeze_at nan"),
        ({"save_seconds": -1.0}, "save_seconds -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_wrong_options_are_refused(pack_file, wrong, words):
    with pytest.raises(EhrnetError, match=words):
        small(pack_file, **wrong)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (LossOptions, {"tag": -1.0}),
        (LossOptions, {"sharpness": 0.0}),
        (SampleOptions, {"pair": 1.5}),
        (SampleOptions, {"jitter": math.nan}),
        (SampleOptions, {"rotation": -1.0}),
        (SampleOptions, {"max_zoom": 0.0}),
    ],
)
def test_wrong_losses_and_samples_are_refused(kind, wrong):
    (name,) = wrong
    with pytest.raises(EhrnetError, match=f"{name} .* is not possible: give a number"):
        kind(**wrong)


RUN_LIMITS = "--minutes is a number above 0, --until a step of 0 (no stop) or more."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "64:2:0"], "no window has a share of the steps: give one a share above 0."),
        (["--hours", "0"], "hours 0 is not possible: give a number above 0."),
        (["--lr", "-1"], "lr -1 is not possible: give a number above 0."),
        (["--lr", "nan"], "lr nan is not possible: give a number above 0."),
        (
            ["--sample", "fill_min=2"],
            "fill_min 2 with fill_max 1.3 is not possible: both are above 0, and fill_max is not "
            "the smaller one.",
        ),
        (["--minutes", "nan"], RUN_LIMITS),
        (["--until", "-3"], RUN_LIMITS),
        (["--log-steps", "0"], "log_steps 0 is not possible: give a number of 1 or more."),
        (["--ema", "1.5"], "ema 1.5 is not possible: give a number from 0 to below 1."),
    ],
)
def test_the_command_refuses_what_cannot_be(pack_file, tmp_path, capsys, words, said):
    where = ["train", "--device", "cpu", "--pack", str(pack_file), "--out", str(tmp_path / "run")]
    assert main([*where, "--until", "1", *words]) == 2
    assert capsys.readouterr().err == f"ehrnet: {said}\n" and not (tmp_path / "run").exists()


def test_settings_are_finite_numbers(pack_file, tmp_path, capsys):
    where = ["train", "--pack", str(pack_file), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*where, "--sample", "close_side=nan"])
    assert "a setting is NAME=NUMBER" in capsys.readouterr().err


def test_records_are_there_as_csv_and_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = Records(tmp_path)
    for step in (10, 20):
        records.add("log", {"step": step, "loss": 1.0 / step})
    records.add("holdout", {"step": 20, "box_oks": 0.25})
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert rows == [{"step": "10", "loss": "0.1"}, {"step": "20", "loss": "0.05"}]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("log/loss")] == [
        (10, 0.1),
        (20, 0.05),
    ]
    assert [e.value for e in events.Scalars("holdout/box_oks")] == [0.25]


def test_without_tensorboard_it_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    records = Records(tmp_path)
    for step in range(3):
        records.add("log", {"step": step, "loss": 0.5})
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert [r.message for r in caplog.records if "TensorBoard" in r.message] == [
        "TensorBoard is not here (pip install tensorboard): CSV files only."
    ]


def test_a_broken_tensorboard_is_told_once(tmp_path, monkeypatch, caplog):
    """One that is installed and does not go with another package."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/__init__.py").write_text("raise TypeError('no descriptors')\n")
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    records = Records(tmp_path)
    for step in range(3):
        records.add("log", {"step": step, "loss": 0.5})
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert [r.message for r in caplog.records if "TensorBoard" in r.message] == [
        "TensorBoard does not work here (no descriptors): CSV files only."
    ]


def test_a_board_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file, where a folder would be made")
    records = Records(tmp_path)
    for step in range(3):
        records.add("log", {"step": step, "loss": 0.5})
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert [r.message[:32] for r in caplog.records] == ["TensorBoard does not work here ("]


def test_help_shows_the_recipe_as_it_is():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    texts = {action.dest: action.help for action in parser._actions}
    ours = TrainOptions()
    for name in (
        *("hours", "optimiser", "lr", "weight_decay", "warmup_steps", "schedule", "final", "ema"),
        *("drop_connect", "seed", "holdout", "unfreeze_at", "save_seconds", "log_steps"),
    ):
        value = getattr(ours, name)
        assert f"({value if isinstance(value, str) else format(value, 'g')})" in texts[name], name
    assert "({}:{})".format(*ours.windows[0]) in texts["window"] and all(texts.values())


def test_what_is_measured_is_a_line_to_read():
    measured = {"box_oks": 0.54, "p50": 0.62, "face": 0.63, "arms": 0.5, "legs": math.nan}
    measured.update(knee_sides=0.71, ankle_sides=0.5)
    line = (
        "held back: boxOKS 0.540 (face 0.630, arms 0.500, legs nan), 62 % of people above .5, "
        "sides right: knee 71 %, ankle 50 %"
    )
    assert told(measured) == line
    assert told(measured | {"partly_seen": 0.4}) == line + "; of people partly seen 0.400"
    assert told(measured | {"loss": 34.6}) == line + "; loss 34.600"


def test_a_wrong_file_of_options_is_told_before_training(tmp_path, capsys):
    words = ["--pack", str(tmp_path / "none.pack"), "--tuned", str(tmp_path / "none.json")]
    assert main(["train", "--out", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert "none.json cannot be read" in said and "`ehrnet tune --json`" in said


def test_the_command_fills_a_preset_with_what_is_given(pack_file, tmp_path, capsys):
    where = ["train", "--device", "cpu", "--pack", str(pack_file), "--out", str(tmp_path / "run")]
    words = ["--preset", "paper", "--steps", "1", "--window", "64:1", "--holdout", "0"]
    assert main([*where, *words, "--loss", "tag=0.01"]) == 0
    assert "held back: nobody to measure on\n" in capsys.readouterr().err
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["steps"], config["epochs"], config["lr"], config["bf16"]) == (1, 0, 1e-3, False)
    assert (config["schedule"], config["sample"]["published"]) == ("steps", True)
    assert (config["loss"]["tag"], config["loss"]["scale"]) == (0.01, 1.0)
    assert config["windows"] == [[64, 1, 1.0]] and config["hardware"]["device"] == "cpu"
    assert main([*where, "--steps", "3", "--side-gain", "toes=2"]) == 2
    assert "no pair 'toes'" in capsys.readouterr().err
    assert main([*where, "--steps", "3", "--hours", "1"]) == 2
    assert "one length: --hours or --steps" in capsys.readouterr().err
    assert main([*where, "--sample", "published=1"]) == 2
    assert "no setting 'published'" in capsys.readouterr().err
