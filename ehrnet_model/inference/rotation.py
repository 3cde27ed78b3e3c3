"""Cameras that are mounted sideways or upside down.

A network that learnt upright people hardly sees others: where H-4 finds 283 people in the 111
pictures with people that its card is measured on, it finds 39 when the pictures stand on their
heads (weights H-4-1681k). So images are turned before people are looked for,
and what is found is turned back: poses are in the camera's own pixels, where CameraInfo and depth
are valid.
"""

from __future__ import annotations

import dataclasses
from typing import Tuple

import cv2
import numpy as np

from ehrnet_model.inference.poses import Poses

ROTATIONS = (0, 90, 180, 270)
"""Degrees by which an image can be turned, clockwise."""

_TURNS = {
    90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_COUNTERCLOCKWISE,
}


def turned(image: np.ndarray, degrees: int) -> np.ndarray:
    """An image (h, w, ...) turned clockwise; itself for 0.

    Args:
        image: any type that OpenCV knows.
        degrees: one of ROTATIONS.
    """
    return cv2.rotate(image, _TURNS[degrees]) if degrees else image


def turned_hw(image_hw: Tuple[int, int], degrees: int) -> Tuple[int, int]:
    """(height, width) of an image of that size when it is turned."""
    return image_hw if degrees in (0, 180) else (image_hw[1], image_hw[0])


def turned_along(poses: Poses, degrees: int, image_hw: Tuple[int, int]) -> Poses:
    """The people of an image in the pixels of the image when it is turned.

    Args:
        poses: in pixels of the image.
        degrees: one of ROTATIONS.
        image_hw: (height, width) of the image as it is.
    """
    return turned_back(poses, -degrees % 360, turned_hw(image_hw, degrees))


def turned_back(poses: Poses, degrees: int, image_hw: Tuple[int, int]) -> Poses:
    """The people of a turned image in the pixels of the image as it was.

    Args:
        poses: in pixels of ``turned(image, degrees)``.
        degrees: one of ROTATIONS.
        image_hw: (height, width) of the image as it was.
    """
    if not degrees:
        return poses
    x, y = poses.xy[..., 0], poses.xy[..., 1]
    right, bottom = np.float32(image_hw[1] - 1), np.float32(image_hw[0] - 1)
    places = {90: (y, bottom - x), 180: (right - x, bottom - y), 270: (right - y, x)}
    xy = np.stack(places[degrees], -1)
    back = Poses.build(xy, poses.score, poses.std, poses.person_score)
    return dataclasses.replace(back, id=poses.id)
