"""Fits people's and keypoints' scores to images whose people are known.

See ``inference.person_score`` and ``inference.keypoint_score``.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import PERSON_OKS, KeypointTruth, mostly_inside
from ehrnet_model.evaluation.seen import Seen
from ehrnet_model.inference import keypoint_score
from ehrnet_model.inference.anatomy import SPANS
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.person_score import TERMS, terms
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.second_look import candidates
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

# The score must hold whichever of these are set later. All make people of the same peaks, so that
# one person comes several times.
_VARIED = [
    {"keypoint_threshold": threshold, "reach": reach}
    for threshold in (0.2, 0.3, 0.4, 0.5)
    for reach in (0.0, 1.8)
]
# Fewer than this say nothing about 36 coefficients, or 55.
_LEAST_PEOPLE = 200
_RIDGE, _RIDGE_AGAIN, _RIDGE_KEYPOINTS = 4.0, 1.0, 4.0
# People found with less are hardly ever somebody.
_LEAST_SCORE = 0.1
# Below this a found person is not the true one it is nearest to.
_SOMEBODY = 0.1


class _Person(NamedTuple):
    """(J, 3) x, y and whether labelled; square pixels; x, y, width, height."""

    keypoints: np.ndarray
    area: float
    box: np.ndarray


def fit_person_score(
    seen: Sequence[Seen],
    truth: KeypointTruth,
    options: DecodeOptions,
    skeleton: SkeletonInfo = COCO_17,
) -> tuple[float, ...]:
    """Coefficients for ``DecodeOptions.person_score``.

    Somebody found who is nobody labelled teaches that such people are nobody; unless it may be
    somebody without labels: in the box of a crowd or of a person without keypoints, and in images
    whose ``all_people_labelled`` is false anywhere outside the labelled people's boxes.

    Args:
        seen: what the network said about images of ``truth``.
        truth: who is in them.
        options: how people are made of it; thresholds and reach are varied.
        skeleton: of the model.

    Raises:
        EhrnetError: too few people are found, or the skeleton has no typical distances.
    """
    return _fit([_examples(seen, truth, options, skeleton)])


def fit_second_score(
    seen: Iterable[Seen],
    truth: KeypointTruth,
    options: DecodeOptions,
    skeleton: SkeletonInfo = COCO_17,
) -> tuple[float, ...]:
    """Coefficients for ``DecodeOptions.second_score``, from everybody whom the two looks find.

    Args and errors are those of ``fit_person_score``; but options, with second looks, are taken as
    they are, and images that cannot be looked at again teach nothing.
    """
    teacher = _Teacher(truth, skeleton)
    examples = []
    for image in seen:
        again = _kept_nowhere(image).again(options, skeleton)
        if again is not None:
            found = candidates(again, options, skeleton, image.groups)
            rows = found.terms(again.scale, teacher.spans)
            examples.append(teacher(image.image_id, found.poses, rows))
    return _fit(examples, 1, _RIDGE_AGAIN)


def fit_keypoint_score(
    seen: Iterable[Seen],
    truth: KeypointTruth,
    options: DecodeOptions,
    skeleton: SkeletonInfo = COCO_17,
) -> tuple[float, ...]:
    """Coefficients for ``DecodeOptions.keypoint_score``, from everybody whom the options find.

    What is right: see ``KeypointTruth.rights``; people who may be somebody without labels teach
    nothing (``KeypointTruth.judged``). In images that ``truth`` does not list nobody is.

    Args:
        seen: what the network said about images.
        truth: who is in them.
        options: how people are made; gaps are filled in any case, so that weak keypoints are known,
            and people of low scores count, too.
        skeleton: of the model, of 17 keypoints.

    Raises:
        EhrnetError: too few people are found.
    """
    options = dataclasses.replace(
        options, person_threshold=_LEAST_SCORE, refine=True, keypoint_score=()
    )
    listed = {image["id"] for image in truth.images}
    found: list[dict[str, Any]] = []
    elsewhere: list[dict[str, Any]] = []
    for image in seen:
        poses = _kept_nowhere(image).people(options, skeleton)
        rows = keypoint_score.terms(poses, skeleton)
        for result, row in zip(poses.to_coco(image.image_id), rows, strict=True):
            (found if image.image_id in listed else elsewhere).append({**result, "terms": row})
    nothing = np.zeros(skeleton.num_keypoints, bool)
    known = truth.rights(truth.judged(found, PERSON_OKS)) + [(one, nothing) for one in elsewhere]
    if len(known) < _LEAST_PEOPLE:
        raise EhrnetError(
            f"a keypoint score cannot be fitted to {len(known)} found people: give images in which "
            f"{_LEAST_PEOPLE} are found or more."
        )
    there = np.array([one["keypoints"][2::3] for one, _ in known]) > 0
    rows = np.array([one["terms"] for one, _ in known])[there]
    right = np.array([right for _, right in known], float)[there]
    return tuple(round(float(value), 4) for value in logistic(rows, right, _RIDGE_KEYPOINTS))


def _kept_nowhere(image: Seen) -> Seen:
    """The same, and what is seen at each of thousands of places is not kept: it is needed once."""
    closer = image.closer.fresh() if image.closer is not None else None
    return dataclasses.replace(image, closer=closer)


class _Examples(NamedTuple):
    """People found: (N, T) what their score is a function of, (N,) what it should be."""

    rows: np.ndarray
    wanted: np.ndarray


class _Teacher:
    """Knows who is in the images, and what the people found there teach.

    Raises:
        EhrnetError: the skeleton has no typical distances.
    """

    def __init__(self, truth: KeypointTruth, skeleton: SkeletonInfo) -> None:
        if skeleton.name not in SPANS:
            raise EhrnetError(f"typical distances of skeleton {skeleton.name!r} are not known.")
        self.spans = SPANS[skeleton.name]
        self._skeleton = skeleton
        self._known, self._unlabelled = _by_image(truth)
        self._partly = {
            image["id"] for image in truth.images if not image.get("all_people_labelled", True)
        }

    def __call__(self, image_id: Any, poses: Poses, rows: np.ndarray) -> _Examples:
        """Those of ``poses`` of which it is known whether they are somebody; ``rows``: of all."""
        people = self._known.get(image_id, [])
        similarity = _similarity(poses, people, self._skeleton)
        present = poses.score > 0
        excused = mostly_inside(poses.xy, present, self._unlabelled.get(image_id, []))
        if image_id in self._partly:
            excused |= ~mostly_inside(poses.xy, present, [person.box for person in people])
        kept = (similarity >= _SOMEBODY) | ~excused
        return _Examples(rows[kept], similarity[kept])


def _examples(
    seen: Sequence[Seen], truth: KeypointTruth, options: DecodeOptions, skeleton: SkeletonInfo
) -> _Examples:
    teacher = _Teacher(truth, skeleton)
    rows, values = [np.zeros((0, TERMS))], [np.zeros(0)]
    everybody = dataclasses.replace(
        options,
        person_threshold=0.0,
        person_score=(),
        keypoint_score=(),
        levels=1,
        second_look=0,
    )
    for changes in _VARIED:
        varied = DecodeOptions.from_dict(everybody.to_dict(), **changes)
        for image in seen:
            poses = image.people(varied, skeleton)
            scale = image.box.scale
            row = terms(poses.xy * scale, poses.score, poses.std * scale, teacher.spans)
            known = teacher(image.image_id, poses, row)
            rows.append(known.rows)
            values.append(known.wanted)
    return _Examples(np.concatenate(rows), np.concatenate(values))


def _fit(
    examples: Sequence[_Examples], times: int = len(_VARIED), ridge: float = _RIDGE
) -> tuple[float, ...]:
    """Coefficients; ``times``: how often everybody comes."""
    people = sum(len(part.wanted) for part in examples)
    if people < _LEAST_PEOPLE * times:
        raise EhrnetError(
            f"a person score cannot be fitted to {people // times} found people: "
            f"give images in which {_LEAST_PEOPLE} are found or more."
        )
    rows = np.concatenate([part.rows for part in examples])
    wanted = np.concatenate([part.wanted for part in examples])
    return tuple(round(float(v), 4) for v in logistic(rows, wanted, ridge * times))


def cross_check(
    seen: Sequence[Seen],
    truth: KeypointTruth,
    options: DecodeOptions,
    folds: int,
    skeleton: SkeletonInfo = COCO_17,
) -> dict[str, float]:
    """What the person score is worth on images that it was not fitted to.

    The images are dealt into ``folds`` parts by their ids; the people in each are scored by a fit
    to all others.

    Args:
        seen: what the network said; images that ``truth`` does not list only help fitting.
        truth: who is in them.
        options: how people are made; the stored scores and the threshold are not used. The score
            after second looks is not checked.
        folds: 2 or more.
        skeleton: of the model.

    Returns:
        AP with people chosen among views (``levels``) and ordered by the mean of their keypoints'
        scores (``AP_mean_score``), by the fitted score (``AP_fitted_score``); and of the latter
        ordered by their true similarity, the most that any order gives (``AP_best_order``).

    Raises:
        EhrnetError: too few people to fit to, see ``fit_person_score``.
    """
    listed = {image["id"] for image in truth.images}
    known, _ = _by_image(truth)
    plain = dataclasses.replace(options, person_threshold=0.0, person_score=(), second_score=())
    found: dict[str, list[dict[str, Any]]] = {
        "mean_score": [],
        "fitted_score": [],
        "best_order": [],
    }
    parts: list[list[Seen]] = [[] for _ in range(folds)]
    for image in seen:
        parts[zlib.crc32(str(image.image_id).encode()) % folds].append(image)
    examples = [_examples(part, truth, plain, skeleton) for part in parts]
    for number, part in enumerate(parts):
        score = _fit(examples[:number] + examples[number + 1 :])
        fitted = dataclasses.replace(plain, person_score=score)
        for image in part:
            if image.image_id not in listed:
                continue
            found["mean_score"] += image.people(plain, skeleton).to_coco(image.image_id)
            poses = image.people(fitted, skeleton)
            results = poses.to_coco(image.image_id)
            found["fitted_score"] += results
            similarity = _similarity(poses, known.get(image.image_id, []), skeleton).tolist()
            found["best_order"] += [
                {**result, "score": value}
                for result, value in zip(results, similarity, strict=True)
            ]
    return {f"AP_{name}": truth.average_precision(r)["AP"] for name, r in found.items()}


def logistic(rows: np.ndarray, wanted: np.ndarray, ridge: float) -> np.ndarray:
    """Coefficients c that make ``wanted`` likeliest under 1 / (1 + exp(-rows c)).

    Newton's method; the problem is convex.

    Args:
        rows: (N, F).
        wanted: (N,) between 0 and 1.
        ridge: half of it times the squared coefficients is added to the negative log-likelihood.

    Returns:
        (F,) float64.
    """
    out = np.zeros(rows.shape[1])
    for _ in range(100):
        guess = 1 / (1 + np.exp(-np.clip(rows @ out, -50, 50)))
        slope = rows.T @ (guess - wanted) + ridge * out
        curvature = (rows * (guess * (1 - guess))[:, None]).T @ rows + ridge * np.eye(len(out))
        step = np.linalg.solve(curvature, slope)
        out -= step
        if np.abs(step).max() < 1e-8:
            break
    return out


def _by_image(
    truth: KeypointTruth,
) -> tuple[dict[Any, list[_Person]], dict[Any, list[np.ndarray]]]:
    """People with keypoints; and the boxes of crowds and of people without any."""
    known: dict[Any, list[_Person]] = {}
    unlabelled: dict[Any, list[np.ndarray]] = {}
    for person in truth.people:
        box = np.array(person.get("bbox") or [0, 0, 0, 0], float)
        if person["iscrowd"] or not person["num_keypoints"]:
            unlabelled.setdefault(person["image_id"], []).append(box)
        else:
            keypoints = np.array(person["keypoints"], float).reshape(-1, 3)
            area = max(float(person.get("area") or 0), 1.0)
            known.setdefault(person["image_id"], []).append(_Person(keypoints, area, box))
    return known, unlabelled


def _similarity(poses: Poses, people: list[_Person], skeleton: SkeletonInfo) -> np.ndarray:
    """(P,) the largest OKS to any of the people, as COCO counts it."""
    best = np.zeros(len(poses))
    variance = (2 * np.asarray(skeleton.sigmas)) ** 2
    # COCO takes a keypoint that was not reported as one at 0, 0: far away.
    xy = np.nan_to_num(poses.xy)
    for person in people:
        labelled = person.keypoints[:, 2] > 0
        squared = ((xy - person.keypoints[:, :2]) ** 2).sum(2) / (2 * variance * person.area)
        best = np.maximum(best, np.exp(-squared)[:, labelled].mean(1))
    return best
