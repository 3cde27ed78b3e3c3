"""Milliseconds from the engine's output to Poses, for crowds of 1 to 30 people.

    python -m benchmarks.grouping [--json FILE] [--people 1 5 15 30] [--rounds 300]

The crowds are drawn as heatmaps and tag maps at 384x512 and go through the host's peak finding, so
the peaks are what a network that sees everybody would hand over, with noise in unused places. Tags
are ``clear`` (people 2 apart, spread 0.1: what training aims at) or ``close`` (people 0.6 apart,
spread 0.15: nearly every pair of neighbours is in question).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, print_table, summary, write_json
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.reference import find_peaks
from ehrnet_model.skeleton import COCO_17

INPUT_HW = (384, 512)
IMAGE_HW = (480, 640)
# Distance of neighbours' tags and their spread within a person.
TAGS = {"clear": (2.0, 0.1), "close": (0.6, 0.15)}
_MISSING = 0.15


def crowd(people: int, tags: str = "clear", seed: int = 0) -> np.ndarray:
    """Engine output (17, 30, 15) for a crowd that fills the picture, 15 % of keypoints missing."""
    spacing, spread = TAGS[tags]
    rng = np.random.default_rng(seed)
    keypoints = COCO_17.num_keypoints
    height, width = INPUT_HW[0] // 4, INPUT_HW[1] // 4
    across = int(np.ceil(np.sqrt(people * width / height)))
    down = -(-people // across)
    place = np.arange(people)
    middle = np.stack([(place % across + 0.5) / across, (place // across + 0.5) / down], 1)
    box = np.array([width / across, height / down])
    spots = middle[:, None] * (width, height) + rng.uniform(-0.4, 0.4, (people, keypoints, 2)) * box
    strength = rng.uniform(0.3, 1, (people, keypoints))
    strength[rng.random((people, keypoints)) < _MISSING] = 0

    def blobs(factor: int) -> np.ndarray:
        heat = 0.05 * rng.random((keypoints, height * factor, width * factor), np.float32)
        y, x = np.ogrid[: height * factor, : width * factor]
        for person in range(people):
            for k in range(keypoints):
                centre = (spots[person, k] + 0.5) * factor - 0.5
                square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
                blob = strength[person, k] * np.exp(-square / (2 * (1.5 * factor) ** 2))
                np.maximum(heat[k], blob, out=heat[k])
        return heat

    y, x = np.mgrid[:height, :width]
    nearest = np.hypot(x - spots[..., 0, None, None], y - spots[..., 1, None, None]).argmin(0)
    value = spacing * rng.permutation(people)[:, None] + rng.normal(0, spread, (people, keypoints))
    tag = value[nearest, np.arange(keypoints)[:, None, None]]
    return find_peaks(np.concatenate([blobs(1), tag]), blobs(2))


def measure(people: int, tags: str, rounds: int) -> dict[str, Any]:
    """Times decoding of eight different crowds of this size in turn."""
    crowds = [crowd(people, tags, seed) for seed in range(8)]
    box = Letterbox.fit(IMAGE_HW, INPUT_HW)
    options = DecodeOptions(max_people=100)  # shows when there are too many
    taken: list[float] = []
    computed: list[float] = []
    found: list[int] = []
    for number in range(rounds + len(crowds)):
        output = crowds[number % len(crowds)]
        started, started_cpu = time.perf_counter(), time.thread_time()
        poses = decode(Peaks.from_output(output), options, COCO_17, box)
        if number >= len(crowds):
            taken.append((time.perf_counter() - started) * 1e3)
            computed.append((time.thread_time() - started_cpu) * 1e3)
        else:
            found.append(len(poses))
    low, high = min(found), max(found)
    groups = str(low) if low == high else f"{low}-{high}"
    # Other work on the machine stretches the time of the clock, hardly that of the processor.
    cpu = round(float(np.median(computed)), 3)
    return {"people": people, "tags": tags, **summary(taken), "median_cpu_ms": cpu, "found": groups}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, nargs="+", default=[1, 5, 15, 30])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{machine()}\npeaks to Poses, {args.rounds} rounds over 8 crowds\n")
    rows = [measure(people, tags, args.rounds) for tags in TAGS for people in args.people]
    print_table(rows)
    write_json(args.json, "grouping", rows)


if __name__ == "__main__":
    main()
