"""The commands. From their first line on, Ctrl-C ends them without a traceback; nodes end with 0.

Importing a node takes seconds on a small machine. Until its own main() takes over there is nothing
to give back, so the process just ends, of a node by SIGTERM too.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys


def ehrnet() -> int:
    """The command ``ehrnet``."""
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    cli = importlib.import_module("ehrnet_ros.cli")
    signal.signal(signal.SIGINT, before)  # main() knows KeyboardInterrupt
    code: int = cli.main()
    return code


def depth_node() -> int:
    """The command ``depth_node``."""
    return _run("depth_node")


def picture_node() -> int:
    """The command ``picture_node``."""
    return _run("picture_node")


def pose_node() -> int:
    """The command ``pose_node``."""
    return _run("pose_node")


def tracking_node() -> int:
    """The command ``tracking_node``."""
    return _run("tracking_node")


def _run(name: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not sys.exit: an import may catch it, or be in C for a while after it.
        signal.signal(number, lambda *_: os._exit(0))
    code: int = importlib.import_module(f"ehrnet_ros.{name}").main()
    return code


if __name__ == "__main__":  # python -m ehrnet_ros.start pose_node --ros-args ...
    sys.exit(_run(sys.argv.pop(1)))
