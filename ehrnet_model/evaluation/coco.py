"""COCO keypoint ground truth, and average precision against it.

AP and AR come from pycocotools, COCO's own implementation: every published figure was made with it,
its many small decisions (crowds, 20 people per image, interpolated precision) are the definition,
and a second implementation could at best be equal. Faster ones exist; here the network takes the
time. Measures by height and by number of people are the same evaluation, with other limits.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17

_VALUES = 51
NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def read_json(path: Path, wanted: str) -> Any:
    """JSON, gzipped or not.

    Args:
        path: the file.
        wanted: what it should be, for whoever gave another one.

    Raises:
        EhrnetError: it cannot be read.
    """
    try:
        raw = Path(path).read_bytes()
        return json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise EhrnetError(f"{path} cannot be read as JSON ({why}): give {wanted}.") from None


def load_annotations(path: Path, truth: bool = False) -> dict[str, Any]:
    """A COCO keypoint annotation file, checked as far as it is used here.

    Annotations of other categories than ``person`` are left out; without named categories, those of
    another than 1. One that has no ``category_id`` is a person.

    Args:
        path: the file, gzipped or not.
        truth: check what evaluation stands on as well: boxes, areas, and that labelled keypoints
            lie inside their image.

    Raises:
        EhrnetError: not such a file; the first image or annotation that is not right is named.
    """
    data = read_json(path, "a COCO-style annotation file")
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise EhrnetError(f"{path} has no list 'images': give a COCO-style annotation file.")
    if not isinstance(data.setdefault("annotations", []), list):
        raise EhrnetError(f"{path}: 'annotations' is not a list: give a COCO-style file.")
    images: dict[Any, dict[str, Any]] = {}
    kinds = set()
    for image in data["images"]:
        if not isinstance(image, dict) or "id" not in image:
            raise EhrnetError(f"{path}: an image has no id: give a COCO-style annotation file.")
        name = image["id"]
        kinds.add(type(name))
        if not kinds <= {int} and not kinds <= {str}:
            raise EhrnetError(
                f"{path}: the id {name!r} of an image is no whole number or text, or not what the "
                "others are: give ids of one kind."
            )
        if name in images:
            raise EhrnetError(f"{path} lists image {name} twice: ids must be unique.")
        if not isinstance(image.get("file_name"), str):
            raise EhrnetError(f"{path}: image {name} has no file_name.")
        for side in ("width", "height"):
            pixels = image.get(side, 1)
            if type(pixels) is not int or pixels < 1:
                raise EhrnetError(
                    f"{path}: image {name} has the {side} {pixels!r}: give a whole number of "
                    "pixels, or leave it out."
                )
        images[name] = image
    person = _person_categories(path, data)
    data["annotations"] = [
        ann
        for ann in data["annotations"]
        # What is no annotation at all is named below.
        if not isinstance(ann, dict) or ann.get("category_id", person[0]) in person
    ]
    for ann in data["annotations"]:
        fault = _fault(ann, images, truth)
        if fault:
            name = ann.get("id") if isinstance(ann, dict) else ann
            raise EhrnetError(f"{path}: annotation {name} {fault}.")
    return data


def _person_categories(path: Path, data: dict[str, Any]) -> list[Any]:
    """The ids of the category ``person``. Raises EhrnetError where there are only others."""
    categories = data.get("categories") or []
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise EhrnetError(f"{path}: 'categories' is not a list of objects: give a COCO-style file.")
    if not any("name" in category for category in categories):
        return [1]
    person = [category.get("id") for category in categories if category.get("name") == "person"]
    if not person:
        raise EhrnetError(
            f"{path} has no category 'person': give annotations of people, or rename theirs."
        )
    return person


def _fault(ann: Any, images: dict[Any, dict[str, Any]], truth: bool) -> str:
    """What is wrong with an annotation, to follow its name; empty when nothing is."""
    if not isinstance(ann, dict) or type(ann.get("image_id")) not in (int, str):
        return "has no image_id"
    if ann["image_id"] not in images:
        return "is of an image that is not listed"
    for needed in ("bbox", "area"):
        if truth and needed not in ann:
            return f"has no {needed}"
    try:
        values = np.array(ann.get("keypoints") or [0] * _VALUES, float)
        box = np.array(ann["bbox"], float) if truth else np.zeros(4)
        area = float(ann["area"]) if truth else 0.0
        image = images[ann["image_id"]]
        limits = np.array([image.get(side, np.inf) for side in ("width", "height")], float)
    except (TypeError, ValueError) as error:
        return f"lacks numbers where they are needed ({error})"
    if values.shape != (_VALUES,):
        return "has not 17 keypoints of 3 numbers"
    if not np.isfinite(values).all() or not set(values[2::3]) <= {0, 1, 2}:
        return "has keypoints that are not x, y and visibility 0, 1 or 2"
    if not truth:
        return ""
    if box.shape != (4,) or not np.isfinite(box).all() or not math.isfinite(area) or area < 0:
        return "has no box of four numbers or no area"
    labelled = values.reshape(-1, 3)[values[2::3] > 0, :2]
    # A keypoint on the very edge may be rounded to either side of it.
    if (labelled < -1).any() or (labelled > limits + 1).any():
        return f"has a labelled keypoint outside its image ({image['file_name']})"
    return ""


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


# A keypoint is right from this similarity on, its own term of COCO's.
_RIGHT = 0.5
PERSON_OKS = 0.3
"""From this similarity on somebody found is the person, wherever it matters who is nobody."""


class Compared(NamedTuple):
    """The N keypoints that somebody was labelled with and found with.

    Attributes:
        joints: (N,) which they are.
        off_xy: (N, 2) pixels from where they are labelled to where they were found.
        right: (N,) bool: its own term of COCO's similarity is 0.5 or more.
    """

    joints: np.ndarray
    off_xy: np.ndarray
    right: np.ndarray


def compared(person: dict[str, Any], result: dict[str, Any]) -> Compared:
    """What an annotation and a COCO keypoint result have in common."""
    wanted = np.array(person["keypoints"], float).reshape(-1, 3)
    found = np.array(result["keypoints"], float).reshape(-1, 3)
    joints = np.flatnonzero((wanted[:, 2] > 0) & (found[:, 2] > 0))
    off_xy = (found - wanted)[joints, :2]
    spread = 2 * (2 * np.array(COCO_17.sigmas)[joints]) ** 2 * max(person["area"], 1.0)
    right = np.exp(-(off_xy**2).sum(1) / spread) >= _RIGHT
    return Compared(joints, off_xy, right)


def mostly_inside(
    xy: np.ndarray, present: np.ndarray, boxes: Sequence[Sequence[float] | np.ndarray]
) -> np.ndarray:
    """(P,) bool: most of a person's keypoints lie in one of the boxes.

    Args:
        xy: (P, J, 2 or more), x and y first, pixels.
        present: (P, J) bool, keypoints that were found.
        boxes: x, y, width, height each.
    """
    inside = np.zeros(len(xy), bool)
    for x, y, width, height in boxes:
        place = xy[..., :2]
        within = ((place >= [x, y]) & (place <= [x + width, y + height])).all(2)
        inside |= (within & present).sum(1) > 0.5 * present.sum(1)
    return inside


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
            crowd = int(bool(ann.get("iscrowd")))
            ann = {**ann, "iscrowd": crowd, "id": number, "keypoints": keypoints}
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

    @property
    def images(self) -> list[dict[str, Any]]:
        """The records of all images."""
        return list(self._truth.dataset["images"])

    def average_precision(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        """COCO keypoint AP and AR (pycocotools' defaults: 20 people per image, all areas).

        Args:
            results: COCO keypoint results, see ``Poses.to_coco``.
        """
        from pycocotools.cocoeval import COCOeval

        if not results:
            # pycocotools loads no empty list; a person without a keypoint is right nowhere.
            nobody = {"category_id": 1, "keypoints": [0.0] * _VALUES, "score": 0.0}
            results = [{**nobody, "image_id": self.images[0]["id"]}]
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(self._truth, self._load(results), "keypoints")
            run.evaluate()
            run.accumulate()
            run.summarize()
        return {name: float(value) for name, value in zip(NAMES, run.stats, strict=True)}

    def by_height(
        self, results: Sequence[dict[str, Any]], limits: Sequence[float]
    ) -> list[dict[str, Any]]:
        """AP of people of certain heights: as COCO's by area, with the height instead.

        People of other heights, and what is found of such a height and is nobody's, do not count.

        Args:
            results: COCO keypoint results.
            limits: L ascending heights in pixels of the image; a person's is that of its box.

        Returns:
            L + 1 rows ``from``, ``to`` (None: no limit), ``people`` and ``AP`` (None without
            people).
        """
        from pycocotools.cocoeval import COCOeval

        class ByHeight(COCOeval):
            """Compares heights with the limits; similarity has been computed with areas before."""

            def evaluateImg(self, image: Any, category: Any, limit: Any, most: int) -> Any:
                """What COCOeval asks of one image."""
                place = image, category
                self._gts[place] = [{**p, "area": p["bbox"][3]} for p in self._gts[place]]
                self._dts[place] = [{**r, "area": _height(r)} for r in self._dts[place]]
                return super().evaluateImg(image, category, limit, most)

        edges = [0.0, *limits, 1e10]
        spans = list(zip(edges[:-1], edges[1:], strict=True))
        counted = [p["bbox"][3] for p in self.people if p["num_keypoints"] and not p["iscrowd"]]
        precisions = [0.0] * len(spans)
        if results:
            with contextlib.redirect_stdout(io.StringIO()):
                run = ByHeight(self._truth, self._load(results), "keypoints")
                # COCO's limits belong to the span on either side.
                run.params.areaRng = [[a, np.nextafter(b, 0)] for a, b in spans]
                run.params.areaRngLbl = [str(a) for a, _ in spans]
                run.evaluate()
                run.accumulate()
            precisions = [_mean(run.eval["precision"][:, :, 0, n, 0]) for n in range(len(spans))]
        rows = []
        for (low, high), value in zip(spans, precisions, strict=True):
            people = sum(low <= height < high for height in counted)
            end = None if high == edges[-1] else high
            row = {"from": low, "to": end, "people": people, "AP": value if people else None}
            rows.append(row)
        return rows

    def by_people(
        self, results: Sequence[dict[str, Any]], groups: Sequence[tuple[int, int | None]]
    ) -> list[dict[str, Any]]:
        """AP on images with so many people (with keypoints, crowds left aside).

        Args:
            results: COCO keypoint results.
            groups: fewest and most people, both included; None: no limit.

        Returns:
            Rows ``from``, ``to``, ``images``, ``people`` and ``AP`` (None without people).
        """
        from pycocotools.cocoeval import COCOeval

        counts = Counter(
            p["image_id"] for p in self.people if p["num_keypoints"] and not p["iscrowd"]
        )
        rows = []
        for low, high in groups:
            ids = [i for i, n in counts.items() if n >= low and (high is None or n <= high)]
            value = 0.0
            if results and ids:
                with contextlib.redirect_stdout(io.StringIO()):
                    run = COCOeval(self._truth, self._load(results), "keypoints")
                    run.params.imgIds = ids
                    run.params.areaRng = run.params.areaRng[:1]
                    run.params.areaRngLbl = run.params.areaRngLbl[:1]
                    run.evaluate()
                    run.accumulate()
                value = _mean(run.eval["precision"])
            people = sum(counts[i] for i in ids)
            rows.append(
                {
                    "from": low,
                    "to": high,
                    "images": len(ids),
                    "people": people,
                    "AP": value if people else None,
                }
            )
        return rows

    def pck(
        self, results: Sequence[dict[str, Any]], shares: Sequence[float], oks: float = 0.1
    ) -> dict[str, float]:
        """Percentage of correct keypoints: labelled ones that were found near enough.

        Near enough is a share of the longer side of the person's box. Keypoints of people that
        nobody was found for are not correct.

        Args:
            results: COCO keypoint results.
            shares: of the longer side.
            oks: similarity from which a result is a person's, low since this is no second AP.

        Returns:
            0 .. 1 under ``PCK@share``.
        """
        pairs, _ = self.matches(results, oks)
        labelled = sum(p["num_keypoints"] for p in self.people if not p["iscrowd"])
        distances = []
        for person, result in pairs:
            apart = np.hypot(*compared(person, result).off_xy.T)
            distances.append(apart / max(person["bbox"][2], person["bbox"][3], 1.0))
        all_of_them = np.concatenate(distances) if distances else np.zeros(0)
        return {
            f"PCK@{share:g}": float((all_of_them <= share).sum() / labelled) if labelled else 0.0
            for share in shares
        }

    def rights(
        self, results: Sequence[dict[str, Any]], oks: float = PERSON_OKS
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Which keypoints of the results are right.

        Right: see ``Compared``. Keypoints of a result that is nobody's are wrong, and so are those
        that the person is not labelled with: whoever labelled it could not tell where they are.

        Args:
            results: COCO keypoint results.
            oks: similarity from which a result is a person's; keypoints of less similar ones are
                wrong.

        Returns:
            Results and (J,) bool; but those on crowds and on people without labelled keypoints are
            left out.
        """
        pairs, strays = self.matches(results, oks)
        rights = [(stray, np.zeros(COCO_17.num_keypoints, bool)) for stray in strays]
        for person, result in pairs:
            right = np.zeros(COCO_17.num_keypoints, bool)
            one = compared(person, result)
            right[one.joints] = one.right
            rights.append((result, right))
        return rights

    def keypoint_f1(
        self, results: Sequence[dict[str, Any]], score: float = 0.0, oks: float = PERSON_OKS
    ) -> dict[str, float]:
        """How many of the keypoints from a score on are right, and how many labelled are there.

        Args:
            results: COCO keypoint results.
            score: keypoints below it are taken as not found.
            oks: see ``rights``.
        """
        scores, right = _each(self.rights(results, oks))
        labelled = sum(p["num_keypoints"] for p in self.people if not p["iscrowd"])
        sure = scores >= score
        reported, good = int(sure.sum()), int(right[sure].sum())
        return {
            "keypoint_precision": good / reported if reported else 0.0,
            "keypoint_recall": good / labelled if labelled else 0.0,
            "keypoint_f1": 2 * good / (reported + labelled) if reported + labelled else 0.0,
        }

    def by_score(
        self, results: Sequence[dict[str, Any]], limits: Sequence[float], oks: float = PERSON_OKS
    ) -> list[dict[str, Any]]:
        """What a keypoint's score is worth: how many of those with such a score are right.

        Args:
            results: COCO keypoint results.
            limits: L ascending scores.
            oks: see ``rights``.

        Returns:
            L + 1 rows ``from``, ``to`` (None: no limit), ``keypoints`` and ``right``, their share
            (None without keypoints).
        """
        scores, right = _each(self.rights(results, oks))
        bins = np.searchsorted(limits, scores, side="right")
        edges = [0.0, *limits, None]
        return [
            {
                "from": edges[n],
                "to": edges[n + 1],
                "keypoints": int((bins == n).sum()),
                "right": float(right[bins == n].mean()) if (bins == n).any() else None,
            }
            for n in range(len(limits) + 1)
        ]

    def std_fit(self, people: Sequence[tuple[Any, Poses]], oks: float = 0.1) -> float | None:
        """How large errors are against the standard deviations given for them.

        Args:
            people: id of an image and who was found in it, for each image.
            oks: similarity from which a result is a person's, see ``pck``.

        Returns:
            Root mean square of error / std, both axes, of keypoints that are right (see
            ``Compared``): 1 where std says what error to expect; None where there is none.
        """
        results = [
            {**result, "std": std}
            for image, poses in people
            for result, std in zip(poses.to_coco(image), poses.std, strict=True)
        ]
        ratios = [np.zeros((0, 2))]
        for person, result in self.matches(results, oks)[0]:
            one = compared(person, result)
            std = result["std"][one.joints].astype(float)
            good = one.right & (std > 0)
            ratios.append(one.off_xy[good] / std[good, None])
        values = np.concatenate(ratios)
        return float(np.sqrt((values**2).mean())) if len(values) else None

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

    def judged(self, results: Sequence[dict[str, Any]], oks: float) -> list[dict[str, Any]]:
        """The results of which it is known whether they are somebody.

        Left out is who is nobody labelled, where that says nothing: in images whose
        ``all_people_labelled`` is false, with most keypoints outside each labelled person's box.

        Args:
            results: COCO keypoint results.
            oks: least similarity to be somebody.
        """
        partly = {i["id"] for i in self.images if not i.get("all_people_labelled", True)}
        boxes: dict[Any, list[Sequence[float]]] = {}
        for person in self.people:
            boxes.setdefault(person["image_id"], []).append(person["bbox"])
        unknown = set()
        for result in self.matches(results, oks)[1]:
            image = result["image_id"]
            found = np.array(result["keypoints"], float).reshape(1, -1, 3)
            present = found[..., 2] > 0
            if image in partly and not mostly_inside(found, present, boxes.get(image, []))[0]:
                unknown.add(id(result))
        return [result for result in results if id(result) not in unknown]

    def _load(self, results: Sequence[dict[str, Any]]) -> Any:
        # loadRes writes into what it is given, and numbers it from 1.
        return self._truth.loadRes([dict(result) for result in results])


def average_precision(
    annotations: dict[str, Any], results: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """``KeypointTruth.average_precision`` for one set of results."""
    return KeypointTruth(annotations).average_precision(results)


def _each(rights: Sequence[tuple[dict[str, Any], np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) scores of all keypoints that were found, and (N,) bool, whether they are right."""
    scores = np.array([result["keypoints"][2::3] for result, _ in rights], float).ravel()
    right = np.array([right for _, right in rights], bool).ravel()
    return scores[scores > 0], right[scores > 0]


def _mean(precision: np.ndarray) -> float:
    """Of those entries of an accumulated evaluation that exist; pycocotools marks others -1."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else 0.0


def _height(result: dict[str, Any]) -> float:
    """From the highest to the lowest keypoint that was found."""
    found = np.array(result["keypoints"], float).reshape(-1, 3)
    y = found[found[:, 2] > 0, 1]
    return float(y.max() - y.min()) if y.size else 0.0
