"""``ehrnet train``: train a variant on packs."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from ehrnet_ros.cli.settings import user_path
from ehrnet_ros.start import ends_at_once

if TYPE_CHECKING:
    from ehrnet_model.training.options import TrainOptions

HELP = "train a variant on packs made by 'ehrnet pack'"


def weighted_pack(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT as a pack's path and its weight, 1 where none is given."""
    name, _, weight = text.rpartition(":")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0


def _window(text: str) -> tuple[int, int, float]:
    parts = text.split(":")
    try:
        return int(parts[0]), int(parts[1]), float(parts[2]) if len(parts) > 2 else 1.0
    except (ValueError, IndexError):
        raise argparse.ArgumentTypeError(
            "a window is SIDE:BATCH[:SHARE], for example 128:16:0.7"
        ) from None


def _setting(text: str) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        if sign and math.isfinite(float(value)):
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("a setting is NAME=NUMBER, for example upper_body=0.4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        metavar="DIR",
        help="run folder; a run in it goes on",
    )
    parser.add_argument(
        "--phi",
        type=int,
        default=-4,
        choices=(0, -1, -2, -3, -4),
        help="which variant: 0 (H0) to -4 (H-4, default)",
    )
    parser.add_argument(
        "--pack",
        type=weighted_pack,
        required=True,
        nargs="+",
        metavar="FILE[:WEIGHT]",
        help="what to train on; WEIGHT: how often its people are shown, against other packs' (1)",
    )
    parser.add_argument(
        "--preset",
        choices=("ours", "paper"),
        default="ours",
        help="recipe that gives every option below that is not given (ours; its values are shown)",
    )
    parser.add_argument(
        "--hours", type=float, help="length of the schedule in hours of training (1)"
    )
    parser.add_argument(
        "--steps", type=int, help="length of the schedule in steps instead (0: in hours)"
    )
    parser.add_argument(
        "--epochs", type=int, help="length in passes over the images with people instead (0)"
    )
    parser.add_argument(
        "--window",
        type=_window,
        nargs="+",
        metavar="SIDE:BATCH[:SHARE]",
        help="squares of SIDE pixels cut out of the pictures, BATCH of them a step, in this share "
        "of the steps (128:16)",
    )
    parser.add_argument(
        "--echo",
        type=int,
        metavar="N",
        help="show each batch N times, moved, mirrored and coloured anew: for GPUs that learn "
        "windows faster than they are made (1)",
    )
    parser.add_argument(
        "--optimiser", choices=("muon", "adamw"), help="of the kernels that mix channels (muon)"
    )
    parser.add_argument("--lr", type=float, help="learning rate (0.004)")
    parser.add_argument("--weight-decay", type=float, help="of kernels (0.01)")
    parser.add_argument("--warmup-steps", type=int, help="steps until the rate is reached (100)")
    parser.add_argument(
        "--schedule", choices=("cosine", "steps"), help="how the rate falls (cosine)"
    )
    parser.add_argument(
        "--final", type=float, help="share of the rate left at a cosine's end (0.01)"
    )
    parser.add_argument("--ema", type=float, help="decay of the average of the weights (0.999)")
    parser.add_argument("--drop-connect", type=float, help="of the backbone's blocks, 0 to 1 (0)")
    parser.add_argument("--seed", type=int, help="of weights and windows (0)")
    parser.add_argument("--holdout", type=float, help="share of the images never trained on (0.03)")
    parser.add_argument(
        "--lite0", default="", metavar="NPZ", help="EfficientNet-Lite0 weights to start from"
    )
    parser.add_argument(
        "--backbone",
        default="",
        metavar="FILE",
        help="classifier to start the backbone from (made by 'ehrnet train-classifier')",
    )
    parser.add_argument(
        "--start",
        default="",
        metavar="FILE",
        help="state.pt or weights (*.safetensors) of another run to start from",
    )
    parser.add_argument(
        "--sample",
        type=_setting,
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="what the windows show, such as pair=0.4 fill_min=0.25; all names are under 'sample' "
        "in the run folder's config.json, their meaning in ehrnet_model/training/sampler.py",
    )
    parser.add_argument(
        "--loss",
        type=_setting,
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="weights of the losses, such as tag=0.02; see ehrnet_model/training/losses.py",
    )
    parser.add_argument(
        "--freeze",
        type=int,
        metavar="N",
        help="keep weights and statistics of the backbone's stem and first N of its 7 stages "
        "(0: train all)",
    )
    parser.add_argument(
        "--unfreeze-at", type=float, metavar="SHARE", help="of the schedule (1); then train all"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute (auto: CUDA where there is a GPU)",
    )
    parser.add_argument(
        "--windows-on",
        choices=("auto", "device", "host"),
        default="auto",
        help="where windows and targets are drawn: on the device, which then holds all pictures in "
        "its memory, or on the CPU (auto: on the device if it is a GPU)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=-1,
        metavar="N",
        help="processes that prepare windows; 0: a thread (default: 0 on a CPU; on a GPU all "
        "cores but one)",
    )
    parser.add_argument(
        "--shared-norm",
        action="store_true",
        default=None,
        help="under torchrun: batch normalisation over the batches of all processes",
    )
    parser.add_argument(
        "--until", type=int, default=0, metavar="STEP", help="stop at this step and save"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop after so many minutes of training and save; the same command goes on",
    )
    parser.add_argument("--save-seconds", type=float, help="seconds between two saves (180)")
    parser.add_argument("--log-steps", type=int, help="steps between two lines of log (50)")
    parser.add_argument(
        "--fp32",
        dest="bf16",
        action="store_false",
        default=None,
        help="no bfloat16, which is used where the device has instructions for it",
    )
    parser.add_argument(
        "--unpack",
        type=user_path,
        metavar="FILE",
        help="start the run folder from a compact state (*.resume.safetensors)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="of the input that suits the weights, to store with them (0: the variant's own)",
    )
    parser.add_argument(
        "--save-only",
        action="store_true",
        help="train nothing: write weights and compact state of the run as it stands",
    )
    parser.add_argument(
        "--side-gain",
        type=_setting,
        nargs="*",
        default=[],
        metavar="PAIR=NUMBER",
        help="in the weights written, left and right maps of a pair (knees, ankles, ...) differ by "
        "so many times as much; for networks that are not sure of sides",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="CELLS",
        help="to store with the weights: heatmaps are smoothed by a Gaussian of so many cells at "
        "half the input size before peaks are looked for (0: not)",
    )
    parser.add_argument(
        "--decode",
        type=_setting,
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="decode defaults to store with the weights",
    )
    parser.add_argument(
        "--tuned",
        type=user_path,
        metavar="JSON",
        help="decode defaults and scores to store with the weights, as `ehrnet tune --json` "
        "wrote them",
    )
    parser.add_argument(
        "--change", action="store_true", help="go on with other options than the run's"
    )


def run(args: argparse.Namespace) -> int:
    """Trains until the schedule ends; interrupting loses what came after the last save."""
    import dataclasses

    import cv2
    from tqdm import tqdm

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation.tune import tuned_options
    from ehrnet_model.inference.decode import typed_options
    from ehrnet_model.inference.runtime import ModelInfo
    from ehrnet_model.variants import Variant

    with ends_at_once():
        from ehrnet_model.network.checkpoint import weights_sha256
        from ehrnet_model.training.hardware import Hardware, keep_memory
        from ehrnet_model.training.sides import check_pairs
        from ehrnet_model.training.trainer import Trainer

    cv2.setNumThreads(1)
    _check(args)
    # Read before training, after which it would be late for a wrong one.
    decode = typed_options(args.decode)
    side_gain = dict(args.side_gain)
    check_pairs(side_gain)
    info = ModelInfo(Variant.from_phi(args.phi).name, args.phi)
    if args.tuned is not None:
        decode = {**tuned_options(args.tuned, "display", info), **decode}
    options = _options(args)
    if args.save_only and args.unpack is None and not (args.out / "state.pt").exists():
        raise EhrnetError(
            f"{args.out} holds no run whose weights --save-only could write: name the folder of "
            "one, or give its compact state with --unpack."
        )
    hardware = Hardware(args.device, args.windows_on, args.workers)
    trainer = Trainer(options, args.out, args.change, hardware, args.unpack)
    if trainer.device.type == "cpu":
        keep_memory()
    if not args.save_only:
        steps = max(0, args.until - trainer.step) if args.until else None
        # A bar where somebody watches; lines alone in a file or behind torchrun.
        with tqdm(
            total=100.0,
            disable=bool(trainer.rank) or not sys.stderr.isatty(),
            bar_format="{l_bar}{bar}| {elapsed} gone, {remaining} to go",
        ) as bar:
            trainer.run(
                lambda text: bar.write(text, file=sys.stderr),
                steps,
                args.minutes,
                lambda: bar.update(100 * trainer.progress() - bar.n),
            )
    if trainer.rank:
        return 0
    name = info.variant
    if args.tuned is not None:  # says if they are of other weights
        hash_now = weights_sha256(trainer.finished(side_gain))
        tuned_options(args.tuned, "display", dataclasses.replace(info, weights_sha256=hash_now))
    trainer.save_compact(args.out / f"{name}.resume.safetensors")
    trainer.save_weights(
        args.out / f"{name}.safetensors",
        decode,
        {"held_back": trainer.measure(side_gain)},
        args.short_side,
        side_gain,
        args.smooth,
    )
    print(
        f"{args.out}: {trainer.step} steps, {trainer.images} images, "
        f"{trainer.seconds / 3600:.2f} hours"
    )
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises EhrnetError for what no recipe is asked about."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.runtime import MAX_SMOOTH
    from ehrnet_model.inference.sizes import parse_size

    if args.backbone and (args.lite0 or args.start):
        raise EhrnetError("--backbone, --lite0 and --start each give the start: name one of them.")
    if args.short_side:
        parse_size("square", args.short_side)
    if not 0 <= args.smooth <= MAX_SMOOTH:
        raise EhrnetError(f"--smooth is a number of cells from 0 to {MAX_SMOOTH:g}.")
    if not args.minutes > 0 or args.until < 0:
        raise EhrnetError("--minutes is a number above 0, --until a step of 0 (no stop) or more.")


def _options(args: argparse.Namespace) -> TrainOptions:
    """The recipe with what was given instead. Raises EhrnetError."""
    import dataclasses

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.training.presets import preset

    options = preset(args.preset, args.phi)
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(options)
        if getattr(args, field.name, None) is not None
    }
    lengths = {"hours", "steps", "epochs"} & set(given)
    if len(lengths) > 1:
        raise EhrnetError(f"a schedule has one length: --{' or --'.join(sorted(lengths))}.")
    if lengths:  # the recipe's own gives way
        options = dataclasses.replace(options, hours=1.0, steps=0, epochs=0)
    given.update(
        packs=tuple(args.pack),
        windows=tuple(args.window or options.windows),
        loss=_with(options.loss, args.loss),
        sample=_with(options.sample, args.sample),
    )
    return dataclasses.replace(options, **given)


def _with(start: Any, settings: list[tuple[str, float]]) -> Any:
    """Options of a loss or of windows with these values. Raises EhrnetError for unknown names."""
    import dataclasses

    from ehrnet_model.errors import EhrnetError

    names = {f.name for f in dataclasses.fields(start)} - {"published"}
    if "fill" in names:  # a pair of numbers
        names = names - {"fill"} | {"fill_min", "fill_max"}
    values: dict[str, Any] = {}
    for name, value in settings:
        if name in names and name.startswith("fill_"):
            low, high = values.get("fill", start.fill)
            values["fill"] = (value, high) if name == "fill_min" else (low, value)
        elif name in names:
            values[name] = type(getattr(start, name))(value)
        else:
            raise EhrnetError(f"there is no setting '{name}'; known: {', '.join(sorted(names))}.")
    return dataclasses.replace(start, **values)
