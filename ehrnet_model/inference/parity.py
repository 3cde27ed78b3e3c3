"""Do two engines give the same peaks, and the same people? Nothing here needs torch.

``compare_peaks`` proves an export: every candidate, as sets, because equal scores have no order.
``check_engine`` judges an engine of any precision by what a user sees: where keypoints are, whose
they are, and their scores.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.answers import Answers
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import (
    MAX_PEAKS,
    NMS_RADIUS,
    PEAK_CHANNELS,
    Runtime,
    WrongAnswer,
)

SAME, DIFFERS, UNCHECKED = "same", "differs", "unchecked"
# A keypoint further away than this sits on another maximum: the grouping changed. Maxima are at
# least three cells of two pixels apart.
SAME_PEAK_PX = 6.0
# A kind of keypoint must be right in half of the cases, unless so few were seen that chance alone
# does that more often than this.
_CHANCE, _FEW = 0.01, 4
# As in the graph (network/deploy.py): the logarithm of less than this is not looked at.
_MIN_HEAT = 1e-3
# Curvature of the logarithm under which rounding moves the top by a hundredth of a pixel and more.
_FLAT = 1e-3
# Neighbours this much lower than a top, as a share of it, are as high.
_PLATEAU = 1e-5
# Share of the largest score below which two scores are the same.
_TIE = 1e-4


# So many standard deviations above its mean a normal value lies once in a hundred times.
_ONCE_IN_A_HUNDRED = 2.33


@dataclass(frozen=True)
class Limits:
    """What an engine of one precision may do to the FP32 answers.

    Attributes:
        xy_px: 95th percentile of the distance of a keypoint, pixels of the network input.
        changed: share of keypoints that are missing, new, or somebody else's.
        score: 95th percentile of the difference of a keypoint's score (0..1).
    """

    xy_px: float
    changed: float
    score: float


# Changes of hands are the coarsest: of half-trained weights, whose tags hardly tell people apart,
# the last digit of float16 regroups 2.5 % of the keypoints without moving one.
# Set by hand, and widened after seeing that (fp16 from 0.02, int8 from 0.15 changed):
# to be set again with good weights.
LIMITS: Dict[str, Limits] = {
    "fp32": Limits(xy_px=0.1, changed=0.005, score=0.005),
    "fp16": Limits(xy_px=0.5, changed=0.05, score=0.02),
    "int8": Limits(xy_px=2.5, changed=0.25, score=0.1),
}


@dataclass(frozen=True)
class Verdict:
    """Whether an engine computes the model's answers; travels in the engine's description.

    Attributes:
        state: SAME, DIFFERS (the engine must not be used) or UNCHECKED (nothing to compare with).
        reason: one sentence: what was found, or why nothing was.
        people: people in the FP32 answers; 0 where only candidates could be compared.
        keypoints: keypoints (or candidates) compared.
        changed: of these, how many are missing, new, or somebody else's.
        xy_p95_px, xy_max_px: distance of the others, in pixels of the network input.
        score_p95, score_max: difference of their scores.
        sizes: the input sizes that were run, such as ``384x512``.
    """

    state: str
    reason: str
    people: int = 0
    keypoints: int = 0
    changed: int = 0
    xy_p95_px: float = 0.0
    xy_max_px: float = 0.0
    score_p95: float = 0.0
    score_max: float = 0.0
    sizes: Tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"

    def to_dict(self) -> Dict[str, Any]:
        """For JSON; read back by from_dict."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Dict[str, Any]) -> Verdict:
        """Raises TypeError, KeyError or ValueError for what is no verdict."""
        known = {f.name for f in dataclasses.fields(Verdict)}
        verdict = Verdict(**{k: v for k, v in values.items() if k in known})
        if verdict.state not in (SAME, DIFFERS, UNCHECKED):
            raise ValueError(f"a verdict cannot be {verdict.state!r}")
        return dataclasses.replace(verdict, sizes=tuple(verdict.sizes))


