"""COCO keypoint accuracy of any Runtime, through the same decoding the robot uses.

AP and AR come from pycocotools, the reference implementation: every published figure was made with
it, and a second implementation could only differ.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.sizes import best_named_size, parse_size

NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def read_json(path: Path) -> Any:
    """JSON, gzipped or not. Raises EhrnetError when it cannot be read."""
    try:
        raw = Path(path).read_bytes()
        return json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (OSError, EOFError, ValueError) as error:
        raise EhrnetError(
            f"{path} cannot be read as JSON ({error}): give a COCO-style file."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Writes beside, flushes, renames. Raises EhrnetError when it cannot be written."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise EhrnetError(
            f"{path} could not be written ({error.strerror or error}): choose another place."
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def load_annotations(path: Path) -> dict[str, Any]:
    """A COCO keypoint annotation file, checked as far as evaluation needs it.

    Raises:
        EhrnetError: not such a file, an annotation of an image that is not listed, or one without
            17 keypoints.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise EhrnetError(f"{path} has no list 'images': give a COCO-style annotation file.")
    ids = {image.get("id") for image in data["images"]}
    for ann in data.setdefault("annotations", []):
        if ann.get("image_id") not in ids:
            raise EhrnetError(
                f"{path}: annotation {ann.get('id')} is of an image that is not listed."
            )
        if len(ann.get("keypoints") or [0] * 51) != 51:
            raise EhrnetError(
                f"{path}: annotation {ann.get('id')} has not 17 keypoints of 3 numbers."
            )
    return data


def is_person_free(image: dict[str, Any], has_annotations: bool, file_has_any: bool) -> bool:
    """Whether an image of an annotation file is known to show nobody.

    Its own ``person_free`` decides. Without one, it is an image without annotations, unless the
    file has none at all (it then says nothing about who is where) or the image is said to hold
    people without label (``all_people_labelled`` false).

    Args:
        image: the record of the image.
        has_annotations: whether anybody, a crowd included, is annotated in it.
        file_has_any: whether the file annotates anybody.
    """
    if "person_free" in image:
        return bool(image["person_free"])
    return not has_annotations and file_has_any and bool(image.get("all_people_labelled", True))


