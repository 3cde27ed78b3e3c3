"""Speed, power and efficiency of models on this machine: the paper's Tables 4 and 5, measured here.

The paper divides by the board's maximum power and times the network alone. Here both times are
given, and power is measured or left out. Its accuracy efficiency is AP in percent times frames per
second and watt.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

import ehrnet_model
from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import read_json
from ehrnet_model.evaluation.power import PowerMeter
from ehrnet_model.inference import onnx_runtime
from ehrnet_model.inference.answers import read_answers
from ehrnet_model.inference.atomic import write_atomically
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import user_folder
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import ModelInfo, Runtime, model_info
from ehrnet_model.inference.second_look import SecondLook, look, merge, open_closer, views_of
from ehrnet_model.inference.sizes import parse_size

# The first images pay for memory and plans.
WARM_UP = 3


@dataclass(frozen=True)
class Row:
    """One model in one setting. Times are milliseconds per image, one image at a time.

    Attributes:
        variant, phi, precision, quality: what model.
        runtime: what computed.
        size: as it was asked for (``4:3``).
        input: the network input, width x height.
        threads: of a CPU runtime.
        network_ms, network_p95_ms: the network with its copies, and the second looks where the
            model takes some: median, 95th percentile.
        pipeline_ms, pipeline_p95_ms: letterbox, network and grouping.
        fps, network_fps: images per second at the median, of the pipeline and of network_ms.
        watts, power_source: mean power meanwhile, and of what; None where nothing measures it.
        fps_per_watt: of the pipeline.
        ap: COCO AP, 0 to 1, at the same size, where an evaluation was given.
        ae: accuracy efficiency, in the paper's unit: 100 times ap times fps_per_watt.
        model: path of the model file.
        date: day of the measurement.
        person_ms: what each person looked at again takes more; None where nobody is.
    """

    variant: str
    phi: int
    precision: str
    quality: str
    runtime: str
    size: str
    input: str
    threads: int
    network_ms: float
    network_p95_ms: float
    pipeline_ms: float
    pipeline_p95_ms: float
    fps: float
    network_fps: float
    watts: Optional[float]
    power_source: str
    fps_per_watt: Optional[float]
    ap: Optional[float]
    ae: Optional[float]
    model: str
    date: str
    person_ms: Optional[float] = None

    @property
    def setting(self) -> Tuple[Any, ...]:
        """What was measured: a later row of the same replaces it. Random weights have no file."""
        model = self.variant if self.quality == "random" else self.model
        return model, self.precision, self.runtime, self.size, self.threads


def measure(
    model: Path,
    runtime: str,
    size: str,
    threads: int,
    image: np.ndarray,
    frames: int,
    ap: Optional[float] = None,
) -> Row:
    """Runs one model over and over on one image.

    Args:
        model: file that ``open_runtime`` takes.
        runtime: one of RUNTIMES.
        size: ``square``, ``4:3``, ``16:9`` or ``HxW``.
        threads: of a CPU runtime.
        image: BGR uint8, as the camera gives it.
        frames: how many images are timed.
        ap: the model's AP at this size, if known.

    Raises:
        EhrnetError: the model cannot be run so, or less than one frame was asked for.
    """
    if frames < 1:
        raise EhrnetError(f"{frames} images cannot be timed: give --frames 1 or more.")
    size_hw = parse_size(size, model_info(model).input_size)
    opened = open_runtime(model, runtime, size_hw, threads)
    options = DecodeOptions.from_dict(opened.info.decode)
    closer = None
    try:
        closer = open_closer(model, opened, options, threads)
        estimator = PoseEstimator(opened, options, size_hw, closer)
        for _ in range(WARM_UP):
            estimator(image)
        with PowerMeter() as meter:
            timings = [estimator.estimate(image)[1] for _ in range(frames)]
        each_ms = None if closer is None else person_ms(model, closer, options, image, frames)
    finally:
        opened.close()
        if closer is not None and closer is not opened:
            closer.close()
    network = summary([t.engine_ms for t in timings])
    pipeline = summary([t.total_ms for t in timings])
    fps = 1e3 / pipeline["median_ms"]
    per_watt = None if not meter.watts else fps / meter.watts
    return Row(
        variant=opened.info.variant,
        phi=opened.info.phi,
        precision=opened.info.precision,
        quality=opened.info.quality,
        runtime=opened.name,
        size=size,
        input=f"{size_hw[0]}x{size_hw[1]}",
        threads=threads,
        network_ms=network["median_ms"],
        network_p95_ms=network["p95_ms"],
        pipeline_ms=pipeline["median_ms"],
        pipeline_p95_ms=pipeline["p95_ms"],
        fps=round(fps, 2),
        network_fps=round(1e3 / network["median_ms"], 2),
        watts=None if meter.watts is None else round(meter.watts, 2),
        power_source=meter.source,
        fps_per_watt=None if per_watt is None else round(per_watt, 3),
        ap=ap,
        ae=None if per_watt is None or ap is None else round(100 * ap * per_watt, 2),
        model=str(Path(model).resolve()),
        date=_today(),
        person_ms=each_ms,
    )


def person_ms(
    model: Path, closer: Runtime, options: DecodeOptions, image: np.ndarray, frames: int
) -> float:
    """What each person costs who is looked at again: the median, in milliseconds.

    Somebody is cut out, goes through the network and is made of its answer, in every view; one at
    a time. What is seen there is a photograph with people where the model came with one (the
    inputs stored to check engines with, answers.py): in it there is more to group than in noise.

    Args:
        model: the file that ``closer`` was opened from.
        closer: engine for second looks, see ``open_closer``.
        options: of the model.
        image: (h, w, 3) uint8, for want of a photograph.
        frames: how often.
    """
    skeleton, side = closer.info.skeleton, options.second_look_size
    try:
        image = read_answers(model, closer.info).by_size[(side, side)][0][0]
    except (EhrnetError, KeyError):
        pass
    height, width = image.shape[:2]
    low, high = np.array([0.2 * width, 0.2 * height]), np.array([0.8 * width, 0.8 * height])
    # From corner to corner; who it is does not matter.
    xy = low + (high - low) * np.linspace(0, 1, skeleton.num_keypoints)[:, None]
    ones = np.ones((1, skeleton.num_keypoints))
    first = Poses.build(xy[None], ones, ones, np.ones(1))
    image_hw = height, width
    windows = views_of(first.bbox[0], image_hw, options)
    times = []
    for _ in range(WARM_UP + frames):
        begun = time.perf_counter()
        peaks = look(image, False, windows, closer)
        merge(SecondLook(first, 1.0, image_hw, windows, peaks, len(windows)), options, skeleton)
        times.append((time.perf_counter() - begun) * 1e3)
    return summary(times[WARM_UP:])["median_ms"]


def installed_runtimes() -> List[str]:
    """The runtimes whose package is here and that read an ONNX file; TensorRT's may lack a GPU."""
    others = [name for name in ("openvino", "tensorrt") if importlib.util.find_spec(name)]
    return onnx_runtime.installed() + others


