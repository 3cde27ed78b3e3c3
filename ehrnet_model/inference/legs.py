"""Two legs where a network saw one place twice.

Left and right of a knee or of an ankle look alike, and small networks give both maps the same
peaks; the highest of each is then the same place, and a leg is lost. Where that happened, two
places well apart are better, in the order in which the torso has left and right.
"""

from __future__ import annotations

import numpy as np

_TORSO = ((5, 6), (11, 12))
_PAIRS = ((13, 14), (15, 16))
# In units of the person's larger side: nearer than this is one place; a torso less wide shows no
# order.
_ONE_PLACE, _EDGE_ON = 0.12, 0.05
# The weaker of the two places has at least this share of the weaker score there was.
_AS_GOOD = 0.7
# How far beyond the box of the person's keypoints, in units of its longer side.
_MARGIN = 0.12


def part_legs(
    score: np.ndarray, xy: np.ndarray, tag: np.ndarray, chosen: np.ndarray, gate: float
) -> np.ndarray:
    """Knees and ankles of one place moved to two, where free peaks offer that.

    Args:
        score: (17, K) of all peaks, 0 where there is none.
        xy: (17, K, 2) where they are, in pixels of the network input.
        tag: (17, K).
        chosen: (P, 17) index of each person's peak or -1, best person first.
        gate: a peak whose tag is this far from the person's mean tag, or farther, is none of it.

    Returns:
        (P, 17), as ``chosen``; nobody has more keypoints or fewer than before.
    """
    chosen = chosen.copy()
    joint = np.arange(chosen.shape[1])
    place = np.where((chosen >= 0)[..., None], xy[joint, chosen], np.nan)
    sizes = (np.fmax.reduce(place, axis=1) - np.fmin.reduce(place, axis=1)).max(1)
    free = np.ones(score.shape, bool)
    present = chosen >= 0
    free[np.nonzero(present)[1], chosen[present]] = False
    for pair in _PAIRS:
        both = slice(pair[0], pair[1] + 1)
        apart = np.hypot(*(place[:, pair[0]] - place[:, pair[1]]).T)
        for person in np.flatnonzero(apart < _ONE_PLACE * sizes):
            row, body, size = chosen[person], place[person], sizes[person]
            mean_tag = tag[joint, row][row >= 0].mean()
            least = _AS_GOOD * score[pair, row[both]].min()
            low, high = np.nanmin(body, axis=0), np.nanmax(body, axis=0)
            margin = _MARGIN * size
            free[pair, row[both]] = True  # its own
            inside = (xy[both] >= low - margin) & (xy[both] <= high + margin)
            fitting = free[both] & (score[both] >= least) & (np.abs(tag[both] - mean_tag) < gate)
            left, right = (np.flatnonzero(one) for one in fitting & inside[..., 0] & inside[..., 1])
            gap = xy[pair[0], left][:, None] - xy[pair[1], right]
            fits = np.hypot(gap[..., 0], gap[..., 1]) >= _ONE_PLACE * size
            torso = np.nansum([body[a] - body[b] for a, b in _TORSO], axis=0)
            if np.hypot(*torso) >= _EDGE_ON * size:
                fits &= gap @ torso > 0
            if fits.any():
                sum_of = score[pair[0], left][:, None] + score[pair[1], right]
                best = np.unravel_index(int(np.where(fits, sum_of, -1).argmax()), fits.shape)
                row[both] = left[best[0]], right[best[1]]
            free[pair, row[both]] = False
    return chosen
