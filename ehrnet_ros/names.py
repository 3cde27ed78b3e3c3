"""Names of parameters that a node was started with and does not have.

rclpy loses them in silence. A parameter file for a whole robot, under ``/**``, has many that are
meant for others; one that is almost a name of ours is a typing error.
"""

from __future__ import annotations

import difflib
from typing import Any, Collection

from ehrnet_model.errors import EhrnetError

_ALMOST = 0.8  # difflib's ratio: one letter too many in a name of four


def check_names(node: Any, ours: Collection[str]) -> None:
    """Warns of names that the node does not have; call after declaring.

    Args:
        node: has declared its parameters.
        ours: names of the parameters that are the node's own.

    Raises:
        EhrnetError: a name is almost one of ours.

    """
    unknown = [
        name
        for name in getattr(node, "_parameter_overrides", {})
        if not node.has_parameter(name) and not name.startswith("qos_overrides.")
    ]
    for name in unknown:
        near = difflib.get_close_matches(name, ours, 1, _ALMOST)
        if near:
            raise EhrnetError(
                f"There is no parameter {name} (did you mean {near[0]}?): this node has "
                f"{', '.join(ours)}."
            )
    if unknown:
        node.get_logger().warning(
            f"There is no parameter {', '.join(unknown)} in this node: not used."
        )
