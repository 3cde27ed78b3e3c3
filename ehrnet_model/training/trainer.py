"""The training loop: one process or several (torchrun), a run folder, exact resume.

Several processes each make and learn their own windows and average gradients after every step, so
that n processes with batch b do what one does with batch n b (normalisation statistics are those of
each process's part, averaged).

A run folder holds ``config.json`` (options, packs with their hashes, versions), ``log.csv`` (one
line every ``log_steps``), ``holdout.csv`` (measures on held-back images) and ``state.pt``, which is
replaced as a whole and holds weights, their moving average, optimiser, clock, random state and the
position in the data.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import logging
import math
import os
import platform
import queue
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.blocks import ConvNorm
from ehrnet_model.network.checkpoint import CheckpointMeta, save_checkpoint
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.holdout import box_oks, held_back_people
from ehrnet_model.training.init_lite0 import init_from_lite0
from ehrnet_model.training.losses import LossOptions, heatmap_loss, tag_loss
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.sampler import SampleOptions, Sampler, Window
from ehrnet_model.training.states import load_state, save_state, write_compact
from ehrnet_model.variants import Variant

log = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a run does.

    Attributes:
        phi: the variant.
        packs: (file, weight of its people).
        hours: length of the schedule in hours of training, or
        steps: in steps, where above 0.
        windows: (side in pixels, batch, share of the steps) of the windows.
        lr, weight_decay: of AdamW; the decay acts on kernels only.
        warmup_steps: the rate rises linearly over these.
        final: share of ``lr`` at the end of the cosine.
        ema: decay of the moving average of the weights.
        drop_connect: rate in the backbone.
        freeze: so many stages of the backbone, and the stem, keep their weights; 0: none.
        seed: of weights and samples.
        bf16: convolutions in bfloat16.
        lite0: npz file that starts the backbone, see ``init_lite0``.
        start: state.pt of another run whose averaged weights start this one.
        holdout: share of images never trained on.
        loss, sample: see there.
        save_seconds, log_steps, holdout_seconds: how often to save, log and measure.
    """

    phi: int = -4
    packs: tuple[tuple[str, float], ...] = ()
    hours: float = 1.0
    steps: int = 0
    windows: tuple[tuple[int, int, float], ...] = ((128, 16, 1.0),)
    lr: float = 4e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    final: float = 0.01
    ema: float = 0.999
    drop_connect: float = 0.0
    freeze: int = 0
    seed: int = 0
    bf16: bool = True
    lite0: str = ""
    start: str = ""
    holdout: float = 0.03
    loss: LossOptions = field(default_factory=LossOptions)
    sample: SampleOptions = field(default_factory=SampleOptions)
    save_seconds: float = 180.0
    log_steps: int = 50
    holdout_seconds: float = 600.0


@dataclass
class Batch:
    """Windows as tensors. N windows; see ``sampler.Window``; P people of all windows together."""

    images: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    low_mask: torch.Tensor
    high_mask: torch.Tensor
    tag_index: torch.Tensor
    tag_person: torch.Tensor
    image_of_person: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, copied without waiting where the memory is pinned."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU copies from by itself."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


def normalise(pictures: np.ndarray) -> torch.Tensor:
    """uint8 RGB (N, H, W, 3) to the network's float32 (N, 3, H, W), channels last in memory."""
    scale = 1 / (255 * np.array(STD, np.float32))
    shift = -np.array(MEAN, np.float32) / np.array(STD, np.float32)
    values = pictures.astype(np.float32)
    values *= scale
    values += shift
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def _channels_last(maps: np.ndarray) -> torch.Tensor:
    """(N, J, H, W) as the network lays out its outputs, float32: mixed layouts are slow."""
    return torch.from_numpy(maps).to(torch.float32).contiguous(memory_format=torch.channels_last)


