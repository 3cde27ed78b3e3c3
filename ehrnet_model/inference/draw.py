"""Skeletons drawn into a picture, for people to look at. Never computes poses."""

from __future__ import annotations

import math
from typing import List, Tuple

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses, opacity
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

Colour = Tuple[int, int, int]

# BGR of a person's left and right. Found by a search for people, and sides of each, that stay apart
# for colour-blind eyes too; the first ones in this order stay apart most.
_PEOPLE: Tuple[Tuple[Colour, Colour], ...] = (
    ((107, 194, 254), (3, 121, 179)),  # orange
    ((255, 148, 223), (191, 3, 148)),  # purple
    ((195, 255, 92), (109, 151, 6)),  # green
    ((135, 152, 253), (1, 13, 186)),  # red
    ((255, 239, 147), (199, 178, 9)),  # sky blue
    ((103, 244, 255), (22, 178, 189)),  # yellow
    ((209, 209, 26), (114, 114, 1)),  # teal
    ((254, 200, 200), (252, 106, 127)),  # violet
)
_WORDS: Colour = (240, 240, 240)
_OUTLINE: Colour = (24, 24, 24)
# OpenCV draws at whole pixels unless coordinates come as fixed-point numbers.
_FRACTION_BITS = 4
_FARTHEST = 1e5


def draw_poses(
    image: np.ndarray,
    poses: Poses,
    skeleton: SkeletonInfo = COCO_17,
    show_ids: bool = False,
    show_scores: bool = False,
) -> np.ndarray:
    """A copy of the picture with every person's skeleton over it, the best person on top.

    Everybody has a colour: by track identity where there is one, else by order. The person's left
    is light, the right dark, what lies between in between. Lines grow with the picture and shrink
    with far people; doubtful keypoints are faint, see ``opacity``.

    Args:
        image: uint8 (h, w, 3) BGR, not changed.
        poses: people in pixels of this image.
        skeleton: which keypoints; its names tell left from right.
        show_ids: writes the track identity (where there is one) at each person.
        show_scores: writes the person score there.

    Returns:
        uint8 (h, w, 3) BGR, a new array.

    Raises:
        EhrnetError: another type or shape of image, or poses of another skeleton.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        kind = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise EhrnetError(
            f"poses are drawn into uint8 images of shape (h, w, 3) in BGR order, not {kind}: "
            "convert the image first."
        )
    if poses.score.shape[1] != skeleton.num_keypoints:
        raise EhrnetError(
            f"poses have {poses.score.shape[1]} keypoints, but skeleton {skeleton.name} has "
            f"{skeleton.num_keypoints}: draw them with the skeleton of their model."
        )
    canvas = np.array(image, order="C")
    if canvas.size == 0:
        return canvas
    sides = [_side(name) for name in skeleton.names]
    for person in reversed(range(len(poses))):
        number = int(poses.id[person])
        colours = _colours(number if number >= 0 else person)
        width = _line_width(canvas.shape[:2], poses.bbox[person])
        xy, score = poses.xy[person], poses.score[person]
        present = np.isfinite(xy).all(1) & (score > 0)
        for a, b in skeleton.edges:
            if present[a] and present[b]:
                colour = colours[_between(sides[a], sides[b])]
                _bone(canvas, xy[a], xy[b], colour, width, opacity(min(score[a], score[b])))
        for k in np.flatnonzero(present):
            _dot(canvas, xy[k], colours[sides[k]], width, opacity(score[k]))
        words = []
        if show_ids and poses.id[person] >= 0:
            words.append(f"#{poses.id[person]}")
        if show_scores:
            words.append(f"{poses.person_score[person]:.2f}")
        if words and present.any():
            _label(canvas, " ".join(words), poses.bbox[person])
    return canvas


def _colours(number: int) -> Tuple[Colour, Colour, Colour]:
    """Centre, left and right of the person of this number: so ``_side`` counts them."""
    left, right = _PEOPLE[number % len(_PEOPLE)]
    b, g, r = ((a + b) // 2 for a, b in zip(left, right))
    return (b, g, r), left, right


def _side(name: str) -> int:
    return 1 if name.startswith("left_") else 2 if name.startswith("right_") else 0


def _between(a: int, b: int) -> int:
    """A bone's side: that of its ends, also when one is central; none between left and right."""
    return max(a, b) if a == b or 0 in (a, b) else 0


