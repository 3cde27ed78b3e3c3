"""Heatmap targets, loss masks and tag places of one training window.

Coordinates: pixels of the window, pixel centres at whole numbers. Cell i of a map with stride s is
centred at s * i + (s - 1) / 2. Everything here is NumPy and works on one window.
"""

from __future__ import annotations

import numpy as np

from ehrnet_model.training.labels import POSITIVE, WEAK

SIGMA = 2.0
"""Standard deviation of a target peak in cells, at both resolutions (as the reference trains)."""

_REACH = 3.5
_WEAK_REACH = 4.0


def to_cells(xy: np.ndarray, stride: int) -> np.ndarray:
    """Window pixels to cells of a map with this stride; the inverse of ``to_pixels``."""
    return (np.asarray(xy, np.float64) - (stride - 1) / 2) / stride


def to_pixels(cells: np.ndarray, stride: int) -> np.ndarray:
    """Cells of a map with this stride to window pixels."""
    return np.asarray(cells, np.float64) * stride + (stride - 1) / 2


def heatmaps(
    cells: np.ndarray, present: np.ndarray, size_hw: tuple[int, int], sigma: float = SIGMA
) -> np.ndarray:
    """Peaks of height 1 at sub-pixel cells, the highest where people overlap.

    Peaks reach 3.5 sigma from the nearest cell, which with whole-numbered centres and sigma 2 is
    the 15x15 window of the reference. A peak whose nearest cell is outside the map is not drawn.

    Args:
        cells: (P, J, 2) centres in cells.
        present: (P, J) bool.
        size_hw: height and width of the map.
        sigma: standard deviation in cells.

    Returns:
        (J, H, W) float32.
    """
    h, w = size_hw
    maps = np.zeros((cells.shape[1], h, w), np.float32)
    nearest = np.floor(cells + 0.5).astype(int)
    inside = present & (nearest >= 0).all(-1) & (nearest[..., 0] < w) & (nearest[..., 1] < h)
    reach = int(_REACH * sigma)
    for p, j in np.argwhere(inside):
        cx, cy = nearest[p, j]
        x = np.arange(max(0, cx - reach), min(w, cx + reach + 1))
        y = np.arange(max(0, cy - reach), min(h, cy + reach + 1))
        gx = np.exp(-((x - cells[p, j, 0]) ** 2) / (2 * sigma**2))
        gy = np.exp(-((y - cells[p, j, 1]) ** 2) / (2 * sigma**2))
        part = maps[j, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        np.maximum(part, (gy[:, None] * gx).astype(np.float32), out=part)
    return maps


def loss_mask(
    cells: np.ndarray,
    states: np.ndarray,
    ignore: list[np.ndarray],
    keep: list[np.ndarray] | None,
    unlabelled_channels: list[int],
    size_hw: tuple[int, int],
    sigma: float = SIGMA,
) -> np.ndarray:
    """Where the heatmap loss counts, per keypoint.

    Args:
        cells: (P, J, 2) keypoints in cells.
        states: (P, J) POSITIVE, ABSENT or WEAK.
        ignore: polygons (4, 2) in cells without loss.
        keep: where given, loss only inside these polygons.
        unlabelled_channels: keypoints without labels here: no loss but around a positive one.
        size_hw: height and width of the map.
        sigma: of the targets; a positive peak keeps its surroundings whatever lies over it.

    Returns:
        (J, H, W) uint8, 1 where the loss counts.
    """
    import cv2

    h, w = size_hw
    joints = cells.shape[1]

    def fill(polygons: list[np.ndarray], canvas: np.ndarray, value: int) -> None:
        for polygon in polygons:
            if np.abs(polygon).max() < 30000:
                cv2.fillConvexPoly(canvas, np.round(polygon).astype(np.int32), value)

    plane = np.ones((h, w), np.uint8)
    if keep is not None:
        plane[:] = 0
        fill(keep, plane, 1)
    fill(ignore, plane, 0)
    mask = np.repeat(plane[None], joints, 0)
    for channel in unlabelled_channels:
        mask[channel] = 0
    weak = states == WEAK
    positive = states == POSITIVE
    for where, value, reach in ((weak, 0, _WEAK_REACH), (positive, 1, _REACH)):
        for p, j in np.argwhere(where):
            x, y = cells[p, j]
            if -20 < x < w + 20 and -20 < y < h + 20:
                cv2.circle(mask[j], (round(x), round(y)), round(reach * sigma / 2 + 1), value, -1)
    return mask


def tag_places(
    cells: np.ndarray, present: np.ndarray, size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the tag maps are read: (M,) flat index into (J, H, W) and (M,) person number."""
    h, w = size_hw
    nearest = np.floor(cells + 0.5).astype(int)
    inside = present & (nearest >= 0).all(-1) & (nearest[..., 0] < w) & (nearest[..., 1] < h)
    person, joint = np.nonzero(inside)
    x, y = nearest[person, joint, 0], nearest[person, joint, 1]
    return (joint * h + y) * w + x, person