def model_files(model: Path) -> List[Path]:
    """A model and its lower precisions beside it: ``H-4.onnx``, ``H-4.fp16.onnx``, ..."""
    lower = [model.with_suffix(f".{precision}.onnx") for precision in ("fp16", "int8")]
    return [model, *(file for file in lower if file.is_file())]


def shipped_evaluation(model: Path) -> List[Path]:
    """The evaluations that came with a model, ``H-4.evaluations.json`` beside ``H-4.fp16.onnx``."""
    beside = model.with_name(f"{model.name.split('.')[0]}.evaluations.json")
    return [beside] if beside.is_file() else []


def known_ap(evaluations: Sequence[Path], info: ModelInfo, size: str) -> Optional[float]:
    """AP of a model from files that ``ehrnet evaluate --json`` wrote.

    Only one of the same weights, precision, size and decode options, without mirror and further
    scales, counts: speed and accuracy of different settings do not belong in one row. So it has to
    be made with the same ``--size``. The first that fits is taken.

    Args:
        evaluations: files with one result each, or a list of them.
        info: of the model.
        size: as in ``measure``.

    Raises:
        EhrnetError: a file is none of these.
    """
    for file in evaluations:
        for ap, differences in _compared(file, info, size):
            if not differences:
                return round(ap, 4)
    return None


