"""From peaks to people: grouping by associative embedding (Newell et al. 2017; paper section 3.2).

Differs from the published decoder where that one goes wrong on a robot: pairs whose tags are too
far apart are never matched (a forced match of one breaks the groups of others), any number of
people may form before the best are kept, the true tag distance counts instead of its rounded
value, and a keypoint is filled in later only near the person and above a score. The published
behaviour is in reference.py.

Shapes: J keypoints, K peaks each, T tag dimensions, P people.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import PEAK_CHANNELS
from ehrnet_model.skeleton import SkeletonInfo

# Torso and head first: they are found most often, and their tags decide who is who.
_ORDER_17 = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
_HALF_SIZE_STRIDE = 2.0
# Two maxima of one plateau lie within the radius of the graph's 5x5 maximum filter.
_PLATEAU_RADIUS = 2
_MIN_HEAT = 1e-3


def _option(default: Any, low: float, high: float, text: str) -> Any:
    return field(default=default, metadata={"range": (low, high), "description": text})


@dataclass(frozen=True)
class DecodeOptions:
    """How peaks become people. Every field may change between two images."""

    keypoint_threshold: float = _option(
        0.1, 0.0, 1.0, "Peaks of the heatmap below this are not keypoints."
    )
    person_threshold: float = _option(
        0.05, 0.0, 1.0, "People scoring below this (mean over all keypoints) are left out."
    )
    tag_threshold: float = _option(
        1.0, 0.0, 100.0, "Largest distance of a keypoint's tag from its person's mean tag."
    )
    max_people: int = _option(30, 1, 1000, "At most this many people per image, best first.")
    min_keypoints: int = _option(3, 1, 17, "People with fewer keypoints are left out.")
    refine: bool = _option(
        True, 0, 1, "Fill missing keypoints from weaker peaks with a fitting tag near the person."
    )
    refine_threshold: float = _option(
        0.05, 0.0, 1.0, "Weakest peak that may fill a missing keypoint."
    )
    nms_oks: float = _option(
        0.7,
        0.0,
        1.0,
        "People more similar (OKS) to a better one than this are doubles; 1 keeps all.",
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value, (low, high) = getattr(self, item.name), item.metadata["range"]
            # Booleans and integers come through configuration files and metadata as they are.
            good = isinstance(value, type(item.default)) or (
                isinstance(item.default, float)
                and isinstance(value, int)
                and not isinstance(value, bool)
            )
            if not good or not low <= value <= high:
                raise EhrnetError(
                    f"{item.name} = {value!r} is not possible: give a "
                    f"{type(item.default).__name__} between {low:g} and {high:g}."
                )

    @staticmethod
    def from_dict(defaults: Mapping[str, Any], **overrides: Any) -> DecodeOptions:
        """Options from stored defaults and overrides. Raises EhrnetError for unknown names."""
        values = {**defaults, **overrides}
        known = {item.name for item in dataclasses.fields(DecodeOptions)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise EhrnetError(
                f"decode option {unknown[0]!r} does not exist: use one of "
                f"{', '.join(sorted(known))}."
            )
        return DecodeOptions(**values)

    def to_dict(self) -> Dict[str, Any]:
        """The fields as stored in a model's metadata."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Peaks:
    """Candidates of one image, best first for each keypoint.

    Attributes:
        score: (J, K) float32, heatmap value; 0 marks an unused place.
        xy: (J, K, 2) float32, sub-pixel position in pixels of the network input.
        tag: (J, K, T) float32.
        cell: (J, K, 2) int32, x and y on the map at half size.
        patch: (J, K, 3, 3) float32, the heatmap around the cell.
    """

    score: np.ndarray
    xy: np.ndarray
    tag: np.ndarray
    cell: np.ndarray
    patch: np.ndarray

    @staticmethod
    def from_output(output: np.ndarray) -> Peaks:
        """Peaks from one image's (J, K, 15) engine output, laid out as runtime.py says.

        Raises:
            EhrnetError: another shape, or values that are not finite.
        """
        if output.ndim != 3 or output.shape[2] != PEAK_CHANNELS:
            raise EhrnetError(
                f"the engine's output has shape {output.shape} per image, expected "
                f"(keypoints, peaks, {PEAK_CHANNELS}): export the model again."
            )
        if not np.isfinite(output).all():
            raise EhrnetError(
                "the engine gave values that are not finite: its weights or its precision are "
                "broken, export the model again or build the engine with precision fp32."
            )
        return Peaks(
            score=output[..., 0],
            xy=output[..., 1:3],
            tag=output[..., 3:4],
            cell=output[..., 4:6].astype(np.int32),
            patch=output[..., 6:15].reshape(output.shape[:2] + (3, 3)),
        )


