"""Dataclasses of options: each field carries its range and its description.

The node's parameters, their checks and their texts are made from these.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Tuple

from ehrnet_model.errors import EhrnetError

_KINDS = {
    bool: "True or False",
    int: "a whole number between {:g} and {:g}",
    float: "a number between {:g} and {:g}",
}


def option(default: Any, low: float, high: float, text: str) -> Any:
    """A field with a default, the range in which it may lie and a sentence for people."""
    return dataclasses.field(default=default, metadata={"range": (low, high), "description": text})


def numbers(lengths: Tuple[int, ...], text: str) -> Any:
    """A field of as many finite numbers as one of the lengths says, none at first."""
    return dataclasses.field(default=(), metadata={"lengths": lengths, "description": text})


def check_options(options: Any) -> None:
    """For ``__post_init__``: raises EhrnetError for a value of another type or out of range."""
    for item in dataclasses.fields(options):
        if "lengths" in item.metadata:
            _check_numbers(item.name, getattr(options, item.name), item.metadata["lengths"])
            continue
        value, (low, high) = getattr(options, item.name), item.metadata["range"]
        # Booleans and integers come through configuration files and metadata as they are.
        good = isinstance(value, type(item.default)) or (
            isinstance(item.default, float)
            and isinstance(value, int)
            and not isinstance(value, bool)
        )
        if not good or not low <= value <= high:
            raise EhrnetError(
                f"{item.name} = {value!r} is not possible: give "
                f"{_KINDS[type(item.default)].format(low, high)}."
            )


def _check_numbers(name: str, value: Any, lengths: Tuple[int, ...]) -> None:
    good = isinstance(value, tuple) and len(value) in lengths
    if not good or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
        allowed = " or ".join(str(length) for length in lengths)
        raise EhrnetError(f"{name} is not possible: give a tuple of {allowed} finite numbers.")
