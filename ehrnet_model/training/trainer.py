"""The training loop: one process or several (torchrun), a run folder, exact resume.

Several processes each make and learn their own windows and average gradients after every step, so
that n processes with batch b do what one does with batch n b; the normalisation inside the network
is that of each process's part (its running statistics averaged), or with ``shared_norm`` of all.

A run folder holds ``config.json`` (options, packs with their hashes, versions, hardware, command),
``log.csv`` (one line every ``log_steps``), ``holdout.csv`` (measures on held-back images), both
also for TensorBoard where it is installed, and ``state.pt``, which is replaced as a whole and holds
weights, their moving average, optimiser, clock and the position in the data.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.atomic import save_json
from ehrnet_model.network.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.averages import Average, Sums
from ehrnet_model.training.batches import Batch, batch_bytes, collate, normalise
from ehrnet_model.training.echo import Echoes, change, oldest, order
from ehrnet_model.training.feed import Job, Made, feed, workers_that_fit
from ehrnet_model.training.graphs import CudaRecorder, Recorder, StepGraphs
from ehrnet_model.training.grow import grow
from ehrnet_model.training.hardware import Hardware, has_bfloat16, open_device, quicken
from ehrnet_model.training.holdout import (
    PARTS,
    HeldBackWindows,
    box_oks,
    held_back_people,
    partly_seen_people,
    told,
)
from ehrnet_model.training.init_classifier import init_from_classifier
from ehrnet_model.training.init_lite0 import init_from_lite0
from ehrnet_model.training.losses import compute_losses, predict
from ehrnet_model.training.muon import Muon, kernels_for_muon
from ehrnet_model.training.norms import share_norms
from ehrnet_model.training.options import (
    TrainOptions,
    backbone_of,
    completed,
    differences,
    history,
    plain,
    pose_state,
)
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.painter import Painter
from ehrnet_model.training.records import Records
from ehrnet_model.training.sampler import Sampler
from ehrnet_model.training.sides import widen
from ehrnet_model.training.states import read_compact, save_state, write_compact
from ehrnet_model.variants import VARIANTS, Variant, pose_variant

log = logging.getLogger(__name__)


# So often the people held back are measured on.
_HOLDOUT_S = 600.0


def _on_cpu(value: Any) -> Any:
    """The same nest of dicts and lists with its tensors in ordinary memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    return [_on_cpu(v) for v in value] if isinstance(value, list) else value


