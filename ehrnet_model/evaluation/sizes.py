"""Which sizes an image goes through a network at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import STRIDE
from ehrnet_model.inference.sizes import best_named_size, parse_size

# The published evaluation rounds to this; so did its ancestors.
_PAPER_STRIDE = 64


def size_for(text: str, image_hw: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Network input (height, width) for an image.

    Args:
        text: ``best`` (the aspect with the least border), ``paper`` (see ``paper_size``), a number
            (``best`` with this short side), or what ``parse_size`` takes.
        image_hw: of the image.
        short_side: for ``best``, ``paper`` and named sizes.
    """
    if text.isdecimal():
        text, short_side = "best", int(text)
    if text == "paper":
        return paper_size(image_hw, short_side)
    if text == "best":
        text = best_named_size(image_hw, short_side)
    return parse_size(text, short_side, "best, paper, a short side such as 256, ")


def sizes_for(
    text: str, image_hw: tuple[int, int], short_side: int, scales: Sequence[float]
) -> list[tuple[int, int]]:
    """Network inputs (height, width) for the passes of one image, one per scale.

    Args:
        text: see ``size_for``.
        image_hw: of the image.
        short_side: see ``size_for``.
        scales: the first is that of the size itself, 1.

    Raises:
        EhrnetError: a scale makes a size that is no multiple of 32.
    """
    if text == "paper":
        height, width = paper_size(image_hw, short_side, min(scales))
    else:
        height, width = size_for(text, image_hw, short_side)
    sizes = []
    for scale in scales:
        exact = Fraction(scale).limit_denominator(100)
        h, w = height * exact, width * exact
        if h % STRIDE or w % STRIDE or not h:
            instead = "use --size paper, which rounds at the smallest scale, or another HxW"
            if text == "paper":
                instead = (
                    "for --size paper the smallest scale must divide evenly, such as 0.5, and the "
                    "others be multiples of half of it"
                )
            raise EhrnetError(
                f"size {height}x{width} at scale {scale:g} would be {float(h):g}x{float(w):g}, no "
                f"multiple of {STRIDE}: {instead}."
            )
        sizes.append((int(h), int(w)))
    return sizes


def paper_size(
    image_hw: tuple[int, int], short_side: int, smallest: float = 1.0
) -> tuple[int, int]:
    """(height, width) at scale 1 of the published evaluation.

    The short side is rounded up to a multiple of 64 and the whole picture kept, the long side
    rounded up as well; with several scales the rounding is done at the smallest. So 480 becomes
    512, and 416 becomes 448 or, with scales from 0.5 on, 512.

    Args:
        image_hw: of the image.
        short_side: the variant's input size.
        smallest: of the scales.
    """
    height, width = image_hw
    low, high = min(image_hw), max(image_hw)
    step = _PAPER_STRIDE
    short = math.ceil(short_side * smallest / step) * step
    # As the published code does: in floats, then rounded up in whole pixels.
    long = int(short / low * high + step - 1) // step * step
    short, long = int(short / smallest), int(long / smallest)
    return (short, long) if width >= height else (long, short)
