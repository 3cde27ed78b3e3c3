"""Poses: the one type that leaves the inference room."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np

# Keypoints further outside the image, in units of their person's box, are not found.
_BEYOND = 0.04


@dataclass(frozen=True)
class Poses:
    """The people of one image, best first. P people, J keypoints (17 for COCO).

    Coordinates are pixels of the image that was given, x right, y down, pixel centres at whole
    numbers. A keypoint that was not found has ``xy`` NaN, ``score`` 0 and ``std`` NaN.

    Attributes:
        xy: (P, J, 2) float32.
        score: (P, J) float32 in 0..1, the probability that the keypoint is right, see
            keypoint_score.py; of models without such a fit the height of the heatmap's peak, 1
            where a network overshoots. `ehrnet evaluate` prints what it is worth.
        std: (P, J) float32, standard deviation of x and of y in pixels, NaN where unknown: from
            the curvature of the peak, as `std_gain` fits it to the errors of right keypoints.
        person_score: (P,) float32 in 0..1, ranks people: the expected similarity (OKS) to a true
            person, or the mean of the keypoints' scores where the model does not know it.
        bbox: (P, 4) float32, x0 y0 x1 y1 around the present keypoints.
        id: (P,) int32, track identity, -1 when not tracked.
    """

    xy: np.ndarray
    score: np.ndarray
    std: np.ndarray
    person_score: np.ndarray
    bbox: np.ndarray
    id: np.ndarray

    def __post_init__(self) -> None:
        p, j = self.score.shape if self.score.ndim == 2 else (-1, -1)
        expected = {"xy": (p, j, 2), "std": (p, j), "person_score": (p,), "bbox": (p, 4)}
        for name, shape in {**expected, "id": (p,)}.items():
            actual = getattr(self, name).shape
            if actual != shape:
                raise ValueError(f"Poses.{name} has shape {actual}, expected {shape}")

    def __len__(self) -> int:
        return len(self.person_score)

    def __getitem__(self, index: Any) -> Poses:
        """People chosen by a slice, mask or index array; an integer gives Poses of one person."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        return Poses(
            self.xy[index],
            self.score[index],
            self.std[index],
            self.person_score[index],
            self.bbox[index],
            self.id[index],
        )

    def best_first(self) -> Poses:
        """The same people in the order of their scores; who scores the same keeps its place."""
        return self[np.argsort(-self.person_score, kind="stable")]

    def within(self, image_hw: Tuple[int, int]) -> Poses:
        """The same with all keypoints in the image; without those who have none there.

        What borders an image in a network's input can have peaks, too. A keypoint a little outside
        is moved to the outermost pixels' centres, one further off counts as not found: by more than
        a pixel and 4 % of the longer side of its person's box. On 182 pictures of the training data
        AP and F1 are those of keypoints left where they are; without the 4 %, AP is .002 less.

        Args:
            image_hw: (height, width) of the image.
        """
        last = np.array([image_hw[1] - 1, image_hw[0] - 1], np.float32)
        inside = np.clip(self.xy, 0, last)
        if np.array_equal(inside, self.xy, equal_nan=True):
            return self
        side = (self.bbox[:, 2:] - self.bbox[:, :2]).max(1)
        outside = (np.abs(self.xy - inside) > np.maximum(1, _BEYOND * side)[:, None, None]).any(-1)
        score = np.where(outside, 0, self.score)
        poses = Poses.build(inside, score, self.std, self.person_score)
        poses = dataclasses.replace(poses, id=self.id)
        return poses[(poses.score > 0).any(1) | ~outside.any(1)]

    def above(self, score: float) -> Poses:
        """The same people without their keypoints of a lower score; boxes are of what is left.

        For drawing, and for who takes a keypoint as there or not. As boxes of people those of all
        keypoints are better: most that are unsure lie near.
        """
        if not score > 0 or bool((self.score >= score)[self.score > 0].all()):
            return self
        sure = np.where(self.score >= score, self.score, 0)
        poses = Poses.build(self.xy, sure, self.std, self.person_score)
        return dataclasses.replace(poses, id=self.id)

    def with_std_gain(self, gain: float) -> Poses:
        """The same with ``std`` times ``gain``."""
        return dataclasses.replace(self, std=self.std * np.float32(gain))

    @staticmethod
    def empty(num_keypoints: int = 17) -> Poses:
        """Nobody."""
        j = num_keypoints
        return Poses.build(np.zeros((0, j, 2)), np.zeros((0, j)), np.zeros((0, j)), np.zeros(0))

    @staticmethod
    def build(
        xy: np.ndarray, score: np.ndarray, std: np.ndarray, person_score: np.ndarray
    ) -> Poses:
        """Poses from (P, J, 2), (P, J), (P, J), (P,): blanks absent keypoints, adds bbox and id.

        A keypoint is absent where its score is not above 0 or its position is not finite. Scores
        above 1 become 1.
        """
        xy = np.array(xy, np.float32)
        score = np.minimum(np.array(score, np.float32), np.float32(1))
        person_score = np.minimum(np.array(person_score, np.float32), np.float32(1))
        std = np.array(std, np.float32)
        absent = ~(score > 0) | ~np.isfinite(xy).all(-1)
        xy[absent], score[absent], std[absent] = np.nan, 0, np.nan
        bbox = np.empty((len(xy), 4), np.float32)
        if bbox.size:
            bbox[:, :2] = np.where(absent[..., None], np.inf, xy).min(1)
            bbox[:, 2:] = np.where(absent[..., None], -np.inf, xy).max(1)
            bbox[absent.all(1)] = np.nan
        ids = np.full(len(xy), -1, np.int32)
        return Poses(xy, score, std, person_score, bbox, ids)

    def to_coco(self, image_id: int, category_id: int = 1) -> List[Dict[str, Any]]:
        """COCO keypoint results; absent keypoints are written as 0 0 0."""
        results = []
        for xy, score, person in zip(self.xy, self.score, self.person_score):
            triples = np.concatenate([np.nan_to_num(xy), score[:, None]], 1)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "keypoints": [round(float(v), 3) for v in triples.ravel()],
                    "score": float(person),
                }
            )
        return results


@dataclass(frozen=True)
class Expected:
    """Who should be in an image, by those before it.

    Attributes:
        people: where they should be, in pixels of the image.
        number: of the image, from 0; each is looked at in other views than the one before.
        whole: whether the whole image is looked at, and not only where they should be.
    """

    people: Poses
    number: int = 0
    whole: bool = True


def opacity(score: float) -> float:
    """How solid a keypoint of such a score is shown, 0.2 to 1: about the chance that it is right.

    Of those from 0.8 on most are.
    """
    return min(max(float(score) / 0.8, 0.2), 1.0)


@dataclass(frozen=True)
class Timings:
    """Milliseconds each stage took for one image."""

    letterbox_ms: float
    engine_ms: float
    decode_ms: float

    def __add__(self, other: Timings) -> Timings:
        """Of both together."""
        return Timings(
            self.letterbox_ms + other.letterbox_ms,
            self.engine_ms + other.engine_ms,
            self.decode_ms + other.decode_ms,
        )

    @property
    def total_ms(self) -> float:
        """Sum of the stages."""
        return self.letterbox_ms + self.engine_ms + self.decode_ms
