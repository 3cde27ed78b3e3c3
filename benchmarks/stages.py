"""Milliseconds of every stage between an Image message and a PoseArray message, in one process.

    python -m benchmarks.stages [--json FILE] [--phi -4 -3] [--runtime onnxruntime] [--threads 1]

The image is noise, in which nobody is found: what everybody who is looked at again adds is measured
apart, one at a time, in a photograph. Speed does not depend on the weights' values, so a variant
without shipped weights is timed with random ones; crowds are grouping.py's matter.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, print_table, summary, write_json
from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.benchmark import person_ms
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.second_look import open_closer
from ehrnet_model.inference.sizes import parse_size

CAMERAS = {"640x480": (480, 640, "4:3"), "1920x1080": (1080, 1920, "16:9")}


def model_file(phi: int, folder: Path) -> Path:
    """The shipped model, or one with random weights written into a folder."""
    try:
        return find_model(phi)
    except EhrnetError:
        from ehrnet_model.network.export import timing_model

        return timing_model(phi, folder)


def measure(model: Path, camera: str, runtime: str, threads: int, frames: int) -> dict[str, Any]:
    """One row: a model fed by one camera."""
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from ehrnet_ros.image_msgs import to_image, to_picture
    from ehrnet_ros.pose_msgs import to_pose_array

    height, width, size = CAMERAS[camera]
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    message = to_image(picture, Header(frame_id="camera"))
    opened = open_runtime(model, runtime, threads=threads)
    size_hw = parse_size(size, opened.info.input_size)
    opened.close()
    opened = open_runtime(model, runtime, size_hw, threads)
    options = DecodeOptions.from_dict(opened.info.decode)
    closer = open_closer(model, opened, options, threads, insist=True)
    estimator = PoseEstimator(opened, options, closer=closer)
    times: dict[str, list[float]] = {
        name: [] for name in ("convert", "letterbox", "engine", "decode", "message", "callback")
    }
    for number in range(frames + 3):
        start = time.perf_counter()
        seen = to_picture(message)
        converted = time.perf_counter()
        poses, timings = estimator.estimate(seen.array, rgb=seen.order == "rgb")
        estimated = time.perf_counter()
        serialize_message(to_pose_array(poses, message.header, (height, width)))
        done = time.perf_counter()
        if number < 3:  # the first ones allocate
            continue
        times["convert"].append((converted - start) * 1e3)
        times["letterbox"].append(timings.letterbox_ms)
        times["engine"].append(timings.engine_ms)
        times["decode"].append(timings.decode_ms)
        times["message"].append((done - estimated) * 1e3)
        times["callback"].append((done - start) * 1e3)
    each = None if closer is None else person_ms(model, closer, options, picture, frames)
    estimator.close()
    row: dict[str, Any] = {
        "model": opened.info.variant,
        "weights": opened.info.quality,
        "runtime": f"{opened.name} {threads}T",
        "camera": camera,
        "input": f"{size_hw[0]}x{size_hw[1]}",
    }
    for name, values in times.items():
        found = summary(values)
        row[name] = f"{found['median_ms']:.2f} / {found['p95_ms']:.2f}"
    engine = float(np.median(times["engine"]))
    row["rest / engine"] = f"{(float(np.median(times['callback'])) - engine) / engine:.1%}"
    row["frames/s"] = round(1e3 / float(np.median(times["callback"])), 1)
    row["each person"] = "-" if each is None else f"{each:.2f}"
    row["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phi", type=int, nargs="+", default=[-4, -3])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{machine()}\nmilliseconds, median / p95 of {args.frames} frames\n")
    with tempfile.TemporaryDirectory() as folder:
        files = [model_file(phi, Path(folder)) for phi in args.phi]
        rows = [
            measure(file, camera, args.runtime, args.threads, args.frames)
            for file in files
            for camera in CAMERAS
        ]
    print_table(rows)
    write_json(args.json, "stages", rows)


if __name__ == "__main__":
    main()
