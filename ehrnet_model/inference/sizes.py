"""Which input size an engine has: named sizes, and how well one fits a camera."""

from __future__ import annotations

import math
import re
from typing import Tuple

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.runtime import MAX_INPUT_SIZE, STRIDE

NAMED_SIZES = ("square", "4:3", "16:9")
# An engine whose input is border to more than this share deserves a word.
WASTEFUL_BORDER = 0.2


def parse_size(text: str, short_side: int, others: str = "") -> Tuple[int, int]:
    """Height and width an engine is asked for.

    Args:
        text: ``square``; an aspect ``W:H`` such as ``4:3``, ``16:9`` or ``3:4`` (short side as
            given, long side to the next multiple of 32); or ``HxW`` in pixels such as ``384x512``.
        short_side: the short side in pixels for the named sizes, the variant's input size.
        others: what the caller takes as well, for the error's list: ``best, ``.

    Raises:
        EhrnetError: not such a text, or a size that is not a multiple of 32 from 32 to 4096.
    """
    text = text.strip().lower()
    if text == "square":
        height = width = short_side
    elif re.fullmatch(r"[1-9]\d*:[1-9]\d*", text):
        across, down = (int(part) for part in text.split(":"))
        long_side = math.ceil(short_side * max(across, down) / min(across, down) / STRIDE) * STRIDE
        height, width = (short_side, long_side) if across >= down else (long_side, short_side)
    elif re.fullmatch(r"\d+x\d+", text):
        height, width = (int(part) for part in text.split("x"))
    else:
        raise EhrnetError(
            f"input size {text!r} is not understood: use {others}square, 4:3, 16:9 or HxW such as "
            "384x512."
        )
    if min(height, width) < STRIDE or height % STRIDE or width % STRIDE:
        raise EhrnetError(
            f"input size {height}x{width} does not work: height and width must be positive "
            f"multiples of {STRIDE}."
        )
    if max(height, width) > MAX_INPUT_SIZE:
        raise EhrnetError(
            f"input size {height}x{width} is too large: height and width may be "
            f"{MAX_INPUT_SIZE} at most."
        )
    return height, width


def best_named_size(image_hw: Tuple[int, int], short_side: int) -> str:
    """The named size (``W:H`` turned for upright pictures) with the least border for an image."""
    height, width = image_hw
    names = NAMED_SIZES if width >= height else ("square", "3:4", "9:16")
    return min(names, key=lambda n: border_share(image_hw, parse_size(n, short_side)))


def border_share(image_hw: Tuple[int, int], size_hw: Tuple[int, int]) -> float:
    """Share 0..1 of an engine's input that is border when it is fed images of this size."""
    box = Letterbox.fit(image_hw, size_hw)
    return 1 - box.inner_hw[0] * box.inner_hw[1] / (size_hw[0] * size_hw[1])


def size_advice(image_hw: Tuple[int, int], size_hw: Tuple[int, int], short_side: int) -> str:
    """One sentence when another named size would clearly waste less, else an empty string.

    So it is, too, for a ``short_side`` of 0: the model does not say which size suits it.
    """
    if short_side == 0:
        return ""
    share = border_share(image_hw, size_hw)
    name = best_named_size(image_hw, short_side)
    if (
        share < WASTEFUL_BORDER
        or share - border_share(image_hw, parse_size(name, short_side)) < 0.1
    ):
        return ""
    return (
        f"{share:.0%} of the engine's {size_hw[1]}x{size_hw[0]} input is border for images of "
        f"{image_hw[1]}x{image_hw[0]}: size {name} fits better."
    )
