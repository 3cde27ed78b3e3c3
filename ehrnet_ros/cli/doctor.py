"""ehrnet doctor: what is here, what is missing, and what to type."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Callable, List, Tuple

HELP = "what is here, what is missing, and what to do about it"

OK, OPTIONAL, FAULT = "ok", "optional", "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked for.
        state: OK, OPTIONAL (absent, and only some verbs need it) or FAULT.
        text: version or place where it is here, else what it is for and what to do.
    """

    name: str
    state: str
    text: str


# Import name, attribute that holds the version, whether nothing works without it, what it is for.
PACKAGES: Tuple[Tuple[str, bool, str], ...] = (
    ("numpy", True, "everything"),
    ("cv2", True, "everything"),
    ("onnxruntime", False, "poses on the CPU"),
    ("openvino", False, "poses on Intel hardware, runtime:=openvino"),
    ("tensorrt", False, "poses on NVIDIA GPUs, runtime:=tensorrt"),
    ("torch", False, "train, export, import-checkpoint"),
    ("rclpy", False, "the ROS nodes"),
    ("ehrnet_msgs", False, "the ROS nodes"),
    ("cv_bridge", False, "rare image encodings; the usual ones need no cv_bridge"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument("--json", action="store_true", help="a list of objects on stdout")


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 when something that poses need is missing or broken."""
    findings = [_python()]
    findings += [_package(*row) for row in PACKAGES]
    here = {finding.name for finding in findings if finding.state == OK}
    if not here & {"onnxruntime", "openvino", "tensorrt"}:
        findings.append(
            Finding("runtime", FAULT, "nothing here can compute a network: pip install onnxruntime")
        )
    if {"numpy", "cv2"} <= here:
        findings += _models_and_self_test()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<9} {finding.name:<{width}}  {finding.text}")
    return 1 if any(finding.state == FAULT for finding in findings) else 0


def _python() -> Finding:
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.prefix}"
    return Finding("python", OK, text)


def _package(name: str, needed: bool, purpose: str) -> Finding:
    from ehrnet_ros.cli import REMEDIES

    try:
        # Not the outer name: in the repository's folder, ehrnet_msgs/ looks like an empty package.
        inner = {"ehrnet_msgs": "ehrnet_msgs.msg", "cv_bridge": "cv_bridge.boost.cv_bridge_boost"}
        importlib.import_module(inner.get(name, name))
        module = importlib.import_module(name)
    except Exception as error:  # a package built for another NumPy fails in many ways
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(name)
        why = "not here" if absent else f"here, but broken ({_one_line(error)})"
        remedy = REMEDIES.get(name, "comes with ROS 2")
        state = FAULT if needed or not absent else OPTIONAL
        return Finding(name, state, f"{why}; for {purpose}; {remedy}")
    return Finding(name, OK, str(getattr(module, "__version__", "")) or "here")


def _models_and_self_test() -> List[Finding]:
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.runtime import model_info, open_runtime
    from ehrnet_model.variants import VARIANTS

    findings = []
    found = {}
    for variant in VARIANTS:
        try:
            path = find_model(variant.phi)
            info = model_info(path)
        except EhrnetError as error:
            findings.append(Finding(f"model {variant.name}", OPTIONAL, str(error)))
        else:
            found[variant.name] = path
            text = f"{info.quality} weights {info.weights_name}, {path}"
            findings.append(Finding(f"model {variant.name}", OK, text))
    for name, path in found.items():
        findings.append(_try(f"self test {name}", lambda path=path: _self_test(path)))
    return findings


def _self_test(path: object) -> str:
    raise NotImplementedError


def _try(name: str, test: Callable[[], str]) -> Finding:
    raise NotImplementedError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
