"""Steps in recorded parts, on a stand-in for CUDA graphs that does the work again when replayed."""

import pytest
import torch

from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.trainer import Trainer

WINDOWS = ((64, 2, 0.5), (96, 3, 0.5))


class Again:
    """What can be seen of a graph without a GPU: static memory, and who writes into it when."""

    def warm_up(self, work):
        work()

    def record(self, work):
        return work


def trainer_of(pack_file, folder, **more):
    values = {
        "packs": ((str(pack_file), 1.0),),
        "steps": 12,
        "windows": WINDOWS,
        "holdout": 0.0,
        "log_steps": 2,
        "warmup_steps": 2,
        "lr": 2e-4,  # roundings grow with it
        **more,
    }
    return Trainer(TrainOptions(**values), folder)


def learn(trainer, steps):
    """The losses of some steps."""
    batches = trainer.batches()
    losses = [float(trainer.train_step(next(batches))["loss"]) for _ in range(steps)]
    batches.close()
    return losses


def everything(trainer):
    """All tensors of a run that learning changes, by name."""
    state = trainer.state()
    named = {name: state[name] for name in ("network", "average")}
    named |= {str(number): m for number, m in state["optimiser"]["state"].items()}
    return {(part, key): v for part, values in named.items() for key, v in values.items()}


def way(trainer, start):
    """How far all parameters have moved."""
    weights = dict(trainer.network.named_parameters())
    return torch.cat([(weights[k].detach() - v).flatten() for k, v in start.items()])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_recorded_steps_learn_what_others_do(pack_file, tmp_path, optimiser, bf16):
    usual = trainer_of(pack_file, tmp_path / "a", optimiser=optimiser)
    recorded = trainer_of(pack_file, tmp_path / "b", optimiser=optimiser)
    usual.bf16 = recorded.bf16 = bf16  # whatever this CPU is good at
    start = {k: v.detach().clone() for k, v in usual.network.named_parameters()}
    recorded.record(Again)
    assert set(recorded.graphs.passes) == {(2, 3, 64, 64), (3, 3, 96, 96)}
    assert learn(recorded, 4) == pytest.approx(learn(usual, 4), rel=2e-2 if bf16 else 1e-3)
    one, other = way(usual, start), way(recorded, start)
    assert one.norm() > 0
    # Where a gradient is next to nothing, its rounding decides which way a weight goes.
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > (0.9 if bf16 else 0.99)


def test_recording_changes_nothing_of_a_run(pack_file, tmp_path):
    trainer = trainer_of(pack_file, tmp_path)
    learn(trainer, 3)
    before = {key: value.clone() for key, value in everything(trainer).items()}
    trainer.record(Again)
    groups = trainer.optimiser.param_groups
    assert all(type(g["lr"]) is float and not g["capturable"] for g in groups)
    after = everything(trainer)
    assert after.keys() == before.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_recorded_run_goes_on_without_graphs(pack_file, tmp_path):
    whole = trainer_of(pack_file, tmp_path / "a")
    part = trainer_of(pack_file, tmp_path / "b")
    part.record(Again)
    losses = learn(whole, 4)
    assert learn(part, 2) == pytest.approx(losses[:2], rel=1e-3)
    part.save()
    rest = trainer_of(pack_file, tmp_path / "b")
    assert learn(rest, 2) == pytest.approx(losses[2:], rel=1e-3)


@pytest.mark.parametrize("more", [{"freeze": 2, "unfreeze_at": 0.5}, {"drop_connect": 0.1}])
def test_steps_that_differ_are_not_recorded(pack_file, tmp_path, more):
    trainer = trainer_of(pack_file, tmp_path, **more)
    trainer.record(Again)
    assert trainer.graphs is None


@pytest.mark.parametrize("works", [0, 1, 4])
def test_what_cannot_be_recorded_is_computed_as_ever(pack_file, tmp_path, caplog, works):
    """The first pass, a later one, the update."""
    left = [works]

    class Refuses(Again):
        def record(self, work):
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("operation not permitted when stream is capturing")
            return work

    trainer = trainer_of(pack_file, tmp_path)
    learn(trainer, 1)
    before = {key: value.clone() for key, value in everything(trainer).items()}
    trainer.record(Refuses)
    assert trainer.graphs is None and left == [-1]
    assert "cannot be recorded" in caplog.text
    after = everything(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before)
    learn(trainer, 1)
