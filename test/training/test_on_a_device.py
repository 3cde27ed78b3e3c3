"""That training leaves the choice of the device to its tensors, and never waits for one.

No GPU is needed: the meta device refuses to mix with tensors made elsewhere, and a dispatch mode
sees every operation that would have to wait for a GPU's result or copies ordinary memory to it.
"""

import csv
import dataclasses
import os

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.batches import collate
from ehrnet_model.training.feed import Job
from ehrnet_model.training.hardware import Hardware, open_device
from ehrnet_model.training.losses import LossOptions, compute_losses, predict
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pack import Pack, write_pack
from ehrnet_model.training.painter import Painter
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.states import load_state, save_state
from ehrnet_model.training.trainer import Trainer
from ehrnet_model.variants import Variant

# Their result decides the size of a tensor or a branch in Python, so the GPU is waited for.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount")


class Waits(TorchDispatchMode):
    """Collects the operations that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Collects the copies of ordinary memory to the meta device: a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and out.device.type == "meta":
            if any(isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in args):
                self.seen.append(name)
        return out


class Made(TorchFunctionMode):
    """Collects tensors made of Python's numbers on the meta device, which no dispatch mode sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and out.device.type == "meta":
            self.seen.append(func.__name__)
        return out


def small(pack_file, **more):
    return TrainOptions(
        **{
            "packs": ((str(pack_file), 1.0),),
            "steps": 4,
            "windows": ((64, 2, 1.0),),
            "holdout": 0.0,
            "log_steps": 2,
            **more,
        }
    )


def test_the_dispatch_mode_sees_waiting():
    with Waits() as waits:
        float(torch.ones(1))
        torch.bincount(torch.ones(3, dtype=torch.long))
        torch.ones(3).nonzero()
    assert waits.seen == ["_local_scalar_dense", "bincount", "nonzero"]


def test_the_modes_see_copies():
    meta = torch.device("meta")
    with Copies() as copies, Made() as made:
        torch.ones(2).to(meta)
        torch.zeros(2, device=meta).copy_(torch.ones(2))
        torch.tensor([1.0], device=meta)
        torch.zeros(3, device=meta)[1:] = 2.0
    assert (copies.seen, made.seen) == (["_to_copy", "copy_"], ["tensor"])


@pytest.mark.parametrize("bf16", [True, False])
def test_a_step_waits_for_nothing(pack_file, tmp_path, bf16):
    trainer = Trainer(small(pack_file, bf16=bf16), tmp_path)
    trainer.bf16 = bf16  # whatever this CPU is good at
    options = SampleOptions(mosaic=0.5)
    batch = collate([trainer.sampler.sample(i, 64, options) for i in range(2)])
    trainer.train_step(batch)  # the optimiser makes its state in the first step
    with Waits() as waits:
        trainer.train_step(batch)
    assert waits.seen == []


def test_drawing_windows_waits_for_nothing(pack_file, tmp_path):
    trainer = Trainer(small(pack_file), tmp_path, hardware=Hardware(windows_on="device"))
    trainer.options = dataclasses.replace(trainer.options, echo=2)
    echoes = trainer._make(Job(64, 3, 0))
    for showing in range(2):
        with Waits() as waits:
            trainer.painter(echoes.shown(showing))
        assert waits.seen == []


@pytest.mark.parametrize(
    "hardware", [Hardware(windows_on="device"), Hardware(windows_on="host", workers=2)]
)
def test_windows_come_in_order_whoever_makes_them(pack_file, tmp_path, hardware):
    """From the middle of a run on, with sizes that change from step to step."""
    options = small(pack_file, windows=((64, 2, 1.0), (96, 1, 1.0)), seed=5)
    trainer = Trainer(options, tmp_path, hardware=hardware)
    trainer.step, trainer.images = 3, 5
    batches = trainer.batches()
    images = 5
    for step in range(3, 9):
        batch = next(batches)
        side, count = trainer._plan(step)
        numbers = range(images, images + count)
        want = collate([trainer.sampler.sample(i, side, options.sample) for i in numbers])
        torch.testing.assert_close(batch.images, want.images, atol=0.04, rtol=0)
        torch.testing.assert_close(batch.high, want.high, atol=1e-4, rtol=0)
        assert torch.equal(batch.tag_index, want.tag_index)
        images += count
    batches.close()


def test_jpegs_are_decoded_once_for_all_processes(rich_pack, tmp_path, monkeypatch):
    folder, out = rich_pack.parent, tmp_path / "r.pack"
    write_pack(out, folder / "rich.json", [folder], folder / "teacher.json", jpeg=90)
    decoded = Pack._decoded

    def told(pack, stored):
        with open(tmp_path / "processes", "a") as file:
            file.write(f"{os.getpid()}\n")
        return decoded(pack, stored)

    monkeypatch.setattr(Pack, "_decoded", told)
    hardware = Hardware(windows_on="host", workers=2)
    batches = Trainer(small(out), tmp_path / "run", hardware=hardware).batches()
    for _ in range(3):
        next(batches)
    batches.close()
    assert (tmp_path / "processes").read_text() == f"{os.getpid()}\n"


