"""The pose node as a process: time to the first pose, rate, latency, memory, drops.

    python -m benchmarks.node [--frames 10000] [--rate 30] [--size 128x160] [--json FILE]

Starts `picture_node` and `pose_node` over DDS on this machine alone and listens to the poses.
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

from benchmarks.report import machine, print_table, summary, write_json

ROOT = Path(__file__).resolve().parent.parent


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def isolate() -> dict[str, str]:
    """An environment whose ROS graph is this benchmark's own."""
    profile = str(ROOT / "config" / "fastdds_shm.xml")
    own = {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }
    os.environ.update(own)
    return dict(os.environ)


def run(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Feeds the node until it answered ``args.frames`` frames."""
    environment = isolate()
    import rclpy
    from ehrnet_msgs.msg import PoseArray
    from rclpy.qos import qos_profile_sensor_data

    height, width = (int(part) for part in args.camera.split("x")[::-1])
    picture = folder / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(picture), noise)

    ages: list[float] = []
    memory: list[float] = []
    rclpy.init()
    listener = rclpy.create_node("benchmark")
    listener.create_subscription(
        PoseArray, "/pose/poses", lambda msg: ages.append(msg.latency_ms), qos_profile_sensor_data
    )

    def start(module: str, **parameters: Any) -> subprocess.Popen:
        command = [sys.executable, "-m", module, "--ros-args", "--log-level", "warn"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    camera = start("ehrnet_ros.picture_node", source=str(picture), rate=float(args.rate))
    time.sleep(2)
    extra = {"model": args.model} if args.model else {}
    started = time.monotonic()
    node = start("ehrnet_ros.pose_node", phi=args.phi, size=args.size, **extra)
    try:
        first, next_look = 0.0, 0
        while len(ages) < args.frames:
            rclpy.spin_once(listener, timeout_sec=1.0)
            if node.poll() is not None or time.monotonic() - started > args.limit:
                break
            if ages and not first:
                first, fed = time.monotonic() - started, time.monotonic()
            if len(ages) >= next_look and ages:
                memory.append(resident_mb(node.pid))
                next_look += max(1, args.frames // 20)
        seconds = time.monotonic() - fed if first else float("nan")
        # The first twentieth still fills caches.
        settled = memory[1:] or [float("nan")]
        row = {
            "phi": args.phi,
            "camera": f"{args.camera} at {args.rate} Hz",
            "input": args.size,
            "poses": len(ages),
            "poses/s": round(len(ages) / seconds, 1),
            "first pose s": round(first, 2),
            **{f"age {k}": v for k, v in summary(ages or [float("nan")]).items()},
            "memory MB": settled[0],
            "at the end MB": settled[-1],
        }
    finally:
        for process in (node, camera):
            process.send_signal(signal.SIGINT)
        for process in (node, camera):
            process.wait(10)
        listener.destroy_node()
        rclpy.try_shutdown()
    return [row]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phi", type=int, default=-4)
    parser.add_argument("--model", default="")
    parser.add_argument("--size", default="auto")
    parser.add_argument("--camera", default="640x480")
    parser.add_argument("--rate", type=float, default=30)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--limit", type=float, default=1800, help="stop after so many seconds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        rows = run(args, Path(folder))
    print_table(rows)
    write_json(args.json, "node", rows)


if __name__ == "__main__":
    main()