def _line_width(image_hw: Tuple[int, int], bbox: np.ndarray) -> int:
    """Pixels: 3 at 640x480, 7 at 1920x1080, less for people too small to carry it."""
    usual = 0.005 * math.sqrt(image_hw[0] * image_hw[1])
    extent = float(np.hypot(bbox[2] - bbox[0], bbox[3] - bbox[1]))
    if math.isfinite(extent):
        usual = min(usual, max(extent / 40, 0.4 * usual))
    return max(1, int(usual + 0.5))


def _fixed(xy: np.ndarray) -> Tuple[int, int]:
    x, y = np.clip(xy, -_FARTHEST, _FARTHEST) * (1 << _FRACTION_BITS)
    return int(round(float(x))), int(round(float(y)))


def _window(canvas: np.ndarray, points: List[np.ndarray], margin: int) -> Tuple[int, int, int, int]:
    """left, top, right, bottom of what drawing around the points can touch, inside the canvas."""
    corners = np.clip(np.stack(points), -_FARTHEST, _FARTHEST)
    left, top = np.maximum(np.floor(corners.min(0)).astype(int) - margin, 0)
    right, bottom = np.ceil(corners.max(0)).astype(int) + margin + 1
    return left, top, min(right, canvas.shape[1]), min(bottom, canvas.shape[0])


def _bone(
    canvas: np.ndarray, a: np.ndarray, b: np.ndarray, colour: Colour, width: int, solid: float
) -> None:
    left, top, right, bottom = _window(canvas, [a, b], 2 * width + 2)
    if left >= right or top >= bottom:
        return
    target = canvas[top:bottom, left:right]
    layer = target.copy() if solid < 1 else target
    start, end = _fixed(a - (left, top)), _fixed(b - (left, top))
    outline = width + 2 * max(1, width // 3)
    cv2.line(layer, start, end, _OUTLINE, outline, cv2.LINE_AA, _FRACTION_BITS)
    cv2.line(layer, start, end, colour, width, cv2.LINE_AA, _FRACTION_BITS)
    _blend(target, layer, solid)


def _dot(canvas: np.ndarray, xy: np.ndarray, colour: Colour, width: int, solid: float) -> None:
    left, top, right, bottom = _window(canvas, [xy], 2 * width + 3)
    if left >= right or top >= bottom:
        return
    target = canvas[top:bottom, left:right]
    layer = target.copy() if solid < 1 else target
    centre, unit = _fixed(xy - (left, top)), 1 << _FRACTION_BITS
    radius = width + 0.5
    edge = max(1.0, width / 3)
    cv2.circle(
        layer, centre, int((radius + edge) * unit), _OUTLINE, -1, cv2.LINE_AA, _FRACTION_BITS
    )
    cv2.circle(layer, centre, int(radius * unit), colour, -1, cv2.LINE_AA, _FRACTION_BITS)
    _blend(target, layer, solid)


def _blend(target: np.ndarray, layer: np.ndarray, solid: float) -> None:
    if layer is not target:
        target[...] = cv2.addWeighted(layer, solid, target, 1 - solid, 0)


def _label(canvas: np.ndarray, text: str, bbox: np.ndarray) -> None:
    """The text on a dark plate above the person's first keypoints, inside the picture."""
    height, width = canvas.shape[:2]
    scale = max(0.4, 0.0009 * math.sqrt(height * width))
    stroke = max(1, int(scale * 2))
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_w, text_h), below = cv2.getTextSize(text, font, scale, stroke)
    gap = below // 2 + 1
    x = int(np.clip(bbox[0], gap, max(gap, width - text_w - gap)))
    lowest = max(text_h + gap, height - gap - 1)
    y = int(np.clip(bbox[1] - 2 * text_h, text_h + gap, lowest))
    plate = canvas[max(0, y - text_h - gap) : y + gap, max(0, x - gap) : x + text_w + gap]
    plate[...] = plate // 4
    cv2.putText(canvas, text, (x, y), font, scale, _WORDS, stroke, cv2.LINE_AA)
