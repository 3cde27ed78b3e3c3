"""The commands. From their first line on, Ctrl-C ends them without a traceback; nodes end with 0.

Importing a node takes seconds on a small machine. Until its own main() takes over there is nothing
to give back, so the process just ends, of a node by SIGTERM too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import Iterator


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Around imports that take seconds: Ctrl-C and SIGTERM end the process, not the import.

    An exception amid an import may be caught there, or wait for C, or come out as another one.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: os._exit(128 + got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def ehrnet() -> int:
    """The command ``ehrnet``."""
    with ends_at_once():
        cli = importlib.import_module("ehrnet_ros.cli")
    code: int = cli.main()  # which knows KeyboardInterrupt
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
    try:
        node = importlib.import_module(f"ehrnet_ros.{name}")
    except ModuleNotFoundError as error:
        remedies = importlib.import_module("ehrnet_ros.cli").REMEDIES
        lack = (error.name or "").split(".")[0]
        with_ros = lack.endswith(("_interfaces", "_msgs"))
        remedy = remedies.get(lack, remedies["rclpy"] if with_ros else "")
        if not remedy:
            raise
        print(f"{name} needs {lack}, which is not here: {remedy}.", file=sys.stderr)
        return 2
    code: int = node.main()
    return code


if __name__ == "__main__":  # python -m ehrnet_ros.start pose_node --ros-args ...
    sys.exit(_run(sys.argv.pop(1)))
