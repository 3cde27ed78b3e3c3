"""What an engine puts out, by hand."""

from __future__ import annotations

import numpy as np


def output(*peaks: tuple[int, float, float, float, float], width: float = 2.0) -> np.ndarray:
    """Engine output (17, 30, 15) holding peaks (keypoint, x, y, score, tag), best first.

    Each peak is a Gaussian of the given standard deviation in cells.
    """
    out = np.zeros((17, 30, 15), np.float32)
    used = [0] * 17
    dy, dx = np.mgrid[-1:2, -1:2]
    bell = np.exp(-(dx**2 + dy**2) / (2 * width**2)).ravel()
    for k, x, y, score, tag in sorted(peaks, key=lambda p: -p[3]):
        cell = np.round((x - 0.5) / 2), np.round((y - 0.5) / 2)
        out[k, used[k]] = [score, x, y, tag, *cell, *(score * bell)]
        used[k] += 1
    return out
