"""How good a found person is: the similarity (COCO's OKS) to a true person that is to be expected.

The mean of the keypoints' scores says how sure the network is of each spot, but not whether the
spots make a person. A logistic function of a few measures of the skeleton, and of their products,
says that better; rescoring people is known from Geng et al. 2021 (arXiv 2104.02300),
who train a small network for it. Its coefficients are fitted by ``ehrnet tune`` and stored with the
weights. Somebody who was looked at again (second_look.py) gets another score at the end, of two
measures more. P people, J keypoints.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from ehrnet_model.skeleton import COCO_17

_MEASURES = 7


def _terms_of(measures: int) -> int:
    """Constant, measures, products of two measures."""
    return 1 + measures + measures * (measures + 1) // 2


TERMS = _terms_of(_MEASURES)
"""Coefficients of the function."""
TERMS_AGAIN = _terms_of(_MEASURES + 2)
"""The same after second looks."""

# A peak without curvature has no width: as uncertain as this, in pixels of the network input.
_UNKNOWN_PX = 20.0
_VARIANCE = (2 * np.array(COCO_17.sigmas)) ** 2


def terms(
    xy: np.ndarray, score: np.ndarray, std: np.ndarray, spans: np.ndarray, *more: np.ndarray
) -> np.ndarray:
    """What the score is a function of.

    Args:
        xy: (P, J, 2) positions in pixels of the network input; the size of people there matters,
            since networks know some sizes better than others. Any values where absent.
        score: (P, J) of the keypoints, 0 where absent.
        std: (P, J) standard deviation of the positions in the same pixels, NaN where unknown.
        spans: (J, J) typical distances of keypoints, see ``anatomy``.
        more: none, or two further measures (P,) for a score after second looks.

    Returns:
        (P, TERMS) float64, or (P, TERMS_AGAIN); each between about -3 and 3 or a product of two
        such.
    """
    people, num_keypoints = score.shape
    found = score > 0
    count = np.maximum(found.sum(1), 1)
    xy = np.where(found[..., None], xy, np.nan).astype(np.float64)
    if not people:
        return np.zeros((0, _terms_of(_MEASURES + len(more))))
    low = np.where(found[..., None], xy, np.inf).min(1)
    high = np.where(found[..., None], xy, -np.inf).max(1)
    width, height = np.where(found.any(1), (high - low).T, 0.0)
    area = np.maximum(width * height, 1.0)[:, None]
    blur = np.where(np.isfinite(std), std, _UNKNOWN_PX).astype(np.float64) ** 2
    variance = _VARIANCE if num_keypoints == len(_VARIANCE) else np.full(num_keypoints, 0.01)
    # Of a spot that is right, what its blur leaves of the similarity.
    sharp = (score * variance * area / (variance * area + blur)).sum(1) / num_keypoints
    # How well the distances fit one size of person.
    upper = np.triu_indices(num_keypoints, 1)
    ratio = np.hypot(*(xy[:, upper[0]] - xy[:, upper[1]]).transpose(2, 0, 1)) / spans[upper]
    known = np.isfinite(ratio)
    ratio = np.where(known, np.maximum(ratio, 1e-3), np.nan)
    none = ~known.any(1)
    ratio[none, 0], known[none, 0] = 1.0, True
    # By hand, since NumPy's functions for the like take most of a person's time.
    pairs, person = known.sum(1), np.arange(people)
    log = np.where(known, np.log(ratio), 0.0)
    off = np.where(known, log - (log.sum(1) / pairs)[:, None], 0.0)
    spread = np.sqrt((off**2).sum(1) / pairs)
    ordered = np.sort(ratio, axis=1)  # NaN last
    middle = (ordered[person, (pairs - 1) // 2] + ordered[person, pairs // 2]) / 2
    stretch = ordered[person, pairs - 1] / middle
    measures = np.stack(
        [
            score.sum(1) / num_keypoints,
            count / num_keypoints,
            np.sort(score, axis=1)[:, -3:].mean(1),
            sharp,
            np.log((np.maximum(width, height) + 1) / 64),
            spread,
            np.log(stretch),
            *more,
        ],
        axis=1,
    )
    measures = np.clip(measures, -3, 3)
    rows, columns = np.triu_indices(measures.shape[1])
    products = measures[:, rows] * measures[:, columns]
    return np.concatenate([np.ones((people, 1)), measures, products], axis=1)


def expected_similarity(terms_of: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """(P,) float32, between 0 and 1, from (P, N) terms and N coefficients."""
    logit = np.clip(terms_of @ np.asarray(coefficients), -50, 50)
    return np.asarray(1 / (1 + np.exp(-logit)), np.float32)
