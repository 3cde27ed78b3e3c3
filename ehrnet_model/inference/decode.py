"""From peaks to people: grouping by associative embedding (Newell et al. 2017; paper section 3.2).

Differs from the published decoder where that one goes wrong on a robot: pairs whose tags are too
far apart are never matched (a forced match of one breaks the groups of others), where a keypoint
lies can count beside its tag (``reach``), any number of people may form before the best are kept,
the true tag distance counts instead of its rounded value, and a keypoint is filled in later only
near the person and above a score. The published behaviour is in reference.py.

Shapes: J keypoints, K peaks each, P people.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.anatomy import SPANS
from ehrnet_model.inference.assignment import best_among
from ehrnet_model.inference.keypoint_score import TERMS_KEYPOINT, rated
from ehrnet_model.inference.legs import part_legs
from ehrnet_model.inference.options import check_options, numbers, option
from ehrnet_model.inference.person_score import TERMS, TERMS_AGAIN, expected_similarity, terms
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import NMS_RADIUS, PEAK_CHANNELS, check_size
from ehrnet_model.skeleton import SkeletonInfo

# Torso and head first: they are found most often, and their tags decide who is who.
_ORDER_17 = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
_HALF_SIZE_STRIDE = 2.0
_MIN_HEAT = 1e-3
# Eyes, ears and nose tell little about how large somebody is.
_LAST_OF_FACE, _FACE_REACH = 4, 2.0
# Small against differences of tags, large against rounding.
_TIE_BREAK = 1e-3
# Somebody with a larger share of keypoints that better people have already is another view of them.
# Not none at all: weak peaks that fill gaps are shared by true neighbours now and then.
_SHARED = 0.3


COEFFICIENTS = ("person_score", "second_score", "keypoint_score")
"""Options that are fitted, not chosen: lists of numbers that say nothing to people."""


@dataclass(frozen=True)
class DecodeOptions:
    """How peaks become people. Every field may change between two images."""

    keypoint_threshold: float = option(
        0.1, 0.0, 1.0, "Peaks of the heatmap below this are not keypoints."
    )
    person_threshold: float = option(0.05, 0.0, 1.0, "People scoring below this are left out.")
    tag_threshold: float = option(
        1.0, 0.0, 100.0, "Largest distance of a keypoint's tag from its person's mean tag."
    )
    reach: float = option(
        0.0,
        0.0,
        100.0,
        "How far a keypoint may lie from its person, in units of what the person's other keypoints "
        "and typical people suggest; nearer ones are preferred. 0: where it lies does not count.",
    )
    levels: int = option(
        1,
        1,
        8,
        "Grouping is done at so many keypoint thresholds: keypoint_threshold, and half of it more "
        "each time. Of people who share keypoints the best stays.",
    )
    max_people: int = option(30, 1, 1000, "At most this many people per image, best first.")
    min_keypoints: int = option(3, 1, 17, "People with fewer keypoints are left out.")
    refine: bool = option(
        True, 0, 1, "Fill missing keypoints from weaker peaks with a fitting tag near the person."
    )
    refine_threshold: float = option(
        0.05, 0.0, 1.0, "Weakest peak that may fill a missing keypoint."
    )
    legs: bool = option(
        False,
        0,
        1,
        "Knees and ankles found twice at one place are parted, where two places offer themselves, "
        "in the order of shoulders and hips. For networks that do not know left from right there.",
    )
    nms_oks: float = option(
        0.7,
        0.0,
        1.0,
        "People more similar (OKS) to a better one than this are doubles; 1 keeps all.",
    )
    second_look: int = option(
        0,
        0,
        30,
        "At most this many people per image, best first, are cut out, enlarged and looked at "
        "again; 0: nobody.",
    )
    second_look_threshold: float = option(
        0.2, 0.0, 1.0, "Only people who scored at least this are looked at again."
    )
    second_look_size: int = option(
        128, 64, 512, "[pixels] side of the square that somebody is looked at again in."
    )
    second_look_views: int = option(
        1,
        1,
        6,
        "Each of them is looked at in so many windows, the second mirrored, more of them narrower "
        "or wider, and the mean counts. Every view costs as much as the first.",
    )
    coarse_look: bool = option(
        False,
        0,
        1,
        "Before second looks the whole image is looked at in a window like theirs, too: it finds "
        "people too large for the first look, for the cost of one view.",
    )
    shared: float = option(
        0.3,
        0.0,
        1.0,
        "After second looks: people with a larger share of keypoints where better people have "
        "theirs are other views of those; 1 keeps all.",
    )
    min_keypoint_score: float = option(
        0.0,
        0.0,
        1.0,
        "Keypoints scoring below this are published, but not drawn: who takes a keypoint as there "
        "or not is better off without them.",
    )
    std_gain: float = option(
        1.0,
        0.01,
        10.0,
        "A keypoint's std is the width of its heatmap's peak times this; as fitted, the error to "
        "be expected of one that is right.",
    )
    person_score: Tuple[float, ...] = numbers(
        (0, TERMS),
        "Coefficients of a person's score, see person_score.py; none: the score is the mean of its "
        "keypoints' scores, absent ones counting as 0.",
    )
    second_score: Tuple[float, ...] = numbers(
        (0, TERMS_AGAIN),
        "The same for the score that everybody gets after second looks; none: the mean of the "
        "views' person scores.",
    )
    keypoint_score: Tuple[float, ...] = numbers(
        (0, TERMS_KEYPOINT),
        "Coefficients of a keypoint's score, see keypoint_score.py; none: it is the height of the "
        "heatmap's peak.",
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_size((self.second_look_size, self.second_look_size))

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
        for name in COEFFICIENTS:
            if isinstance(values.get(name), list):  # as JSON has it
                values[name] = tuple(values[name])
        return DecodeOptions(**values)

    def to_dict(self) -> Dict[str, Any]:
        """The fields as stored in a model's metadata, in types that JSON keeps."""
        values = dataclasses.asdict(self)
        return {**values, **{name: list(values[name]) for name in COEFFICIENTS}}