def check_engine(runtime: Runtime, answers: Answers, precision: str, batch: int = 1) -> Verdict:
    """Runs the stored inputs through an engine and judges its answers.

    People are compared where the model finds some in the stored images. Of untrained weights, and
    where nobody is found, the candidates themselves are compared in the same way.

    Args:
        runtime: the engine; one with a fixed size is run on the answers of that size only.
        answers: what FP32 says.
        precision: which LIMITS hold.
        batch: most images per call. Above 1 the inputs are run one by one and so many at once,
            each of them at each place of the batch, and each place is judged by itself.

    Raises:
        EhrnetError: no such precision, or the engine does not run now.
    """
    if precision not in LIMITS:
        raise EhrnetError(f"precision {precision!r} is unknown: use one of {', '.join(LIMITS)}.")
    limits = LIMITS[precision]
    sizes = sorted(answers.by_size) if runtime.size_hw is None else [runtime.size_hw]
    missing = [f"{h}x{w}" for h, w in sizes if (h, w) not in answers.by_size]
    if missing or not sizes:
        stored = ", ".join(f"{h}x{w}" for h, w in sorted(answers.by_size)) or "none"
        return Verdict(
            UNCHECKED,
            f"there are no stored answers for {', '.join(missing) or 'any size'} (stored: "
            f"{stored}); export the model with --size to store some.",
        )
    verdicts = []
    for count in sorted({1, batch}):
        places = [_Tally() for _ in range(count)]
        for size_hw in sizes:
            images, expected = answers.by_size[size_hw]
            for first in range(len(images)):
                rows = [(first + place) % len(images) for place in range(count)]
                try:
                    given = runtime(images[rows])
                except WrongAnswer as error:
                    return Verdict(DIFFERS, str(error))
                for tally, row, peaks in zip(places, rows, given):
                    tally.add(expected[row], peaks, runtime, size_hw, limits)
        for place, tally in enumerate(places, 1):
            where = "" if count == 1 else f"as image {place} of {count} at once, "
            verdicts.append(tally.verdict(limits, precision, sizes, where))
    verdict = next((v for v in verdicts if v.state == DIFFERS), verdicts[0])
    if verdict.state == DIFFERS and precision == "int8" and runtime.info.quality == "random":
        reason = f"untrained weights are for timing only and do not bear INT8; {verdict.reason}"
        return dataclasses.replace(verdict, state=UNCHECKED, reason=reason)
    return verdict


