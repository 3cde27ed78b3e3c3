"""Whether images stand upright and have their own colours, as far as the network can tell.

A camera that is mounted upside down, or whose driver names the wrong order of colours, gives no
error: people are just not found, or badly. So images are looked at in other ways, too, and if
people are seen much better in one of them, that is worth a word. Of the 111 pictures with people
that its card is measured on, one by one, H-4 (weights H-4-1681k) says so of 2 in 100 that are as
they should be, of 6 in 10 that are turned, and of 4 in 10 whose red and blue are exchanged; of the
others not, since it is sure of nobody in them.
"""

from __future__ import annotations

from typing import Dict, List, Sequence

import numpy as np

from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.rotation import ROTATIONS

# Sums of people's scores an image: from which on another way is believed, and how many times that
# of the images as they are.
_LEAST, _TURNED, _EXCHANGED = 0.4, 2.0, 1.2


def way_up_advice(
    estimator: PoseEstimator, images: Sequence[np.ndarray], rgb: Sequence[bool]
) -> str:
    """What to do about the camera; empty where images are as they should be or show nobody.

    Args:
        estimator: its ``rotation`` is what images are turned by in the end, 0 if they are fine.
        images: (h, w, 3) uint8 each, one or more.
        rgb: which of them are RGB and not BGR.

    Raises:
        EhrnetError: as ``PoseEstimator.infer``.
    """
    before = estimator.rotation
    try:
        seen: Dict[int, float] = {}
        for rotation in ROTATIONS:
            estimator.rotation = rotation
            seen[rotation] = _sum_of_scores(estimator, images, rgb)
        estimator.rotation = 0
        exchanged = _sum_of_scores(estimator, images, [not one for one in rgb])
    finally:
        estimator.rotation = before
    best = max(ROTATIONS[1:], key=seen.__getitem__)
    if seen[best] >= max(_LEAST, _TURNED * seen[0]):
        return (
            f"people are seen if the images are turned clockwise by {best} degrees (sum of their "
            f"scores {seen[best]:.1f} an image, as they are {seen[0]:.1f}): set rotation:={best}"
        )
    if exchanged >= max(_LEAST, _EXCHANGED * seen[0]):
        return (
            "people are seen better if red and blue are exchanged (sum of their scores "
            f"{exchanged:.1f} an image, as they are {seen[0]:.1f}): look whether the camera's "
            "driver names the encoding right, rgb8 or bgr8"
        )
    return ""


def _sum_of_scores(
    estimator: PoseEstimator, images: Sequence[np.ndarray], rgb: Sequence[bool]
) -> float:
    sums: List[float] = [
        float(estimator(image, one).person_score.sum()) for image, one in zip(images, rgb)
    ]
    return sum(sums) / len(sums)