def typed_options(pairs: Iterable[Tuple[str, float]]) -> Dict[str, Any]:
    """Decode options given as numbers, in the types of their fields.

    Raises:
        EhrnetError: an unknown name or an impossible value.
    """
    kinds = {name: type(value) for name, value in DecodeOptions().to_dict().items()}
    for name in COEFFICIENTS:
        del kinds[name]  # no number
    values: Dict[str, Any] = {}
    for name, value in pairs:
        kind = kinds.get(name, float)
        whole = kind is float or (math.isfinite(value) and value == kind(value))
        if not whole:
            which = "0 or 1" if kind is bool else "a whole number"
            raise EhrnetError(f"decode option {name} is {which}, not {value:g}.")
        values[name] = kind(value)
    DecodeOptions.from_dict(values)
    return values


@dataclass(frozen=True)
class Peaks:
    """Candidates of one image, best first for each keypoint.

    Attributes:
        score: (J, K) float32, heatmap value; 0 marks an unused place.
        xy: (J, K, 2) float32, sub-pixel position in pixels of the network input.
        tag: (J, K) float32, near for keypoints of one person, far for those of two.
        patch: (J, K, 3, 3) float32, the heatmap around the peak's cell.
    """

    score: np.ndarray
    xy: np.ndarray
    tag: np.ndarray
    patch: np.ndarray

    @staticmethod
    def from_output(output: np.ndarray) -> Peaks:
        """Peaks from one image's (J, K, 15) engine output, laid out as runtime.py says.

        Of equal neighbours, which all are maxima, one stays.

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
        cell = output[..., 4:6].astype(np.int32)
        return Peaks(
            score=_without_plateaus(output[..., 0], cell),
            xy=output[..., 1:3],
            tag=output[..., 3],
            patch=output[..., 6:15].reshape(output.shape[:2] + (3, 3)),
        )


# See ``group_all``.
Grouping = Callable[
    [Sequence[Peaks], DecodeOptions, Optional[np.ndarray], Sequence[float]], List[np.ndarray]
]


class Placed(Protocol):
    """How an image, or a part of one, lies in the network's input."""

    @property
    def image_hw(self) -> Tuple[int, int]:
        """(height, width) of the whole image in pixels."""
        ...

    @property
    def scale(self) -> float:
        """Input pixels per image pixel."""
        ...

    def undo(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) positions in the input -> positions in the image, float32."""
        ...


def finished(poses: Poses, options: DecodeOptions, skeleton: SkeletonInfo) -> Poses:
    """People as they are given to others: keypoints' scores and stds as fitted.

    Args:
        poses: who ``decode`` or, after second looks, ``merge`` made: scores are heights of peaks.
        options: of them what was fitted.
        skeleton: of the model.
    """
    return rated(poses, options.keypoint_score, skeleton).with_std_gain(options.std_gain)


def decode(
    peaks: Peaks,
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    box: Placed,
    grouping: Optional[Grouping] = None,
) -> Poses:
    """The people of one look, best first, in pixels of the image that ``box`` fitted, and in it.

    ``second_look`` and what belongs to it are not its matter, see second_look.py; scores and stds
    are the peaks' own, see ``finished``. ``grouping``:
    ``group_all``, or what gives the same.
    """
    return decode_all([peaks], options, skeleton, [box], grouping)[0].within(box.image_hw)


def decode_all(
    peaks: Sequence[Peaks],
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    boxes: Sequence[Placed],
    grouping: Optional[Grouping] = None,
) -> List[Poses]:
    """``decode`` for several looks at once, which takes less time than one after the other.

    Keypoints may lie outside the image: what is made of the looks together decides.
    """
    spans = SPANS.get(skeleton.name)
    thresholds = options.keypoint_threshold * (1 + np.arange(options.levels) / 2)
    groups = (grouping or group_all)(
        [look for look in peaks for _ in thresholds], options, spans, list(thresholds) * len(peaks)
    )
    levels = [groups[i : i + len(thresholds)] for i in range(0, len(groups), len(thresholds))]
    return [
        _people(look, found, options, skeleton, box)
        for look, found, box in zip(peaks, levels, boxes)
    ]


def _people(
    peaks: Peaks,
    levels: Sequence[np.ndarray],
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    box: Placed,
) -> Poses:
    """Those of one look from the groups (P, J) of each level, best first."""
    spans = SPANS.get(skeleton.name)
    expect = spans is not None and len(options.person_score) > 0
    pool = [_finished(peaks, chosen, options, not expect) for chosen in levels]
    chosen, person_score = (np.concatenate(parts) for parts in zip(*pool))
    if not len(chosen):
        return Poses.empty(len(peaks.score))
    xy, score = _take(peaks.xy, chosen), _take(peaks.score, chosen)
    std = _peak_width(_take(peaks.patch, chosen)) * _HALF_SIZE_STRIDE
    if expect:
        assert spans is not None
        person_score = expected_similarity(terms(xy, score, std, spans), options.person_score)
    order = np.argsort(-person_score, kind="stable")
    order = order[person_score[order] >= options.person_threshold]
    if options.levels > 1:  # people of one level share nothing
        order = order[_without_views(chosen[order])]
    xy, score, std, person_score = xy[order], score[order], std[order], person_score[order]
    xy, std = box.undo(xy), std / box.scale
    if options.nms_oks < 1:
        unique = oks_nms(xy, score > 0, skeleton, options.nms_oks)
        xy, score, std, person_score = xy[unique], score[unique], std[unique], person_score[unique]
    limit = options.max_people
    return Poses.build(xy[:limit], score[:limit], std[:limit], person_score[:limit])


def _finished(
    peaks: Peaks, chosen: np.ndarray, options: DecodeOptions, scored: bool
) -> Tuple[np.ndarray, np.ndarray]:
    """People of one level, best first, gaps filled and legs parted.

    Args:
        peaks: of one image.
        chosen: (P, J) as they were grouped.
        options: of them ``min_keypoints`` and what belongs to filling and parting.
        scored: leave out people below the person threshold.

    Returns:
        (P, J) index of the peak or -1, and (P,) mean score of the keypoints as they were grouped.
    """
    chosen = chosen[(chosen >= 0).sum(1) >= options.min_keypoints]
    mean = _take(peaks.score, chosen).mean(1)
    order = np.argsort(-mean, kind="stable")
    if scored:
        order = order[mean[order] >= options.person_threshold]
    chosen, mean = chosen[order], mean[order]
    if options.refine and len(chosen):
        chosen = refine(peaks, chosen, options)
    if options.legs and chosen.shape[1] == len(_ORDER_17):
        chosen = part_legs(peaks.score, peaks.xy, peaks.tag, chosen, options.tag_threshold)
    return chosen, mean


@dataclass(frozen=True)
class _Candidates:
    """M peaks of N looks, one keypoint of a look after the other.

    Attributes:
        look: (M,) number of the look.
        keypoint: (M,).
        peak: (M,) index among those of its keypoint.
        tag: (M,) float64.
        xy: (M, 2).
        score: (M,).
    """

    look: np.ndarray
    keypoint: np.ndarray
    peak: np.ndarray
    tag: np.ndarray
    xy: np.ndarray
    score: np.ndarray

    def __getitem__(self, some: np.ndarray) -> _Candidates:
        return _Candidates(
            *(getattr(self, item.name)[some] for item in dataclasses.fields(_Candidates))
        )


def group_all(
    peaks: Sequence[Peaks],
    options: DecodeOptions,
    spans: Optional[np.ndarray],
    thresholds: Sequence[float],
) -> List[np.ndarray]:
    """Who has which peak, in each of several looks: (P, J) int each, index of the peak or -1.

    Looks have nothing to do with each other. But the work on one is so little that the steps cost
    more than what is done in them, and so all looks take each step together.

    Args:
        peaks: of each look.
        options: of them ``tag_threshold`` and ``reach`` are used.
        spans: (J, J) typical distances of keypoints, see ``anatomy``; None: ``reach`` is not used.
        thresholds: of the keypoints, one for each look.

    Returns:
        People in no particular order.
    """
    if not len(peaks):
        return []
    num_keypoints, gate = len(peaks[0].score), options.tag_threshold
    good = np.array([look.score for look in peaks])
    good = good >= np.maximum(thresholds, np.finfo(np.float32).tiny)[:, None, None]
    look, keypoint, peak = np.nonzero(good)
    if not len(look):
        return [np.zeros((0, num_keypoints), np.int64) for _ in peaks]
    parts = [(one.tag[mine], one.xy[mine], one.score[mine]) for one, mine in zip(peaks, good)]
    tag, xy, score = (np.concatenate(part) for part in zip(*parts))
    found = _Candidates(look, keypoint, peak, tag.astype(np.float64), xy, score)
    cluster, lone = _tag_clusters(found, num_keypoints, gate)
    near = spans is not None and options.reach > 0
    if near:
        assert spans is not None
        lone &= _hold_together(found, cluster, lone, spans, options.reach)
    number = np.cumsum(lone) - 1
    clear = lone[cluster]
    chosen = np.full((int(lone.sum()), num_keypoints), -1, np.int64)
    chosen[number[cluster[clear]], keypoint[clear]] = peak[clear]
    owner = np.zeros(len(chosen), np.int64)
    owner[number[cluster[clear]]] = look[clear]
    if not clear.all():
        unclear = found[~clear]
        if near:
            assert spans is not None
            whose, matched = _match_near(unclear, gate, spans, options.reach)
        else:
            whose, matched = _match(unclear, num_keypoints, gate)
        chosen, owner = np.concatenate([chosen, matched]), np.concatenate([owner, whose])
    return [chosen[owner == number] for number in range(len(peaks))]


class _Bodies:
    """People while they grow: where their keypoints are, and how large they must be.

    The size of a person is the largest distance between two of its keypoints, in units of what is
    typical for these two: pairs look shorter, never longer, when a limb points at the camera.

    Args:
        count: how many people there may be.
        spans: (J, J) typical distances.
        reach: how far, in sizes of the person, is too far.
    """

    def __init__(self, count: int, spans: np.ndarray, reach: float) -> None:
        self._squared_spans, self._reach = spans**2, reach
        # Infinitely far away where there is none.
        self._x, self._y = np.full((2, count, len(spans)), np.inf)
        self._size = np.zeros(count)
        self._face_only = np.ones(count, bool)

    def apart(self, keypoint: int, xy: np.ndarray, people: np.ndarray) -> np.ndarray:
        """How far positions (C, 2) lie from people (C,), 1 and more is too far.

        People of one keypoint have no size yet: nothing is near or far, which is half a size here,
        and half of the reach where that is less.
        """
        nearest = np.sqrt(self._squared_ratios(keypoint, xy, people).min(1, initial=np.inf))
        size = self._size[people]
        size[self._face_only[people]] *= _FACE_REACH
        some = size > 0
        nearness = np.full(len(people), 0.5 * min(1, self._reach))
        nearness[some] = nearest[some] / np.maximum(size[some], 1e-9)
        return nearness / self._reach

    def add(self, keypoint: int, xy: np.ndarray, people: np.ndarray) -> None:
        """Gives people (C,) a keypoint each at (C, 2)."""
        ratios = self._squared_ratios(keypoint, xy, people)
        ratios[ratios == np.inf] = 0
        largest = np.sqrt(ratios.max(1, initial=0))
        self._size[people] = np.maximum(self._size[people], largest)
        self._x[people, keypoint], self._y[people, keypoint] = xy.T
        if keypoint > _LAST_OF_FACE:
            self._face_only[people] = False

    def _squared_ratios(self, keypoint: int, xy: np.ndarray, people: np.ndarray) -> np.ndarray:
        """(C, J): distances to the keypoints there are, in units of typical ones."""
        gap_x, gap_y = xy[:, :1] - self._x[people], xy[:, 1:] - self._y[people]
        gap_x *= gap_x
        gap_y *= gap_y
        gap_x += gap_y
        gap_x /= self._squared_spans[keypoint]
        return gap_x


def _hold_together(
    found: _Candidates, cluster: np.ndarray, lone: np.ndarray, spans: np.ndarray, reach: float
) -> np.ndarray:
    """(C,) bool: of the clusters that may be one person each, those whose keypoints lie so."""
    bodies, together = _Bodies(len(lone), spans, reach), np.ones(len(lone), bool)
    for j in _order(len(spans)):
        mine = np.flatnonzero((found.keypoint == j) & lone[cluster])
        if len(mine):
            owner, xy = cluster[mine], found.xy[mine]
            together[owner] &= bodies.apart(j, xy, owner) < 1
            bodies.add(j, xy, owner)
    return together


def _match_near(
    found: _Candidates, gate: float, spans: np.ndarray, reach: float
) -> Tuple[np.ndarray, np.ndarray]:
    """``_match`` with an eye on where the peaks lie: half of a pair's worth is its nearness."""
    count, num_keypoints = len(found.look), len(spans)
    chosen = np.full((count, num_keypoints), -1, np.int64)
    tag_sum, members = np.zeros(count), np.zeros(count)
    look = np.zeros(count, np.int64)
    bodies, people = _Bodies(count, spans, reach), 0
    # Tags of different looks so far apart that none is near another's; and room for rounding.
    between, about = np.ptp(found.tag) + 2 * gate + 1, gate + 1e-6
    for j in _order(num_keypoints):
        mine = found[found.keypoint == j]
        if not len(mine.look):
            continue
        owner = np.full(len(mine.look), -1)
        if people:
            mean = tag_sum[:people] / members[:people]
            rows, columns = _within(
                mine.tag + between * mine.look, mean + between * look[:people], about
            )
            tags_apart = np.abs(mine.tag[rows] - mean[columns])
            apart = bodies.apart(j, mine.xy[rows], columns)
            worth = 2 - tags_apart / max(gate, 1e-9) - apart + _TIE_BREAK * mine.score[rows]
            near = (tags_apart < gate) & (apart < 1)
            rows, columns = best_among(rows[near], columns[near], worth[near])
            owner[rows] = columns
        new = np.flatnonzero(owner < 0)
        owner[new] = np.arange(people, people + len(new))
        look[owner[new]] = mine.look[new]
        people += len(new)
        chosen[owner, j] = mine.peak
        tag_sum[owner] += mine.tag
        members[owner] += 1
        bodies.add(j, mine.xy, owner)
    return look[:people], chosen[:people]


