"""Identities over time: id switches, MOTA, IDF1 and HOTA, and milliseconds an image.

    python -m benchmarks.tracking [--json FILE] [--page docs/tracking.md] [--rounds 1]
        [--annotations FILE --images ZIP_OR_FOLDER ... --phi -4 -3]

Our PoseTracker beside a plain IoU tracker and ByteTrack (of the package `trackers`) on the same
boxes of the same simulated detector (walkers.py), measured by that package too. All three wait for
the third image before they give an id and remember who is hidden for two seconds. Our options were
chosen on sequences of other seeds. What has to be installed: requirements/benchmarks.txt.

And how near keypoints are to the truth, with and without the tracker's fusing of images: those of
the simulated detector on walking bodies, and, where pictures with COCO keypoint annotations are
given, those of the models on films of a camera that moves over them (panning.py).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import panning, walkers
from benchmarks.report import machine, print_table, summary, write_json, write_page
from ehrnet_model.evaluation.coco import KeypointTruth, load_annotations
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.second_look import sees_whole
from ehrnet_model.inference.tracker import PoseTracker, TrackOptions, best_pairs
from ehrnet_model.skeleton import COCO_17

Follow = Callable[[walkers.Frame], np.ndarray]
OPTIONS = TrackOptions()
ALONE = TrackOptions(track_smoothing=False)
_GUIDED = "and looked for"
_WAYS = {"each image alone": ALONE, "fused": OPTIONS, _GUIDED: OPTIONS}
# Of a film of a picture; the first images are left out, in which nobody can be known yet.
_IMAGES, _FIRST = 20, 5


def ours() -> Follow:
    """PoseTracker with its default options."""
    tracker = PoseTracker(OPTIONS)
    return lambda frame: tracker.update(frame.found, frame.stamp_s).id


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) intersection over union of x0 y0 x1 y1 boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low, 0).prod(2)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(1) for box in (a, b))
    return np.asarray(common / np.maximum(area_a[:, None] + area_b - common, 1e-9))


def by_iou(threshold: float = 0.3) -> Follow:
    """The plain way: whoever overlaps most with where a track was last seen."""
    boxes, last, seen, number = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int)
    given = 0

    def follow(frame: walkers.Frame) -> np.ndarray:
        nonlocal boxes, last, seen, number, given
        keep = frame.stamp_s - last <= OPTIONS.track_lost_s
        boxes, last, seen, number = boxes[keep], last[keep], seen[keep], number[keep]
        found = frame.found.bbox
        overlap = iou(boxes, found)
        track, person = best_pairs(np.where(overlap >= threshold, overlap, 0))
        boxes[track], last[track] = found[person], frame.stamp_s
        seen[track] += 1
        new = np.setdiff1d(np.arange(len(found)), person)
        new = new[frame.found.person_score[new] >= OPTIONS.track_birth_score]
        owner = np.full(len(found), -1)
        owner[person] = track
        owner[new] = len(boxes) + np.arange(len(new))
        boxes = np.concatenate([boxes, found[new]])
        last = np.concatenate([last, np.full(len(new), frame.stamp_s)])
        seen = np.concatenate([seen, np.ones(len(new), int)])
        number = np.concatenate([number, np.full(len(new), -1)])
        for index in owner[owner >= 0]:
            if number[index] < 0 and seen[index] >= OPTIONS.track_birth_images:
                number[index], given = given, given + 1
        return np.where(owner >= 0, number[owner], -1) if len(number) else owner

    return follow


def byte_track(rate: float) -> Follow:
    """ByteTrack, with thresholds for the scores of this detector (0.7 at best)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import supervision
        from trackers import ByteTrackTracker
    tracker = ByteTrackTracker(
        lost_track_buffer=round(OPTIONS.track_lost_s * 30),  # in images at 30 Hz, whatever the rate
        frame_rate=rate,
        track_activation_threshold=OPTIONS.track_birth_score,
        high_conf_det_threshold=0.3,
        minimum_consecutive_frames=OPTIONS.track_birth_images,
    )

    def follow(frame: walkers.Frame) -> np.ndarray:
        count = len(frame.found)
        detections = supervision.Detections(
            xyxy=frame.found.bbox.copy(),
            confidence=frame.found.person_score.copy(),
            data={"index": np.arange(count)},
        )
        tracked = tracker.update(detections)
        ids = np.full(count, -1)
        if len(tracked):
            ids[tracked.data["index"].astype(int)] = tracked.tracker_id
        return ids

    return follow


