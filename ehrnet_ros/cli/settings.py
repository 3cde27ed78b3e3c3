"""Words of the command line that several verbs take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Tuple


def add_model(parser: argparse.ArgumentParser, phi: int) -> None:
    """Declares --phi, --model, --runtime and --size: what finds people, and on what.

    Args:
        parser: of the verb.
        phi: the default.
    """
    parser.add_argument("--phi", type=int, default=phi, help=f"0 (H0) to -4 (H-4), default {phi}")
    parser.add_argument("--model", metavar="FILE", help="model file to use instead of phi's")
    parser.add_argument(
        "--runtime",
        default="auto",
        help="auto, onnxruntime (-cuda, -tensorrt), openvino, tensorrt or torch",
    )
    parser.add_argument(
        "--size", default="auto", help="network input: auto, square, 4:3, 16:9 or HxW"
    )


def add_decode(parser: argparse.ArgumentParser, what: str = "other than the model's own") -> None:
    """Declares --decode: how people are made.

    Args:
        parser: of the verb.
        what: what the options given are, for the help.
    """
    parser.add_argument(
        "--decode",
        type=name_number,
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help=f"decode options {what}, such as coarse_look=1",
    )


def add_pictures(parser: argparse.ArgumentParser, annotations: str = "COCO keypoint file") -> None:
    """Declares --annotations and --images: labelled pictures.

    Args:
        parser: of the verb.
        annotations: what the file is, for the help.
    """
    parser.add_argument(
        "--annotations", type=user_path, required=True, metavar="JSON[.gz]", help=annotations
    )
    parser.add_argument(
        "--images",
        type=user_path,
        required=True,
        nargs="+",
        metavar="DIR_OR_ZIP",
        help="where the pictures are",
    )


def name_number(text: str) -> Tuple[str, float]:
    """``NAME=NUMBER`` as a pair. Raises argparse.ArgumentTypeError."""
    name, sign, value = text.partition("=")
    try:
        if sign:
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("write NAME=NUMBER, for example keypoint_threshold=0.2")


def user_path(text: str) -> Path:
    """A path as a user writes it: shells leave the ~ of --out=~/here as it is."""
    return Path(text).expanduser()