def _within(some: np.ndarray, others: np.ndarray, gate: float) -> Tuple[np.ndarray, np.ndarray]:
    """Indices (N,) and (N,) of all pairs on a line that are no farther apart than the gate."""
    order = np.argsort(others)
    ordered = others[order]
    first, last = np.searchsorted(ordered, some - gate), np.searchsorted(ordered, some + gate)
    times = last - first
    rows = np.repeat(np.arange(len(some)), times)
    # Counts up from the first of each.
    place = np.arange(len(rows)) + np.repeat(first - np.cumsum(times) + times, times)
    return rows, order[place]


def _order(num_keypoints: int) -> Sequence[int]:
    return _ORDER_17 if num_keypoints == len(_ORDER_17) else range(num_keypoints)


def _tag_clusters(
    found: _Candidates, num_keypoints: int, gate: float
) -> Tuple[np.ndarray, np.ndarray]:
    """Cuts the peaks of each look where the tag axis has a gap of the gate or more.

    No match reaches over such a gap, so clusters can be settled one by one; and a cluster narrower
    than the gate that has no keypoint twice is one person whatever the order of matching.

    Returns:
        (M,) the cluster of each of the M peaks, and (C,) bool, which clusters are one person.
    """
    count = len(found.tag)
    order = np.lexsort((found.tag, found.look))
    ordered = found.tag[order]
    begins = np.ones(count, bool)
    begins[1:] = (np.diff(ordered) >= gate) | (np.diff(found.look[order]) > 0)
    starts = np.flatnonzero(begins)
    cluster = np.empty(count, np.int64)
    cluster[order] = np.cumsum(begins) - 1
    extent = ordered[np.append(starts[1:], count) - 1] - ordered[starts]
    places = len(starts) * num_keypoints
    times = np.bincount(cluster * num_keypoints + found.keypoint, minlength=places)
    once = (times.reshape(-1, num_keypoints) <= 1).all(1)
    return cluster, once & (extent < gate)