def decode(
    peaks: Peaks,
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    box: Letterbox,
) -> Poses:
    """The people of one image, best first, in pixels of the image that ``box`` fitted."""
    chosen = group(peaks, options)
    if not len(chosen):
        return Poses.empty(len(peaks.score))
    score = _take(peaks.score, chosen)
    person_score = score.mean(1)
    count = (chosen >= 0).sum(1)
    kept = (person_score >= options.person_threshold) & (count >= options.min_keypoints)
    order = np.flatnonzero(kept)[np.argsort(-person_score[kept], kind="stable")]
    chosen, person_score = chosen[order], person_score[order]
    if options.refine:
        chosen = refine(peaks, chosen, options)
    xy = box.undo(_take(peaks.xy, chosen))
    score = _take(peaks.score, chosen)
    if options.nms_oks < 1:
        unique = oks_nms(xy, score > 0, skeleton, options.nms_oks)
        chosen, person_score = chosen[unique], person_score[unique]
        xy, score = xy[unique], score[unique]
    limit = options.max_people
    xy, score, chosen = xy[:limit], score[:limit], chosen[:limit]
    std = _peak_width(_take(peaks.patch, chosen)) * _HALF_SIZE_STRIDE / box.scale
    return Poses.build(xy, score, std, person_score[:limit])


def group(peaks: Peaks, options: DecodeOptions) -> np.ndarray:
    """Who has which peak: (P, J) int, index of the peak or -1. People in order of appearance."""
    num_keypoints, num_tags = len(peaks.score), peaks.tag.shape[2]
    good = peaks.score >= max(options.keypoint_threshold, np.finfo(np.float32).tiny)
    if not good.any():
        return np.zeros((0, num_keypoints), np.int64)
    _drop_plateaus(peaks, good)
    gate = options.tag_threshold
    chosen = np.full((int(good.sum()), num_keypoints), -1, np.int64)
    tag_sum = np.zeros((len(chosen), num_tags), np.float64)
    members = np.zeros((len(chosen), 1), np.float64)
    people = 0
    for j in _ORDER_17 if num_keypoints == len(_ORDER_17) else range(num_keypoints):
        found = np.flatnonzero(good[j])
        if not len(found):
            continue
        tags = peaks.tag[j, found].astype(np.float64)
        owner = np.full(len(found), -1)
        if people:
            means = tag_sum[:people] / members[:people]
            if num_tags == 1:
                distance = np.abs(tags - means[:, 0])
            else:
                distance = np.linalg.norm(tags[:, None] - means, axis=2)
            # What a match is worth; leaving a peak alone is worth nothing. Detection breaks ties.
            worth = gate - distance + 1e-3 * peaks.score[j, found, None]
            worth[distance >= gate] = 0
            owner = assign(worth)
        new = np.flatnonzero(owner < 0)
        owner[new] = np.arange(people, people + len(new))
        people += len(new)
        chosen[owner, j] = found
        tag_sum[owner] += tags
        members[owner] += 1
    return chosen[:people]


def assign(worth: np.ndarray) -> np.ndarray:
    """The pairing of rows and columns of greatest total worth.

    Args:
        worth: (R, C) float; pairs worth 0 or less are never made.

    Returns:
        (R,) int, each row's column or -1.
    """
    best = worth.argmax(1)
    wanted = worth[np.arange(len(best)), best] > 0
    result = np.where(wanted, best, -1)
    claims = best[wanted]
    if len(np.unique(claims)) == len(claims):
        return result  # everybody gets what is best for him: nothing can be better
    # Rows that share wishes are settled among themselves; the others stay as they are.
    for rows, columns in _components(worth > 0):
        if len(rows) == 1:
            continue
        result[rows] = -1
        for row, column in _hungarian(worth[np.ix_(rows, columns)]):
            result[rows[row]] = columns[column]
    return result


def _components(allowed: np.ndarray) -> List[Tuple[np.ndarray, np.ndarray]]:
    """Connected parts (row indices, column indices) of a bipartite graph (R, C) bool."""
    parts = []
    left = allowed.any(1)
    while left.any():
        rows = np.zeros(len(left), bool)
        rows[left.argmax()] = True
        while True:
            columns = allowed[rows].any(0)
            grown = allowed[:, columns].any(1)
            if (grown == rows).all():
                break
            rows = grown
        parts.append((np.flatnonzero(rows), np.flatnonzero(columns)))
        left &= ~rows
    return parts


def _hungarian(worth: np.ndarray) -> List[Tuple[int, int]]:
    """Pairs of greatest total worth, only those worth more than 0.

    Shortest augmenting paths with potentials (Jonker and Volgenant 1987). A column of its own per
    row, worth 0, stands for staying alone.
    """
    rows, real = worth.shape
    cost = np.concatenate([-np.maximum(worth, 0), np.zeros((rows, rows))], 1)
    columns = real + rows
    u, v = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for start in range(rows):
        shortest = np.full(columns, np.inf)
        previous = np.full(columns, -1)
        done = np.zeros(columns, bool)
        row, column, reached = start, -1, 0.0
        while True:
            through = reached + cost[row] - u[row] - v
            closer = ~done & (through < shortest)
            shortest[closer], previous[closer] = through[closer], column
            column = int(np.where(done, np.inf, shortest).argmin())
            reached = float(shortest[column])
            if owner[column] < 0:
                break
            done[column] = True
            row = int(owner[column])
        settled = np.flatnonzero(done)
        u[start] += reached
        u[owner[settled]] += reached - shortest[settled]
        v[settled] += shortest[settled] - reached
        while column >= 0:  # turn the path round
            before = int(previous[column])
            owner[column] = start if before < 0 else owner[before]
            column = before
    return [(int(owner[c]), c) for c in range(real) if owner[c] >= 0 and worth[owner[c], c] > 0]