class Trainer:
    """One run.

    Args:
        options: what to do.
        folder: run folder; a run found there is continued, if it has the same options.
        change: continue with other options (schedule, data, loss), keeping weights and, where it is
            the same kind, the optimiser's state.
        hardware: where to compute; a run may go on on other hardware.
        unpack: a compact state that the run folder, which holds no run yet, starts from.
    """

    def __init__(
        self,
        options: TrainOptions,
        folder: Path,
        change: bool = False,
        hardware: Hardware | None = None,
        unpack: Path | None = None,
    ) -> None:
        self.options, self.folder = options, Path(folder)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.hardware = hardware or Hardware()
        self.device = open_device(self.hardware.device)
        if self.world > 1 and not distributed.is_initialized():
            # Gradients on GPUs go by NCCL, the clock and the log by gloo, which no GPU waits for.
            gpu = self.device.type == "cuda"
            distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
            # Its threads have to end before the process does, which else may abort at its very end
            # ("terminate called without an active exception") and fail the whole run.
            atexit.register(distributed.destroy_process_group)
        if not options.packs:
            raise EhrnetError("no data: give at least one pack (see 'ehrnet pack').")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EhrnetError(
                f"{folder} cannot be a run folder ({error.strerror}): choose another place."
            ) from None
        self.packs = [(Pack(Path(p)), w) for p, w in options.packs]
        self.sampler = Sampler(
            self.packs,
            options.seed,
            options.holdout,
            options.sample.partly_seen,
            options.sample.hardly_seen,
        )
        if not self.sampler.num_people:
            raise EhrnetError("the packs hold no person to train on.")
        config = plain(options)
        config["pack_sha256"] = [pack.sha256 for pack, _ in self.packs]
        self.step = self.images = 0
        self.seconds = 0.0
        self._clock = time.monotonic()
        self._making = np.zeros(2)  # seconds that the making of windows took

        torch.manual_seed(options.seed)
        self.network = EfficientHRNet(
            Variant.from_phi(options.phi), drop_connect=options.drop_connect
        )
        state = self._stored(config, change, unpack)
        if state is None:
            self._begin()
        else:
            self.network.load_state_dict(state["network"])
            self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        if config.get("started_from") is None:
            config["started_from"] = history(Path(options.start)) if options.start else {}
        self.network.to(self.device, memory_format=torch.channels_last)
        if options.shared_norm and self.world > 1:
            share_norms(self.network, self.device)
        self.optimiser = self._optimiser()
        self.average = self._averaged(state)
        self.bf16 = options.bf16 and has_bfloat16(self.device)
        self.graphs: StepGraphs | None = None
        if self.device.type == "cpu":
            quicken(self.network)
        self.painter, self.workers = self._who_makes_windows()
        self.config = config
        self.records = Records(self.folder)
        if self.rank == 0:
            save_json(self.folder / "config.json", self._note())
            for part in self.folder.glob(".state.pt.*.tmp"):  # of a process that was killed
                part.unlink()
        packs = [pack for pack, _ in self.packs]
        self.held_back = held_back_people(packs, options.holdout)
        self.partly_seen = partly_seen_people(packs, options.holdout)
        self.held_back_windows = HeldBackWindows(self.packs, options.holdout)
        self._measured: tuple[Any, dict[str, float]] = None, {}
        if self.world > 1:
            self._check_alike()

    def _stored(
        self, config: dict[str, Any], change: bool, unpack: Path | None
    ) -> dict[str, Any] | None:
        """The state of the run that is in the folder, if there is one; adds what it came from.

        Raises EhrnetError where that is a run of something else, or of other options unless
        ``change``.
        """
        state_file = self.folder / "state.pt"
        if unpack is not None:
            self._unpack(unpack, state_file)
        if not os.path.exists(state_file):  # so, too, where the folder may not be looked into
            return None
        state = pose_state(state_file)
        stored = completed(state["config"], plain(TrainOptions()))
        if stored["phi"] != self.options.phi:
            raise EhrnetError(
                f"{self.folder} holds a run of {Variant.from_phi(stored['phi']).name}, which "
                f"cannot go on as {self.network.variant.name}: choose another folder."
            )
        different = differences(config, stored)
        if different == ["pack_sha256"] and not change:
            raise EhrnetError(
                f"{self.folder} holds a run on other packs, by their hashes: give those, or say "
                "--change to continue with these."
            )
        if different and not change:
            raise EhrnetError(
                f"{self.folder} holds a run with other options ({', '.join(different)}): choose "
                "another folder, or say --change to continue with the new ones."
            )
        config["started_from"] = stored.get("started_from")
        return {**state, "config": stored}

    def _begin(self) -> None:
        """The weights that a run begins with, where they are not random."""
        options = self.options
        if options.start:
            self._start(Path(options.start))
        elif options.backbone:
            init_from_classifier(self.network, Path(options.backbone))
        elif options.lite0:
            init_from_lite0(self.network, Path(options.lite0), self._pictures(96))

    def _averaged(self, state: dict[str, Any] | None) -> Average:
        """The weights' average; from a stored run, that goes on, and the optimiser does, too."""
        if state is None:
            return Average(self.network, self.options.ema)
        if state["config"]["optimiser"] == self.options.optimiser:
            decays = [group["weight_decay"] for group in self.optimiser.param_groups]
            self.optimiser.load_state_dict(state["optimiser"])
            for group, decay in zip(self.optimiser.param_groups, decays, strict=True):
                group["weight_decay"] = decay  # as asked for now, not as stored
        return Average(self.network, self.options.ema, state["average"], state["average_count"])

    def _who_makes_windows(self) -> tuple[Painter | None, int]:
        """What draws windows on the device, if anything does, and how many processes otherwise."""
        where = self.hardware.windows_on
        if where not in ("auto", "device", "host"):
            raise EhrnetError(f"windows are made on 'device' or on 'host', not on '{where}'.")
        gpu = self.device.type == "cuda"
        on_device = where == "device" or (where == "auto" and gpu)
        if self.options.echo > 1 and not on_device:
            raise EhrnetError(
                "windows are shown again where the device draws them: with --echo say "
                "--windows-on device."
            )
        painter = Painter([pack for pack, _ in self.packs], self.device) if on_device else None
        workers = self.hardware.workers
        if workers < 0:
            share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, share - 1) if gpu else 0
        return painter, self._fitting(workers) if painter is None and workers else workers

    def _note(self) -> dict[str, Any]:
        """What config.json says of the run."""
        gpu = self.device.type == "cuda"
        return {
            **self.config,
            "versions": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "hardware": {
                **asdict(self.hardware),
                "bf16": self.bf16,
                "name": torch.cuda.get_device_name(self.device)
                if gpu
                else platform.processor() or platform.machine(),
            },
            "command": sys.argv,
        }

    def _fitting(self, workers: int) -> int:
        """As many of these as can send whole windows; raises EhrnetError if they were asked for."""
        size = max(batch_bytes(side, count) for side, count, share in self.options.windows if share)
        fit = workers_that_fit(size)
        if workers <= fit:
            return workers
        if self.hardware.workers > 0:
            raise EhrnetError(
                f"shared memory (/dev/shm) has no room for batches of {size / 2**20:.0f} MiB from "
                f"{workers} processes: give it more (docker run --shm-size 8g), or say --workers "
                f"{fit}."
            )
        log.warning(
            "Shared memory (/dev/shm) has room for windows of %d processes, not of %d.",
            fit,
            workers,
        )
        return fit

    def _optimiser(self) -> Muon:
        """Groups: kernels for Muon, other kernels, and what has no decay."""
        o, network = self.options, self.network
        heads = (network.head_low, network.head_high)
        mixing = kernels_for_muon(network, heads) if o.optimiser == "muon" else []
        known = {id(p) for p in mixing}
        kernels = [p for p in network.parameters() if p.ndim > 1 and id(p) not in known]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": o.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        if mixing:
            groups.append({"params": mixing, "weight_decay": o.weight_decay, "orthogonal": True})
        return Muon(groups, lr=o.lr)

    def _unpack(self, path: Path, state_file: Path) -> None:
        """Makes state.pt of a compact state: the first process does, the others wait for it."""
        if self.rank == 0:
            if os.path.exists(state_file):
                raise EhrnetError(
                    f"{self.folder} already holds a run: leave --unpack out to continue it."
                )
            save_state(read_compact(path), state_file)
        if self.world > 1:
            distributed.all_reduce(torch.zeros(1))

    def _check_alike(self) -> None:
        """Raises EhrnetError, in all processes, where they do not begin at the same place."""
        # Not bit by bit: machines of different kinds round the weights they make differently.
        parts = [value.double().abs().sum() for value in self.network.state_dict().values()]
        sizes = torch.stack(parts).cpu()
        mine = torch.cat([torch.tensor([self.step, self.images], dtype=torch.float64), sizes])
        low, high = mine.clone(), mine.clone()
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
        if not torch.equal(low[:2], high[:2]) or not torch.allclose(low, high, rtol=1e-4):
            raise EhrnetError(
                f"the processes do not begin with the same weights (this one at step {self.step}, "
                f"others at {low[0]:.0f} to {high[0]:.0f}): all machines need the same run folder "
                f"and the same files to start from; copy {self.folder} to each of them, or put it "
                "on a disk that they share."
            )

    def _start(self, path: Path) -> None:
        """Weights of another run; those of a smaller variant are grown."""
        mine = self.network.variant
        if path.suffix == ".safetensors":
            weights, meta = load_checkpoint(path)
            theirs = pose_variant(meta.variant)
        else:
            state = pose_state(path)
            weights, theirs = state["average"], Variant.from_phi(state["config"]["phi"])
        if theirs.name == mine.name:
            self.network.load_state_dict(weights)
        elif theirs.name in VARIANTS and theirs.phi < mine.phi:
            grow(self.network, theirs, weights)
        else:
            raise EhrnetError(
                f"{path} holds weights of {theirs.name}, from which {mine.name} cannot start: give "
                f"some of {mine.name} or of a smaller variant."
            )

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
        if self.options.epochs:
            return min(1.0, self.images / (self.options.epochs * self.sampler.epoch))
        if self.options.steps:
            return min(1.0, self.step / self.options.steps)
        return min(1.0, self.seconds / (self.options.hours * 3600))

    def _rate(self) -> float:
        o, done = self.options, self.progress()
        warm = min(1.0, (self.step + 1) / max(1, o.warmup_steps))
        if o.schedule == "steps":
            return o.lr * warm * 0.1 ** ((done >= 200 / 300) + (done >= 260 / 300))
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return o.lr * warm * (o.final + (1 - o.final) * cosine)

    def _train_mode(self) -> None:
        """Training mode; what is frozen just now keeps weights, statistics and all its blocks."""
        self.network.train()
        if self.options.freeze:
            frozen = self.progress() < self.options.unfreeze_at
            backbone = self.network.backbone
            for part in (backbone.stem, *backbone.stages[: self.options.freeze]):
                part.requires_grad_(not frozen)
                part.train(not frozen)

    def _jobs(self) -> Iterator[Job]:
        """This process's part of every step's windows that are new, from here on."""
        # A run that goes on from another sees other windows than that one did.
        seen = self.config["started_from"].get("images_seen", 0)
        echo = self.options.echo
        if echo == 1:
            images = self.images + seen
            for step in itertools.count(self.step):
                side, count = self._plan(step)
                yield Job(side, count, images + self.rank * count)
                images += count * self.world
        most = max(count for _, count, _ in self.options.windows)
        for batch in itertools.count(oldest(self.step, echo)):
            side, count = self._plan(batch)
            yield Job(side, count, seen + (batch * self.world + self.rank) * most)

    def _make(self, job: Job) -> Batch | Echoes:
        """Windows, or what the device needs to draw them."""
        numbers = range(job.first, job.first + job.count)
        sample = self.options.sample
        if self.painter is None:
            return collate([self.sampler.sample(i, job.side, sample) for i in numbers])
        plans = self.painter.gather([self.sampler.plan(i, job.side, sample) for i in numbers])
        changes = (
            change(plans, sample, np.random.default_rng([self.options.seed, job.first, time]))
            for time in range(1, self.options.echo)
        )
        return Echoes(plans, tuple(changes))

    def batches(self) -> Generator[Batch, None, None]:
        """Batches on the device, from the current position on, prepared ahead."""
        if self.workers and self.painter is None:
            for pack, _ in self.packs:
                pack.open()  # else each process would decode all JPEGs for itself
        items = feed(self._make, self._jobs(), self.workers, self.device.type == "cuda")
        try:
            if self.painter is None:
                for made in items:
                    yield self._noted(made).to(self.device)
            else:
                yield from self._drawn(items, self.painter)
        finally:
            items.close()

    def _drawn(self, items: Iterator[Made], painter: Painter) -> Generator[Batch, None, None]:
        """Batches drawn on the device, each as often as it is to be shown."""
        echo = self.options.echo
        kept: dict[int, Echoes] = {}
        new = oldest(self.step, echo)
        for step, (number, showing) in enumerate(order(self.step, echo), self.step):
            while new <= step // echo:
                kept[new] = self._noted(next(items)).to(self.device)
                new += 1
            yield painter(kept[number].shown(showing))
            for gone in range(min(kept), oldest(step + 1, echo)):
                del kept[gone]

    def _noted(self, made: Made) -> Any:
        """The item, once the time that it took to make is added up."""
        self._making += np.array([made.seconds, made.cpu_seconds])
        return made.item

    def record(self, recorder: Callable[[], Recorder] = CudaRecorder) -> None:
        """Makes graphs of what every step does, where that can be; see ``graphs``.

        Several processes exchange in the middle of a step, and what is frozen or left out by chance
        changes between steps: those go without.
        """
        o = self.options
        if self.world > 1 or o.freeze or o.drop_connect:
            return
        self._train_mode()
        shapes = {(batch, 3, side, side): None for side, batch, share in o.windows if share}
        try:
            self.graphs = StepGraphs(
                self.network, self.optimiser, list(shapes), self.bf16, recorder
            )
        except RuntimeError as error:
            log.warning("Steps cannot be recorded as CUDA graphs, they are slower so: %s", error)

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One update; returns the parts of the loss, of this process, on the device."""
        # What is random inside the network depends on step and process alone, like the windows.
        torch.manual_seed(zlib.crc32(f"{self.options.seed} {self.step} {self.rank}".encode()))
        self._train_mode()
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        graphs = self.graphs
        passes = graphs.passes.get(tuple(batch.images.shape)) if graphs else None
        if passes:
            predicted = passes.forward(batch.images)
            parts = compute_losses(predicted, batch, self.options.loss)
            parts["loss"].backward()
            passes.backward(predicted)
        else:
            predicted = predict(self.network, batch.images, self.bf16)
            parts = compute_losses(predicted, batch, self.options.loss)
            self.optimiser.zero_grad(set_to_none=True)
            parts["loss"].backward()
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        if self.world > 1:
            self._share()
        if graphs and passes:
            graphs.update.step(rate)
        else:
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

    def save_weights(
        self,
        path: Path,
        decode: dict[str, Any],
        metrics: dict[str, Any],
        input_size: int = 0,
        side_gain: Mapping[str, float] | None = None,
        smooth: float = 0.0,
    ) -> None:
        """Writes the averaged weights as a checkpoint of quality ``preview``.

        Args:
            path: ``*.safetensors``.
            decode: decode defaults that suit them.
            metrics: what was measured with them.
            input_size: short side of the network input that suits them; 0: the variant's own.
            side_gain: see ``finished``.
            smooth: see ``ModelInfo``.
        """
        keep = (
            "optimiser",
            "lr",
            "weight_decay",
            "ema",
            "windows",
            "echo",
            "sample",
            "loss",
            "seed",
            "holdout",
        )
        past = self.config["started_from"]
        images = self.images + past.get("images_seen", 0)
        recipe = {
            "images_seen": images,
            "hours": round(self.seconds / 3600 + past.get("hours", 0), 2),
            "backbone": past.get("backbone", "random") if past else backbone_of(self.config),
            "last_run": {
                "started_from": past.get("weights_name", ""),
                "images_seen": self.images,
                "steps": self.step,
                "hours": round(self.seconds / 3600, 2),
                "options": {key: self.config[key] for key in keep},
            },
        }
        meta = CheckpointMeta(
            variant=self.network.variant.name,
            weights_name=f"{self.network.variant.name}-{images // 1000}k",
            quality="preview",
            coordinates="reference" if self.options.sample.published else "pixel-centre",
            smooth=smooth,
            input_size=input_size,
            decode=decode,
            metrics=metrics,
            recipe=recipe,
        )
        if side_gain:
            recipe["side_gain"] = dict(side_gain)
        save_checkpoint(path, _on_cpu(self.finished(side_gain)), meta)

    def finished(self, side_gain: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
        """The averaged weights; left and right maps made to differ more, see ``sides.widen``."""
        return widen(self.average.state, side_gain or {})

    def averaged(self, side_gain: Mapping[str, float] | None = None) -> EfficientHRNet:
        """A network with the averaged weights, for use."""
        network = EfficientHRNet(Variant.from_phi(self.options.phi))
        network.load_state_dict(self.finished(side_gain))
        return network.to(self.device, memory_format=torch.channels_last).eval()

    def measure(self, side_gain: Mapping[str, float] | None = None) -> dict[str, float]:
        """BoxOKS and loss of the averaged weights on held-back images; a row of holdout.csv.

        Asked again at the same step, it is what was measured there.
        """
        if not self.held_back or self.rank:
            return {}
        asked = (self.step, dict(side_gain or {}))
        if asked == self._measured[0]:
            return self._measured[1]
        network = self.averaged(side_gain)
        values = box_oks(network, self.held_back, self.bf16)
        if self.partly_seen:
            values["partly_seen"] = box_oks(network, self.partly_seen, self.bf16)["box_oks"]
        if self.held_back_windows.num_people:
            losses = self.held_back_windows.losses(network, self.bf16).mean(0)
            values.update(zip(PARTS, losses.tolist(), strict=True))
        self.records.add(
            "holdout",
            {"step": self.step, "images": self.images, "seconds": round(self.seconds), **values},
        )
        self._measured = asked, values
        return values

    def run(
        self,
        tell: Callable[[str], None] = log.info,
        steps: int | None = None,
        minutes: float = math.inf,
        each: Callable[[], None] = lambda: None,
    ) -> None:
        """Trains to the end of the schedule, or for ``steps`` more; saves now and then and last.

        Args:
            tell: takes a line of text now and then.
            steps: how many at most; None: all.
            minutes: stop after so many.
            each: called after every step (a progress bar).
        """
        o = self.options
        if o.bf16 and not self.bf16 and self.rank == 0:
            tell(f"this {self.device.type.upper()} has no bfloat16 instructions: in float32.")
        if self.device.type == "cuda" and self.graphs is None:
            self.record()
        clock = self._clock = time.monotonic()
        saved = measured = clock
        sums, waited = Sums(), 0.0
        mark, mark_images, last = clock, self.images, None if steps is None else self.step + steps
        batches = self.batches()
        try:
            # By the clock that all processes share: they stop at the same step.
            end = self.seconds + 60 * minutes
            while self.progress() < 1 and self.step != last and self.seconds < end:
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                sums.add(self.train_step(batch))
                each()
                if self.step % o.log_steps == 0:
                    row = self._means(sums, self.world)
                    now = time.monotonic()
                    if self.rank == 0:
                        speed = (self.images - mark_images) / max(1e-9, now - mark)
                        making = 1e3 * self.world * self._making / (self.images - mark_images)
                        self._log(tell, row, speed, waited / max(1e-9, now - mark), making)
                    sums, waited, mark, mark_images = Sums(), 0.0, now, self.images
                    self._making[:] = 0
                now = time.monotonic()
                if now - measured > _HOLDOUT_S and self.rank == 0:
                    tell(told(self.measure()))
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
            tell(told(self.measure()))

    def _means(self, sums: Sums, world: int = 1) -> dict[str, float]:
        """Means of the parts; refuses to go on, and so to save, where they are not numbers."""
        means = sums.means(world)
        if not all(map(math.isfinite, means.values())):
            raise EhrnetError(
                f"the loss is not a number before step {self.step}: go on from "
                f"{self.folder}/state.pt with a lower learning rate."
            )
        return means

    def _log(
        self,
        tell: Callable[[str], None],
        row: dict[str, float],
        speed: float,
        waiting: float,
        making: np.ndarray,
    ) -> None:
        """``making``: milliseconds a window, by the clock and of a processor."""
        self.records.add(
            "log",
            {
                "step": self.step,
                "images": self.images,
                "seconds": round(self.seconds),
                "lr": self._rate(),
                **row,
                "images_per_s": speed,
                "waiting": waiting,
                "making_ms": float(making[0]),
                "making_cpu_ms": float(making[1]),
            },
        )
        tell(
            f"step {self.step} images {self.images} {100 * self.progress():.1f} % "
            f"loss {row['loss']:.3f} rel4 {row['rel4']:.3f} rel2 {row['rel2']:.3f} "
            f"pull {row['pull']:.3f} push {row['push']:.3f} {speed:.1f} img/s, "
            f"{100 * waiting:.0f} % waiting"
        )
