"""What is typed behind a node's name: ROS takes what follows --ros-args and loses the rest."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any, List, Mapping, Optional, Sequence

from rclpy.utilities import remove_ros_args

from ehrnet_ros.names import as_yaml, nearest

# With a word behind each. Alone they only lack --ros-args.
_OF_ROS = ("-p", "--param", "-r", "--remap", "--params-file", "--log-level")


def answer(
    program: str,
    what: str,
    parameters: Mapping[str, Any],
    example: str,
    args: Optional[List[str]] = None,
    bare: str = "",
) -> Optional[int]:
    """Answers --help and what ROS would lose; the exit code, or None where the node may start.

    Args:
        program: name of the command.
        what: it does, in a sentence.
        parameters: with their defaults.
        example: of what follows --ros-args.
        args: as of main().
        bare: the parameter that is meant by a word without a name.

    """
    try:
        left = remove_ros_args(args)
    except RuntimeError:  # base of what rclpy has for wrong arguments; rclpy.init says which
        return None
    rest = [
        word
        for word in _outside(sys.argv if args is None else args)
        # A parameter can look like a topic: ROS takes runtime:=openvino for a remap rule.
        if word in left or nearest(word.partition(":=")[0], parameters)
    ]
    if {"-h", "--help"} & set(rest):
        print(_usage(program, what, parameters, example))
        return 0
    if not rest:
        return None
    line = _line(rest, parameters, bare)
    instead = f"write --ros-args {line}" if line else f"see {program} --help"
    print(f"{program}: {shlex.join(rest)} is not understood: {instead}", file=sys.stderr)
    return 2


def _outside(args: Sequence[str]) -> List[str]:
    """The words that do not follow --ros-args."""
    words, ours = [], True
    for word in args:
        if word in ("--ros-args", "--"):
            ours = word == "--"
        elif ours and word != sys.argv[0]:
            words.append(word)
    return words


def _usage(program: str, what: str, parameters: Mapping[str, Any], example: str) -> str:
    lines = [
        f"usage: {program} [--ros-args [-p PARAMETER:=VALUE] [-r TOPIC:=OTHER] ...]",
        *("", what, "", "parameters and their defaults:"),
        *(f"  {name}:={as_yaml(default)}" for name, default in parameters.items()),
        *("", f"example: ros2 run ehrnet_ros {program} --ros-args {example}"),
    ]
    return "\n".join(lines)


def _line(rest: Sequence[str], parameters: Mapping[str, Any], bare: str) -> str:
    """The same as ROS takes it; empty where nobody can tell what was meant."""
    words, line = list(rest), []
    while words:
        word = words.pop(0)
        given = re.fullmatch(r"-*([^:=]+):?=(.*)", word)
        if word in _OF_ROS and words:
            line += [word, shlex.quote(words.pop(0))]
            continue
        if given:
            name, value = given.groups()
        elif word.startswith("-"):
            more = words and not words[0].startswith("--")
            name, value = word.lstrip("-"), words.pop(0) if more else "true"
        else:
            name, value = bare, word
        name = name.replace("-", "_")
        if not name:
            return ""
        remap = ":=" in word and not nearest(name, parameters)
        line += ["-r" if remap else "-p", f"{name}:={shlex.quote(value)}"]
    return " ".join(line)
