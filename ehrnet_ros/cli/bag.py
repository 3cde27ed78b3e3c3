"""``ehrnet bag``: poses for every image of a recorded bag."""

from __future__ import annotations

import argparse
import sys
from typing import Any, List

from ehrnet_ros.cli.settings import add_model, user_path

HELP = "find the people in every image of a recorded rosbag2 and write a bag of poses and markers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument(
        "input", type=user_path, help="folder of a rosbag2, or its .mcap or .db3 file"
    )
    parser.add_argument(
        "output",
        type=user_path,
        help="folder to make; with .mcap or .db3 at the end, a single file",
    )
    add_model(parser, phi=-4)
    parser.add_argument(
        "--topic",
        action="append",
        default=[],
        help="image topic to take, may be repeated (default: all with colour images)",
    )
    parser.add_argument(
        "-p",
        "--param",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="parameter of the pose node, such as keypoint_threshold:=0.2 or marker_depth:=3",
    )
    parser.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="", help="default: that of the input"
    )
    parser.add_argument(
        "--latency",
        action="store_true",
        help="also write milliseconds per stage and image, which differ from run to run",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the bag; 1 when there were images that could not be read."""
    import signal

    from tqdm import tqdm

    from ehrnet_ros.bag import convert_bag
    from ehrnet_ros.parameters import with_texts

    options = [("phi", str(args.phi)), ("model", args.model or ""), ("runtime", args.runtime)]
    settings = with_texts([*options, ("size", args.size), *_split(args.param)])
    # What was begun is removed then, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tqdm(unit="image", file=sys.stderr, disable=None) as bar:

        def progress(total: int) -> None:
            bar.total = total
            bar.update()

        results = convert_bag(
            args.input, args.output, settings, args.topic, args.storage, args.latency, progress
        )
    for result in results:
        print(_line(result), file=sys.stderr)
    print(args.output)
    return 1 if any(result.unreadable for result in results) else 0


def _split(texts: List[str]) -> List[Any]:
    from ehrnet_model.errors import EhrnetError

    pairs = [text.partition(":=") for text in texts]
    for name, sign, value in pairs:
        if not sign:
            raise EhrnetError(f"-p {name}{value} is no parameter: write NAME:=VALUE.")
        if name == "cameras":
            raise EhrnetError("-p cameras: all of a bag are taken; name some of them with --topic.")
        if name == "rotation" and "," in value:
            raise EhrnetError(
                "-p rotation: one number turns all images of a bag; take cameras that are mounted "
                "differently one by one, with --topic."
            )
    return [(name, value) for name, _, value in pairs]


def _line(result: Any) -> str:
    """``/front/image_raw: 120 images, 250 people, on /pose/poses and /pose/markers``."""
    camera = result.camera
    text = (
        f"{camera.topic}: {result.images} images, {result.people} people, on "
        f"{camera.prefix}poses and {camera.prefix}markers"
    )
    if result.unreadable:
        have = "image has" if result.unreadable == 1 else "images have"
        text += f"; {result.unreadable} {have} no poses, the first because: {result.reason}"
    return text
