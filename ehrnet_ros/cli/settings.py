"""Words of the command line that several verbs take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Tuple


def add_pictures(parser: argparse.ArgumentParser, annotations: str = "COCO keypoint file") -> None:
    """Declares --annotations and --images: labelled pictures.

    Args:
        parser: of the verb.
        annotations: what the file is, for the help.
    """
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON[.gz]", help=annotations
    )
    parser.add_argument(
        "--images",
        type=Path,
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
