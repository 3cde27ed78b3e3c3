"""Dataclasses of options: each field carries its range and its description.

The node's parameters, their checks and their texts are made from these.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ehrnet_model.errors import EhrnetError


def option(default: Any, low: float, high: float, text: str) -> Any:
    """A field with a default, the range in which it may lie and a sentence for people."""
    return dataclasses.field(default=default, metadata={"range": (low, high), "description": text})


def check_options(options: Any) -> None:
    """For ``__post_init__``: raises EhrnetError for a value of another type or out of range."""
    for item in dataclasses.fields(options):
        value, (low, high) = getattr(options, item.name), item.metadata["range"]
        # Booleans and integers come through configuration files and metadata as they are.
        good = isinstance(value, type(item.default)) or (
            isinstance(item.default, float)
            and isinstance(value, int)
            and not isinstance(value, bool)
        )
        if not good or not low <= value <= high:
            raise EhrnetError(
                f"{item.name} = {value!r} is not possible: give a "
                f"{type(item.default).__name__} between {low:g} and {high:g}."
            )
