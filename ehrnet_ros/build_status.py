"""Tells /diagnostics how far the building of an engine is: minutes in which nothing else shows."""

from __future__ import annotations

from typing import Any, Optional

import rclpy
from rclpy.duration import Duration

from ehrnet_ros import health

_NAME = "ehrnet engine"


class BuildStatus:
    """A node of its own that publishes while ``ehrnet build-engine`` works.

    Args:
        hardware: the model's name.
    """

    def __init__(self, hardware: str) -> None:
        self._hardware = hardware
        self._context: Any = rclpy.Context()
        self._context.init()
        self._node = rclpy.create_node("ehrnet_build_engine", context=self._context)
        self._diagnostics = health.Diagnostics(self._node, _NAME)

    def __call__(self, seconds: float, share: Optional[float], text: str) -> None:
        """Called once a second: seconds so far, share done or None, and what is going on."""
        done = "" if share is None else f", {share:.0%}"
        self._diagnostics.publish(
            health.OK,
            f"Building the TensorRT engine for {seconds:.0f} s{done}: {text}.",
            self._hardware,
            {"seconds": f"{seconds:.0f}", "share": "unknown" if share is None else f"{share:.3f}"},
        )

    def done(self, good: bool, text: str) -> None:
        """The last word: the verdict on the engine, or why there is none; then the node ends."""
        level = health.OK if good else health.WARN
        self._diagnostics.publish(level, text, self._hardware, {})
        for publisher in self._node.publishers:
            publisher.wait_for_all_acked(Duration(seconds=1))
        self._node.destroy_node()
        self._context.try_shutdown()
