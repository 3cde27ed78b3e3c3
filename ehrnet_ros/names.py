"""Parameters of all nodes: how they are declared, and names that a node does not have.

rclpy loses the latter in silence. A parameter file for a whole robot, under ``/**``, has many that
are meant for others; one that is almost a name of ours is a typing error.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, Collection

from rclpy.exceptions import ParameterException
from rclpy.parameter import Parameter

from ehrnet_model.errors import EhrnetError

_ALMOST = 0.8  # difflib's ratio: one letter too many in a name of four


def declare_parameter(node: Any, name: str, default: Any, descriptor: Any, allowed: str) -> Any:
    """Declares a parameter; its value. A whole number is a number, too, an empty list the default.

    Args:
        node: gets it.
        name: of it.
        default: its value unless another was given.
        descriptor: of it.
        allowed: what it may be, for people.

    Raises:
        EhrnetError: another value was given; says which and what is allowed.

    """
    given = node._parameter_overrides.get(name)
    if given is not None and given.value is None:  # of [] ROS knows no type
        if not isinstance(default, (list, tuple)):
            raise EhrnetError(cannot_be(name, "[]", default, allowed))
        del node._parameter_overrides[name]
    if given is not None and isinstance(default, float) and type(given.value) is int:
        node._parameter_overrides[name] = Parameter(name, value=float(given.value))
    try:
        return node.declare_parameter(name, default, descriptor).value
    except ParameterException:
        if given is None:
            raise
        raise EhrnetError(cannot_be(name, as_yaml(given.value), default, allowed)) from None


def cannot_be(name: str, value: str, default: Any, allowed: str) -> str:
    """The sentence about a value that a parameter cannot have."""
    kind = {int: "a whole number, ", float: "a number, "}.get(type(default), "")
    return f"Parameter {name} cannot be {value}: it has to be {kind}{allowed}."


def no_such(name: str, ours: Collection[str]) -> str:
    """The sentence about a name that is none: the one that was meant, else all."""
    near = nearest(name, ours)
    if near:
        return f"There is no parameter {name} (did you mean {near}?)."
    return f"There is no parameter {name}: there are {', '.join(ours)}."


def nearest(name: str, ours: Collection[str]) -> str:
    """The name that was meant; empty where none is near."""
    return "".join(difflib.get_close_matches(name, ours, 1, _ALMOST))


def as_yaml(value: Any) -> str:
    """A value as in a parameter file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    if isinstance(value, float) and math.isnan(value):
        return ".nan"
    return str(value)


def check_names(node: Any, ours: Collection[str]) -> None:
    """Warns of names that the node does not have; call after declaring.

    Args:
        node: has declared its parameters.
        ours: names of the parameters that are the node's own.

    Raises:
        EhrnetError: a name is almost one of ours.

    """
    unknown = [
        name for name in getattr(node, "_parameter_overrides", {}) if not node.has_parameter(name)
    ]
    for name in unknown:
        if nearest(name, ours):
            raise EhrnetError(no_such(name, ours))
    if unknown:
        node.get_logger().warning(
            f"There is no parameter {', '.join(unknown)} in this node: not used."
        )
