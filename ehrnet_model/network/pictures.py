"""Pictures of a folder: what a quantised graph is calibrated on and an engine is checked with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.picture import read_picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def read_pictures(folder: Path, count: int) -> list[np.ndarray]:
    """BGR uint8 (h, w, 3) of up to ``count`` pictures of a folder, spread over its sorted names.

    Raises:
        EhrnetError: no such folder, no picture in it, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EhrnetError(f"there is no folder {folder}: give one with pictures of people.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise EhrnetError(
            f"{folder} holds no pictures ({', '.join(SUFFIXES)}): give a folder with pictures of "
            "people, such as a robot's camera takes."
        )
    chosen = files[:: max(1, len(files) // count)][:count]
    return [read_picture(file) for file in chosen]
