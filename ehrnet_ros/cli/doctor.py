"""ehrnet doctor: what is here, what is missing, and what to type."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from ehrnet_ros.start import ends_at_once

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
    parser.add_argument(
        "--image",
        metavar="TOPIC",
        help="also look whether images arrive on a topic, and if not, why and what to type; and "
        "whether they stand upright; with /compressed at its end for compressed ones",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 when something that poses need is missing or broken."""
    findings = []
    for finding in _findings(args.image):
        findings.append(finding)
        if not args.json:
            print(f"{finding.state:<9} {finding.name:<12} {finding.text}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.state == FAULT for finding in findings) else 0


def _findings(image: Optional[str]) -> Iterator[Finding]:
    """One after the other: some take seconds."""
    from ehrnet_model.errors import EhrnetError

    yield _python()
    here = set()
    for row in PACKAGES:
        finding = _package(*row)
        here |= {finding.name} if finding.state == OK else set()
        yield finding
    if not here & {"onnxruntime", "openvino", "tensorrt"}:
        yield Finding(
            "runtime", FAULT, "nothing here can compute a network: pip install onnxruntime"
        )
    parts: List[Tuple[str, Callable[[], Iterable[Finding]]]] = []
    if {"numpy", "cv2"} <= here:
        parts += [("gpu", _gpu), ("models", _models), ("engines", _engines)]
    if image is not None:
        parts.append((image, lambda: _images(image)))
    for name, findings in parts:
        try:
            yield from findings()
        except EhrnetError as error:  # the others are looked at all the same
            yield Finding(name, FAULT, str(error))


def _images(topic: str) -> Iterator[Finding]:
    """What a node that takes images from this topic would see in the ROS graph, and in them."""
    from ehrnet_ros.cli import REMEDIES

    try:
        from ehrnet_ros.health import look_for_images
    except ImportError as error:
        yield Finding(topic, FAULT, f"cannot be looked at ({error}): {REMEDIES['rclpy']}")
        return
    messages, text = look_for_images(topic)
    yield Finding(topic, OK if messages else FAULT, text)
    if messages:
        yield _people(messages)


def _people(messages: Sequence[Any]) -> Finding:
    """Whether the camera sees anything, is mounted upright and has its colours, by the people."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.way_up import way_up_advice
    from ehrnet_ros.image_msgs import shows_nothing, to_picture, to_picture_compressed

    try:
        pictures = [
            to_picture(msg) if hasattr(msg, "encoding") else to_picture_compressed(msg)
            for msg in messages
        ]
    except EhrnetError as error:
        return Finding("people", FAULT, str(error))
    nothing = [shows_nothing(picture) for picture in pictures]
    if all(nothing):
        return Finding("people", FAULT, nothing[-1])
    images, rgb = [p.array for p in pictures], [p.order == "rgb" for p in pictures]
    try:
        opened = PoseEstimator.open(find_model(-4))
    except EhrnetError as error:
        return Finding("people", OPTIONAL, f"not looked for: {error}")
    with contextlib.closing(opened) as estimator:
        advice = way_up_advice(estimator, images, rgb)
        if advice:
            return Finding("people", OPTIONAL, advice)
        found = sum(len(estimator(image, one)) for image, one in zip(images, rgb)) / len(images)
        name = estimator.runtime.info.variant
    return Finding("people", OK, f"{name} finds {found:.1f} an image, by {len(images)} images")


def _python() -> Finding:
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.prefix}"
    return Finding("python", OK, text)


def _package(name: str, needed: bool, purpose: str) -> Finding:
    from ehrnet_ros.cli import REMEDIES

    try:
        with ends_at_once():  # what comes of Ctrl-C amid an import is no diagnosis
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


def _models() -> Iterator[Finding]:
    """Each variant's model, and whether it computes."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.runtime import model_info
    from ehrnet_model.variants import VARIANTS

    for variant in VARIANTS.values():
        name = f"model {variant.name}"
        try:
            path = find_model(variant.phi)
        except EhrnetError as error:
            yield Finding(name, OPTIONAL, str(error))
            continue
        try:
            info = model_info(path)
            state, verdict = _verdict(path)
            text = f"{info.quality} weights {info.weights_name}; {_self_test(path)}; {verdict}"
            yield Finding(name, state, text)
        except Exception as error:  # a broken file, library or driver: all of it is the diagnosis
            yield Finding(name, FAULT, f"{path}: {_one_line(error)}")


def _self_test(path: Path) -> str:
    import numpy as np

    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.opening import open_runtime

    estimator = PoseEstimator(open_runtime(path))
    grey = np.full((480, 640, 3), 128, np.uint8)
    estimator(grey)  # the first image pays for memory and plans
    timings = estimator.estimate(grey)[1]
    name = estimator.runtime.name
    estimator.close()
    return f"{name} took {timings.total_ms:.0f} ms for a 640x480 image without people; {path}"


def _verdict(path: Path) -> Tuple[str, str]:
    """Does the model, on what runs it here, still give the answers stored with it?"""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.answers import read_answers
    from ehrnet_model.inference.opening import open_runtime
    from ehrnet_model.inference.parity import DIFFERS, check_engine

    runtime = open_runtime(path)
    try:
        try:
            answers = read_answers(path, runtime.info)
        except EhrnetError as error:  # nothing is stored
            return OK, f"unchecked: {error}"
        verdict = check_engine(runtime, answers, runtime.info.precision)
    finally:
        runtime.close()
    return FAULT if verdict.state == DIFFERS else OK, str(verdict)


def _gpu() -> List[Finding]:
    """The GPU, and what is known to go wrong with this TensorRT."""
    from ehrnet_model.inference import gpu_report

    facts = gpu_report.gpu_facts()
    findings = [Finding(name, OK, text) for name, text in facts]
    version = gpu_report.tensorrt_version()
    if version is not None:
        jetson = any(name == "L4T" for name, _ in facts)
        findings += [Finding("trap", OPTIONAL, text) for text in gpu_report.traps(version, jetson)]
    return findings


def _engines() -> Iterator[Finding]:
    """Every engine built here: does it load, and does it still give the right answers?"""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.answers import read_answers
    from ehrnet_model.inference.engine import read_plan, stored_engines
    from ehrnet_model.inference.engine_folder import file_sha256
    from ehrnet_model.inference.models import available_models
    from ehrnet_model.inference.parity import DIFFERS, check_engine
    from ehrnet_model.inference.tensorrt_runtime import TensorRTRuntime

    models: Dict[str, Path] = {}
    for path in available_models().values():
        with contextlib.suppress(EhrnetError):  # a model that cannot be read is told of by _models
            models[file_sha256(path)] = path
    for engine in stored_engines():
        spec, name = engine.info.spec, f"engine {engine.info.model.variant}"
        height, width = spec.size_hw
        text = f"{spec.precision}, {height}x{width}, TensorRT {spec.platform.tensorrt}; "
        try:
            runtime = TensorRTRuntime(read_plan(engine), engine.info, str(engine.path))
        except EhrnetError as error:
            yield Finding(name, OPTIONAL, text + str(error))
            continue
        model = models.get(spec.onnx_sha256)
        try:
            if model is None:
                verdict, when = engine.info.verdict, f"when it was built ({engine.info.built})"
            else:
                answers = read_answers(model, engine.info.model)
                verdict = check_engine(runtime, answers, spec.precision, spec.max_batch)
                when = "now"
            state = FAULT if verdict.state == DIFFERS else OK
            yield Finding(name, state, f"{text}{when} {verdict}")
        except EhrnetError as error:
            yield Finding(name, FAULT, text + str(error))
        finally:
            runtime.close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