def _match(found: _Candidates, num_keypoints: int, gate: float) -> Tuple[np.ndarray, np.ndarray]:
    """Hands the peaks of each look to people, one keypoint after the other.

    Returns:
        (P,) the look of each of the people, and (P, J) their peaks.
    """
    parts = []
    for look in np.unique(found.look).tolist():
        mine = found[found.look == look]
        matched = _match_one(mine, num_keypoints, gate)
        parts.append((np.full(len(matched), look), matched))
    looks, people = (np.concatenate(part) for part in zip(*parts))
    return looks, people


def _match_one(found: _Candidates, num_keypoints: int, gate: float) -> np.ndarray:
    count, tag = len(found.tag), found.tag
    chosen = np.full((count, num_keypoints), -1, np.int64)
    tag_sum, members = np.zeros(count), np.zeros(count)
    bounds = np.searchsorted(found.keypoint, np.arange(num_keypoints + 1)).tolist()
    people = 0
    for j in _order(num_keypoints):
        mine = slice(bounds[j], bounds[j + 1])
        owner = assign(tag[mine], tag_sum[:people] / members[:people], found.score[mine], gate)
        new = np.flatnonzero(owner < 0)
        owner[new] = np.arange(people, people + len(new))
        people += len(new)
        chosen[owner, j] = found.peak[mine]
        tag_sum[owner] += tag[mine]
        members[owner] += 1
    return chosen[:people]


