"""``ehrnet train-classifier``: train a compact EfficientNet on labelled pictures."""

from __future__ import annotations

import argparse
import sys

from ehrnet_ros.cli.settings import name_number, user_path
from ehrnet_ros.start import ends_at_once

HELP = "train a variant's backbone as a classifier on a picture folder or CIFAR-100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; the defaults are the paper's recipe."""
    parser.add_argument(
        "--data",
        type=user_path,
        required=True,
        metavar="DIR_OR_TAR",
        help="folder with train/CLASS/... and val/CLASS/..., or CIFAR-100 (cifar-100-python.tar.gz "
        "or the folder in it)",
    )
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
        help="whose backbone: 0 (B0, of H0) to -4 (B-4, default)",
    )
    parser.add_argument(
        "--size", type=int, default=0, help="side of the input (default: the paper's, 128 to 224)"
    )
    parser.add_argument("--epochs", type=int, default=200, help="passes over the pictures (200)")
    parser.add_argument(
        "--warmup-epochs", type=int, default=5, help="epochs until the rate is reached (5)"
    )
    parser.add_argument("--batch", type=int, default=128, help="pictures a step (128)")
    parser.add_argument("--lr", type=float, default=0.05, help="rate after the warm-up (0.05)")
    parser.add_argument(
        "--drop-epochs", type=int, default=30, help="the rate falls to a tenth every N epochs (30)"
    )
    parser.add_argument("--drop-connect", type=float, default=0.2, help="rate in the blocks (0.2)")
    parser.add_argument(
        "--dropout", type=float, default=0.2, help="rate before the last layer (0.2)"
    )
    parser.add_argument(
        "--augment",
        type=name_number,
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="rotate (degrees), area, aspect, colour, mirror (probability, 0 as in the paper)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures (0)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where to compute (auto: CUDA where there is a GPU)",
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that prepare pictures (2)")
    parser.add_argument(
        "--measure-only", action="store_true", help="train nothing: measure the run as it stands"
    )


def run(args: argparse.Namespace) -> int:
    """Trains, measures, writes the weights; prints top-1 and top-5."""
    import dataclasses

    import cv2
    from tqdm import tqdm

    from ehrnet_model.errors import EhrnetError

    with ends_at_once():
        import torch

        from ehrnet_model.training.classifier import (
            AugmentOptions,
            ClassifierOptions,
            ClassifierTrainer,
        )
        from ehrnet_model.training.hardware import keep_memory

    cv2.setNumThreads(1)
    known = [f.name for f in dataclasses.fields(AugmentOptions)]
    for name, _ in args.augment:
        if name not in known:
            raise EhrnetError(f"there is no augmentation '{name}'; known: {', '.join(known)}.")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise EhrnetError("there is no CUDA device that PyTorch can use: say --device cpu.")
    options = ClassifierOptions(
        data=str(args.data),
        phi=args.phi,
        size=args.size,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        batch=args.batch,
        lr=args.lr,
        drop_epochs=args.drop_epochs,
        seed=args.seed,
        bf16=args.bf16,
        drop_connect=args.drop_connect,
        dropout=args.dropout,
        augment=AugmentOptions(**dict(args.augment)),
    )
    if args.measure_only and not (args.out / "state.pt").exists():
        raise EhrnetError(
            f"{args.out} holds no run that --measure-only could measure: name the folder of one."
        )
    if device == "cpu":
        keep_memory()
    trainer = ClassifierTrainer(options, args.out, args.workers, device)
    if not args.measure_only:
        with tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            unit="step",
            file=sys.stderr,
            disable=None,
        ) as bar:
            trainer.run(advance=bar.update, tell=lambda text: bar.write(text, file=sys.stderr))
    with tqdm(total=len(trainer.test_set), unit="picture", file=sys.stderr, disable=None) as bar:
        metrics = trainer.measure(bar.update)
    path = args.out / f"{trainer.variant.backbone_name}.safetensors"
    trainer.save_weights(path, metrics)
    print(
        f"{path}: top-1 {100 * metrics['top1']:.1f} %, top-5 {100 * metrics['top5']:.1f} % of "
        f"{len(trainer.test_set)} pictures, {len(trainer.train_set.classes)} classes, "
        f"{trainer.size} px"
    )
    return 0