class _Dense(torch.autograd.Function):
    """Nothing forward; a gradient without gaps in memory backward.

    The gradient of a padded tensor is a view with gaps, on which the backward pass of batch
    normalisation is ten times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


def _depthwise_in_float32(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        y = torch.nn.functional.conv2d(
            x.float(), conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups
        )
    return y.to(x.dtype)


def _quicken(network: torch.nn.Module) -> None:
    """Makes training on a CPU faster; what is computed stays.

    The backward pass of bfloat16 depthwise convolutions with stride 2 or 5x5 kernels takes 3 to 50
    times as long as the same in float32: half of a whole step.
    """
    for module in network.modules():
        if not isinstance(module, ConvNorm):
            continue
        if module.pad is not None:
            module.register_forward_pre_hook(lambda _, inputs: (_Dense.apply(inputs[0]),))
        conv = module.conv
        if conv.groups > 1 and (conv.stride[0] > 1 or conv.kernel_size[0] > 3):
            conv.forward = functools.partial(_depthwise_in_float32, conv)


def collate(windows: Sequence[Window]) -> Batch:
    """Stacks windows of one size."""
    index, person, owner, people = [], [], [], 0
    for n, window in enumerate(windows):
        names, numbers = np.unique(window.tag_person, return_inverse=True)
        index.append(window.tag_index + n * window.low.size)
        person.append(numbers + people)
        owner.append(np.full(len(names), n))
        people += len(names)
    return Batch(
        normalise(np.stack([w.picture for w in windows])),
        _channels_last(np.stack([w.low for w in windows])),
        _channels_last(np.stack([w.high for w in windows])),
        _channels_last(np.stack([w.low_mask for w in windows])),
        _channels_last(np.stack([w.high_mask for w in windows])),
        torch.from_numpy(np.concatenate(index)).long(),
        torch.from_numpy(np.concatenate(person)).long(),
        torch.from_numpy(np.concatenate(owner)).long(),
    )


def compute_losses(
    network: torch.nn.Module, batch: Batch, options: LossOptions, bf16: bool
) -> dict[str, torch.Tensor]:
    """The weighted sum under ``loss`` and its parts.

    ``rel4`` and ``rel2`` are the squared errors without weights, divided by those of empty maps.
    """
    joints = batch.low.shape[1]
    device = batch.images.device.type
    with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
        low_all, high = network(batch.images)
    low, tags = low_all[:, :joints].float(), low_all[:, joints:]
    high = high.float()
    low_loss = heatmap_loss(low, batch.low, batch.low_mask, options.peak_weight)
    high_loss = heatmap_loss(high, batch.high, batch.high_mask, options.peak_weight)
    pull, push = tag_loss(tags, batch.tag_index, batch.tag_person, batch.image_of_person)
    total = options.low * low_loss + options.high * high_loss + options.tag * (pull + push)
    parts = {"loss": options.scale * total, "low": low_loss, "high": high_loss}
    with torch.no_grad():
        for name, maps, target, mask in (
            ("rel4", low, batch.low, batch.low_mask),
            ("rel2", high, batch.high, batch.high_mask),
        ):
            zero = (target**2 * mask).sum().clamp(min=1e-9)
            parts[name] = (((maps.detach() - target) ** 2) * mask).sum() / zero
    parts["pull"], parts["push"] = pull, push
    return parts


class Average:
    """Exponential moving average of weights and statistics; its memory grows from a few steps.

    Args:
        network: on the device where it is trained; its tensors stay the same objects.
        decay: of the average once it is old.
        state, count: an average to go on with.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        decay: float,
        state: dict[str, torch.Tensor] | None = None,
        count: int = 0,
    ) -> None:
        self.decay = decay
        self.count = count
        live = {k: v.detach() for k, v in network.state_dict().items()}
        self.state = {k: v.clone() for k, v in live.items()}
        for key, value in (state or {}).items():
            self.state[key].copy_(value)
        # Lists, made once: a GPU has done a step in the time that gathering them takes.
        float_keys = [k for k, v in live.items() if v.is_floating_point()]
        self._floats = [live[k] for k in float_keys], [self.state[k] for k in float_keys]
        whole_keys = [k for k in live if k not in set(float_keys)]
        self._wholes = [live[k] for k in whole_keys], [self.state[k] for k in whole_keys]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the network's present weights in."""
        self.count += 1
        weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._floats[1], self._floats[0], weight)
        torch._foreach_copy_(self._wholes[1], self._wholes[0])