def assign(tag: np.ndarray, mean: np.ndarray, score: np.ndarray, gate: float) -> np.ndarray:
    """Who gets which peak of one keypoint, at the greatest total worth.

    A match at distance d < gate is worth ``gate - d``, none is worth 0; of equals, the one of even
    distances, then that of the better peaks. On a line the best pairing never needs to cross: of
    four tags, the two pairs in order are no farther apart than the two crossed. So both sides are
    sorted and aligned, row by row; the time is bounded by R x C however little the tags tell.

    Args:
        tag: (R,) of the peaks.
        mean: (C,) mean tags of the people so far.
        score: (R,) of the peaks.
        gate: pairs this far apart or farther are never made.

    Returns:
        (R,) int, each peak's person or -1.
    """
    owner = np.full(len(tag), -1)
    rows, columns = np.argsort(tag, kind="stable"), np.argsort(mean, kind="stable")
    distance = np.abs(tag[rows, None] - mean[columns])
    # Squares decide between pairs that cost the same either way round.
    worth = gate - distance + _TIE_BREAK * (gate**2 - distance**2 + score[rows, None])
    worth[distance >= gate] = -np.inf
    # best[r, c]: greatest worth of the first r peaks and c people.
    best = np.zeros((len(rows) + 1, len(columns) + 1))
    for r in range(len(rows)):
        row = best[r + 1]
        row[1:] = best[r, :-1] + worth[r]
        np.maximum(row, best[r], out=row)
        np.maximum.accumulate(row, out=row)
    c = len(columns)
    for r in reversed(range(len(rows))):
        if best[r + 1, c] > best[r, c]:
            c = int(np.searchsorted(best[r + 1], best[r + 1, c])) - 1
            owner[rows[r]] = columns[c]
    return owner