def refine(peaks: Peaks, chosen: np.ndarray, options: DecodeOptions) -> np.ndarray:
    """Missing keypoints filled from peaks that nobody has, (P, J) -> (P, J).

    A peak may fill a gap if it scores at least ``refine_threshold``, its tag fits, and it lies
    within one and a half times the person's box. The best of them is taken, best person first.
    """
    chosen = chosen.copy()
    free = peaks.score >= max(options.refine_threshold, np.finfo(np.float32).tiny)
    present = chosen >= 0
    free[np.nonzero(present)[1], chosen[present]] = False
    for person in range(len(chosen)):
        have = np.flatnonzero(chosen[person] >= 0)
        gaps = np.flatnonzero(chosen[person] < 0)
        if not len(gaps) or not free[gaps].any():
            continue
        xy = peaks.xy[have, chosen[person, have]]
        tag = peaks.tag[have, chosen[person, have]].mean(0)
        low, high = xy.min(0), xy.max(0)
        margin = 0.25 * (high - low)
        place, distance = peaks.xy[gaps], np.linalg.norm(peaks.tag[gaps] - tag, axis=2)
        fits = free[gaps] & (distance < options.tag_threshold)
        fits &= ((place >= low - margin) & (place <= high + margin)).all(2)
        value = np.where(
            fits, peaks.score[gaps] * (1 - distance / (options.tag_threshold + 1e-9)), -1
        )
        best = value.argmax(1)
        filled = value[np.arange(len(gaps)), best] > 0
        chosen[person, gaps[filled]] = best[filled]
        free[gaps[filled], best[filled]] = False
    return chosen


def oks_nms(
    xy: np.ndarray, present: np.ndarray, skeleton: SkeletonInfo, threshold: float
) -> np.ndarray:
    """Indices of people that are no doubles of a better one.

    Similarity is COCO's object keypoint similarity over the keypoints both have, with the area of
    the better one's box.

    Args:
        xy: (P, J, 2) best person first, any values where absent.
        present: (P, J) bool.
        skeleton: gives the falloff constants.
        threshold: OKS above which the lesser one is left out.
    """
    if len(xy) < 2:
        return np.arange(len(xy))
    variance = (2 * np.asarray(skeleton.sigmas, np.float32)) ** 2
    low = np.where(present[..., None], xy, np.inf).min(1)
    high = np.where(present[..., None], xy, -np.inf).max(1)
    area = np.maximum((high - low).prod(1), 1)
    both = present[:, None] & present[None]
    squared = ((xy[:, None] - xy[None]) ** 2).sum(3)
    similarity = np.exp(-squared / (2 * variance * area[:, None, None])) * both
    oks = similarity.sum(2) / np.maximum(both.sum(2), 1)
    # Two people with few keypoints in common say little about each other.
    oks[both.sum(2) < 0.5 * present.sum(1)[None]] = 0
    doubled = np.zeros(len(xy), bool)
    for person in range(len(xy)):
        if not doubled[person]:
            doubled[person + 1 :] |= oks[person, person + 1 :] > threshold
    return np.flatnonzero(~doubled)


def _take(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(J, K, ...) at (P, J) peaks -> (P, J, ...), 0 where there is none."""
    taken = values[np.arange(chosen.shape[1]), np.maximum(chosen, 0)].copy()
    taken[chosen < 0] = 0
    return taken


def _drop_plateaus(peaks: Peaks, good: np.ndarray) -> None:
    """Unmarks, in place, peaks that are equal neighbours of an earlier one of the same keypoint."""
    equal = (peaks.score[:, 1:] == peaks.score[:, :-1]) & good[:, 1:]
    for j in np.flatnonzero(equal.any(1)):
        kept: List[int] = []
        for k in np.flatnonzero(good[j]):
            near = any(
                peaks.score[j, k] == peaks.score[j, other]
                and np.abs(peaks.cell[j, k] - peaks.cell[j, other]).max() <= _PLATEAU_RADIUS
                for other in kept
            )
            if near:
                good[j, k] = False
            else:
                kept.append(int(k))


def _peak_width(patch: np.ndarray) -> np.ndarray:
    """Standard deviation in cells of the Gaussian through (..., 3, 3) heatmap values.

    The second difference of a Gaussian's logarithm is -1 / sigma^2. NaN where the patch is no peak.
    """
    log = np.log(np.maximum(patch, _MIN_HEAT))
    centre = log[..., 1, 1]
    curvature_x = 2 * centre - log[..., 1, 0] - log[..., 1, 2]
    curvature_y = 2 * centre - log[..., 0, 1] - log[..., 2, 1]
    product = np.where((curvature_x > 0) & (curvature_y > 0), curvature_x * curvature_y, np.nan)
    return np.asarray(product**-0.25, np.float32)
