"""What a window shows, decided before any pixel is touched: light enough to make one per window.

Two ways draw a plan: NumPy, one window at a time (``windows``, the reference), and torch, a batch
at once on the device (``painter``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST = 8
"""Pictures with a side of so many pixels are not halved."""


@dataclass(frozen=True)
class ScenePlan:
    """A square cut out of a picture, and the columns of it that a window shows.

    Attributes:
        pack, image: which picture: number of the pack among the sampler's, index in it.
        matrix: (2, 3) from picture pixels to pixels of the square, see ``affine``.
        size: side of the square in pixels.
        mirror: whether left and right keypoints change places.
        border: RGB outside the picture.
        table: (256, 3) uint8, what becomes of the values of each colour.
        grey: whether the square loses its colours before ``table``.
        columns: first column shown, and how many.
        place: left and top of what is shown, in pixels of the window.
        published: targets and masks as the published trainer makes them, see ``windows.Marks``.
        part: left, top, right and bottom of the part of the picture that is used, in its pixels,
            the last two exclusive; what lies beyond is border. None: the whole picture.
    """

    pack: int
    image: int
    matrix: np.ndarray
    size: int
    mirror: bool
    border: tuple[int, int, int]
    table: np.ndarray
    grey: bool
    columns: tuple[int, int]
    place: tuple[int, int] = (0, 0)
    published: bool = False
    part: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class WindowPlan:
    """A window of ``size`` pixels on each side; its scenes cover it without overlap."""

    size: int
    scenes: tuple[ScenePlan, ...]


def affine(
    centre: tuple[float, float], side: float, size: int, degrees: float = 0.0, mirror: bool = False
) -> np.ndarray:
    """2x3 matrix from picture pixels to window pixels.

    A square of ``side`` picture pixels around ``centre``, turned by ``degrees`` (clockwise on the
    screen), becomes the window of ``size`` pixels. Pixel centres at whole numbers: the centre goes
    to (size - 1) / 2.
    """
    scale, angle = size / side, np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirror:
        matrix[0] *= -1
    middle = (size - 1) / 2
    return np.column_stack([matrix, middle - matrix @ np.array(centre)])


def published_affine(
    size_hw: tuple[int, int],
    scale: float,
    degrees: float,
    offset: tuple[int, int],
    size: int,
    mirror: bool = False,
) -> np.ndarray:
    """The published trainer's 2x3 matrix from picture pixels to window pixels.

    Args:
        size_hw: of the picture.
        scale: side of what is shown as a share of the picture's shorter side.
        degrees: turned anticlockwise on the screen.
        offset: of its centre from the picture's, pixels.
        size: side of the window; its centre is at ``size / 2``, half a pixel off ours.
        mirror: flipped afterwards, column x to ``size - 1 - x``.
    """
    height, width = size_hw
    gain, angle = size / (min(height, width) * scale), np.deg2rad(degrees)
    turn = gain * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.array([width / 2 + offset[0], height / 2 + offset[1]])
    matrix = np.column_stack([turn, size / 2 - turn @ centre])
    if mirror:
        matrix[0] *= -1
        matrix[0, 2] += size - 1
    return matrix


def reduction(matrix: np.ndarray, height: int, width: int) -> tuple[int, np.ndarray]:
    """How often a picture is halved before it is warped, so that no detail aliases.

    Args:
        matrix: (2, 3) from picture pixels to window pixels.
        height: of the picture.
        width: of the picture.

    Returns:
        number of halvings, and the matrix from the halved picture's pixels.
    """
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    count, moved = 0, matrix
    while scale < 0.6 and min(height, width) > SMALLEST:
        h, w = height // 2, width // 2
        factors = np.array([w / width, h / height])
        # x_small = (x + 0.5) * f - 0.5; put its inverse in front of the matrix.
        back = np.array(
            [
                [1 / factors[0], 0, 0.5 / factors[0] - 0.5],
                [0, 1 / factors[1], 0.5 / factors[1] - 0.5],
            ]
        )
        moved = moved @ np.vstack([back, [0, 0, 1]])
        height, width, count = h, w, count + 1
        scale *= 2
    return count, moved


def reduced_part(
    part: tuple[int, int, int, int] | None, size_hw: tuple[int, int], reduced_hw: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A part of a picture (``ScenePlan.part``) in the pixels of its halvings, one at least."""
    height, width = reduced_hw
    if part is None:
        return 0, 0, width, height
    across, down = width / size_hw[1], height / size_hw[0]
    left, top = min(round(part[0] * across), width - 1), min(round(part[1] * down), height - 1)
    right, bottom = round(part[2] * across), round(part[3] * down)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def halve(picture: np.ndarray) -> np.ndarray:
    """The picture at half its size (each side rounded down), averaged over areas."""
    import cv2

    h, w = picture.shape[0] // 2, picture.shape[1] // 2
    return cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)