class _Tally:
    """Gathers what check_engine sees, people and candidates apart."""

    def __init__(self) -> None:
        self.people = 0
        # Distances, score differences and kinds of kept and of changed keypoints, of people and of
        # candidates.
        self.distances: Tuple[List[float], List[float]] = ([], [])
        self.scores: Tuple[List[float], List[float]] = ([], [])
        self.kept: Tuple[List[int], List[int]] = ([], [])
        self.changed: Tuple[List[int], List[int]] = ([], [])

    def add(
        self,
        expected: np.ndarray,
        given: np.ndarray,
        runtime: Runtime,
        size_hw: Tuple[int, int],
        limits: Limits,
    ) -> None:
        """One image's peaks, (J, 30, 15) each."""
        self._add_candidates(expected, given, limits)
        if runtime.info.quality == "random":  # whose keypoint is whose has no meaning there
            return
        stored = DecodeOptions.from_dict(runtime.info.decode)
        # Which of two views of nearly the same score wins says nothing of an engine, nor on which
        # side of a threshold somebody is.
        options = dataclasses.replace(stored, levels=1, min_keypoints=1, person_threshold=0.0)
        box = Letterbox.fit(size_hw, size_hw)
        one, two = (
            decode(Peaks.from_output(peaks), options, runtime.info.skeleton, box)
            for peaks in (expected, given)
        )
        self._add_people(one, two, stored, limits)

    def _add_candidates(self, expected: np.ndarray, given: np.ndarray, limits: Limits) -> None:
        for keypoint, (a, b) in enumerate(zip(expected, given)):
            # A candidate this near to the end of either list may have fallen off the other.
            least = max(a[-1, 0], b[-1, 0]) + limits.score
            near = np.hypot(*(a[:, None, 1:3] - b[None, :, 1:3]).transpose(2, 0, 1))
            near[:, b[:, 0] <= 0] = np.inf
            near[a[:, 0] <= 0] = np.inf
            for i in np.flatnonzero(a[:, 0] > least):
                j = int(near[i].argmin())
                if near[i, j] < SAME_PEAK_PX:
                    self._pair(1, keypoint, near[i, j], a[i, 0] - b[j, 0])
                else:
                    self.changed[1].append(keypoint)
            new = (b[:, 0] > least) & (near.min(0) >= SAME_PEAK_PX)
            self.changed[1].extend([keypoint] * int(new.sum()))

    def _add_people(self, one: Poses, two: Poses, options: DecodeOptions, limits: Limits) -> None:
        """Those of either side, found without a person threshold, who reach it on one of them."""
        self.people += int((one.person_score >= options.person_threshold).sum())
        distance = np.linalg.norm(one.xy[:, None] - two.xy[None], axis=3)
        # NaN, a keypoint that one of them lacks, is not near.
        shared = np.nan_to_num(distance, nan=np.inf) < SAME_PEAK_PX
        common = shared.sum(2)
        firm = options.keypoint_threshold + limits.score
        free_one, free_two = set(range(len(one))), set(range(len(two)))
        while common.size and common.max() > 0:
            i, j = np.unravel_index(common.argmax(), common.shape)
            common[i], common[:, j] = 0, 0
            free_one.discard(int(i))
            free_two.discard(int(j))
            if max(one.person_score[i], two.person_score[j]) < options.person_threshold:
                continue
            for k in np.flatnonzero(shared[i, j]):
                self._pair(0, int(k), distance[i, j, k], one.score[i, k] - two.score[j, k])
            highest = np.maximum(one.score[i], two.score[j])
            self.changed[0].extend(np.flatnonzero(~shared[i, j] & (highest > firm)).tolist())
        for poses, alone in ((one, free_one), (two, free_two)):
            for person in alone:
                if poses.person_score[person] > options.person_threshold + limits.score:
                    self.changed[0].extend(np.flatnonzero(poses.score[person] > firm).tolist())

    def _pair(self, kind: int, keypoint: int, distance: float, score: float) -> None:
        self.kept[kind].append(keypoint)
        self.distances[kind].append(float(distance))
        self.scores[kind].append(abs(float(score)))

    def verdict(
        self, limits: Limits, precision: str, sizes_hw: List[Tuple[int, int]], where: str
    ) -> Verdict:
        """The judgement over all images; ``where`` begins its reason."""
        sizes = tuple(f"{height}x{width}" for height, width in sizes_hw)
        kind = 0 if self.people else 1
        distances, scores = np.array(self.distances[kind]), np.array(self.scores[kind])
        changed = len(self.changed[kind])
        compared = len(distances) + changed
        if not compared:
            return Verdict(UNCHECKED, "the model finds nothing in the stored images.", sizes=sizes)
        xy, score = (distances, scores) if len(distances) else (np.zeros(1), np.zeros(1))
        numbers = {
            "xy_p95_px": round(float(np.percentile(xy, 95)), 4),
            "xy_max_px": round(float(xy.max()), 4),
            "score_p95": round(float(np.percentile(score, 95)), 5),
            "score_max": round(float(score.max()), 5),
        }
        kinds = 1 + max(self.kept[kind] + self.changed[kind])
        wrong, right = (
            np.bincount(np.array(found, int), minlength=kinds)
            for found in (self.changed[kind], self.kept[kind])
        )
        lost = [k for k in range(kinds) if _is_lost(int(wrong[k]), int(right[k]), limits.changed)]
        most = _most_changed(limits.changed, compared)
        good = (
            not lost
            and numbers["xy_p95_px"] <= limits.xy_px
            and numbers["score_p95"] <= limits.score
            and changed <= most
        )
        what = f"keypoints of {self.people} people" if self.people else "candidates"
        reason = (
            f"{where}{compared} {what} against FP32: {changed} changed hands (at most "
            f"{most} may, {precision}), 95 % within {numbers['xy_p95_px']:.2f} px "
            f"(limit {limits.xy_px:g}) and {numbers['score_p95']:.3f} in score (limit "
            f"{limits.score:g}), furthest {numbers['xy_max_px']:.2f} px"
        )
        reason += f"; keypoint {lost[0]} is mostly wrong." if lost else "."
        state = SAME if good else DIFFERS
        return Verdict(state, reason, self.people, compared, changed, **numbers, sizes=sizes)  # type: ignore[arg-type]


def _is_lost(wrong: int, right: int, share: float) -> bool:
    """Whether a kind of keypoint is mostly wrong, and not by chance where ``share`` is allowed."""
    seen = wrong + right
    if seen < _FEW or wrong <= right:
        return False
    by_chance = (
        math.comb(seen, n) * share**n * (1 - share) ** (seen - n) for n in range(wrong, seen + 1)
    )
    return sum(by_chance) < _CHANCE


def _most_changed(share: float, compared: int) -> int:
    """How many of ``compared`` may change hands where ``share`` is the limit of the share.

    Few keypoints say little: one leg that goes to the other side is a tenth of them. So it is what
    chance gives at that share, but once in a hundred times (2.33 deviations of a binomial).
    """
    expected = share * compared
    return math.floor(expected + _ONCE_IN_A_HUNDRED * math.sqrt(expected * (1 - share)))


@dataclass(frozen=True)
class PeakDifference:
    """How far two answers to the same images are apart.

    Attributes:
        compared: candidates found in both.
        missing: candidates of one side without a partner on the other. Not counted are cells of a
            plateau, and those at the end of a full list, where the last place went to another of
            the same score.
        score, tag, patch: largest differences, as a share of the largest value of its kind.
        xy: largest distance of partners in input pixels, of tops that are not flat.
    """

    compared: int
    missing: int
    score: float
    tag: float
    patch: float
    xy: float

    def within(self, values: float, xy: float, missing: float) -> bool:
        """Whether values, positions and the share of unpaired candidates stay below limits."""
        share = self.missing / max(1, self.compared)
        return (
            max(self.score, self.tag, self.patch) <= values and self.xy <= xy and share <= missing
        )

    def __str__(self) -> str:
        return (
            f"{self.compared} peaks compared, {self.missing} without partner; largest difference: "
            f"score {self.score:.1e}, tag {self.tag:.1e}, patch {self.patch:.1e} (relative), "
            f"position {self.xy:.4f} px"
        )


