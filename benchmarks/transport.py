"""Big images from one process to another: what arrives, and how late.

    python -m benchmarks.transport [--seconds 15] [--json FILE] [--page docs/transport.md]

1080p at 30 Hz, best effort, depth 1, publisher and subscriber as processes of their own and no
network between them: Fast DDS as it comes against config/fastdds_shm.xml, raw against JPEG. The
subscriber takes the message as the pose node does; with JPEG it also decodes, the publisher also
encodes, both as a camera driver and the node would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.node import ROOT, isolate
from benchmarks.report import machine, print_table, write_json, write_page

PROFILE = str(ROOT / "config" / "fastdds_shm.xml")
PROFILES = {"as it comes": None, "config/fastdds_shm.xml": PROFILE}
QUALITY = 80  # of the JPEG, 0 to 100


def picture(height: int, width: int) -> np.ndarray:
    """Something that JPEG finds neither trivial nor impossible: soft blobs with a little noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    soft = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)


def publish(args: argparse.Namespace) -> None:
    """The camera: sends ``seconds * rate`` images once somebody subscribed; prints how many."""
    import array

    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    from ehrnet_ros.image_msgs import to_image

    rclpy.init()
    node = rclpy.create_node("camera")
    raw = args.transport == "raw"
    publisher = node.create_publisher(
        Image if raw else CompressedImage, "image", qos_profile_sensor_data
    )
    frame = picture(args.height, args.width)
    msg = to_image(frame, Header()) if raw else CompressedImage(format="bgr8; jpeg compressed bgr8")
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    time.sleep(1.0)
    blocked = []
    due = time.monotonic()
    total = round(args.seconds * args.rate)
    cpu = time.process_time()
    for number in range(total):
        msg.header.stamp = node.get_clock().now().to_msg()
        msg.header.frame_id = str(number)
        if not raw:
            _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            msg.data = array.array("B", data.tobytes())
        begun = time.monotonic()
        publisher.publish(msg)
        blocked.append((time.monotonic() - begun) * 1e3)
        due += 1 / args.rate
        time.sleep(max(0.0, due - time.monotonic()))
    size = len(msg.data)
    seconds = total / args.rate
    late = max(0.0, time.monotonic() - due)
    print(
        json.dumps(
            {
                "sent": total,
                "bytes": size,
                "publish_ms": float(np.median(blocked)),
                "cpu": (time.process_time() - cpu) / (seconds + late),
                "late_s": late,
            }
        ),
        flush=True,
    )
    time.sleep(1.0)  # the last image is still on its way
    node.destroy_node()
    rclpy.try_shutdown()


def subscribe(args: argparse.Namespace) -> None:
    """The node's side: takes images until none has come for two seconds; prints their ages."""
    import rclpy
    from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image

    from ehrnet_ros.image_msgs import to_picture, to_picture_compressed

    rclpy.init()
    node = rclpy.create_node("subscriber")
    raw = args.transport == "raw"
    ages: list[float] = []
    last = [time.monotonic() + 30]

    def on_image(msg: Any) -> None:
        read = to_picture if raw else to_picture_compressed
        assert read(msg).array.shape == (args.height, args.width, 3)
        stamp = msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
        ages.append((node.get_clock().now().nanoseconds - stamp) / 1e6)
        last[0] = time.monotonic() + 2

    qos = QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
    )
    node.create_subscription(Image if raw else CompressedImage, "image", on_image, qos)
    while time.monotonic() < last[0]:
        rclpy.spin_once(node, timeout_sec=0.1)
    print(json.dumps({"ages": ages}), flush=True)
    node.destroy_node()
    rclpy.try_shutdown()


def run(args: argparse.Namespace, label: str, profile: str | None, transport: str) -> dict:
    """One row: both processes with one profile and one transport."""
    environment = {k: v for k, v in os.environ.items() if k != "FASTDDS_DEFAULT_PROFILES_FILE"}
    if profile is not None:
        environment["FASTDDS_DEFAULT_PROFILES_FILE"] = profile
    command = [sys.executable, "-m", "benchmarks.transport", "--transport", transport]
    for name in ("seconds", "rate", "height", "width"):
        command += [f"--{name}", str(getattr(args, name))]
    processes = [
        subprocess.Popen(
            [*command, "--role", role], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for role in ("subscriber", "publisher")
    ]
    try:
        heard, sent = (json.loads(process.communicate(timeout=300)[0]) for process in processes)
    finally:
        for process in processes:
            process.kill()
    ages = heard["ages"] or [float("nan")]
    count = len(heard["ages"])
    return {
        "Fast DDS": label,
        "transport": transport,
        "MB an image": round(sent["bytes"] / 1e6, 2),
        "sent": sent["sent"],
        "arrived": count,
        "arrived %": round(100 * count / sent["sent"], 1),
        "age p50 ms": round(float(np.median(ages)), 1),
        "age p95 ms": round(float(np.percentile(ages, 95)), 1),
        "publish() p50 ms": round(sent["publish_ms"], 2),
        "publisher CPU %": round(100 * sent["cpu"]),
        "behind s": round(sent["late_s"], 1),
    }


def main() -> None:
    """Measures all four, in both orders, so that the machine's mood falls on all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rate", type=float, default=30, help="[Hz]")
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--rounds", type=int, default=2, help="of all four, back and forth")
    parser.add_argument("--transport", choices=("raw", "compressed"), help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=("publisher", "subscriber"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    if args.role:
        (publish if args.role == "publisher" else subscribe)(args)
        return
    isolate()
    print(f"{machine()}\n")
    settings = [(name, transport) for transport in ("raw", "compressed") for name in PROFILES]
    rows = []
    for number in range(args.rounds):
        for label, transport in settings if number % 2 == 0 else reversed(settings):
            row = run(args, label, PROFILES[label], transport)
            rows.append({"round": number + 1, **row})
    rows.sort(key=lambda row: (row["transport"] != "raw", row["Fast DDS"], row["round"]))
    print_table(rows)
    about = (
        "Written by `python -m benchmarks.transport --page docs/transport.md`. "
        f"{args.width}x{args.height} (bgr8) at {args.rate:g} Hz for {args.seconds:g} s, best "
        f"effort, from one process to another on this machine; compressed is JPEG of quality "
        f"{QUALITY}, encoded before publishing and decoded on arrival, and both are in its age. "
        "Age is from the stamp to the picture in the subscriber's hands; `behind` is by how much "
        "the publisher could not hold its rate."
    )
    title = "Big images"
    write_page(args.page, title, about, {"Delivered images and their age": rows})
    write_json(args.json, "transport", rows)


if __name__ == "__main__":
    main()
