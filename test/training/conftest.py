import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ehrnet_model.training.pack import Pack, write_pack
from ehrnet_model.training.painter import Painter
from ehrnet_model.training.sampler import Sampler

torch.set_num_threads(1)


def uniform(name, count):
    """float64 in [0, 1) from NumPy's raw PCG64 stream, which is stable across versions."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@pytest.fixture(scope="session")
def golden():
    """Values of the published training code on deterministic inputs."""
    return json.loads((Path(__file__).parents[1] / "facts" / "golden_training.json").read_text())


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


@pytest.fixture(scope="session")
def rich_pack(tmp_path_factory):
    """A pack with everything that labels can say: crowds, gaps, a teacher, sizes large and small.

    Its pictures are smooth, so that a place a little off shows as a value a little off.
    """
    folder = tmp_path_factory.mktemp("rich")
    rng = np.random.default_rng(4)
    images, annotations, taught = [], [], []
    for i, (h, w) in enumerate([(420, 310), (150, 440), (97, 61), (260, 260), (200, 300)]):
        coarse = rng.integers(0, 256, (h // 24 + 2, w // 24 + 2, 3)).astype(np.uint8)
        picture = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        _, xy = stick_figure(h, w, i)
        if i < 4:
            annotations.append(annotation(xy, i, 10 * i))
        if i == 0:
            crowd = annotation(xy, i, 1) | {"iscrowd": 1, "bbox": [150.0, 200.0, 140.0, 120.0]}
            annotations.append(crowd)
            annotations.append(annotation(xy * 0.5 + 90, i, 2))
        if i == 1:
            images[1] |= {"all_people_labelled": False, "labelled_keypoints": list(range(5, 17))}
            annotations[-1]["keypoints"][:15] = [0.0] * 15
        if i == 3:
            scores = [0.9] * 10 + [0.3] * 7
            for n, score in enumerate((0.8, 0.1)):
                other = annotation(xy * 0.4 + 60 + 80 * n, i, 100 + n)
                taught.append(other | {"score": score, "keypoint_scores": scores})
    (folder / "rich.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    teacher = {"images": [images[3], images[4]], "annotations": taught}
    (folder / "teacher.json").write_text(json.dumps(teacher))
    write_pack(folder / "rich.pack", folder / "rich.json", [folder], folder / "teacher.json")
    return folder / "rich.pack"


@pytest.fixture(scope="module")
def packs(rich_pack, pack_file):
    return [Pack(rich_pack), Pack(pack_file)]


@pytest.fixture(scope="module")
def sampler(packs):
    return Sampler([(pack, 1.0) for pack in packs], seed=11, holdout=0.0)


@pytest.fixture(scope="module")
def painter(packs):
    return Painter(packs, torch.device("cpu"))
