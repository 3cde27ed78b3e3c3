"""What ./demo can be told: known before anything is installed, so the standard library alone."""

from __future__ import annotations

import argparse
from pathlib import Path


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments; ends the process for --help and for what cannot be."""
    parser = argparse.ArgumentParser(
        prog="./demo",
        description="People's skeletons from a video, through real ROS 2 nodes. Without a file: a "
        "short video made of photographs.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        help="picture, folder of pictures, video, or index or device of a camera",
    )
    parser.add_argument("--phi", type=int, default=-3, help="0 (H0) to -4 (H-4), default -3")
    parser.add_argument("--model", default="", help="model file to use instead of phi's")
    parser.add_argument("--runtime", default="auto", help="auto, onnxruntime, openvino, tensorrt")
    parser.add_argument("--size", default="auto", help="auto, square, 4:3, 16:9 or HxW")
    parser.add_argument(
        "--out",
        type=lambda text: Path(text).expanduser(),  # shells leave the ~ of --out=~/here as it is
        default=Path("demo_out"),
        help="where to write",
    )
    return parser.parse_args(arguments)