def why_none_fits(evaluations: Sequence[Path], info: ModelInfo, size: str) -> str:
    """What keeps ``known_ap`` from taking any of these files, in a sentence.

    Of a file with several results the one that differs least is named. Empty where one fits or
    there is no file; arguments and errors are those of ``known_ap``.
    """
    reasons = []
    for file in evaluations:
        differences = min((found for _, found in _compared(file, info, size)), key=len)
        if not differences:
            return ""
        reasons.append(f"{file} has {' and '.join(differences)}")
    return f"no AP, since {'; '.join(reasons)}" if reasons else ""


def _compared(file: Path, info: ModelInfo, size: str) -> List[Tuple[float, List[str]]]:
    """Of each result in a file its AP, and in words what is not the model's; see ``known_ap``."""
    wanted = "{}x{}".format(*parse_size(size, info.input_size))
    defaults, decode = DecodeOptions().to_dict(), DecodeOptions.from_dict(info.decode).to_dict()
    read = read_json(file, "results of `ehrnet evaluate --json`")
    results = []
    try:
        for measures in read or [{}] if isinstance(read, list) else [read]:
            precision, sizes = measures.get("precision", "fp32"), measures["input_sizes"]
            options = {**defaults, **measures.get("decode", decode)}
            changed = sorted(name for name in options if options[name] != decode.get(name))
            ap = measures["AP"]
            differences = {
                "other weights": measures["weights_sha256"] != info.weights_sha256,
                f"precision {precision}, not {info.precision}": precision != info.precision,
                f"input sizes {', '.join(map(str, sizes))}, not {wanted}": sizes != [wanted],
                "mirrored passes": bool(measures.get("mirror")),
                "several scales": measures.get("scales", [1]) != [1],
                # An option that is younger than the file was at its default.
                f"other decode options ({', '.join(changed)})": bool(changed),
                "no AP": ap is None,
            }
            words = [text for text, differs in differences.items() if differs]
            results.append((0.0 if ap is None else float(ap), words))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EhrnetError(
            f"{file} is not a result of `ehrnet evaluate --json`: make it again."
        ) from None
    return results


def result_file() -> Path:
    """Where the result for this machine lies, from which ``phi:=auto`` chooses."""
    return user_folder().parent / "benchmark.json"


def read_result(path: Path) -> List[Row]:
    """The rows of an earlier result; none where it is of another machine or version."""
    try:
        values, here = json.loads(path.read_text()), machine()
        if any(values["machine"][key] != here[key] for key in ("processor", "cores")):
            return []
        return [Row(**row) for row in values["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_result(path: Path, rows: Sequence[Row], before: Sequence[Row] = ()) -> None:
    """Rows with the machine they were measured on, as JSON.

    Args:
        path: the file, written whole or not at all.
        rows: new ones.
        before: earlier ones; those that were measured anew give way.

    Raises:
        EhrnetError: it cannot be written there.
    """
    values = {
        "date": _today(),
        "machine": machine(),
        "rows": [asdict(row) for row in {row.setting: row for row in (*before, *rows)}.values()],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())
    except OSError as error:
        raise EhrnetError(f"the result cannot be written to {path}: {error.strerror}.") from None


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, what is not known as a dash."""
    titles = {
        "variant": "model",
        "precision": "precision",
        "quality": "weights",
        "runtime": "runtime",
        "input": "input",
        "ap": "AP",
        "fps": "FPS",
        "pipeline_ms": "pipeline ms",
        "pipeline_p95_ms": "p95",
        "network_ms": "network ms",
        "network_p95_ms": "p95",
        "person_ms": "each person ms",
        "watts": "W",
        "fps_per_watt": "FPS/W",
        "ae": "Æ",
    }
    assert set(titles) <= {f.name for f in fields(Row)}
    cells = [list(titles.values())]
    for row in rows:
        values = asdict(row)
        values["ap"] = None if row.ap is None else f"{row.ap:.3f}"
        cells.append(["-" if values[key] is None else str(values[key]) for key in titles])
    widths = [max(len(line[i]) for line in cells) for i in range(len(titles))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def summary(milliseconds: Sequence[float]) -> Dict[str, float]:
    """Median and 95th percentile."""
    return {
        "median_ms": round(float(np.median(milliseconds)), 3),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 3),
    }


def machine() -> Dict[str, Any]:
    """Where this was measured; figures mean nothing without it."""
    import cv2

    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "ehrnet_model": ehrnet_model.__version__,
    }
    from importlib import metadata

    for name in ("onnxruntime", "openvino", "tensorrt"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _today() -> str:
    return datetime.date.today().isoformat()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