def compare_peaks(one: np.ndarray, two: np.ndarray) -> PeakDifference:
    """Compares two ``peaks`` (N, J, 30, 15) of the same images by where the candidates are.

    Partners are candidates of one keypoint in the same cell. On a top of almost equal cells engines
    may choose any of them, or several: those are compared by place and score alone.

    Args:
        one: float32 (N, J, 30, 15).
        two: float32 (N, J, 30, 15).
    """
    if one.shape != two.shape or one.shape[2:] != (MAX_PEAKS, PEAK_CHANNELS):
        raise ValueError(f"peaks of shapes {one.shape} and {two.shape} cannot be compared")
    largest = np.abs(np.concatenate([one, two])).max((0, 1, 2), initial=1e-30)
    scale_score, scale_tag = float(largest[0]), float(largest[3])
    scale_patch = max(float(largest[6:].max()), 1e-30)
    equal = _TIE * scale_score
    pairs: List[np.ndarray] = []
    tied = 0
    missing = 0
    rows = one.reshape(-1, MAX_PEAKS, PEAK_CHANNELS), two.reshape(-1, MAX_PEAKS, PEAK_CHANNELS)
    for a, b in zip(*rows):
        cut_a, cut_b = a[-1, 0] + equal, b[-1, 0] + equal
        a, b = a[a[:, 0] > 0], b[b[:, 0] > 0]
        same = (a[:, None, 4:6] == b[None, :, 4:6]).all(2)
        for i, j in np.argwhere(same):
            pairs.append(np.stack([a[i], b[j]]))
        alone_a, alone_b = a[~same.any(1)], b[~same.any(0)]
        tied += _same_top(alone_a, b, equal).any(1).sum()
        missing += _missing(alone_a, b, equal, max(cut_b, equal))
        missing += _missing(alone_b, a, equal, max(cut_a, equal))
    if not pairs:
        return PeakDifference(0, missing, 0.0, 0.0, 0.0, 0.0)
    both = np.stack(pairs).astype(np.float64)
    gap = np.abs(both[:, 0] - both[:, 1])
    return PeakDifference(
        compared=len(pairs) + int(tied),
        missing=missing,
        score=float(gap[:, 0].max() / scale_score),
        tag=float(gap[:, 3].max() / max(scale_tag, 1e-30)),
        patch=float(gap[:, 6:].max() / scale_patch),
        xy=float(np.hypot(gap[:, 1], gap[:, 2])[_sharp(both)].max(initial=0.0)),
    )


def _single(candidates: np.ndarray) -> np.ndarray:
    """(K,) bool: above all neighbours. Which cells of a plateau are maxima, rounding decides."""
    patch = candidates[:, 6:]
    beside = np.delete(patch, 4, 1).max(1, initial=-np.inf)
    single: np.ndarray = patch[:, 4] - beside > _PLATEAU * np.abs(patch[:, 4])
    return single


def _sharp(pairs: np.ndarray) -> np.ndarray:
    """(pairs,) bool: the tops that have a place; on a flat one the last digit decides."""
    patch = np.log(np.maximum(pairs[..., 6:], _MIN_HEAT)).reshape(-1, 2, 3, 3)
    across = 2 * patch[..., 1, 1] - patch[..., 1, 0] - patch[..., 1, 2]
    down = 2 * patch[..., 1, 1] - patch[..., 0, 1] - patch[..., 2, 1]
    sharp: np.ndarray = (np.minimum(across, down) > _FLAT).all(1)
    return sharp


def _same_top(some: np.ndarray, others: np.ndarray, equal: float) -> np.ndarray:
    """(A, B) bool: candidates so near and so equal that one maximum filter holds them both."""
    near = np.abs(some[:, None, 4:6] - others[None, :, 4:6]).max(2, initial=0) <= NMS_RADIUS
    return np.asarray(near & (np.abs(some[:, None, 0] - others[None, :, 0]) <= equal))


def _missing(alone: np.ndarray, others: np.ndarray, equal: float, cut: float) -> int:
    """How many candidates above the cut, and not cells of a plateau, have no partner."""
    lost = ~_same_top(alone, others, equal).any(1) & (alone[:, 0] > cut) & _single(alone)
    return int(lost.sum())