def refine(peaks: Peaks, chosen: np.ndarray, options: DecodeOptions) -> np.ndarray:
    """Missing keypoints filled from peaks that nobody has, (P, J) -> (P, J).

    A peak may fill a gap if it scores at least ``refine_threshold``, its tag fits, and it lies
    within one and a half times the person's box. The best of them is taken, best person first.
    """
    chosen = chosen.copy()
    present = chosen >= 0
    free = peaks.score >= max(options.refine_threshold, np.finfo(np.float32).tiny)
    free[np.nonzero(present)[1], chosen[present]] = False
    person, gap = np.nonzero(~present & free.any(1))
    if not len(person):
        return chosen
    xy, tag = _take(peaks.xy, chosen), _take(peaks.tag, chosen)
    low = np.where(present[..., None], xy, np.inf).min(1)
    high = np.where(present[..., None], xy, -np.inf).max(1)
    margin = 0.25 * (high - low)
    low, high = (low - margin)[person, None], (high + margin)[person, None]
    mean_tag = (tag.sum(1) / present.sum(1))[person, None]
    place = peaks.xy[gap]
    distance = np.abs(peaks.tag[gap] - mean_tag)
    fits = free[gap] & (distance < options.tag_threshold)
    fits &= ((place >= low) & (place <= high)).all(2)
    value = fits * peaks.score[gap] * (1 - distance / (options.tag_threshold + 1e-9))
    for number in np.flatnonzero(fits.any(1)):
        j = gap[number]
        worth = value[number] * free[j]
        best = int(worth.argmax())
        if worth[best] > 0:
            chosen[person[number], j] = best
            free[j, best] = False
    return chosen


