"""A short video of several people, made of photographs that ordinary packages ship.

NASA's portrait of Eileen Collins and the cameraman come with scikit-image, Grace Hopper's portrait
with matplotlib; all three are free to use. Nothing of them lies in this repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_ros.recording import VideoFile, make_folder

PHOTOS = Path(sys.prefix) / "share" / "ehrnet" / "photos"  # see tools/setup_env.py
SIZE_WH = (640, 480)
RATE = 15.0
_BORDER = 0.06  # of a photograph's height: its edge fades into the background

# Name -> package, file inside it, and which part shows the person (left, top, right, bottom).
PHOTOGRAPHS = {
    "astronaut": ("skimage", "skimage/data/astronaut.png", (0.0, 0.0, 0.92, 1.0)),
    "cameraman": ("skimage", "skimage/data/camera.png", (0.05, 0.0, 0.85, 1.0)),
    "hopper": ("matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg", (0, 0, 1, 0.98)),
}


class Layer(NamedTuple):
    """One photograph in one frame; positions and height in shares of the frame's height."""

    photograph: str
    x: float
    y: float
    height: float
    mirrored: bool = False


class Scene(NamedTuple):
    """Photographs that move and grow from a first place to a last one."""

    seconds: float
    first: tuple[Layer, ...]
    last: tuple[Layer, ...]


SCENES = (
    Scene(3, (Layer("astronaut", 0.58, 0.52, 1.0),), (Layer("astronaut", 0.75, 0.56, 1.2),)),
    Scene(
        3,
        (Layer("hopper", 0.30, 0.55, 0.75), Layer("astronaut", 0.95, 0.50, 0.85, True)),
        (Layer("hopper", 0.38, 0.52, 0.95), Layer("astronaut", 1.02, 0.55, 0.70, True)),
    ),
    Scene(2.5, (Layer("cameraman", 0.60, 0.5, 1.0),), (Layer("cameraman", 0.72, 0.52, 1.1),)),
    Scene(
        3.5,
        (
            Layer("hopper", 0.22, 0.60, 0.55),
            Layer("cameraman", 0.66, 0.45, 0.80),
            Layer("astronaut", 1.10, 0.58, 0.60),
        ),
        (
            Layer("hopper", 0.26, 0.52, 0.70),
            Layer("cameraman", 0.70, 0.50, 0.65),
            Layer("astronaut", 1.08, 0.52, 0.72),
        ),
    ),
)


def photographs(folder: Path = PHOTOS) -> dict[str, np.ndarray]:
    """The photographs by name, (H, W, 3) uint8 BGR, each cut to the part that shows the person.

    Args:
        folder: where setup has put them; what is not there is taken from the installed package.

    Raises:
        EhrnetError: one of them is nowhere, or broken.
    """
    pictures = {}
    for name, (package, file, (left, top, right, bottom)) in PHOTOGRAPHS.items():
        path = folder / Path(file).name
        if not path.is_file():
            spec = importlib.util.find_spec(package)
            path = Path(spec.origin).parent.parent / file if spec and spec.origin else path
        if not path.is_file():
            raise EhrnetError(
                f"The photograph {path} is not there: run ./demo, which brings it, or give it a "
                "picture or video of your own."
            )
        content = np.frombuffer(path.read_bytes(), np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
        if picture is None:
            raise EhrnetError(f"The photograph {path} is broken: delete it and run ./demo again.")
        height, width = picture.shape[:2]
        pictures[name] = picture[
            int(top * height) : int(bottom * height), int(left * width) : int(right * width)
        ]
    return pictures


def frames(pictures: dict[str, np.ndarray], rate: float = RATE) -> Iterator[np.ndarray]:
    """The frames of all scenes, (480, 640, 3) uint8 BGR."""
    for scene in SCENES:
        count = round(scene.seconds * rate)
        canvas = _background(pictures[scene.first[0].photograph])
        for index in range(count):
            share = index / (count - 1)
            share = share * share * (3 - 2 * share)  # starts and stops gently
            frame = canvas.copy()
            for first, last in zip(scene.first, scene.last, strict=True):
                x, y, height = (
                    a + share * (b - a) for a, b in zip(first[1:4], last[1:4], strict=True)
                )
                _place(frame, pictures[first.photograph], x, y, height, first.mirrored)
            yield frame


def _background(picture: np.ndarray) -> np.ndarray:
    """A photograph's colours without its shapes, so that nobody is seen twice."""
    small = cv2.resize(picture, (4, 3), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, SIZE_WH, interpolation=cv2.INTER_CUBIC) // 2 + 40


def _place(
    frame: np.ndarray, picture: np.ndarray, x: float, y: float, height: float, mirrored: bool
) -> None:
    """Draws a photograph centred at (x, y) with sub-pixel motion and fading edges."""
    unit = float(SIZE_WH[1])
    h, w = picture.shape[:2]
    scale = height * unit / h
    sign = -1.0 if mirrored else 1.0
    matrix = np.array(
        [
            [sign * scale, 0, x * unit - sign * scale * (w - 1) / 2],
            [0, scale, y * unit - scale * (h - 1) / 2],
        ]
    )
    if scale < 0.6:  # shrinking by so much needs averaging, which a warp does not do
        picture = cv2.GaussianBlur(picture, (0, 0), 0.35 / scale)
    border = max(2, int(_BORDER * h))
    mask = np.zeros((h, w), np.float32)
    mask[border:-border, border:-border] = 1
    mask = cv2.blur(mask, (2 * border - 1, 2 * border - 1))
    layer = cv2.warpAffine(picture, matrix, SIZE_WH, flags=cv2.INTER_LINEAR)
    alpha = cv2.warpAffine(mask, matrix, SIZE_WH, flags=cv2.INTER_LINEAR)[..., None]
    frame[...] = (layer * alpha + frame * (1 - alpha) + 0.5).astype(np.uint8)


def make(path: Path) -> Path:
    """Writes the video, unless it is there and not older than this file."""
    if path.is_file() and path.stat().st_mtime >= Path(__file__).stat().st_mtime:
        return path
    pictures = photographs()
    make_folder(path.parent)
    with VideoFile(path, RATE) as video:
        for frame in frames(pictures):
            video.write(frame)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="the video to write, such as people.mp4")
    print(make(parser.parse_args().path))
