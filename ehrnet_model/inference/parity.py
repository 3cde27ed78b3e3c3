"""Do two engines give the same peaks? Compared as sets, because equal scores have no order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

import numpy as np

from ehrnet_model.inference.runtime import MAX_PEAKS, NMS_RADIUS, PEAK_CHANNELS


@dataclass(frozen=True)
class PeakDifference:
    """How far two answers to the same images are apart.

    Attributes:
        compared: candidates found in both.
        missing: candidates of one side without a partner on the other; those at the end of a
            full list do not count, where the last place went to another of the same score.
        score, tag, patch: largest differences, as a share of the largest value of its kind.
        xy: largest distance of partners in input pixels.
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


def compare_peaks(
    one: np.ndarray, two: np.ndarray, min_score: float = 0.0, tie: float = 1e-4
) -> PeakDifference:
    """Compares two ``peaks`` (N, J, 30, 15) of the same images by where the candidates are.

    Partners are candidates of one keypoint in the same cell. On a top of almost equal cells engines
    may choose any of them, or several: those are compared by place and score alone.

    Args:
        one: float32 (N, J, 30, 15).
        two: float32 (N, J, 30, 15).
        min_score: candidates up to this score are ignored.
        tie: share of the largest score below which two scores are the same.
    """
    if one.shape != two.shape or one.shape[2:] != (MAX_PEAKS, PEAK_CHANNELS):
        raise ValueError(f"peaks of shapes {one.shape} and {two.shape} cannot be compared")
    largest = np.abs(np.concatenate([one, two])).max((0, 1, 2), initial=1e-30)
    scale_score, scale_tag = float(largest[0]), float(largest[3])
    scale_patch = max(float(largest[6:].max()), 1e-30)
    equal = tie * scale_score
    pairs: List[np.ndarray] = []
    tied = 0
    missing = 0
    rows = one.reshape(-1, MAX_PEAKS, PEAK_CHANNELS), two.reshape(-1, MAX_PEAKS, PEAK_CHANNELS)
    for a, b in zip(*rows):
        cut_a, cut_b = a[-1, 0] + equal, b[-1, 0] + equal
        a, b = a[a[:, 0] > min_score], b[b[:, 0] > min_score]
        same = (a[:, None, 4:6] == b[None, :, 4:6]).all(2)
        for i, j in np.argwhere(same):
            pairs.append(np.stack([a[i], b[j]]))
        alone_a, alone_b = a[~same.any(1)], b[~same.any(0)]
        tied += _same_top(alone_a, b, equal).any(1).sum()
        missing += _missing(alone_a, b, equal, max(cut_b, min_score + equal))
        missing += _missing(alone_b, a, equal, max(cut_a, min_score + equal))
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
        xy=float(np.hypot(gap[:, 1], gap[:, 2]).max()),
    )


def _same_top(some: np.ndarray, others: np.ndarray, equal: float) -> np.ndarray:
    """(A, B) bool: candidates so near and so equal that one maximum filter holds them both."""
    near = np.abs(some[:, None, 4:6] - others[None, :, 4:6]).max(2, initial=0) <= NMS_RADIUS
    return np.asarray(near & (np.abs(some[:, None, 0] - others[None, :, 0]) <= equal))


def _missing(alone: np.ndarray, others: np.ndarray, equal: float, cut: float) -> int:
    """How many candidates above the cut have no partner."""
    return int((~_same_top(alone, others, equal).any(1) & (alone[:, 0] > cut)).sum())
