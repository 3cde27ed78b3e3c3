"""How sure a keypoint is: the probability that it is right.

The height of a heatmap's peak says how sure the network is of a spot by itself. Whether the spot is
a keypoint of this person depends on more: which keypoint it is, how sharp the peak is, how good the
person is, and how sure what hangs on the same bones. A logistic function of these, fitted by
``ehrnet tune`` and stored with the weights, gives a probability: of keypoints with a score of .7
seven in ten are right. So what a threshold means is known: from half of the best F1 on, which is
about .3 for the shipped weights, a keypoint is worth more than it costs (Lipton et al. 2014,
arXiv 1402.1892).

Right is what people labelled and what lies within their uncertainty (the keypoint's own term of
COCO's similarity is .5 or more). A keypoint that nobody could place, outside the image or hidden,
is wrong wherever it is said to be. P people, J keypoints.
"""

from __future__ import annotations

import dataclasses
from typing import List, Sequence

import numpy as np

from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

_MEASURES = 4
TERMS_KEYPOINT = COCO_17.num_keypoints + _MEASURES + _MEASURES * (_MEASURES + 1) // 2
"""Coefficients: one of each keypoint, of each measure and of each product of two measures."""

USUAL_MINIMUM = 0.3
"""Half of the F1 that the shipped weights have, from which on keypoints are worth taking."""

_VARIANCE = (2 * np.array(COCO_17.sigmas)) ** 2
# A peak without curvature has no width: as uncertain as this, in units of the person's size.
_UNKNOWN = 0.3
_LEAST = 1e-3


def terms(poses: Poses, skeleton: SkeletonInfo = COCO_17) -> np.ndarray:
    """What the probability is a function of.

    Args:
        poses: as grouped: ``score`` the heights of peaks, ``std`` their widths.
        skeleton: gives the bones; of 17 keypoints.

    Returns:
        (P, J, TERMS_KEYPOINT) float64; without meaning where a keypoint is absent.
    """
    score = poses.score.astype(np.float64)
    people, num_keypoints = score.shape
    sides = np.nan_to_num(poses.bbox[:, 2:] - poses.bbox[:, :2]).astype(np.float64)
    area = np.maximum(sides.prod(1), 1.0)[:, None]
    std = poses.std.astype(np.float64)
    blur = np.where(np.isfinite(std), std**2, _UNKNOWN**2 * area)
    # Of a spot that is right, what its blur leaves of the similarity.
    sharp = _VARIANCE * area / (_VARIANCE * area + blur)
    beside = np.stack([score[:, near].mean(1) for near in _neighbours(skeleton)], 1)
    person = np.broadcast_to(_logit(poses.person_score)[:, None], score.shape)
    measures = np.clip(np.stack([_logit(score), sharp, person, beside], 2), -3, 3)
    rows, columns = np.triu_indices(_MEASURES)
    products = measures[..., rows] * measures[..., columns]
    which = np.broadcast_to(np.eye(num_keypoints), (people, num_keypoints, num_keypoints))
    return np.concatenate([which, measures, products], axis=2)


def rated(poses: Poses, coefficients: Sequence[float], skeleton: SkeletonInfo) -> Poses:
    """The same people, each keypoint's score the probability that it is right.

    Args:
        poses: as ``terms`` takes them.
        coefficients: TERMS_KEYPOINT of them, or none: scores stay the heights of peaks, as for
            skeletons of another number of keypoints.
        skeleton: of the model.
    """
    if not coefficients or skeleton.num_keypoints != COCO_17.num_keypoints or not len(poses):
        return poses
    logit = np.clip(terms(poses, skeleton) @ np.asarray(coefficients), -50, 50)
    chance = np.maximum(1 / (1 + np.exp(-logit)), _LEAST)  # 0 would mean absent
    score = np.where(poses.score > 0, chance, 0).astype(np.float32)
    return dataclasses.replace(poses, score=score)


def _neighbours(skeleton: SkeletonInfo) -> List[List[int]]:
    """What hangs on the same bones, for each keypoint; all where nothing does."""
    beside: List[List[int]] = [[] for _ in skeleton.names]
    for a, b in skeleton.edges:
        beside[a].append(b)
        beside[b].append(a)
    return [near or list(range(len(beside))) for near in beside]


def _logit(share: np.ndarray) -> np.ndarray:
    inside = np.clip(share.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.asarray(np.log(inside / (1 - inside)))