class KeypointTruth:
    """Ground truth that COCO keypoint results are held against, as often as wanted.

    Args:
        annotations: COCO keypoint ground truth; images without people count as well.
    """

    def __init__(self, annotations: dict[str, Any]) -> None:
        from pycocotools.coco import COCO

        people = []
        # pycocotools takes an id of 0 for "not matched", and ids given twice for one person.
        for number, ann in enumerate(annotations["annotations"], 1):
            keypoints = ann.get("keypoints") or [0] * 51
            # Counted here, since a file may lack it or disagree with its own keypoints.
            count = sum(v > 0 for v in keypoints[2::3])
            ann = {"iscrowd": 0, **ann, "id": number, "keypoints": keypoints}
            people.append({**ann, "category_id": 1, "num_keypoints": count})
        self._truth = COCO()
        self._truth.dataset = {
            "info": {},
            "categories": [{"id": 1, "name": "person"}],
            "images": annotations["images"],
            "annotations": people,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth.createIndex()

    @property
    def people(self) -> list[dict[str, Any]]:
        """Everybody annotated, with ids counted from 1 and ``num_keypoints`` counted anew."""
        return list(self._truth.dataset["annotations"])

    def average_precision(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        """COCO keypoint AP and AR (pycocotools' defaults: 20 people per image, all areas).

        Args:
            results: COCO keypoint results, see ``Poses.to_coco``.
        """
        from pycocotools.cocoeval import COCOeval

        if not results:
            return dict.fromkeys(NAMES, 0.0)
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(self._truth, self._load(results), "keypoints")
            run.evaluate()
            run.accumulate()
            run.summarize()
        return {name: float(value) for name, value in zip(NAMES, run.stats, strict=True)}

    def matches(
        self, results: Sequence[dict[str, Any]], oks: float
    ) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[dict[str, Any]]]:
        """Who was found where, by COCO's matching: best result first, each person once.

        Args:
            results: COCO keypoint results.
            oks: least similarity of a match.

        Returns:
            Pairs of an annotation and its result; and the results that are nobody's. Those on
            crowds and on people without keypoints are in neither.
        """
        from pycocotools.cocoeval import COCOeval

        if not results:
            return [], []
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(self._truth, self._load(results), "keypoints")
            run.params.iouThrs = np.array([oks])
            run.params.maxDets = [len(results)]
            run.params.areaRng = run.params.areaRng[:1]
            run.params.areaRngLbl = run.params.areaRngLbl[:1]
            run.evaluate()
        pairs, strays = [], []
        for image in filter(None, run.evalImgs):
            for found, person, ignored in zip(
                image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True
            ):
                result = results[int(found) - 1]
                if person and not ignored:
                    pairs.append((self._truth.anns[int(person)], result))
                elif not ignored:
                    strays.append(result)
        return pairs, strays

    def _load(self, results: Sequence[dict[str, Any]]) -> Any:
        # loadRes writes into what it is given, and numbers it from 1.
        return self._truth.loadRes([dict(result) for result in results])


def average_precision(
    annotations: dict[str, Any], results: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """``KeypointTruth.average_precision`` for one set of results."""
    return KeypointTruth(annotations).average_precision(results)


def size_for(text: str, image_hw: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Network input (height, width) for an image.

    Args:
        text: ``best`` (the aspect with the least border), a number (the same with this short
            side), or what ``parse_size`` takes.
        image_hw: of the image.
        short_side: for ``best`` and named sizes.
    """
    if text.isdigit():
        text, short_side = "best", int(text)
    if text == "best":
        text = best_named_size(image_hw, short_side)
    return parse_size(text, short_side)


def evaluate(
    estimator: PoseEstimator,
    annotations: dict[str, Any],
    images: ImageFiles,
    size: str = "best",
    limit: int | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy of an estimator on a data set: single scale, no mirror pass.

    False positives are people found in images whose annotations hold nobody at all.

    Args:
        estimator: its options decide what counts as found; its runtime's fixed size wins.
        annotations: see ``load_annotations``.
        images: where the pictures are.
        size: see ``size_for``.
        limit: only the first images.
        progress: wraps the list of images (a progress bar).

    Returns:
        The measures by name, with the settings they belong to; and the COCO results.
    """
    chosen = annotations["images"][:limit]
    ids = {image["id"] for image in chosen}
    truth = {
        **annotations,
        "images": chosen,
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in ids],
    }
    inhabited = {a["image_id"] for a in truth["annotations"]}
    fixed = estimator.runtime.size_hw
    results: list[dict[str, Any]] = []
    stray, people, sizes = 0, 0, []
    times = []
    for image in progress(chosen):
        picture = images.decode(image["file_name"])
        estimator.size_hw = fixed or size_for(
            size, picture.shape[:2], estimator.runtime.info.input_size
        )
        sizes.append(estimator.size_hw)
        start = time.perf_counter()
        poses, _ = estimator.estimate(picture, rgb=True)
        times.append(time.perf_counter() - start)
        results.extend(poses.to_coco(image["id"]))
        people += len(poses)
        if image["id"] not in inhabited:
            stray += len(poses)
    empty = len(ids) - len(inhabited)
    areas = [h * w for h, w in sizes]
    measures: dict[str, Any] = average_precision(truth, results)
    measures.update(
        images=len(chosen),
        person_free_images=empty,
        people_found=people,
        false_positives_per_person_free_image=stray / empty if empty else None,
        size=size if fixed is None else f"{fixed[0]}x{fixed[1]}",
        mean_input_pixels=float(np.mean(areas)) if areas else 0.0,
        mirror=False,
        runtime=estimator.runtime.name,
        median_ms=1000 * float(np.median(times)) if times else 0.0,
        decode=estimator.options.to_dict(),
    )
    return measures, results
