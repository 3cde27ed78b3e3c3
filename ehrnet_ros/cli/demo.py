"""ehrnet demo: poses in a picture, folder or video, drawn and as JSON. Needs no ROS."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Optional

from ehrnet_ros.cli.settings import add_decode, add_model, user_path

HELP = "find the people in a picture, folder or video: annotated copy and JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument(
        "source",
        help="picture, folder of pictures, video, stream (rtsp://, http://) or camera index",
    )
    parser.epilog = "Ends with 1 where nobody was found in any frame."
    add_model(parser, phi=-3)
    add_decode(parser)
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="stop after so many frames (cameras and streams never end)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=user_path,
        default=Path("demo_out"),
        metavar="FOLDER",
        help="where to write: a_poses.jpg and a_poses.json of a.jpg, over earlier ones",
    )
    parser.add_argument(
        "--json", action="store_true", help="the result on stdout, not the names of the files"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the annotated copy and the JSON file; 1 when nobody was found in any frame."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.atomic import save_json
    from ehrnet_model.inference.decode import typed_options
    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.models import find_model
    from ehrnet_ros.recording import make_folder
    from ehrnet_ros.source import open_source, public

    if args.frames is not None and args.frames < 1:
        raise EhrnetError(f"--frames {args.frames} leaves nothing to do: give 1 or more.")
    if not args.source:
        raise EhrnetError(
            "there is no source: give a picture, a folder, a video file, the address of a stream "
            "or the index or device of a camera."
        )
    decode = typed_options(args.decode)
    source = open_source(args.source)
    if source.endless and args.frames is None:
        raise EhrnetError("a camera or a stream never ends: say with --frames N when to stop.")
    model = find_model(args.phi, args.model)
    opened = PoseEstimator.open(model, args.runtime, args.size, decode)
    with contextlib.closing(opened) as estimator:
        out = make_folder(args.out)
        with _until_stopped() as stopped:
            frames, written, skipped = _annotate(estimator, source, args.frames, out, stopped)
    if stopped and not frames:
        print("stopped before the first frame: nothing is written.", file=sys.stderr)
        return 128 + stopped[0]
    if not frames:
        raise EhrnetError(f"no frame came from {public(args.source)}: look at the camera.")
    info, engine = estimator.runtime.info, estimator.runtime.name
    result = {
        "source": public(args.source),
        "model": f"{info.variant} {info.weights_name} ({info.quality})",
        "runtime": engine,
        "keypoints": list(info.skeleton.names),
        "min_keypoint_score": estimator.options.min_keypoint_score,
        "files": [str(path) for path in written],
        **({"skipped": skipped} if source.files else {}),
        "frames": frames,
    }
    path = out / f"{source.name}_poses.json"
    save_json(path, result)
    counts = [len(frame["people"]) for frame in frames]
    people = f"{min(counts)} to {max(counts)} people"
    if min(counts) == max(counts):
        people = f"{counts[0]} {'person' if counts[0] == 1 else 'people'}"
    times = sorted(frame["ms"] for frame in frames)
    print(
        f"{len(frames)} frame{'s' * (len(frames) > 1)}, {people}, "
        f"{times[len(times) // 2]:.0f} ms each ({result['model']}, {engine})",
        file=sys.stderr,
    )
    if info.quality == "random":
        print("the weights of this model are random: what is drawn means nothing.", file=sys.stderr)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(str(file) for file in [*written, path]))
    if stopped:
        print(f"stopped: what is written ends after {len(frames)} frames.", file=sys.stderr)
        return 128 + stopped[0]
    return 0 if any(counts) else 1


@contextlib.contextmanager
def _until_stopped() -> Iterator[List[int]]:
    """Gives a list that takes the first SIGINT or SIGTERM; a second one ends the process."""
    stopped: List[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        restore()


def _annotate(
    estimator: Any, source: Any, count: Optional[int], out: Path, stopped: List[int]
) -> Any:
    """Runs the frames through the estimator.

    Gives the frames' results, the files written and the names of pictures that cannot be read.
    """
    from tqdm import tqdm

    from ehrnet_model.inference.draw import draw_poses
    from ehrnet_model.inference.tracker import PoseTracker
    from ehrnet_ros.recording import VideoFile, write_picture
    from ehrnet_ros.source import readable

    results: List[Dict[str, Any]] = []
    written: List[Path] = []
    skipped: List[str] = []
    taken = {file.resolve() for file in source.files}  # a picture is not written over

    def skip(file: Path, error: Exception) -> None:
        tqdm.write(f"skipped: {error}", file=sys.stderr)
        skipped.append(file.name)

    shown_from = estimator.options.min_keypoint_score
    frames: Any = readable(source.files, skip)
    if not source.files:
        frames = ((None, picture) for picture in source.frames())
    frames = itertools.islice(frames, count)
    total = min((number for number in (source.length, count) if number), default=None)
    # No bar for a single picture, nor where stderr is no terminal.
    bar = tqdm(frames, total=total, unit=" frame", file=sys.stderr, disable=total == 1 or None)
    tracker = None if source.files else PoseTracker()
    rate = source.rate or 10.0
    with VideoFile(out / f"{source.name}_poses.mp4", rate) as video, bar:
        for index, (file, picture) in enumerate(bar):
            if stopped:  # between two frames, so that all files are of the same ones
                break
            if not index:
                estimator(picture)  # the first one pays for memory and plans
            if tracker is None:
                poses, timings = estimator.estimate(picture)
            else:
                stamp_s, image_hw = index / rate, picture.shape[:2]
                expected = tracker.expected(stamp_s, image_hw)
                poses, timings = estimator.estimate(picture, expected=expected)
                poses = tracker.update(poses, stamp_s, image_hw).best_first()
            result = _frame(index, picture, poses, timings)
            drawn = draw_poses(picture, poses.above(shown_from), estimator.runtime.info.skeleton)
            if file is None:
                video.write(drawn)
            else:
                result = {"file": file.name, **result}
                written.append(_drawn(file, out, taken))
                taken.add(written[-1].resolve())
                write_picture(written[-1], drawn)
            results.append(result)
    if results and not source.files:
        written.append(video.path)
    return results, written, skipped


def _drawn(file: Path, out: Path, taken: Collection[Path]) -> Path:
    """Where the copy of a picture goes."""
    # Photographs stay JPEG, everything else is kept without loss.
    ending = file.suffix if file.suffix.lower() in (".jpg", ".jpeg") else ".png"
    path, number = out / f"{file.stem}_poses{ending}", 1
    while path.resolve() in taken:
        number += 1
        path = out / f"{file.stem}_poses_{number}{ending}"
    return path


def _frame(index: int, picture: Any, poses: Any, timings: Any) -> Dict[str, Any]:
    """JSON of one frame: pixels of the picture, centre of the first pixel 0; absent is null.

    The id is -1 in pictures, and in a video for who was not yet seen often enough.
    """
    people = []
    for person in range(len(poses)):
        keypoints = [
            [round(float(x), 2), round(float(y), 2), round(float(score), 4)]
            if math.isfinite(x)
            else None
            for (x, y), score in zip(poses.xy[person], poses.score[person])
        ]
        people.append(
            {
                "id": int(poses.id[person]),
                "score": round(float(poses.person_score[person]), 4),
                "bbox": [round(float(v), 2) for v in poses.bbox[person]],
                "keypoints": keypoints,
            }
        )
    return {
        "frame": index,
        "width": picture.shape[1],
        "height": picture.shape[0],
        "ms": round(timings.total_ms, 2),
        "people": people,
    }
