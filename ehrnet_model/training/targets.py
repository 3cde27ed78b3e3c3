"""Heatmap targets, loss masks and tag places of one training window.

Coordinates: pixels of the window, pixel centres at whole numbers. Cell i of a map with stride s is
centred at s * i + (s - 1) / 2. Everything here is NumPy and works on one window.
"""

from __future__ import annotations

import numpy as np

from ehrnet_model.training.labels import POSITIVE, WEAK

SIGMA = 2.0
"""Standard deviation of a target peak in cells, at both resolutions (as the reference trains)."""

PEAK_REACH = int(3.5 * SIGMA)
"""Cells on each side of its nearest one to which a peak reaches."""

POSITIVE_DISC = round(3.5 * SIGMA / 2 + 1)
WEAK_DISC = round(4.0 * SIGMA / 2 + 1)
"""Radius in cells: around a positive keypoint there is always loss, around a weak one never."""


def to_cells(xy: np.ndarray, stride: int) -> np.ndarray:
    """Window pixels to cells of a map with this stride; the inverse of ``to_pixels``."""
    return (np.asarray(xy, np.float64) - (stride - 1) / 2) / stride


def to_pixels(cells: np.ndarray, stride: int) -> np.ndarray:
    """Cells of a map with this stride to window pixels."""
    return np.asarray(cells, np.float64) * stride + (stride - 1) / 2


def nearest_cells(cells: np.ndarray) -> np.ndarray:
    """The cell (integers) whose centre is nearest to a place in cells."""
    return np.floor(cells + 0.5).astype(int)


def disc(radius: int) -> np.ndarray:
    """(M, 2) int64: x and y of every cell of the disc that ``loss_mask`` draws around (0, 0)."""
    import cv2

    canvas = np.zeros((2 * radius + 3,) * 2, np.uint8)
    cv2.circle(canvas, (radius + 1, radius + 1), radius, 1, -1)
    return np.argwhere(canvas)[:, ::-1].astype(np.int64) - (radius + 1)


def heatmaps(cells: np.ndarray, present: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Peaks of height 1 at sub-pixel cells, the highest where people overlap.

    Peaks reach 3.5 sigma from the nearest cell, which with whole-numbered centres and sigma 2 is
    the 15x15 window of the reference. A peak whose nearest cell is outside the map is not drawn.

    Args:
        cells: (P, J, 2) centres in cells.
        present: (P, J) bool.
        size_hw: height and width of the map.

    Returns:
        (J, H, W) float32.
    """
    h, w = size_hw
    maps = np.zeros((cells.shape[1], h, w), np.float32)
    nearest = nearest_cells(cells)
    inside = present & (nearest >= 0).all(-1) & (nearest[..., 0] < w) & (nearest[..., 1] < h)
    reach = PEAK_REACH
    for p, j in np.argwhere(inside):
        cx, cy = nearest[p, j]
        x = np.arange(max(0, cx - reach), min(w, cx + reach + 1))
        y = np.arange(max(0, cy - reach), min(h, cy + reach + 1))
        gx = np.exp(-((x - cells[p, j, 0]) ** 2) / (2 * SIGMA**2))
        gy = np.exp(-((y - cells[p, j, 1]) ** 2) / (2 * SIGMA**2))
        part = maps[j, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        np.maximum(part, (gy[:, None] * gx).astype(np.float32), out=part)
    return maps


def loss_plane(
    ignore: np.ndarray,
    keep: np.ndarray | None,
    frame: np.ndarray | None,
    size_hw: tuple[int, int],
) -> np.ndarray:
    """What the regions leave of the loss: (H, W) uint8.

    Args:
        ignore: polygons (B, 4, 2) in cells without loss.
        keep: where given, loss only inside these polygons.
        frame: where given, no loss outside this polygon.
        size_hw: height and width of the map.
    """
    import cv2

    def fill(polygons: np.ndarray, value: int, plane: np.ndarray) -> None:
        near = polygons[np.abs(polygons).max((1, 2), initial=0) < 30000]
        for polygon in np.round(near).astype(np.int32):
            cv2.fillConvexPoly(plane, polygon, value)

    plane = np.ones(size_hw, np.uint8)
    if keep is not None:
        plane[:] = 0
        fill(keep, 1, plane)
    fill(ignore, 0, plane)
    if frame is not None:
        inside = np.zeros(size_hw, np.uint8)
        fill(frame[None], 1, inside)
        plane &= inside
    return plane


def loss_mask(
    cells: np.ndarray,
    states: np.ndarray,
    plane: np.ndarray,
    unlabelled_channels: list[int],
) -> np.ndarray:
    """Where the heatmap loss counts, per keypoint.

    A positive peak keeps its surroundings whatever lies over it.

    Args:
        cells: (P, J, 2) keypoints in cells.
        states: (P, J) POSITIVE, ABSENT or WEAK.
        plane: (H, W) uint8, see ``loss_plane``.
        unlabelled_channels: keypoints without labels here: no loss but around a positive one.

    Returns:
        (J, H, W) uint8, 1 where the loss counts.
    """
    import cv2

    h, w = plane.shape
    joints = cells.shape[1]
    mask = np.repeat(plane[None], joints, 0)
    for channel in unlabelled_channels:
        mask[channel] = 0
    weak = states == WEAK
    positive = states == POSITIVE
    for where, value, radius in ((weak, 0, WEAK_DISC), (positive, 1, POSITIVE_DISC)):
        for p, j in np.argwhere(where):
            x, y = cells[p, j]
            if -20 < x < w + 20 and -20 < y < h + 20:
                cv2.circle(mask[j], (round(x), round(y)), radius, value, -1)
    return mask


def tag_places(
    cells: np.ndarray, present: np.ndarray, size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the tag maps are read: (M,) flat index into (J, H, W) and (M,) person number."""
    h, w = size_hw
    nearest = nearest_cells(cells)
    inside = present & (nearest >= 0).all(-1) & (nearest[..., 0] < w) & (nearest[..., 1] < h)
    person, joint = np.nonzero(inside)
    x, y = nearest[person, joint, 0], nearest[person, joint, 1]
    return (joint * h + y) * w + x, person
