"""The words a launch file is written in, where launch and launch_ros are not installed.

They only remember what they were given, so that a test can read what a launch file would do. What
they are called and which of them Humble has is held by test/ros/test_launch.py.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any


class Word:
    """One action, substitution or event: its name and arguments."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        self.args, self.kw = args, kw

    def perform(self, context: Any) -> str:
        if type(self).__name__ == "LaunchConfiguration":
            return context.get(self.args[0])
        if type(self).__name__ == "EnvironmentVariable":
            return str(self.kw["default_value"])
        return f"<{self.kw['executable']}>"


class Context:
    """What is set where actions are executed: launch configurations and environment."""

    is_shutdown = False

    def __init__(self, values: dict[str, Any]) -> None:
        self.launch_configurations = values
        self.environment = dict(os.environ)

    def get(self, name: str) -> str:
        value = self.launch_configurations[name]
        return value.perform(self) if isinstance(value, Word) else value

    def scope(self) -> tuple[dict[str, Any], dict[str, str]]:
        return dict(self.launch_configurations), dict(self.environment)


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Word,), {})
        setattr(self, name, made)
        return made


def execute(entities: list[Word], context: Context) -> list[Word]:
    """What is left when groups and OpaqueFunctions are executed; each has its scope as `scope`."""
    left = []
    for word in entities:
        kind = type(word).__name__
        if kind == "GroupAction":
            before = context.scope()
            left += execute(word.args[0], context)
            context.launch_configurations, context.environment = before
        elif kind == "OpaqueFunction":
            left += execute(word.kw["function"](context) or [], context)
        else:
            word.scope = context.scope()
            left.append(word)
    return left


def read(
    path: Path,
    words: dict[str, Any],
    scope: dict[str, Any] | None = None,
    packages: tuple[str, ...] = (),
    **given: str,
) -> tuple[list[Word], Context]:
    """What the OpaqueFunction of a launch file gives with these arguments, and the context.

    Args:
        path: the launch file.
        words: modules and names it may import, such as HUMBLE of test_launch.py.
        scope: launch configurations that are set around it.
        packages: what is installed.
        given: launch arguments; the others have their defaults.
    """
    before = {name: sys.modules.get(name) for name in (*words, "launch", "launch_ros")}
    try:
        for name in before:
            sys.modules[name] = _Module(name)
        sys.modules["ament_index_python"].has_resource = lambda _, name: name in packages
        entities = runpy.run_path(str(path))["generate_launch_description"]().args[0]
        defaults = {
            word.args[0]: word.kw.get("default_value")
            for word in entities
            if type(word).__name__ == "DeclareLaunchArgument"
        }
        assert set(given) <= set(defaults), given
        context = Context({**(scope or {}), **defaults, **given})
        opaque = [word for word in entities if type(word).__name__ == "OpaqueFunction"]
        return execute(opaque, context), context
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
