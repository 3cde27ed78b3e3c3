"""Words of the command line that several verbs take."""

from __future__ import annotations

import argparse
from typing import Tuple


def name_number(text: str) -> Tuple[str, float]:
    """``NAME=NUMBER`` as a pair. Raises argparse.ArgumentTypeError."""
    name, sign, value = text.partition("=")
    try:
        if sign:
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("write NAME=NUMBER, for example keypoint_threshold=0.2")
