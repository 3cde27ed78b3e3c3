"""What a training run is asked to do, and how it is stored beside what it has done."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.checkpoint import load_checkpoint
from ehrnet_model.training.limits import check_numbers
from ehrnet_model.training.losses import LossOptions
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.states import load_state
from ehrnet_model.variants import Variant

HABITS = ("save_seconds", "log_steps")
"""Options that change nothing of what a run learns: it may go on with others."""


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a run does.

    Attributes:
        phi: the variant.
        packs: (file, weight of its people).
        hours: length of the schedule in hours of training, or
        steps: in steps, where above 0, or
        epochs: in images, where above 0: so many times the images with people.
        windows: (side in pixels, batch, share of the steps) of the windows.
        echo: how often each batch of windows is shown, changed a little each time, see ``echo``;
            above 1 they have to be drawn on the device.
        optimiser: ``muon``, for the kernels that mix channels, beside AdamW; or ``adamw`` alone.
        lr, weight_decay: of both; the decay acts on kernels only.
        warmup_steps: the rate rises linearly over these.
        schedule: ``cosine``, or ``steps``: a tenth after 200 / 300 and again after 260 / 300.
        final: share of ``lr`` at the end of the cosine.
        ema: decay of the moving average of the weights.
        drop_connect: rate in the backbone.
        freeze: so many stages of the backbone, and the stem, keep their weights and statistics;
            0: none.
        unfreeze_at: share of the schedule after which they are trained as well.
        seed: of weights and samples.
        shared_norm: with several processes, normalise over the batches of all of them.
        bf16: convolutions in bfloat16 where the device has instructions for it.
        lite0: npz file that starts the backbone, see ``init_lite0``.
        backbone: classifier checkpoint that starts the backbone, see ``init_classifier``.
        start: state.pt or weights of another run, whose averaged weights start this one; those of
            a smaller variant are grown, see ``grow``.
        holdout: share of images never trained on.
        loss, sample: see there.
        save_seconds, log_steps: how often to save and log.
    """

    phi: int = -4
    packs: tuple[tuple[str, float], ...] = ()
    hours: float = 1.0
    steps: int = 0
    epochs: int = 0
    windows: tuple[tuple[int, int, float], ...] = ((128, 16, 1.0),)
    echo: int = 1
    optimiser: str = "muon"
    lr: float = 4e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    schedule: str = "cosine"
    final: float = 0.01
    ema: float = 0.999
    drop_connect: float = 0.0
    freeze: int = 0
    unfreeze_at: float = 1.0
    seed: int = 0
    shared_norm: bool = False
    bf16: bool = True
    lite0: str = ""
    backbone: str = ""
    start: str = ""
    holdout: float = 0.03
    loss: LossOptions = field(default_factory=LossOptions)
    sample: SampleOptions = field(default_factory=SampleOptions)
    save_seconds: float = 180.0
    log_steps: int = 50

    def __post_init__(self) -> None:
        Variant.from_phi(self.phi)
        check_numbers(
            self,
            {
                "above 0": ("lr",) if self.steps or self.epochs else ("lr", "hours"),
                "of 0 or more": (
                    *("steps", "epochs", "weight_decay", "warmup_steps", "seed", "save_seconds"),
                ),
                "of 1 or more": ("log_steps", "echo"),
                "from 0 to 1": ("final", "unfreeze_at"),
                "from 0 to below 1": ("ema", "drop_connect", "holdout"),
            },
        )
        if self.optimiser not in ("muon", "adamw"):
            raise EhrnetError(f"an optimiser is 'muon' or 'adamw', not '{self.optimiser}'.")
        if self.schedule not in ("cosine", "steps"):
            raise EhrnetError(f"a schedule is 'cosine' or 'steps', not '{self.schedule}'.")
        if self.echo > 1 and self.sample.published:
            raise EhrnetError("the paper's preset shows each window once: leave --echo out.")
        if not 0 <= self.freeze <= 7:
            raise EhrnetError(f"the backbone has 7 stages, {self.freeze} cannot be frozen.")
        for name, weight in self.packs:
            if not 0 <= weight < math.inf:
                raise EhrnetError(f"{name} has the weight {weight:g}: give a number of 0 or more.")
        for side, batch, share in self.windows:
            if side % 32 or side < 64 or batch < 1:
                raise EhrnetError(
                    f"a window of {side} pixels, batch {batch}: sides are multiples of 32 from 64, "
                    "batches 1 or more."
                )
            if not 0 <= share < math.inf:
                raise EhrnetError(
                    f"windows of {side} pixels have the share {share:g}: give a number of 0 or "
                    "more."
                )
        if not sum(share for _, _, share in self.windows):
            raise EhrnetError("no window has a share of the steps: give one a share above 0.")


def plain(options: TrainOptions) -> dict[str, Any]:
    """Options as config.json and state.pt hold them: dictionaries, lists and values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(options)))
    return plain


def completed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the options that came later at their defaults."""
    out = {**defaults, "optimiser": "adamw", **config}  # AdamW was all there was
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            out[key] = {**value, **config[key]}
    return out


def differences(config: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Options of a stored run that are not these; packs are known by their hashes, not by place."""

    def value(of: dict[str, Any], key: str) -> Any:
        return [weight for _, weight in of["packs"]] if key == "packs" else of.get(key)

    free = (*HABITS, "started_from")
    return [k for k in config if k not in free and value(config, k) != value(stored, k)]


def pose_state(path: Path) -> dict[str, Any]:
    """A state.pt of a ``Trainer``. Raises EhrnetError for any other, such as a classifier's."""
    state = load_state(path)
    if "average" not in state:
        raise EhrnetError(
            f"{path} is not the state of a pose network's run: give another, or a classifier's "
            "weights to --backbone."
        )
    return state


def history(start: Path) -> dict[str, Any]:
    """How the weights that a run starts from were made, themselves started from others perhaps."""
    if start.suffix == ".safetensors":
        meta = load_checkpoint(start)[1]
        kept = ("images_seen", "hours", "backbone")
        return {
            "weights_name": meta.weights_name,
            **{key: meta.recipe[key] for key in kept if key in meta.recipe},
        }
    state = pose_state(start)
    past = state["config"].get("started_from") or {"backbone": backbone_of(state["config"])}
    return {
        "weights_name": start.name,
        "images_seen": state["images"] + past.get("images_seen", 0),
        "hours": round(state["seconds"] / 3600 + past.get("hours", 0), 2),
        "backbone": past.get("backbone", "random"),
    }


def backbone_of(config: dict[str, Any]) -> str:
    """What the backbone's weights were when a run with this configuration began."""
    if config["backbone"]:
        return f"classifier {Path(config['backbone']).name}"
    return "slices of EfficientNet-Lite0 (ImageNet)" if config["lite0"] else "random"