class _Sums:
    """Sums of the parts of the loss, kept on the device: adding waits for nothing."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: torch.Tensor | None = None
        self.count = 0

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        values = torch.stack(list(parts.values())).double()
        self.names = list(parts)
        self.values = values if self.values is None else self.values + values
        self.count += 1

    def means(self, world: int) -> dict[str, float]:
        """Means over the steps, and over all processes where all of them ask; waits for the GPU."""
        if self.values is None:
            return {}
        values = (self.values / self.count).cpu()
        if world > 1:
            distributed.all_reduce(values)
            values /= world
        return dict(zip(self.names, values.tolist(), strict=True))


def open_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``auto``; one of several processes takes the GPU of its local rank.

    Raises EhrnetError where CUDA is asked for and not there.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise EhrnetError(f"there is no device '{name}': cpu, cuda or auto.")
    there = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise EhrnetError(
            f"PyTorch {torch.__version__} sees no CUDA device: install a build for your GPU's "
            "driver (pytorch.org), or train with --device cpu."
        )
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise EhrnetError(
            f"process {number} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}: start as many processes as there are GPUs."
        )
    torch.cuda.set_device(number)
    # Window sizes are few and come again and again.
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", number)


def _on_cpu(value: Any) -> Any:
    """The same nest of dicts and lists with its tensors in ordinary memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    return [_on_cpu(v) for v in value] if isinstance(value, list) else value