def switches(frames: list[walkers.Frame], ids: list[np.ndarray]) -> int:
    """How often a person who is found has another id than the last time."""
    last: dict[int, int] = {}
    count = 0
    for frame, numbers in zip(frames, ids):
        for who, number in zip(frame.truth.tolist(), numbers.tolist()):
            if who >= 0 and number >= 0:
                count += last.get(who, number) != number
                last[who] = number
    return count


def scores(frames: list[walkers.Frame], ids: list[np.ndarray]) -> dict[str, Any]:
    """Id switches, MOTA and IDF1 at an IoU of 0.5, and HOTA, as TrackEval defines them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trackers import eval as metrics

    known = [numbers >= 0 for numbers in ids]
    people = [frame.people for frame in frames]
    mine = [numbers[known_] for numbers, known_ in zip(ids, known)]
    overlap = [iou(f.boxes, f.found.bbox[known_]) for f, known_ in zip(frames, known)]
    clear = metrics.compute_clear_metrics(people, mine, overlap)
    identity = metrics.compute_identity_metrics(people, mine, overlap)
    hota = metrics.compute_hota_metrics(people, mine, overlap)
    return {
        "switches": int(clear["IDSW"]),
        "MOTA": round(float(clear["MOTA"]), 3),
        "IDF1": round(float(identity["IDF1"]), 3),
        "HOTA": round(float(hota["HOTA"]), 3),
    }


def run(follow: Follow, frames: list[walkers.Frame]) -> tuple[list[np.ndarray], list[float]]:
    """The ids of all people of all frames, and milliseconds for each frame."""
    ids, taken = [], []
    for frame in frames:
        started = time.perf_counter()
        ids.append(follow(frame))
        taken.append((time.perf_counter() - started) * 1e3)
    return ids, taken


def compare(name: str, seeds: int) -> list[dict[str, Any]]:
    """Rows of all trackers on one kind of sequence: sums over the seeds, means of the scores."""
    make_frames, first = walkers.SEQUENCES[name]
    films = [make_frames(seed=first + i) for i in range(seeds)]
    rate = round((len(films[0]) - 1) / (films[0][-1].stamp_s - films[0][0].stamp_s))
    makers = {"ours": ours, "IoU": by_iou, "ByteTrack": lambda: byte_track(rate)}
    rows = []
    for label, make in makers.items():
        runs = [run(make(), frames) for frames in films]
        each = [scores(frames, ids) for frames, (ids, _) in zip(films, runs)]
        row: dict[str, Any] = {
            "sequence": name,
            "images": sum(map(len, films)),
            "people": sum(len(np.unique(np.concatenate([f.people for f in x]))) for x in films),
            "tracker": label,
            "ids": sum(len(np.setdiff1d(np.concatenate(ids), [-1])) for ids, _ in runs),
            "true switches": sum(switches(x, ids) for x, (ids, _) in zip(films, runs)),
            "switches": sum(score["switches"] for score in each),
        }
        for metric in ("MOTA", "IDF1", "HOTA"):
            row[metric] = round(float(np.mean([score[metric] for score in each])), 3)
        rows.append({**row, **summary([t for _, taken in runs for t in taken])})
    return rows


def thirty_people(rounds: int) -> list[dict[str, Any]]:
    """Time for an image with 30 people, whom a detector finds all."""
    rng = np.random.default_rng(0)
    frames = walkers.film(
        {who: walkers.strolling(who, width=3.0, far=12.0) for who in range(30)},
        10.0, 30.0, seed=104, missed=0.0,
    )  # fmt: skip
    # In front of a camera some hide others: all are put apart, 80 pixels high in a 5 x 6 grid.
    full = []
    for frame in frames:
        body = walkers.body(1.7, 4 * frame.stamp_s)[None, :, :2] * 47
        place = np.stack([np.arange(30) % 6 * 100 + 60, np.arange(30) // 6 * 90 + 90], 1)
        xy = body + place[:, None] + rng.normal(0, 2, (30, 17, 2))
        shape = (30, 17)
        poses = walkers.Poses.build(xy, np.full(shape, 0.7), np.full(shape, 2.0), np.full(30, 0.7))
        full.append(walkers.Frame(frame.stamp_s, frame.people, frame.xy, frame.boxes, poses,
                                  np.arange(30)))  # fmt: skip
    rows = []
    for label, sequence in (("30 apart", full), ("30 strolling through each other", frames)):
        taken: list[float] = []
        for _ in range(rounds):
            taken += run(ours(), sequence)[1][10:]
        found = round(float(np.mean([len(frame.found) for frame in sequence])), 1)
        rows.append({"people": label, "found an image": found, **summary(taken)})
    return rows


def fused_walkers(seeds: int) -> list[dict[str, Any]]:
    """How near visible keypoints of walkers are to the truth, by images a second and noise."""
    paths = {
        0: walkers.straight((-2.2, 4.0), (2.2, 4.0), 4.0),
        1: walkers.straight((3.0, 6.0), (-3.0, 5.5), 3.0),
    }
    rows = []
    for rate in (30.0, 10.0, 5.0):
        for noise in (0.005, 0.03):
            row: dict[str, Any] = {"images/s": rate, "noise": noise}
            films = [
                walkers.film(paths, 4.0, rate, 500 + seed, noise=noise, ghosts=0.0)
                for seed in range(seeds)
            ]
            for label, options in (("alone", ALONE), ("fused", OPTIONS)):
                off = np.concatenate([_errors(frames, options) for frames in films])
                variance = (2 * np.array(COCO_17.sigmas)[off[:, 1].astype(int)]) ** 2
                row[f"error, {label}"] = round(float(np.sqrt(np.mean(off[:, 0] ** 2))), 4)
                similar = np.exp(-(off[:, 0] ** 2) / (2 * variance))
                row[f"similarity, {label}"] = round(float(similar.mean()), 3)
            rows.append(row)
    return rows


def _errors(frames: list[walkers.Frame], options: TrackOptions) -> np.ndarray:
    """(N, 2) of visible keypoints: distance from the truth in units of the person, and which."""
    tracker = PoseTracker(options)
    rows = []
    for frame in frames:
        result = tracker.update(frame.found, frame.stamp_s, walkers.IMAGE_HW)
        for person, who in enumerate(frame.truth):
            true = frame.xy[frame.people == who]
            if len(true) and result.id[person] >= 0:
                size = np.sqrt(np.prod(true[0].max(0) - true[0].min(0)))
                off = np.linalg.norm(result.xy[person] - true[0], axis=1) / size
                # The simulated detector gives less than this to what it guesses.
                joints = np.flatnonzero(frame.found.score[person] > 0.45)
                rows.append(np.stack([off[joints], joints], 1))
    return np.concatenate(rows)


def over_pictures(annotations: Path, images: list[Path], phis: list[int]) -> list[dict[str, Any]]:
    """AP and keypoints of each model on films of a camera that moves over pictures."""
    told = load_annotations(annotations, truth=True)
    people: dict[Any, list[dict[str, Any]]] = {}
    for annotation in told["annotations"]:
        people.setdefault(annotation["image_id"], []).append(annotation)
    pictures = [
        image
        for image in told["images"]
        if image["id"] in people and image.get("all_people_labelled", True)
    ]
    files = ImageFiles(images)
    rows = []
    for phi in phis:
        estimator = PoseEstimator.open(find_model(phi))
        records: list[dict[str, Any]] = []
        truth: list[dict[str, Any]] = []
        results: dict[str, list[dict[str, Any]]] = {label: [] for label in _WAYS}
        spent, whole, again = [0.0, 0.0], [0, 0], [0, 0]
        for seed, image in enumerate(pictures):
            trackers = {label: PoseTracker(options) for label, options in _WAYS.items()}
            picture = files.picture(image)
            views = panning.film(picture, people[image["id"]], _IMAGES, seed)
            for number, view in enumerate(views):
                name = seed * _IMAGES + number
                image_hw = picture.shape[:2]
                expected = trackers[_GUIDED].expected(view.stamp_s, image_hw)
                seen = []
                for guided, known in enumerate((None, expected)):
                    begun = time.perf_counter()
                    answer = estimator.infer([view.image], [True], [known])
                    seen.append(answer.people()[0][0])
                    if number >= _FIRST:
                        spent[guided] += time.perf_counter() - begun
                        whole[guided] += sees_whole(known, estimator.options)
                        again[guided] += answer.second_looks[0]
                tracked = {
                    label: tracker.update(seen[label == _GUIDED], view.stamp_s, image_hw)
                    for label, tracker in trackers.items()
                }
                if number >= _FIRST:
                    height, width = picture.shape[:2]
                    records.append({"id": name, "file_name": "", "width": width, "height": height})
                    truth += [{**person, "image_id": name} for person in view.people]
                    for label, poses in tracked.items():
                        results[label] += poses.to_coco(name)
        minimum = estimator.options.min_keypoint_score
        info = estimator.runtime.info
        estimator.close()
        judge = KeypointTruth({"images": records, "annotations": truth})
        for label, told_people in results.items():
            judged = judge.average_precision(told_people)
            keypoints = judge.keypoint_f1(told_people, minimum)
            rows.append(
                {
                    "model": info.weights_name or info.variant,
                    "keypoints": label,
                    "pictures": len(pictures),
                    "images": len(records),
                    "first looks": round(whole[label == _GUIDED] / len(records), 2),
                    "second looks": round(again[label == _GUIDED] / len(records), 2),
                    "time": round(spent[label == _GUIDED] / spent[0], 2),
                    **{name: round(judged[name], 3) for name in ("AP", "AP50", "AP75")},
                    "precision": round(keypoints["keypoint_precision"], 3),
                    "recall": round(keypoints["keypoint_recall"], 3),
                    "F1": round(keypoints["keypoint_f1"], 3),
                }
            )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", nargs="+", default=list(walkers.SEQUENCES))
    parser.add_argument("--seeds", type=int, default=5, help="films of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing with 30 people")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    parser.add_argument("--annotations", type=Path, help="of pictures for a camera to move over")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="these pictures")
    parser.add_argument("--phi", type=int, nargs="+", default=[-4, -3], help="models for these")
    args = parser.parse_args()
    print(f"{machine()}\n")
    rows = [row for name in args.sequences for row in compare(name, args.seeds)]
    print_table(rows)
    print("\nPoseTracker.update with 30 people\n")
    timing = thirty_people(args.rounds)
    print_table(timing)
    print("\nKeypoints of walking bodies\n")
    walking = fused_walkers(args.seeds)
    print_table(walking)
    films = []
    if args.annotations:
        print("\nA camera that moves over pictures\n")
        films = over_pictures(args.annotations, args.images, args.phi)
        print_table(films)
    write_json(args.json, "tracking", rows + timing + walking + films)
    write_page(
        args.page,
        "Tracking",
        "Written by `python -m benchmarks.tracking --page docs/tracking.md`, the last table with\n"
        "`--annotations FILE --images ZIP` as well. Walking skeletons\n"
        "are seen through a simulated detector that misses, guesses and errs; all trackers get\n"
        "the same boxes (benchmarks/walkers.py). Scores by the package `trackers`, whose\n"
        "ByteTrack is the third; they match boxes, and where people overlap that confuses some,\n"
        "so true switches are counted by whom the detector did find. Our options were chosen on\n"
        "sequences of other seeds.\n\n"
        "From image to image a network errs differently, so the tracker fuses what it sees of\n"
        "each person: of two places where a keypoint was seen lately it gives the surer one,\n"
        "smoothed, and scores of all late images together. Keypoints of walking bodies: distance\n"
        "from the truth in units of the person (root of the box's area), and COCO's similarity;\n"
        "little noise shows what lags behind. A camera that moves over pictures (benchmarks/\n"
        "panning.py): the shipped models on a second, 15 images, of each of those of the 131\n"
        "pictures of the models' cards that show people, who stand still; these chose nothing\n"
        "here, what follows was chosen on 150 pictures of the training data. Fused: see above.\n"
        "And looked for: second looks (how many an image, in two views each) also go to where\n"
        "tracked people should be, and see them in other views in each image, and only every\n"
        "second image is looked at as a whole, at first and coarsely, while somebody is tracked.\n"
        "Time: for poses of an image, by that of each image alone.",
        {
            "Identities": rows,
            "PoseTracker.update with 30 people": timing,
            "Keypoints of walking bodies": walking,
            **({"A camera that moves over pictures": films} if films else {}),
        },
    )


if __name__ == "__main__":
    main()
