"""Training of the compact EfficientNets as classifiers: the start of a pose network's backbone.

The paper's recipe (stochastic gradient descent, Xavier's initialisation, warm-up, a tenth of the
rate every 30 epochs, weight decay, random rotation, scale, aspect and colour) is what the options
say by default. It does not say momentum, batch and the amounts of the augmentation: these are ours.

A run folder holds ``config.json``, ``log.csv`` (one line per epoch and every ``log_steps``),
``evaluations.csv`` and ``state.pt``, which is replaced as a whole; a run found there goes on with
the very step after the last that was saved, and ends as it would have without a break.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.checkpoint import CheckpointMeta, save_checkpoint
from ehrnet_model.network.classifier import EfficientNet
from ehrnet_model.training.batches import MEAN, STD, normalise
from ehrnet_model.training.limits import check_numbers
from ehrnet_model.training.pictures import open_pictures
from ehrnet_model.training.states import append_row, load_state, save_state
from ehrnet_model.variants import Variant

log = logging.getLogger(__name__)

# Of the shorter side, what is measured on; small pictures are measured on whole.
_CENTRE = 0.875


@dataclass(frozen=True)
class AugmentOptions:
    """How a picture is varied while it is learnt from.

    Attributes:
        rotate: largest rotation, degrees.
        area: smallest share of the picture's area that is shown.
        aspect: largest change of the aspect, as a factor.
        colour: largest change of brightness, contrast and saturation, as a share.
        mirror: probability of mirroring; the paper names none.
    """

    rotate: float = 15.0
    area: float = 0.35
    aspect: float = 4 / 3
    colour: float = 0.3
    mirror: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(
            self,
            {
                "above 0, up to 1": ("area",),
                "of 0 or more": ("rotate",),
                "of 1 or more": ("aspect",),
                "from 0 to 1": ("colour", "mirror"),
            },
        )


@dataclass(frozen=True)
class ClassifierOptions:
    """Everything that decides what a run does.

    Attributes:
        data: see ``pictures.open_pictures``.
        phi: whose backbone, 0 .. -4.
        size: side of the square input in pixels; 0: the paper's for this backbone.
        epochs, warmup_epochs: all, and those among them over which the rate rises linearly.
        batch: pictures per step.
        warmup_lr, lr: rate at the start and after the warm-up.
        drop_epochs: epochs from one division of the rate by ten to the next.
        weight_decay, momentum: of stochastic gradient descent; the decay acts on kernels only.
        drop_connect, dropout: rates in the network.
        seed: of weights, order and augmentation.
        bf16: convolutions in bfloat16.
        augment: see there.
        save_seconds, log_steps: how often to save and log.
    """

    data: str
    phi: int = -4
    size: int = 0
    epochs: int = 200
    warmup_epochs: int = 5
    batch: int = 128
    warmup_lr: float = 1e-4
    lr: float = 0.05
    drop_epochs: int = 30
    weight_decay: float = 1e-4
    momentum: float = 0.9
    drop_connect: float = 0.2
    dropout: float = 0.2
    seed: int = 0
    bf16: bool = False
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    save_seconds: float = 300.0
    log_steps: int = 50

    def __post_init__(self) -> None:
        Variant.from_phi(self.phi)
        if self.size and self.size < 32:
            raise EhrnetError(f"pictures of {self.size} pixels are too small: give 32 or more.")
        check_numbers(
            self,
            {
                "above 0": ("lr",),
                "of 0 or more": ("warmup_epochs", "warmup_lr", "weight_decay", "seed"),
                "of 1 or more": ("epochs", "drop_epochs", "log_steps"),
                # A single picture has no deviation to normalise by.
                "of 2 or more": ("batch",),
                "from 0 to below 1": ("momentum", "drop_connect", "dropout"),
            },
        )

    def rate(self, epoch: float) -> float:
        """Learning rate at a point of the schedule, in epochs."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup_epochs
        return float(self.lr * 0.1 ** ((epoch - self.warmup_epochs) // self.drop_epochs))


def augmented(
    picture: np.ndarray, size: int, options: AugmentOptions, rng: np.random.Generator
) -> np.ndarray:
    """A random view of a picture: uint8 (h, w, 3) to (size, size, 3)."""
    height, width = picture.shape[:2]
    area = rng.uniform(options.area, 1.0) * height * width
    ratio = math.exp(rng.uniform(-1, 1) * math.log(options.aspect))
    view = np.array([math.sqrt(area * ratio), math.sqrt(area / ratio)])
    view *= min(1.0, width / view[0], height / view[1])
    spare = np.array([width, height]) - view
    centre = (np.array([width, height]) - 1) / 2 + rng.uniform(-0.5, 0.5, 2) * spare
    angle = math.radians(rng.uniform(-options.rotate, options.rotate))
    flip = -1.0 if rng.random() < options.mirror else 1.0
    picture = _warped(picture, size, centre, view * (flip, 1.0), angle)
    if options.colour:
        low, high = 1 - options.colour, 1 + options.colour
        brightness, contrast, saturation = rng.uniform(low, high, 3)
        values = picture.astype(np.float32)
        grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
        values = grey[..., None] + saturation * (values - grey[..., None])
        mean = float(grey.mean())
        values = (mean + contrast * (values - mean)) * brightness
        picture = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return picture


def centred(picture: np.ndarray, size: int) -> np.ndarray:
    """The view a picture is measured in: its middle, or all of a small one; (size, size, 3)."""
    height, width = picture.shape[:2]
    side = min(height, width) * (_CENTRE if min(height, width) > size else 1.0)
    return _warped(picture, size, (np.array([width, height]) - 1) / 2, np.array([side, side]), 0.0)


def _warped(
    picture: np.ndarray, size: int, centre: np.ndarray, view: np.ndarray, angle: float
) -> np.ndarray:
    """What a turned rectangle shows; borders repeat. Positions in pixels, their centres whole."""
    shrink = int(min(abs(view)) / size)
    if shrink >= 2:  # bilinear reading alone would skip pixels
        height, width = picture.shape[:2]
        new = np.array([max(1, width // shrink), max(1, height // shrink)])
        picture = cv2.resize(picture, (int(new[0]), int(new[1])), interpolation=cv2.INTER_AREA)
        scale = new / (width, height)
        centre, view = (centre + 0.5) * scale - 0.5, view * scale
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) * view / size
    offset = centre - matrix @ np.full(2, (size - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out: np.ndarray = cv2.warpAffine(
        picture,
        np.hstack([matrix, offset[:, None]]),
        (size, size),
        flags=flags,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return out


class ClassifierTrainer:
    """One run.

    Args:
        options: what to do.
        folder: run folder; a run found there goes on, if it has the same options.
        workers: threads that prepare pictures.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self, options: ClassifierOptions, folder: Path, workers: int = 2, device: str = "cpu"
    ) -> None:
        self.options, self.folder, self.device = options, Path(folder), torch.device(device)
        self.variant = Variant.from_phi(options.phi)
        self.size = options.size or self.variant.classifier_size
        self.train_set, self.test_set = open_pictures(Path(options.data))
        self.batch = min(options.batch, len(self.train_set))
        self.steps_per_epoch = len(self.train_set) // self.batch
        self.workers = max(1, workers)
        self.step = 0
        self.seconds = 0.0
        self._order = -1, np.zeros(0, np.int64)
        torch.manual_seed(options.seed)
        self.network = EfficientNet(
            self.variant, len(self.train_set.classes), options.drop_connect, options.dropout
        )
        for module in self.network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
        self.network.to(self.device, memory_format=torch.channels_last)
        parameters = list(self.network.parameters())
        self.optimiser = torch.optim.SGD(
            [
                {
                    "params": [p for p in parameters if p.ndim > 1],
                    "weight_decay": options.weight_decay,
                },
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=options.lr,
            momentum=options.momentum,
        )
        self.config = json.loads(json.dumps(asdict(options)))
        self.config["classes"] = list(self.train_set.classes)
        self.config["pictures"] = [len(self.train_set), len(self.test_set)]
        self._open_folder()

    def _open_folder(self) -> None:
        state_file = self.folder / "state.pt"
        if state_file.exists():
            state = load_state(state_file)
            if state.get("config") != self.config:
                theirs = state.get("config") or {}
                different = [k for k in self.config if self.config[k] != theirs.get(k)]
                raise EhrnetError(
                    f"{self.folder} holds a run with other options ({', '.join(different)}): "
                    "choose another folder."
                )
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"])
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            versions = {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "opencv": cv2.__version__,
                "python": platform.python_version(),
            }
            note = {**self.config, "versions": versions}
            (self.folder / "config.json").write_text(json.dumps(note, indent=1) + "\n")
        except OSError as error:
            raise EhrnetError(f"{self.folder} cannot be written: {error.strerror}.") from None

    @property
    def total_steps(self) -> int:
        """Length of the schedule."""
        return self.options.epochs * self.steps_per_epoch

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs."""
        state = {
            "config": self.config,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        return state

    def save(self) -> None:
        """Replaces state.pt."""
        save_state(self.state(), self.folder / "state.pt")

    def run(
        self,
        steps: int | None = None,
        advance: Callable[[int], None] = lambda steps: None,
        tell: Callable[[str], None] = log.info,
    ) -> None:
        """Trains to the end of the schedule, or for ``steps`` more; saves now and then and last.

        Args:
            steps: at most so many.
            advance: told after each step how many steps were done.
            tell: told what was measured.
        """
        last = self.total_steps if steps is None else min(self.total_steps, self.step + steps)
        clock = saved = time.monotonic()
        total, counted = torch.zeros(2, device=self.device), 0
        batches = self._batches(self.step, last)
        try:
            for images, labels in batches:
                loss, right = self._step(images, labels)
                total += torch.stack([loss, right])
                counted += 1
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                advance(1)
                if self.step % self.options.log_steps == 0 or self.step % self.steps_per_epoch == 0:
                    self._log((total / counted).tolist())
                    total, counted = torch.zeros_like(total), 0
                if self.step % self.steps_per_epoch == 0:
                    tell(f"epoch {self.step // self.steps_per_epoch}: {self.measure()}")
                    clock = time.monotonic()
                if time.monotonic() - saved > self.options.save_seconds:
                    self.save()
                    saved = time.monotonic()
        finally:
            batches.close()
        self.save()

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update; loss and share of right answers."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.rate(self.step / self.steps_per_epoch)
        logits = self._logits(images)
        loss = F.cross_entropy(logits, labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return loss.detach(), (logits.detach().argmax(1) == labels).float().mean()

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            logits: Tensor = self.network(images)
        return logits.float()

    def _log(self, means: list[float]) -> None:
        if not math.isfinite(means[0]):
            raise EhrnetError(
                f"the loss is not a number at step {self.step}: start again with a lower rate; "
                f"{self.folder / 'state.pt'} is as it was saved last."
            )
        row = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "seconds": round(self.seconds),
            "lr": self.optimiser.param_groups[0]["lr"],
            "loss": means[0],
            "top1_train": means[1],
        }
        append_row(self.folder / "log.csv", row)

    @torch.no_grad()
    def measure(self, progress: Callable[[int], None] = lambda count: None) -> dict[str, float]:
        """Top-1 and top-5 accuracy on all pictures of the test split; also into evaluations.csv."""
        self.network.eval()
        best = torch.zeros(2, dtype=torch.int64, device=self.device)
        count = len(self.test_set)
        top = min(5, len(self.test_set.classes))
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, count, self.options.batch):
                numbers = range(start, min(count, start + self.options.batch))
                views = pool.map(lambda i: centred(self.test_set.picture(i), self.size), numbers)
                labels = torch.from_numpy(self.test_set.labels[numbers.start : numbers.stop])
                answers = self._logits(self._to_device(list(views))).topk(top).indices
                hits = answers == labels.to(self.device)[:, None]
                best += torch.stack([hits[:, 0].sum(), hits.any(1).sum()])
                progress(len(numbers))
        top1, top5 = (best / count).tolist()
        result = {"top1": top1, "top5": top5}
        where = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        append_row(self.folder / "evaluations.csv", {**where, **result})
        return result

    def save_weights(self, path: Path, metrics: dict[str, float]) -> None:
        """Writes the weights as a checkpoint that starts ``ehrnet train --backbone``."""
        recipe = {
            "options": self.config,
            "epochs_done": self.step / self.steps_per_epoch,
            "hours": round(self.seconds / 3600, 3),
            "mean_rgb": MEAN,
            "std_rgb": STD,
        }
        name = self.variant.backbone_name
        meta = CheckpointMeta(
            variant=name,
            skeleton="",
            weights_name=f"{name}-{Path(self.options.data).name.split('.')[0]}",
            quality="preview",
            input_size=self.size,
            metrics={**metrics, "pictures": len(self.test_set)},
            recipe=recipe,
        )
        save_checkpoint(path, self.network.state_dict(), meta)

    # Data

    def _to_device(self, views: list[np.ndarray]) -> Tensor:
        return normalise(np.stack(views)).to(self.device, non_blocking=True)

    def _view(self, epoch: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.options.seed, 1, epoch, index])
        return augmented(self.train_set.picture(index), self.size, self.options.augment, rng)

    def _numbers(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch of a step, and the pictures of its batch: each once per epoch, but for a rest."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.options.seed, 0, epoch])
            self._order = epoch, rng.permutation(len(self.train_set))
        return epoch, self._order[1][place * self.batch : (place + 1) * self.batch]

    def _batches(self, step: int, last: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Batches of the steps from one on; prepared two ahead."""
        ahead: list[tuple[np.ndarray, list[Future[np.ndarray]]]] = []
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for number in range(step, last + 2):
                    if number < last:
                        epoch, indices = self._numbers(number)
                        views = [pool.submit(self._view, epoch, int(i)) for i in indices]
                        ahead.append((indices, views))
                    if number >= step + 2 or number >= last:
                        if not ahead:
                            return
                        indices, views = ahead.pop(0)
                        labels = torch.from_numpy(self.train_set.labels[indices])
                        yield (
                            self._to_device([view.result() for view in views]),
                            labels.to(self.device, non_blocking=True),
                        )
            finally:
                for _, views in ahead:
                    for view in views:
                        view.cancel()