def _without_views(chosen: np.ndarray) -> np.ndarray:
    """Indices of those of people (P, J), best first, whose keypoints are mostly theirs alone."""
    taken = np.zeros((chosen.shape[1], int(chosen.max(initial=0)) + 1), bool)
    kept = []
    for number, row in enumerate(chosen):
        keypoint = np.flatnonzero(row >= 0)
        peak = row[keypoint]
        if taken[keypoint, peak].mean() <= _SHARED:
            kept.append(number)
            taken[keypoint, peak] = True
    return np.array(kept, int)


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
    # Boxes with a gap so wide that even the softest keypoint cannot be similar enough.
    apart = np.maximum(low[:, None] - high, low - high[:, None]).max(2)
    reach = np.sqrt(-2 * variance.max() * area * np.log(max(threshold, 1e-6)))
    better, lesser = np.nonzero(np.triu(apart <= reach[:, None], 1))
    both = present[better] & present[lesser]
    squared = np.where(both, ((xy[better] - xy[lesser]) ** 2).sum(2), np.inf)  # NaN where absent
    similarity = np.exp(squared / (-2 * variance * area[better, None]))
    common = both.sum(1)
    oks = similarity.sum(1) / np.maximum(common, 1)
    # Two people with few keypoints in common say little about each other.
    double = (oks > threshold) & (common >= 0.5 * present.sum(1)[lesser])
    doubled = np.zeros(len(xy), bool)
    for first, second in zip(better[double], lesser[double]):
        if not doubled[first]:
            doubled[second] = True
    return np.flatnonzero(~doubled)


def _take(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(J, K, ...) at (P, J) peaks -> (P, J, ...), 0 where there is none."""
    taken = values[np.arange(chosen.shape[1]), np.maximum(chosen, 0)].copy()
    taken[chosen < 0] = 0
    return taken


def _without_plateaus(score: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Scores with 0 at all but the first peak of each patch of equal neighbours."""
    equal = (score[:, 1:] == score[:, :-1]) & (score[:, 1:] > 0)
    if not equal.any():
        return score
    score = score.copy()
    for j in np.flatnonzero(equal.any(1)):
        near = np.abs(cell[j, :, None] - cell[j]).max(2) <= NMS_RADIUS
        same = near & (score[j, :, None] == score[j])
        score[j, np.tril(same, -1).any(1)] = 0
    return score


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
