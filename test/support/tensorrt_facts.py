"""A module with exactly the names and arguments of one TensorRT version, and nothing behind them.

Made from test/facts/tensorrt_api.json. It computes nothing: it says whether the project's code
could have made these calls on that version. A member the version lacks is an AttributeError, as it
would be there; arguments that do not fit are a TypeError.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

API = json.loads((Path(__file__).parents[1] / "facts" / "tensorrt_api.json").read_text())
VERSIONS: list[str] = API["versions"]

LAYERS = ("stem/conv", "fp32/normalise", "fp32/peaks/index")
# What calls give, where a plain default would not do.
ANSWERS = {
    ("ICudaEngine", "num_io_tensors"): lambda: 2,
    ("ICudaEngine", "get_tensor_name"): lambda index: ("image", "peaks")[index],
    ("INetworkDefinition", "num_layers"): lambda: len(LAYERS),
    ("ILayer", "num_outputs"): lambda: 1,
    ("ILayer", "num_inputs"): lambda: 1,
    ("EngineInspector", "get_engine_information"): lambda kind: '{"Layers": []}',
}


def arguments(signature: str) -> tuple[int, int]:
    """Least and most arguments, without self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    names = [part for part in inside.split(",") if part.strip() and part.strip() != "self"]
    return sum("=" not in part for part in names), len(names)


class Member(int):
    """One value of an enumeration."""


def interface(version: str) -> SimpleNamespace:
    """The module; ``calls`` lists what was used as (class, member), ``values`` what was set."""
    calls: list[tuple[str, str]] = []
    values: dict[tuple[str, str], list[Any]] = {}
    module = SimpleNamespace(__version__=version, calls=calls, values=values)
    for name, members in API["enums"].items():
        here = {m: Member(v[version]) for m, v in members.items() if v[version] is not None}
        setattr(module, name, type(name, (), here))
    for name, members in API["classes"].items():
        here = {m: v[version] for m, v in members.items() if v[version] is not None}
        if here:
            setattr(module, name, _class(module, name, here))
    module.Logger.WARNING = Member(2)
    return module


def _class(module: SimpleNamespace, name: str, members: dict[str, str]) -> type:
    def check(member: str, given: tuple[Any, ...]) -> None:
        ranges = [arguments(s) for s in members[member].split(" || ")]
        if not any(least <= len(given) <= most for least, most in ranges):
            raise TypeError(f"{name}.{member} of {module.__version__} takes {members[member]}")
        module.calls.append((name, member))

    def answer(member: str, given: tuple[Any, ...]) -> Any:
        if (name, member) in ANSWERS:
            return ANSWERS[name, member](*given)
        kind = members[member].rsplit("->", 1)[1].strip().split(".")[-1]
        kind = {"IEngineInspector": "EngineInspector"}.get(kind, kind)
        if kind in API["classes"]:
            made = object.__new__(getattr(module, kind))
            made.__dict__["index"] = given[0] if given else None
            return made
        plain = {"bool": True, "int": 0, "str": "words", "None": None}
        return module.DataType.FLOAT if kind == "DataType" else plain[kind]

    class Proxy:
        def __init__(self, *given: Any) -> None:
            check("__init__", given)

        def __getattr__(self, member: str) -> Any:
            if member not in members:
                raise AttributeError(f"{name}.{member} does not exist in {module.__version__}")
            if members[member].startswith("property"):
                module.calls.append((name, member))
                if (name, member) == ("ILayer", "name"):
                    return LAYERS[self.__dict__["index"]]
                return answer(member, ())

            def call(*given: Any) -> Any:
                check(member, given)
                return answer(member, given)

            return call

        def __setattr__(self, member: str, value: Any) -> None:
            if not members.get(member, "").startswith("property: rw"):
                raise AttributeError(f"{name}.{member} cannot be set in {module.__version__}")
            module.calls.append((name, member))
            module.values.setdefault((name, member), []).append(value)

        def __bytes__(self) -> bytes:
            assert name == "IHostMemory"
            return b"plan"

    Proxy.__name__ = name
    return Proxy
