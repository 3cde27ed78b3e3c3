"""A real network whose answer is known: it finds coloured dots.

Keypoint j of a person is a soft disc of hue j; who it belongs to is in how pale the disc is. The
network has EfficientHRNet's two outputs, goes through the same export and the same decoder, and
depends on nothing trained, so a test can draw people, send the picture anywhere (letterbox, JPEG,
a ROS topic) and know the keypoints to a fraction of a pixel.

Colours: a pixel is ``luma * (1, 1, 1) + chroma * (unit vector at the keypoint's hue, orthogonal to
grey)``. Keypoint j answers to chroma along its hue less a multiple of the chroma across it, so
grey backgrounds and other keypoints answer nothing. luma / chroma tells people apart; it is the
same all over a disc and survives any scaling, so it is the tag.

Dots must be at least four ``dot_sigma`` apart (two or three ``figure`` side by side are), people of
one picture drawn on something dark. The network's input should be at least 320 pixels on its long
side, or the dots get smaller than cells. Keypoints come back within 0.3 pixels of the picture,
after JPEG of quality 90 (pictures of 640 pixels and more) within 1 pixel.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

KEYPOINTS = 17
MAX_PEOPLE = 8
# Neighbours in the body get hues far apart: blends of two neighbours are nobody's hue.
_HUE_STEP = 5
_PALEST, _PALENESS_STEP = 0.85, 0.25
_TAG_GAIN = 8.0
_ACROSS = 4.0
_CHROMA_OF_FIRST = 1 / (_PALEST + math.sqrt(2 / 3))

# A person of height 1 around the origin, arms and legs spread: no two keypoints closer than 0.1.
FIGURE = np.array(
    [
        (0.00, -0.36),
        (0.06, -0.45),
        (-0.06, -0.45),
        (0.14, -0.38),
        (-0.14, -0.38),
        (0.14, -0.25),
        (-0.14, -0.25),
        (0.28, -0.16),
        (-0.28, -0.16),
        (0.40, -0.04),
        (-0.40, -0.04),
        (0.10, 0.05),
        (-0.10, 0.05),
        (0.14, 0.25),
        (-0.14, 0.25),
        (0.18, 0.45),
        (-0.18, 0.45),
    ],
    np.float32,
)


def figure(centre_xy: tuple[float, float], height: float) -> np.ndarray:
    """(17, 2) keypoints of a standing person; at least 0.1 height lies between two of them."""
    return FIGURE * np.float32(height) + np.asarray(centre_xy, np.float32)


def dot_sigma(image_hw: tuple[int, int]) -> float:
    """Standard deviation of a dot in pixels, a share of the long side.

    So a letterbox hands the network the same dot whatever the picture's size.
    """
    return 0.007 * max(image_hw)


def _axes() -> np.ndarray:
    """(17, 2, 3): unit vectors along and across each keypoint's hue, orthogonal to grey."""
    one = np.array([1, -1, 0]) / math.sqrt(2)
    two = np.array([1, 1, -2]) / math.sqrt(6)
    angle = 2 * math.pi * (np.arange(KEYPOINTS) * _HUE_STEP % KEYPOINTS) / KEYPOINTS
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([cos * one + sin * two, cos * two - sin * one], 1)


def _colour(keypoint: int, person: int) -> np.ndarray:
    """RGB in 0..1; the palest part of the largest channel is exactly within the range."""
    paleness = _PALEST + _PALENESS_STEP * person
    chroma = 1 / (paleness + math.sqrt(2 / 3))
    return chroma * (paleness + _axes()[keypoint, 0])


