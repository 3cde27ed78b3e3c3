import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ehrnet_model.training.pack import write_pack

torch.set_num_threads(1)


def uniform(name, count):
    """float64 in [0, 1) from NumPy's raw PCG64 stream, which is stable across versions."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@pytest.fixture(scope="session")
def golden():
    """Values of the published training code on deterministic inputs."""
    return json.loads((Path(__file__).parent / "golden_training.json").read_text())


def stick_figure(height, width, seed):
    """A picture with a figure of bright dots, one colour per keypoint; its 17 keypoints."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    rows = np.array([0, -1, -1, -0.5, -0.5, 3, 3, 6, 6, 9, 9, 9, 9, 13, 13, 17, 17]) + 2.0
    columns = np.array([0, 1, -1, 2, -2, 3, -3, 5, -5, 6, -6, 2, -2, 2, -2, 2, -2]) + 7.0
    xy = np.stack([columns * width / 14, rows * height / 20], 1) * 0.8 + 5
    for k, (x, y) in enumerate(xy):
        colour = tuple(int(v) for v in np.array([80 + 10 * k, 255 - 12 * k, 120 + 7 * k]))
        cv2.circle(picture, (round(x), round(y)), 5, colour, -1)
    return picture, np.round(xy)


def annotation(xy, image_id, number, v=2):
    low, high = xy.min(0) - 8, xy.max(0) + 8
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [*map(float, low), *map(float, high - low)],
        "area": float((high - low).prod() * 0.5),
        "keypoints": [float(c) for x, y in xy for c in (x, y, v)],
        "num_keypoints": 17,
    }


@pytest.fixture(scope="session")
def figures(tmp_path_factory):
    """Folder with pictures and a COCO-style annotation file of three figures and an empty image."""
    folder = tmp_path_factory.mktemp("figures")
    images, annotations = [], []
    for i, (h, w) in enumerate([(160, 120), (150, 200), (220, 180)]):
        picture, xy = stick_figure(h, w, i)
        cv2.imwrite(str(folder / f"{i}.png"), picture[..., ::-1])
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        annotations.append(annotation(xy, i, i))
    cv2.imwrite(str(folder / "3.png"), np.full((100, 140, 3), 90, np.uint8))
    images.append({"id": 3, "file_name": "3.png", "height": 100, "width": 140})
    (folder / "figures.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="session")
def pack_file(figures):
    out = figures / "figures.pack"
    write_pack(out, figures / "figures.json", [figures])
    return out
