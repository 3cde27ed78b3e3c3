"""Drawn data sets, as files on disk."""

import gzip
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np


def write_data_set(folder: Path, pictures: dict, records: dict | None = None) -> Path:
    """images.zip and truth.json.gz.

    Args:
        folder: where to.
        pictures: by file name, (BGR picture, labelled people (P, 17, 2), NaN where unlabelled).
        records: further fields of an image's record, by file name.
    """
    images, annotations = [], []
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, (name, (picture, people)) in enumerate(pictures.items()):
            archive.writestr(name, cv2.imencode(".png", picture)[1].tobytes())
            height, width = picture.shape[:2]
            more = (records or {}).get(name, {})
            image = {"id": number, "file_name": name, "height": height, "width": width, **more}
            images.append(image)
            for xy in people:
                low, high = np.nanmin(xy, 0), np.nanmax(xy, 0)
                triples = [(x, y, 2) if np.isfinite(x) else (0, 0, 0) for x, y in xy]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "iscrowd": 0,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "area": float((high - low).prod()) * 0.5,
                        "keypoints": [float(c) for triple in triples for c in triple],
                    }
                )
    text = json.dumps({"images": images, "annotations": annotations}).encode()
    (folder / "truth.json.gz").write_bytes(gzip.compress(text))
    return folder
