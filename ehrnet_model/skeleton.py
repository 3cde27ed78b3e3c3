"""Which keypoints a model finds: names, edges, mirror pairs and OKS sigmas. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class SkeletonInfo:
    """A set of keypoints.

    Attributes:
        name: identifier stored with weights, e.g. ``coco-17``.
        names: K keypoint names; the position in this tuple is the index used everywhere.
        edges: pairs of keypoint indices that are drawn as bones.
        flip: K indices; ``flip[k]`` is the keypoint that k becomes in a mirrored image.
        sigmas: K falloff constants of the object keypoint similarity (COCO keypoint evaluation).
    """

    name: str
    names: Tuple[str, ...]
    edges: Tuple[Tuple[int, int], ...]
    flip: Tuple[int, ...]
    sigmas: Tuple[float, ...]

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.names)


COCO_17 = SkeletonInfo(
    name="coco-17",
    names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    edges=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
    flip=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    sigmas=(
        0.026,
        0.025,
        0.025,
        0.035,
        0.035,
        0.079,
        0.079,
        0.072,
        0.072,
        0.062,
        0.062,
        0.107,
        0.107,
        0.087,
        0.087,
        0.089,
        0.089,
    ),
)

SKELETONS = {COCO_17.name: COCO_17}