def test_an_error_in_the_making_reaches_the_trainer(pack_file, tmp_path):
    for workers in (0, 1):
        trainer = Trainer(
            small(pack_file), tmp_path / str(workers), hardware=Hardware(workers=workers)
        )
        trainer.sampler._people = [(7, 0, 0)]  # no such pack
        trainer.sampler._cumulative = np.array([1.0])
        with pytest.raises(IndexError):
            trainer.run()


def test_a_run_goes_on_with_windows_made_elsewhere(pack_file, tmp_path):
    options = small(pack_file)
    Trainer(options, tmp_path / "a").run()
    Trainer(options, tmp_path / "b").run(steps=2)
    Trainer(options, tmp_path / "b", hardware=Hardware(windows_on="device")).run()
    first, second = (
        list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("a", "b")
    )
    assert [row["step"] for row in first] == [row["step"] for row in second] == ["2", "4"]
    for a, b in zip(first, second, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-2)


def test_losses_are_computed_where_the_batch_is(pack_file, tmp_path):
    trainer = Trainer(small(pack_file), tmp_path)
    options = SampleOptions(mosaic=1.0)
    batch = collate([trainer.sampler.sample(i, 64, options) for i in range(2)])
    meta = torch.device("meta")
    network = EfficientHRNet(Variant.from_phi(-4), drop_connect=0.2).to(meta).train()
    batch = batch.to(meta)
    parts = compute_losses(predict(network, batch.images, False), batch, LossOptions(sides=0.02))
    assert {p.device for p in parts.values()} == {meta}
    parts["loss"].backward()
    assert all(p.grad.device == meta for p in network.parameters() if p.grad is not None)


def test_a_step_copies_nothing_to_the_device(pack_file, tmp_path):
    """But the batch, or what it is drawn from."""
    meta = torch.device("meta")
    trainer = Trainer(small(pack_file), tmp_path)
    painter = Painter([pack for pack, _ in trainer.packs], meta)
    network = EfficientHRNet(Variant.from_phi(-4), drop_connect=0.2).to(meta).train()
    plans = [trainer.sampler.plan(i, 64, SampleOptions(mosaic=1.0)) for i in range(2)]
    batch = painter.gather(plans).to(meta)
    options = LossOptions(sides=0.02)

    def step():
        drawn = painter(batch)
        compute_losses(predict(network, drawn.images, False), drawn, options)["loss"].backward()

    step()  # constants are brought there in the first
    with Copies() as copies, Made() as made:
        step()
    assert copies.seen == made.seen == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu():
    assert open_device("auto") == open_device("cpu") == torch.device("cpu")
    with pytest.raises(EhrnetError, match="sees no CUDA device.*--device cpu"):
        open_device("cuda")
    with pytest.raises(EhrnetError, match="no device 'tpu'"):
        open_device("tpu")


@pytest.mark.parametrize("version", ["2.1.0", "2.5.1+cu124"])
def test_a_pytorch_too_old_is_refused(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(EhrnetError) as refused:
        open_device("cpu")
    assert str(refused.value) == (
        f"PyTorch {version} is too old to train with, it takes 2.6 or later: pip install -U torch."
    )
    for enough in ("2.6.0a0+df5bbc09d1.nv24.12", "2.13.0+cpu"):
        monkeypatch.setattr(torch, "__version__", enough)
        assert open_device("cpu") == torch.device("cpu")


def test_runs_of_an_earlier_version_go_on(pack_file, tmp_path):
    """States whose configuration lacks later options, logs that lack later columns."""
    options = small(pack_file)
    Trainer(options, tmp_path).run(steps=2)
    state = load_state(tmp_path / "state.pt")
    del state["config"]["sample"]["pair"], state["config"]["freeze"]
    save_state(state, tmp_path / "state.pt")
    (tmp_path / "log.csv").write_text("step,images,loss\n2,4,9.5\n")
    Trainer(options, tmp_path).run(steps=2)
    rows = list(csv.reader((tmp_path / "log.csv").open()))
    assert rows[0] == ["step", "images", "loss"] and rows[2][:2] == ["4", "8"]
    with pytest.raises(EhrnetError, match=r"other options \(sample\)"):
        other = dataclasses.replace(options, sample=SampleOptions(pair=0.9))
        Trainer(other, tmp_path)


def test_a_loss_that_is_no_number_is_never_saved(pack_file, tmp_path):
    options = small(pack_file, log_steps=100, save_seconds=0.0, steps=50)
    Trainer(options, tmp_path).run(steps=1)
    trainer = Trainer(options, tmp_path)
    with torch.no_grad():
        trainer.network.head_low.bias.fill_(np.nan)
    with pytest.raises(EhrnetError, match="not a number"):
        trainer.run(steps=3)
    state = load_state(tmp_path / "state.pt")
    assert state["step"] == 1 and torch.isfinite(state["network"]["head_low.bias"]).all()
