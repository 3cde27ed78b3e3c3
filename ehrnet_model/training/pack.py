"""Packs: one file per split with pictures and merged labels.

Layout: 8 bytes magic, two little-endian uint64 (offset and length of the index), the pictures, the
index (UTF-8 JSON). Decoding a JPEG costs more than everything else that makes a training sample, so
it is done once: when the pack is made (pixels as uint8, RGB, rows without padding, read through a
memory map), or, in a pack that has to be carried, when it is first used (``jpeg`` in the index; the
pixels are then held in memory).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import load_annotations
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.inference.atomic import check_target
from ehrnet_model.training.labels import ImageLabels, TeacherRule, merge

MAGIC = b"EHRPACK1"
_HEAD = struct.Struct("<8sQQ")


class _Writer:
    """One pack in the making, beside its place."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        self.records: list[dict[str, Any]] = []
        self.file = open(self.beside, "wb")  # closed by finish or drop
        self.file.write(_HEAD.pack(MAGIC, 0, 0))

    def add(self, record: dict[str, Any], data: bytes) -> None:
        self.records.append({**record, "offset": self.file.tell(), "bytes": len(data)})
        self.file.write(data)

    def finish(self, about: dict[str, Any]) -> None:
        index = json.dumps({**about, "images": self.records}).encode()
        start = self.file.tell()
        self.file.write(index)
        self.file.seek(0)
        self.file.write(_HEAD.pack(MAGIC, start, len(index)))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def drop(self) -> None:
        # What the buffer still holds may not fit either.
        with contextlib.suppress(OSError):
            self.file.close()
        self.beside.unlink(missing_ok=True)


def shard_names(out: Path, shards: int) -> list[Path]:
    """The files that a pack in so many shards consists of: ``NAME-1of3.pack``; NAME alone if 1."""
    if shards == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i + 1}of{shards}{out.suffix}") for i in range(shards)]


def write_pack(
    out: Path,
    annotations: Path,
    images: Iterable[Path],
    pseudo: Path | None = None,
    pseudo_set: str | None = None,
    max_side: int = 448,
    rule: TeacherRule | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
    jpeg: int = 0,
    shards: int = 1,
) -> dict[str, int]:
    """Writes a pack, whole or not at all, and returns how many images and people it holds.

    Args:
        out: the file; written beside, flushed and renamed.
        annotations: COCO-style keypoint file; extra fields as in ``labels.merge``.
        images: folders and zip files with the pictures.
        pseudo: a teacher's labels, COCO-style with ``score`` and ``keypoint_scores``.
        pseudo_set: keep only the teacher's images with this ``set``.
        max_side: longer pictures are reduced to this long side (area averaging).
        rule: how far the teacher is trusted.
        progress: wraps the list of images (a progress bar).
        jpeg: quality, 1 to 100, of pictures stored as JPEG; 0: pixels.
        shards: spread over so many packs, see ``shard_names``, each a pack of its own.

    Raises:
        EhrnetError: pictures or annotations are missing, damaged or do not belong together; no
            file can be written there, or the disk is full.
    """
    out = Path(out)
    for name in shard_names(out, shards):
        check_target(name)
    data = load_annotations(annotations)
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for ann in data.get("annotations", []):
        by_image[ann["image_id"]].append(ann)
    ids = {image["id"] for image in data["images"]}
    taught = _taught(pseudo, pseudo_set, ids) if pseudo is not None else {}
    files = ImageFiles(images)
    about = {
        "annotations_sha256": hashlib.sha256(Path(annotations).read_bytes()).hexdigest(),
        "pseudo_sha256": hashlib.sha256(Path(pseudo).read_bytes()).hexdigest() if pseudo else "",
        "max_side": max_side,
        "jpeg": jpeg,
    }
    writers: list[_Writer] = []
    people = 0
    try:
        for name in shard_names(out, shards):
            writers.append(_Writer(name))
        for number, image in enumerate(progress(data["images"])):
            lacks = [key for key in ("file_name", "height", "width") if not image.get(key)]
            if lacks:
                raise EhrnetError(
                    f"{annotations}: image {image.get('id')} has no {', '.join(lacks)}."
                )
            picture = files.decode(image["file_name"])
            if picture.shape[:2] != (image["height"], image["width"]):
                raise EhrnetError(
                    f"image {image['file_name']} is {picture.shape[1]}x{picture.shape[0]}, its "
                    f"annotations say {image['width']}x{image['height']}: they do not belong "
                    "together."
                )
            _check(image, by_image[image["id"]], Path(annotations))
            labels = merge(image, by_image[image["id"]], taught.get(image["id"]), rule)
            picture = _reduced(picture, labels, max_side)
            record = {
                "id": image["id"],
                "file_name": image["file_name"],
                "source": image.get("source", ""),
                "height": picture.shape[0],
                "width": picture.shape[1],
                **labels.to_json(),
            }
            writers[number % shards].add(record, _coded(picture, jpeg))
            people += len(labels.boxes)
        for writer in writers:
            writer.finish(about)
        for writer in writers:
            os.replace(writer.beside, writer.out)
    except OSError as error:
        raise EhrnetError(f"the pack {out} could not be written: {error}.") from None
    finally:
        for writer in writers:
            writer.drop()
    return {"images": sum(len(writer.records) for writer in writers), "people": people}