def _completed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the options that came later at their defaults."""
    out = {**defaults, **config}
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            out[key] = {**value, **config[key]}
    return out


class Trainer:
    """One run.

    Args:
        options: what to do.
        folder: run folder; a run found there is continued, if it has the same options.
        change: continue with other options (schedule, data, loss), keeping weights and optimiser.
        device: ``cpu``, ``cuda`` or ``auto``; a run may go on on another one.
    """

    def __init__(
        self, options: TrainOptions, folder: Path, change: bool = False, device: str = "cpu"
    ) -> None:
        self.options, self.folder = options, Path(folder)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = open_device(device)
        if self.world > 1 and not distributed.is_initialized():
            # Gradients on GPUs go by NCCL, the clock and the log by gloo, which no GPU waits for.
            gpu = self.device.type == "cuda"
            distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
        if not options.packs:
            raise EhrnetError("no data: give at least one pack (see 'ehrnet pack').")
        for side, batch, _ in options.windows:
            if side % 32 or side < 64 or batch < 1:
                raise EhrnetError(
                    f"a window of {side} pixels, batch {batch}: sides are multiples of 32 from 64."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.packs = [(Pack(Path(p)), w) for p, w in options.packs]
        self.sampler = Sampler(self.packs, options.seed, options.holdout)
        if not self.sampler.num_people:
            raise EhrnetError("the packs hold no person to train on.")
        config = json.loads(json.dumps(asdict(options)))
        config["pack_sha256"] = [pack.sha256 for pack, _ in self.packs]
        self.step = self.images = 0
        self.seconds = 0.0
        self._clock = time.monotonic()

        torch.manual_seed(options.seed)
        self.network = EfficientHRNet(
            Variant.from_phi(options.phi), drop_connect=options.drop_connect
        )
        state = None
        state_file = self.folder / "state.pt"
        if state_file.exists():
            state = load_state(state_file)
            stored = _completed(state["config"], json.loads(json.dumps(asdict(TrainOptions()))))
            if stored != config and not change:
                different = [k for k in config if config[k] != stored.get(k)]
                raise EhrnetError(
                    f"{folder} holds a run with other options ({', '.join(different)}): choose "
                    "another folder, or say --change to continue with the new ones."
                )
            self.network.load_state_dict(state["network"])
            self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        elif options.start:
            self.network.load_state_dict(load_state(Path(options.start))["average"])
        elif options.lite0:
            init_from_lite0(self.network, Path(options.lite0), self._pictures(96))
        self.network.to(self.device, memory_format=torch.channels_last)
        kernels = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": kernels, "weight_decay": options.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=options.lr,
            fused=True,
        )
        if state is None:
            self.average = Average(self.network, options.ema)
        else:
            self.average = Average(
                self.network, options.ema, state["average"], state["average_count"]
            )
            self.optimiser.load_state_dict(state["optimiser"])
        if options.freeze:
            for part in (
                self.network.backbone.stem,
                *self.network.backbone.stages[: options.freeze],
            ):
                part.requires_grad_(False)
        if self.device.type == "cpu":
            _quicken(self.network)
        self.config = config
        note = {
            **config,
            "versions": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        if self.rank == 0:
            (self.folder / "config.json").write_text(json.dumps(note, indent=1) + "\n")
        self.held_back = held_back_people([pack for pack, _ in self.packs], options.holdout)

    def _pictures(self, count: int) -> torch.Tensor:
        side = 192
        windows = [self.sampler.sample(2**31 + i, side, self.options.sample) for i in range(count)]
        return normalise(np.stack([w.picture for w in windows]))

    def _plan(self, step: int) -> tuple[int, int]:
        """Window side and batch of a step."""
        shares = np.cumsum([share for _, _, share in self.options.windows])
        draw = np.random.default_rng([self.options.seed, 77, step]).random() * shares[-1]
        side, batch, _ = self.options.windows[int(np.searchsorted(shares, draw, side="right"))]
        return side, batch

    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        if self.options.steps:
            return min(1.0, self.step / self.options.steps)
        return min(1.0, self.seconds / (self.options.hours * 3600))

    def _rate(self) -> float:
        o = self.options
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return (
            o.lr * min(1.0, (self.step + 1) / o.warmup_steps) * (o.final + (1 - o.final) * cosine)
        )

    def _batches(self) -> Generator[Batch, None, None]:
        """Batches from the current position on, made one step ahead in a thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
        stop = threading.Event()
        start_step, start_images = self.step, self.images

        def work() -> None:
            step, images = start_step, start_images
            while not stop.is_set():
                try:
                    side, count = self._plan(step)
                    first = images + self.rank * count
                    item: Batch | BaseException = collate(
                        [
                            self.sampler.sample(first + i, side, self.options.sample)
                            for i in range(count)
                        ]
                    )
                    step, images = step + 1, images + count * self.world
                except BaseException as error:  # handed to the training thread, which raises it
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if isinstance(item, BaseException):
                    return

        thread = threading.Thread(target=work, daemon=True, name="windows")
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One update; returns the parts of the loss, of this process, on the device."""
        # What is random inside the network depends on step and process alone, like the windows.
        torch.manual_seed(zlib.crc32(f"{self.options.seed} {self.step} {self.rank}".encode()))
        self.network.train()
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        parts = compute_losses(self.network, batch, self.options.loss, self.options.bf16)
        self.optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        if self.world > 1:
            self._share()
        self.optimiser.step()
        self.average.update()
        self.step += 1
        self.images += len(batch.images) * self.world
        return {key: value.detach() for key, value in parts.items()}

    def _share(self) -> None:
        """Averages gradients, normalisation statistics and the clock over all processes."""
        parts = [p.grad for p in self.network.parameters() if p.grad is not None]
        parts += [b for b in self.network.buffers() if b.is_floating_point()]
        flat = torch.cat([part.detach().flatten() for part in parts])
        distributed.all_reduce(flat)
        flat /= self.world
        position = 0
        with torch.no_grad():
            for part in parts:
                count = part.numel()
                part.copy_(flat[position : position + count].view(part.shape))
                position += count
        clock = torch.tensor([self.seconds], dtype=torch.float64)
        distributed.all_reduce(clock)
        self.seconds = float(clock) / self.world

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs, on whatever device; tensors in ordinary memory."""
        return {
            "config": self.config,
            "network": _on_cpu(self.network.state_dict()),
            "average": _on_cpu(self.average.state),
            "average_count": self.average.count,
            "optimiser": _on_cpu(self.optimiser.state_dict()),
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }

    def save(self) -> None:
        """Replaces state.pt (the first process does)."""
        if self.rank == 0:
            save_state(self.state(), self.folder / "state.pt")

    def save_compact(self, path: Path) -> None:
        """Writes the state to carry away, see ``states``; ``states.read_compact`` reads it."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        order = [names[id(p)] for group in self.optimiser.param_groups for p in group["params"]]
        write_compact(self.state(), order, path)

    def save_weights(self, path: Path, decode: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Writes the averaged weights as a checkpoint of quality ``preview``.

        Args:
            path: ``*.safetensors``.
            decode: decode defaults that suit them.
            metrics: what was measured with them.
        """
        keep = ("lr", "weight_decay", "ema", "windows", "sample", "loss", "seed", "holdout")
        recipe = {
            "images_seen": self.images,
            "steps": self.step,
            "hours": round(self.seconds / 3600, 2),
            "backbone": "slices of EfficientNet-Lite0 (ImageNet)"
            if self.options.lite0
            else "random",
            "last_options": {key: self.config[key] for key in keep},
        }
        meta = CheckpointMeta(
            variant=self.network.variant.name,
            weights_name=f"{self.network.variant.name}-{self.images // 1000}k",
            quality="preview",
            coordinates="pixel-centre",
            decode=decode,
            metrics=metrics,
            recipe=recipe,
        )
        save_checkpoint(path, _on_cpu(self.average.state), meta)

    def averaged(self) -> EfficientHRNet:
        """A network with the averaged weights, for use."""
        network = EfficientHRNet(Variant.from_phi(self.options.phi))
        network.load_state_dict(self.average.state)
        return network.to(self.device, memory_format=torch.channels_last).eval()

    def measure(self) -> dict[str, float]:
        """BoxOKS of the averaged weights on held-back people; appended to holdout.csv."""
        if not self.held_back or self.rank:
            return {}
        values = box_oks(self.averaged(), self.held_back, self.options.bf16)
        self._append(
            "holdout.csv",
            {"step": self.step, "images": self.images, "seconds": round(self.seconds), **values},
        )
        return values

    def _append(self, name: str, row: dict[str, Any]) -> None:
        path = self.folder / name
        columns = list(row)
        fresh = not path.exists()
        if not fresh:  # of a run that an earlier version began, perhaps with fewer columns
            with open(path, newline="") as file:
                columns = next(csv.reader(file), columns)
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def run(self, tell: Callable[[str], None] = log.info, steps: int | None = None) -> None:
        """Trains to the end of the schedule, or for ``steps`` more; saves now and then and last."""
        o = self.options
        clock = self._clock = time.monotonic()
        saved = measured = clock
        sums, waited = _Sums(), 0.0
        mark, mark_images, last = clock, self.images, self.step + steps if steps else None
        batches = self._batches()
        try:
            while self.progress() < 1 and self.step != last:
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                sums.add(self.train_step(batch))
                if self.step % o.log_steps == 0:
                    row = self._means(sums, self.world)
                    now = time.monotonic()
                    if self.rank == 0:
                        speed = (self.images - mark_images) / max(1e-9, now - mark)
                        self._log(tell, row, speed, waited / max(1e-9, now - mark))
                    sums, waited, mark, mark_images = _Sums(), 0.0, now, self.images
                now = time.monotonic()
                if now - measured > o.holdout_seconds and self.rank == 0:
                    tell(f"held back: {self.measure()}")
                    measured = time.monotonic()
                if now - saved > o.save_seconds:
                    self._means(sums)
                    self.save()
                    saved = time.monotonic()
        finally:
            batches.close()
        self._means(sums)
        self.save()
        if self.progress() >= 1 and self.rank == 0:
            tell(f"held back: {self.measure()}")

    def _means(self, sums: _Sums, world: int = 1) -> dict[str, float]:
        """Means of the parts; refuses to go on, and so to save, where they are not numbers."""
        means = sums.means(world)
        if not all(map(math.isfinite, means.values())):
            raise EhrnetError(
                f"the loss is not a number before step {self.step}: go on from "
                f"{self.folder}/state.pt with a lower learning rate."
            )
        return means

    def _log(
        self, tell: Callable[[str], None], row: dict[str, float], speed: float, waiting: float
    ) -> None:
        self._append(
            "log.csv",
            {
                "step": self.step,
                "images": self.images,
                "seconds": round(self.seconds),
                "lr": self._rate(),
                **row,
                "images_per_s": speed,
                "waiting": waiting,
            },
        )
        tell(
            f"step {self.step} images {self.images} {100 * self.progress():.1f} % "
            f"loss {row['loss']:.3f} rel4 {row['rel4']:.3f} rel2 {row['rel2']:.3f} "
            f"pull {row['pull']:.3f} push {row['push']:.3f} {speed:.1f} img/s, "
            f"{100 * waiting:.0f} % waiting"
        )
