"""What it gains that decoding and publishing run beside the engine, in a second thread.

    python -m benchmarks.overlap [--json FILE] [--page docs/overlap.md] [--turns 9] [--frames 150]

The node's own worker with frames always waiting, both ways in turn: everything in the engine's
thread, and what comes after the engine in the second one. Engines: a wait of some milliseconds,
as if a GPU computed (the processor is free meanwhile, the answer is a crowd's), and ONNX Runtime,
which needs the processor itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grouping import INPUT_HW, crowd
from benchmarks.report import machine, print_table, write_json, write_page
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.runtime import Runtime, model_info

IMAGE_HW = (480, 640)


class Waiting:
    """A runtime that computes nothing on this processor for some milliseconds."""

    def __init__(self, milliseconds: float, people: int) -> None:
        self.name = f"wait of {milliseconds:g} ms"
        self.info = model_info(find_model(-4))
        self.size_hw = INPUT_HW
        self._seconds = milliseconds / 1e3
        self._peaks = crowd(people)[None]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The same crowd every time."""
        time.sleep(self._seconds)
        return self._peaks.copy()

    def close(self) -> None:
        """Nothing to free."""


def frames_per_second(runtime: Runtime, frames: int, beside: bool) -> float:
    """From Image message to serialised PoseArray, as often as it goes."""
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from ehrnet_ros.image_msgs import to_image, to_picture
    from ehrnet_ros.pose_msgs import to_pose_array
    from ehrnet_ros.worker import EngineWorker

    picture = np.random.default_rng(0).integers(0, 256, (*IMAGE_HW, 3), np.uint8)
    message = to_image(picture, Header(frame_id="camera"))
    options = dataclasses.replace(DecodeOptions.from_dict(runtime.info.decode), max_people=100)
    estimator = PoseEstimator(runtime, options)
    done, published = threading.Event(), 0
    started = 0.0

    def handle(engine: PoseEstimator, items: list[Any]) -> Any:
        worker.frames.put("camera", message)  # a camera faster than the node
        seen = to_picture(message)
        answer = engine.infer([seen.array], [seen.order == "rgb"])

        def rest() -> None:
            nonlocal published, started
            ((poses, _),) = answer.people()
            serialize_message(to_pose_array(poses, message.header, IMAGE_HW))
            published += 1
            if published == 5:  # the first ones allocate
                started = time.perf_counter()
            if published == frames + 5:
                done.set()

        if beside:
            return rest
        rest()
        return None

    ready = threading.Event()
    worker = EngineWorker(lambda: estimator, handle, lambda engine: None, ready.set)
    ready.wait()
    worker.frames.put("camera", message)
    done.wait()
    seconds = time.perf_counter() - started
    worker.close()
    worker.join()
    return frames / seconds


def measure(runtime: Runtime, people: str, turns: int, frames: int) -> dict[str, Any]:
    """One row: medians, and the ratio turn by turn."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns):
        for beside in (False, True) if turn % 2 == 0 else (True, False):
            rates[beside].append(frames_per_second(runtime, frames, beside))
    ratio = np.array(rates[True]) / np.array(rates[False])
    low, middle, high = np.percentile(ratio, [25, 50, 75])
    return {
        "engine": runtime.name,
        "people": people,
        "frames/s, one thread": f"{np.median(rates[False]):.1f}",
        "frames/s, two": f"{np.median(rates[True]):.1f}",
        "ratio": f"{middle:.2f}",
        "middle half": f"{low:.2f} to {high:.2f}",
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    print(f"{machine()}\nframes per second, {args.turns} turns of {args.frames} frames\n")
    rows = [
        measure(Waiting(wait, people), str(people), args.turns, args.frames)
        for wait in (3.0, 8.0, 20.0)
        for people in (1, 5)
    ]
    for threads in (1, 2):
        runtime = open_runtime(find_model(-4), "onnxruntime", (192, 256), threads)
        runtime.name += f" {threads}T, H-4 at 192x256"
        rows.append(measure(runtime, "noise", args.turns, max(args.frames // 3, 10)))
        runtime.close()
    print_table(rows)
    write_json(args.json, "overlap", rows)
    write_page(
        args.page,
        "Two frames in flight",
        "Written by `python -m benchmarks.overlap`, which says what is compared. Ratios are of "
        "frames per second, two threads to one, turn by turn.",
        {"Frames per second, from Image message to serialised PoseArray": rows},
    )


if __name__ == "__main__":
    main()
