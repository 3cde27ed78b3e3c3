"""ehrnet doctor: what is here, what is missing, and what to type."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Tuple

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


# Import name, whether nothing works without it, what it is for.
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
        findings += _models()
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
        module = importlib.import_module(name)
        if getattr(module, "__file__", None) is None:
            # The repository's own folder ehrnet_msgs/ looks like an empty package from within.
            raise ModuleNotFoundError(name, name=name)
    except Exception as error:  # a package built for another NumPy fails in many ways
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(name)
        why = "not here" if absent else f"here, but broken ({_one_line(error)})"
        remedy = REMEDIES.get(name, "comes with ROS 2")
        state = FAULT if needed or not absent else OPTIONAL
        return Finding(name, state, f"{why}; for {purpose}; {remedy}")
    return Finding(name, OK, str(getattr(module, "__version__", "")) or "here")


def _models() -> List[Finding]:
    """Each variant's model, and whether it computes."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.runtime import model_info
    from ehrnet_model.variants import VARIANTS

    findings = []
    for variant in VARIANTS.values():
        name = f"model {variant.name}"
        try:
            path = find_model(variant.phi)
        except EhrnetError as error:
            findings.append(Finding(name, OPTIONAL, str(error)))
            continue
        try:
            info = model_info(path)
            findings.append(
                Finding(name, OK, f"{info.quality} weights {info.weights_name}; {_self_test(path)}")
            )
        except Exception as error:  # a broken file, library or driver: all of it is the diagnosis
            findings.append(Finding(name, FAULT, f"{path}: {_one_line(error)}"))
    return findings


def _self_test(path: Path) -> str:
    import numpy as np

    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.runtime import open_runtime

    estimator = PoseEstimator(open_runtime(path))
    grey = np.full((480, 640, 3), 128, np.uint8)
    estimator(grey)  # the first image pays for memory and plans
    timings = estimator.estimate(grey)[1]
    name = estimator.runtime.name
    estimator.runtime.close()
    return f"{name} took {timings.total_ms:.0f} ms for a 640x480 image; {path}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
