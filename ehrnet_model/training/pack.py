"""Packs: one file per split with decoded pixels and merged labels, read through a memory map.

Layout: 8 bytes magic, two little-endian uint64 (offset and length of the index), the pixels of all
images (uint8, RGB, rows without padding), the index (UTF-8 JSON). Decoding a JPEG costs more than
everything else that makes a training sample, so it is done once.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import load_annotations
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.training.labels import ImageLabels, TeacherRule, merge

MAGIC = b"EHRPACK1"
_HEAD = struct.Struct("<8sQQ")


def write_pack(
    out: Path,
    annotations: Path,
    images: Iterable[Path],
    pseudo: Path | None = None,
    pseudo_set: str | None = None,
    max_side: int = 448,
    rule: TeacherRule | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> dict[str, int]:
    """Writes a pack and returns how many images and people it holds.

    Args:
        out: the file; written beside, flushed and renamed.
        annotations: COCO-style keypoint file; extra fields as in ``labels.merge``.
        images: folders and zip files with the pictures.
        pseudo: a teacher's labels, COCO-style with ``score`` and ``keypoint_scores``.
        pseudo_set: keep only the teacher's images with this ``set``.
        max_side: longer pictures are reduced to this long side (area averaging).
        rule: how far the teacher is trusted.
        progress: wraps the list of images (a progress bar).
    """
    import cv2

    data = load_annotations(annotations)
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for ann in data.get("annotations", []):
        by_image[ann["image_id"]].append(ann)
    taught: dict[Any, list[dict[str, Any]]] = {}
    if pseudo is not None:
        teacher = load_annotations(pseudo)
        for image in teacher["images"]:
            if pseudo_set is None or image.get("set") == pseudo_set:
                taught[image["id"]] = []
        for ann in teacher["annotations"]:
            if ann["image_id"] in taught:
                taught[ann["image_id"]].append(ann)

    files = ImageFiles(images)
    out = Path(out)
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    records: list[dict[str, Any]] = []
    people = 0
    try:
        with open(beside, "wb") as file:
            file.write(_HEAD.pack(MAGIC, 0, 0))
            for image in progress(data["images"]):
                picture = files.decode(image["file_name"])
                if picture.shape[:2] != (image["height"], image["width"]):
                    raise EhrnetError(
                        f"image {image['file_name']} is {picture.shape[1]}x{picture.shape[0]}, its "
                        f"annotations say {image['width']}x{image['height']}: they do not belong "
                        "together."
                    )
                labels = merge(image, by_image[image["id"]], taught.get(image["id"]), rule)
                scale = min(1.0, max_side / max(picture.shape[:2]))
                if scale < 1:
                    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
                    factors = np.array(size) / picture.shape[1::-1]
                    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
                    # Pixel centres at whole numbers: the corner of the picture lies at -0.5.
                    labels.keypoints[..., :2] = (labels.keypoints[..., :2] + 0.5) * factors - 0.5
                    for boxes in (labels.boxes, labels.ignore):
                        boxes *= np.tile(factors, 2).astype(np.float32)
                    labels.areas *= float(factors.prod())
                records.append(
                    {
                        "id": image["id"],
                        "file_name": image["file_name"],
                        "source": image.get("source", ""),
                        "height": picture.shape[0],
                        "width": picture.shape[1],
                        "offset": file.tell(),
                        **labels.to_json(),
                    }
                )
                people += len(labels.boxes)
                file.write(np.ascontiguousarray(picture).tobytes())
            index = json.dumps(
                {
                    "annotations_sha256": hashlib.sha256(
                        Path(annotations).read_bytes()
                    ).hexdigest(),
                    "pseudo_sha256": hashlib.sha256(Path(pseudo).read_bytes()).hexdigest()
                    if pseudo
                    else "",
                    "max_side": max_side,
                    "images": records,
                }
            ).encode()
            start = file.tell()
            file.write(index)
            file.seek(0)
            file.write(_HEAD.pack(MAGIC, start, len(index)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, out)
    except OSError as error:
        raise EhrnetError(f"the pack {out} could not be written: {error}.") from None
    finally:
        beside.unlink(missing_ok=True)
    return {"images": len(records), "people": people}


class Pack:
    """A pack opened for reading.

    Attributes:
        labels: labels of each image, in the order of the file.
        records: identity of each image: id, file_name, source, height, width, offset.
        sha256: hash of the index, so that a run knows on what it was trained.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                magic, start, length = _HEAD.unpack(file.read(_HEAD.size))
                if magic != MAGIC:
                    raise ValueError("wrong first bytes")
                file.seek(start)
                raw = file.read(length)
            if start == 0 or len(raw) != length:
                raise ValueError("cut short")
            index = json.loads(raw)
        except (OSError, ValueError, struct.error) as error:
            raise EhrnetError(
                f"{path} is not a pack ({error}): make it with 'ehrnet pack'."
            ) from None
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.labels = [ImageLabels.from_json(record) for record in index["images"]]
        keys = ("id", "file_name", "source", "height", "width", "offset")
        self.records = [{key: record[key] for key in keys} for record in index["images"]]
        self._pixels = np.memmap(self.path, np.uint8, "r")

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ImageLabels]]:
        for i in range(len(self)):
            yield self.picture(i), self.labels[i]

    def picture(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB, a read-only view into the file."""
        record = self.records[i]
        h, w, offset = record["height"], record["width"], record["offset"]
        return self._pixels[offset : offset + h * w * 3].reshape(h, w, 3)