def draw_people(image_hw: tuple[int, int], people: np.ndarray, background: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) BGR with the people's keypoints as dots.

    Args:
        image_hw: height and width.
        people: (P, 17, 2) x, y in pixels, pixel centres at whole numbers; NaN is not drawn. At
            most 8 people, whose order is their identity.
        background: grey level.
    """
    people = np.asarray(people, np.float64).reshape(-1, KEYPOINTS, 2)
    if len(people) > MAX_PEOPLE:
        raise ValueError(f"{len(people)} people: the colours tell at most {MAX_PEOPLE} apart")
    height, width = image_hw
    sigma = dot_sigma(image_hw)
    reach = math.ceil(4 * sigma)
    colour = np.zeros((height, width, 3))
    cover = np.zeros((height, width))
    for person, keypoints in enumerate(people):
        for keypoint, (x, y) in enumerate(keypoints):
            if not np.isfinite((x, y)).all():
                continue
            top, left = max(0, round(y) - reach), max(0, round(x) - reach)
            rows, columns = slice(top, round(y) + reach + 1), slice(left, round(x) + reach + 1)
            grid_y, grid_x = np.ogrid[0:height, 0:width]
            square = (grid_x[:, columns] - x) ** 2 + (grid_y[rows] - y) ** 2
            disc = np.exp(-square / (2 * sigma**2))
            # The nearer dot wins a pixel: no blends, every hue stays pure.
            nearer = disc > cover[rows, columns]
            cover[rows, columns][nearer] = disc[nearer]
            colour[rows, columns][nearer] = _colour(keypoint, person)
    rgb = background / 255 * (1 - cover[..., None]) + cover[..., None] * colour
    return np.ascontiguousarray((rgb[..., ::-1] * 255).round().astype(np.uint8))


def make_dots_network():  # type: ignore[no-untyped-def]  # torch only when called
    """The network, a torch.nn.Module with outputs (N, 34, h/4, w/4) and (N, 17, h/2, w/2)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from ehrnet_model.network.deploy import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB

    class Dots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            axes = torch.tensor(_axes(), dtype=torch.float32)
            self.register_buffer("std", torch.tensor(IMAGENET_STD_RGB).view(1, 3, 1, 1))
            self.register_buffer("mean", torch.tensor(IMAGENET_MEAN_RGB).view(1, 3, 1, 1))
            self.register_buffer("along", axes[:, 0, :, None, None].clone())
            self.register_buffer("across", axes[:, 1, :, None, None].clone())

        def chroma(self, rgb):  # type: ignore[no-untyped-def]
            across = F.conv2d(rgb, self.across)
            across = F.relu(across) + F.relu(-across)
            return F.relu(F.conv2d(rgb, self.along) - _ACROSS * across) / _CHROMA_OF_FIRST

        def forward(self, x):  # type: ignore[no-untyped-def]
            half = F.avg_pool2d(x * self.std + self.mean, 2)
            quarter = F.avg_pool2d(half, 2)
            low = self.chroma(quarter)
            luma = (quarter[:, :1] + quarter[:, 1:2] + quarter[:, 2:]) / 3
            along = torch.clamp(F.conv2d(quarter, self.along), min=0.02)
            tags = torch.clamp(luma / along, max=4.0) * _TAG_GAIN
            return torch.cat((low, tags), 1), self.chroma(half)

    return Dots().eval()


def expected_tag(person: int) -> float:
    """The tag that all keypoints of a person get (black background)."""
    return _TAG_GAIN * (_PALEST + _PALENESS_STEP * person)


def export_dots(path: Path, **decode: float) -> Path:
    """Writes the network as an ONNX model through the project's own export; returns the path.

    The model stores these decode options.
    """
    from ehrnet_model.inference.runtime import ModelInfo
    from ehrnet_model.network.export import export_onnx

    info = ModelInfo(
        variant="H-4",
        phi=-4,
        weights_name="dots",
        quality="preview",
        input_size=384,
        decode=decode,
        extra={"about": "finds coloured dots; a test model"},
    )
    pictures = [
        draw_people((480, 640), np.stack([figure((x + i, 240.6), 400) for x in (170.3, 470.8)]))
        for i in (0, 5.5)
    ]
    return export_onnx(make_dots_network(), Path(path), info, pictures)


def with_decode(model: Path, target: Path, **decode: float) -> Path:
    """Writes a copy of a model that stores these decode options, its answers beside it."""
    import json
    import shutil

    import onnx

    from ehrnet_model.inference.answers import answers_file
    from ehrnet_model.inference.runtime import METADATA_KEY

    graph = onnx.load(str(model))
    (entry,) = [e for e in graph.metadata_props if e.key == METADATA_KEY]
    values = json.loads(entry.value)
    values["decode"] = {**values["decode"], **decode}
    entry.value = json.dumps(values)
    onnx.save(graph, str(target))
    shutil.copy(answers_file(model), answers_file(target))
    return target
