"""A camera that moves over pictures: truth for what becomes of keypoints from image to image.

A labelled picture is seen through a camera that pans, zooms and rolls a little, with the noise and
the flicker of a sensor; labels move along. So a real network errs as it does on a robot, in every
image differently, and where everybody is, is known. What such a film lacks is motion of the bodies
themselves: walkers.py has that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

RATE_HZ = 15.0
# A little closer than the picture, so that hardly anything beyond its edge comes into view.
_ZOOM = 1.16
# At most, as shares of the picture's sides, of the zoom, and in radians.
_PAN, _ZOOMING, _ROLL = 0.06, 0.06, 0.07
_PERIOD_S = (2.0, 4.0)
# Deviations: of a pixel in grey levels, and of an image's brightness.
_NOISE, _FLICKER = 4.0, 0.04


@dataclass(frozen=True)
class View:
    """One image of the film.

    Attributes:
        stamp_s: when it was taken.
        image: (H, W, 3) uint8, channels as in the picture.
        people: COCO annotations of what can be seen, without ``image_id``.
    """

    stamp_s: float
    image: np.ndarray
    people: list[dict[str, Any]]


def camera(size_wh: np.ndarray, seed: int) -> Iterator[tuple[float, np.ndarray]]:
    """Stamps and (2, 3) affine maps from the picture to the image, forever.

    Args:
        size_wh: (2,) width and height of both in pixels.
        seed: of the motion.
    """
    rng = np.random.default_rng(seed)
    pan = rng.uniform(_PAN / 3, _PAN, 2) * size_wh
    zooming, roll = rng.uniform(_ZOOMING / 3, _ZOOMING), rng.uniform(_ROLL / 4, _ROLL)
    turns, begin = 2 * np.pi / rng.uniform(*_PERIOD_S, 4), rng.uniform(0, 2 * np.pi, 4)
    centre = (size_wh - 1) / 2
    number = 0
    while True:
        x, y, closer, angle = np.sin(begin + turns * number / RATE_HZ)
        zoom = _ZOOM * (1 + zooming * closer)
        cos, sin = zoom * np.cos(roll * angle), zoom * np.sin(roll * angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        move = centre + pan * (x, y) - turn @ centre
        yield number / RATE_HZ, np.concatenate([turn, move[:, None]], 1)
        number += 1


def moved(person: Mapping[str, Any], way: np.ndarray, size_wh: np.ndarray) -> dict[str, Any]:
    """An annotation as the camera sees it; keypoints out of view are not labelled.

    Args:
        person: COCO keypoint annotation of the picture.
        way: (2, 3) from the picture to the image.
        size_wh: (2,) of the image.
    """
    points = np.array(person["keypoints"], float).reshape(-1, 3)
    xy = points[:, :2] @ way[:, :2].T + way[:, 2]
    seen = (points[:, 2] > 0) & ((xy >= 0) & (xy <= size_wh - 1)).all(1)
    x, y, width, height = person["bbox"]
    corners = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)])
    corners = corners @ way[:, :2].T + way[:, 2]
    low, high = (np.clip(end, 0, size_wh) for end in (corners.min(0), corners.max(0)))
    labels = np.concatenate([xy, points[:, 2:]], 1) * seen[:, None]
    return {
        "category_id": 1,
        "iscrowd": person.get("iscrowd", 0),
        "keypoints": labels.ravel().tolist(),
        "area": person["area"] * float(np.linalg.det(way[:, :2])),
        "bbox": [*low.tolist(), *(high - low).tolist()],
    }


def film(
    picture: np.ndarray, people: Sequence[Mapping[str, Any]], images: int, seed: int
) -> Iterator[View]:
    """What the camera sees.

    Args:
        picture: (H, W, 3) uint8.
        people: COCO keypoint annotations of the picture.
        images: how many.
        seed: of everything that is random.
    """
    size_wh = np.array(picture.shape[1::-1])
    rng = np.random.default_rng(seed + 1000)
    for (stamp_s, way), _ in zip(camera(size_wh, seed), range(images)):
        image = cv2.warpAffine(
            picture, way, size_wh.tolist(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        bright = 1 + _FLICKER * rng.standard_normal()
        noisy = image * bright + _NOISE * rng.standard_normal(image.shape)
        visible = [moved(person, way, size_wh) for person in people]
        visible = [person for person in visible if min(person["bbox"][2:]) > 1]
        yield View(stamp_s, np.clip(noisy, 0, 255).astype(np.uint8), visible)