def _taught(pseudo: Path, pseudo_set: str | None, ids: set[Any]) -> dict[Any, list[dict[str, Any]]]:
    """A teacher's people by image; images where it found nobody have an empty list.

    Args:
        pseudo: the teacher's file.
        pseudo_set: keep only images of this ``set``.
        ids: of the images to be taught.

    Raises:
        EhrnetError: there is no such set, it has none of these images, or an annotation lacks what
            a teacher's must have.
    """
    teacher = load_annotations(pseudo)
    names = {
        image["id"]: image["file_name"]
        for image in teacher["images"]
        if pseudo_set is None or image.get("set") == pseudo_set
    }
    if ids.isdisjoint(names):
        known = sorted({str(image["set"]) for image in teacher["images"] if image.get("set")})
        sets = f"its sets are {', '.join(known)}" if known else "it has no sets"
        within = "" if pseudo_set is None else f" in a set {pseudo_set!r}"
        raise EhrnetError(
            f"{pseudo} has none of the annotations' images{within} ({sets}): give a teacher's "
            "labels of these images."
        )
    taught: dict[Any, list[dict[str, Any]]] = {number: [] for number in names}
    for ann in teacher["annotations"]:
        if ann["image_id"] in taught:
            name = f"{pseudo}: annotation {ann.get('id')} of {names[ann['image_id']]}"
            _check_box(ann, name)
            scores = _numbers(ann.get("keypoint_scores"), 17) and _numbers([ann.get("score")], 1)
            if not ann.get("keypoints") or not scores:
                raise EhrnetError(
                    f"{name} has no keypoints, no score or not 17 keypoint_scores: a teacher's "
                    "labels need all of them."
                )
            taught[ann["image_id"]].append(ann)
    return taught


def _numbers(values: Any, count: int) -> bool:
    """Whether these are so many finite numbers."""
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        return False
    right = array.shape == (count,) and array.dtype.kind in "iuf"
    return right and bool(np.isfinite(array).all())


def _check_box(ann: dict[str, Any], name: str) -> None:
    """Refuses an annotation, named for the error, without a box."""
    box: Any = ann.get("bbox")
    if not _numbers(box, 4) or min(box[2:]) < 0:
        raise EhrnetError(f"{name} has no bbox of x, y, width and height.")


def _check(image: dict[str, Any], annotations: list[dict[str, Any]], path: Path) -> None:
    """Refuses what no picture can show, so that it is not learnt.

    ``load_annotations`` has looked at the keypoints' form; areas may be missing here.
    """
    size = np.array([image["width"], image["height"]], float)
    for ann in annotations:
        name = f"{path}: annotation {ann.get('id')} of {image['file_name']}"
        _check_box(ann, name)
        points = np.array(ann.get("keypoints") or np.zeros(51), float).reshape(17, 3)
        # Keypoints on the very edge are common; a hundredth of the picture is a mistake.
        labelled = points[points[:, 2] > 0, :2]
        slack = 0.01 * size.max() + 1
        outside = ((labelled < -slack) | (labelled > size + slack)).any(1)
        if outside.any():
            x, y = labelled[outside][0]
            raise EhrnetError(
                f"{name} has a labelled keypoint at ({x:g}, {y:g}), outside the picture of "
                f"{image['width']}x{image['height']}."
            )


