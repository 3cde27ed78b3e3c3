"""What several cameras cost a node: rate, age and processor time for 1, 2, 4 and 8 cameras.

    python -m benchmarks.cameras [--cameras 1 2 4 8] [--rate 10] [--batch 1 4] [--json FILE]

Each camera is a `picture_node` of its own at ``--rate``; one `pose_node` answers all of them. Rates
and ages are those of the camera that fares worst.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.node import ROOT, isolate, resident_mb
from benchmarks.report import machine, print_table, write_json, write_page

ABOUT = """\
Written by `python -m benchmarks.cameras --page docs/cameras.md`. Every camera is a process that
publishes 640x480 images of noise, in which nobody is found and looked at again; one pose node
answers all of them with their newest image, in turns. Images that a newer one replaced are not
answered. Rates and ages are those of the camera that fares worst."""


def processor_s(pid: int) -> float:
    """Processor seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(count: int, batch: int, args: argparse.Namespace, picture: Path) -> dict[str, Any]:
    """One row: so many cameras for ``args.seconds``."""
    environment = isolate()
    import rclpy
    from ehrnet_msgs.msg import PoseArray
    from rclpy.qos import qos_profile_sensor_data

    names = [f"camera{i}" for i in range(count)]
    ages: dict[str, list[float]] = {name: [] for name in names}
    rclpy.init()
    listener = rclpy.create_node("benchmark")
    for name in names:
        listener.create_subscription(
            PoseArray,
            f"/pose/{name}/poses",
            lambda msg, name=name: ages[name].append(msg.latency_ms),
            qos_profile_sensor_data,
        )

    def start(module: str, namespace: str, **parameters: Any) -> subprocess.Popen:
        command = [sys.executable, "-m", module, "--ros-args", "--log-level", "warn"]
        command += ["-r", f"__ns:=/{namespace}"] if namespace else []
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    processes = [
        start("ehrnet_ros.picture_node", name, source=str(picture), rate=float(args.rate))
        for name in names
    ]
    node = start(
        "ehrnet_ros.pose_node", "", phi=args.phi, size=args.size, cameras=names, batch=batch
    )
    try:
        end = time.monotonic() + 60
        while not all(ages.values()) and time.monotonic() < end:
            rclpy.spin_once(listener, timeout_sec=0.1)
        for found in ages.values():
            found.clear()
        used, begun = processor_s(node.pid), time.monotonic()
        while time.monotonic() < begun + args.seconds:
            rclpy.spin_once(listener, timeout_sec=0.1)
        seconds = time.monotonic() - begun
        used = processor_s(node.pid) - used
        answered = [len(found) for found in ages.values()]
        return {
            "cameras": count,
            "batch": batch,
            "poses/s in all": round(sum(answered) / seconds, 1),
            "slowest camera/s": round(min(answered) / seconds, 1),
            "age median ms": round(max(float(np.median(a or [np.nan])) for a in ages.values()), 1),
            "age p95 ms": round(
                max(float(np.percentile(a or [np.nan], 95)) for a in ages.values()), 1
            ),
            "CPU ms a pose": round(1e3 * used / max(1, sum(answered)), 1),
            "memory MB": resident_mb(node.pid),
        }
    finally:
        for process in (node, *processes):
            process.send_signal(signal.SIGINT)
        for process in (node, *processes):
            process.wait(10)
        listener.destroy_node()
        rclpy.try_shutdown()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rate", type=float, default=10.0, help="of each camera, Hz")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--phi", type=int, default=-4)
    parser.add_argument("--size", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, metavar="FILE.md")
    args = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        cv2.imwrite(str(picture), noise)
        rows = [
            run(count, batch, args, picture)
            for count in args.cameras
            for batch in args.batch
            if batch == 1 or count > 1
        ]
    print_table(rows)
    write_json(args.json, "cameras", rows)
    heading = f"{args.rate:g} Hz each, phi {args.phi}, input {args.size}"
    write_page(args.page, "Several cameras, one engine", ABOUT, {heading: rows})


if __name__ == "__main__":
    main()
