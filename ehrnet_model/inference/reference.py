"""The host's slow twin of the exported graph, on whole maps.

`find_peaks` does with numpy what network/deploy.py puts into the graph, for tests and for maps
that come from elsewhere.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import COORDINATES, MAX_PEAKS, PEAK_CHANNELS

_NMS_KERNEL = 5
# As in network/deploy.py: below this a heatmap value is noise.
_MIN_HEAT = 1e-3
_MIN_CURVATURE = 1e-6


def find_peaks(
    lowres: np.ndarray, highres: np.ndarray, coordinates: str = "pixel-centre"
) -> np.ndarray:
    """The best 30 local maxima per keypoint of one image, as the exported graph gives them.

    Args:
        lowres: (2 J, h, w), J heatmaps then J tag maps, at a quarter of the input size.
        highres: (J, 2 h, 2 w) heatmaps at half of it.
        coordinates: convention of the weights, see ModelInfo.

    Returns:
        float32 (J, 30, 15), laid out as runtime.py says. NaN in a heatmap makes all scores of its
        keypoint NaN.

    Raises:
        EhrnetError: the maps do not fit each other, or the convention is unknown.
    """
    if coordinates not in COORDINATES:
        raise EhrnetError(
            f"coordinate convention {coordinates!r} is unknown: use one of "
            f"{', '.join(COORDINATES)}."
        )
    low, tags, high = _split(lowres, highres)
    heat = (enlarge(low) + high) * np.float32(0.5)
    count, height, width = heat.shape
    tags = enlarge(tags)
    maxima = np.where(heat == _local_maximum(heat), heat, 0)
    order = np.argsort(-maxima.reshape(count, -1), axis=1, kind="stable")[:, :MAX_PEAKS]
    cell_y, cell_x = np.divmod(order, width)
    each = np.arange(count)[:, None]

    peaks = np.zeros((count, MAX_PEAKS, PEAK_CHANNELS), np.float32)
    filled = peaks[:, : order.shape[1]]
    patch = np.stack(
        [
            heat[each, np.clip(cell_y + dy, 0, height - 1), np.clip(cell_x + dx, 0, width - 1)]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ],
        -1,
    )
    shift_x = _shift(patch[..., 3], patch[..., 4], patch[..., 5], coordinates)
    shift_y = _shift(patch[..., 1], patch[..., 4], patch[..., 7], coordinates)
    shift_x[(cell_x == 0) | (cell_x == width - 1)] = 0
    shift_y[(cell_y == 0) | (cell_y == height - 1)] = 0
    centre = COORDINATES[coordinates]
    filled[..., 0] = np.maximum(maxima[each, cell_y, cell_x], 0)
    filled[..., 1] = (cell_x + shift_x) * 2 + centre
    filled[..., 2] = (cell_y + shift_y) * 2 + centre
    filled[..., 3] = tags[each, cell_y, cell_x]
    filled[..., 4], filled[..., 5] = cell_x, cell_y
    filled[..., 6:] = patch
    peaks[np.isnan(heat).any((1, 2)), :, 0] = np.nan
    return peaks


def enlarge(maps: np.ndarray) -> np.ndarray:
    """(..., h, w) -> (..., 2 h, 2 w) bilinearly, half-pixel centres, borders repeated."""
    return _enlarge_last(_enlarge_last(maps).swapaxes(-1, -2)).swapaxes(-1, -2)


def _enlarge_last(maps: np.ndarray) -> np.ndarray:
    out = np.empty(maps.shape[:-1] + (2 * maps.shape[-1],), np.float32)
    own = maps * np.float32(0.75)
    near = maps * np.float32(0.25)
    out[..., 2::2] = near[..., :-1] + own[..., 1:]
    out[..., 1:-1:2] = own[..., :-1] + near[..., 1:]
    out[..., 0], out[..., -1] = maps[..., 0], maps[..., -1]
    return out


def _split(lowres: np.ndarray, highres: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 heatmaps and tags at 1/4 and heatmaps at 1/2; EhrnetError where they do not fit."""
    low, high = np.asarray(lowres, np.float32), np.asarray(highres, np.float32)
    if low.ndim != 3 or high.shape != (low.shape[0] / 2, 2 * low.shape[1], 2 * low.shape[2]):
        raise EhrnetError(
            f"maps of shapes {low.shape} and {high.shape} do not fit: for J keypoints they are "
            "(2 J, h, w) and (J, 2 h, 2 w), one image without batch axis."
        )
    return low[: len(high)], low[len(high) :], high


def _local_maximum(maps: np.ndarray) -> np.ndarray:
    """The largest value in the 5x5 cells around each cell of (J, h, w)."""
    reach = _NMS_KERNEL // 2
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        padded = np.pad(maps, pad, constant_values=-np.inf)
        size = maps.shape[axis]
        views = [np.take(padded, np.arange(size) + i, axis) for i in range(_NMS_KERNEL)]
        maps = np.maximum.reduce(views)
    return maps


def _shift(before: np.ndarray, peak: np.ndarray, after: np.ndarray, coordinates: str) -> np.ndarray:
    """Where the maximum lies between two neighbours, -0.5 .. 0.5 cells, see network/deploy.py."""
    if coordinates != "pixel-centre":
        return np.sign(after - before) * np.float32(0.25)
    before, peak, after = (
        np.log(np.maximum(v, np.float32(_MIN_HEAT))) for v in (before, peak, after)
    )
    curvature = np.maximum(2 * peak - before - after, np.float32(_MIN_CURVATURE))
    offset: np.ndarray = np.clip((after - before) / 2 / curvature, -0.5, 0.5)
    return offset