def _reduced(picture: np.ndarray, labels: ImageLabels, max_side: int) -> np.ndarray:
    """The picture with no side above ``max_side``; its labels follow in place."""
    import cv2

    scale = min(1.0, max_side / max(picture.shape[:2]))
    if scale == 1:
        return picture
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    factors = np.array(size) / picture.shape[1::-1]
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    # Pixel centres at whole numbers: the corner of the picture lies at -0.5.
    labels.keypoints[..., :2] = (labels.keypoints[..., :2] + 0.5) * factors - 0.5
    for boxes in (labels.boxes, labels.ignore):
        boxes *= np.tile(factors, 2).astype(np.float32)
    labels.areas *= float(factors.prod())
    return picture


def _coded(picture: np.ndarray, jpeg: int) -> bytes:
    import cv2

    if not jpeg:
        return np.ascontiguousarray(picture).tobytes()
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg])
    if not done:
        raise EhrnetError(f"a picture of {picture.shape[1]}x{picture.shape[0]} cannot be a JPEG.")
    return bytes(data)


class Pack:
    """A pack opened for reading.

    Attributes:
        labels: labels of each image, in the order of the file.
        records: identity of each image: id, file_name, source, height, width, offset, bytes.
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
        self.jpeg = bool(index.get("jpeg"))
        try:
            self.labels = [ImageLabels.from_json(record) for record in index["images"]]
            keys = ("id", "file_name", "source", "height", "width", "offset")
            self.records = [{key: record[key] for key in keys} for record in index["images"]]
            for record, stored in zip(self.records, index["images"], strict=True):
                record["bytes"] = stored.get("bytes", record["height"] * record["width"] * 3)
                if _HEAD.size > record["offset"] or record["offset"] + record["bytes"] > start:
                    raise ValueError(f"{record['file_name']} lies outside the pictures")
            for labels in self.labels:
                people = len(labels.keypoints)
                if not people == len(labels.boxes) == len(labels.areas) == len(labels.human):
                    raise ValueError("an image has more boxes than people, or fewer")
        except (KeyError, TypeError, ValueError) as error:
            raise EhrnetError(
                f"{path} is not a pack ({error!r} in its index): make it with 'ehrnet pack'."
            ) from None
        self._pixels: np.ndarray | None = None
        self._opening = threading.Lock()
        self._starts = [record["offset"] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ImageLabels]]:
        for i in range(len(self)):
            yield self.picture(i), self.labels[i]

    def picture(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB, a read-only view; the first call decodes a pack of JPEGs.

        Several threads may call it.
        """
        pixels = self.open()
        h, w = self.records[i]["height"], self.records[i]["width"]
        start = self._starts[i]
        return pixels[start : start + h * w * 3].reshape(h, w, 3)

    def open(self) -> np.ndarray:
        """The pixels of all pictures; one of several threads opens them, the others wait.

        Processes share what was opened before they were forked.
        """
        if self._pixels is not None:
            return self._pixels
        with self._opening:
            if self._pixels is None:
                pixels: np.ndarray = np.memmap(self.path, np.uint8, "r")
                if self.jpeg:
                    pixels, self._starts = self._decoded(pixels)
                self._pixels = pixels  # last: whoever sees them does not wait
            return self._pixels

    def _decoded(self, stored: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Pixels of all pictures and where each begins; as many at a time as there are cores."""
        import cv2

        sizes = [record["height"] * record["width"] * 3 for record in self.records]
        starts = [0, *np.cumsum(sizes).tolist()]
        pixels = np.empty(starts[-1], np.uint8)

        def put(i: int) -> None:
            record = self.records[i]
            data = stored[record["offset"] : record["offset"] + record["bytes"]]
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
            if picture is None or picture.shape[:2] != (record["height"], record["width"]):
                raise EhrnetError(
                    f"{self.path}: {record['file_name']} does not decode: the pack is damaged, "
                    "make it again with 'ehrnet pack'."
                )
            out = pixels[starts[i] : starts[i + 1]].reshape(picture.shape)
            cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=out)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(put, range(len(self))))
        pixels.flags.writeable = False
        return pixels, starts[:-1]
