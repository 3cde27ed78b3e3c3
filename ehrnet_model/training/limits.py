"""Limits of the numbers that decide what a run does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ehrnet_model.errors import EhrnetError

# Comparisons with what is not a number are false.
_LIMITS: dict[str, Callable[[float], bool]] = {
    "above 0": lambda value: 0 < value < math.inf,
    "of 0 or more": lambda value: 0 <= value < math.inf,
    "of 1 or more": lambda value: 1 <= value < math.inf,
    "of 2 or more": lambda value: 2 <= value < math.inf,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "above 0, up to 1": lambda value: 0 < value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
}


def check_numbers(options: Any, names: Mapping[str, Sequence[str]]) -> None:
    """Refuses options outside their limits, infinite ones and what is not a number.

    Args:
        options: with numbers as attributes.
        names: of the attributes by the words for their limits.

    Raises:
        EhrnetError: the first that is not possible is named.
    """
    for limits, attributes in names.items():
        for name in attributes:
            value = getattr(options, name)
            if not _LIMITS[limits](value):
                raise EhrnetError(f"{name} {value:g} is not possible: give a number {limits}.")
