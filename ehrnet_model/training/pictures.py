"""Labelled pictures for classifiers: folders as ImageNet has them, and CIFAR-100's own archive.

CIFAR-100 is published as Python pickles. They are read with an unpickler that knows no class of any
library: arrays come out as what the file says about them, and are checked before NumPy sees them.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.picture import read_picture

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_TEST_NAMES = ("val", "test", "validation")
# Of CIFAR-100: 50,000 pictures of 32x32x3 bytes, their names and labels.
_MAX_PICKLE = 400_000_000


@dataclass(frozen=True)
class Pictures:
    """One split of a data set.

    Attributes:
        classes: names, in the order of the labels.
        labels: int64 (N,).
        sources: where the N pictures are: files, or arrays uint8 (h, w, 3) RGB.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    sources: Sequence[Path] | np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> np.ndarray:
        """uint8 (h, w, 3) RGB. Raises EhrnetError for a file that is no picture."""
        source = self.sources[index]
        if isinstance(source, np.ndarray):
            return source
        return cv2.cvtColor(read_picture(source), cv2.COLOR_BGR2RGB)


def open_pictures(path: Path) -> tuple[Pictures, Pictures]:
    """Both splits of a data set: what is learnt from, and what is measured on.

    Args:
        path: a folder with ``train`` and ``val`` (or ``test``) that hold a folder of pictures per
            class; or CIFAR-100 as published: ``cifar-100-python.tar.gz``, or the folder in it.

    Raises:
        EhrnetError: neither of these, or the splits do not have the same classes.
    """
    path = Path(path)
    if path.is_file():
        return _cifar(lambda name: _from_archive(path, name), str(path))
    if not path.is_dir():
        raise EhrnetError(f"there is no {path}: check the path.")
    inner = path / "cifar-100-python"
    for folder in (path, inner):
        if all((folder / name).is_file() for name in ("train", "test", "meta")):
            return _cifar(lambda name, folder=folder: _from_folder(folder / name), str(folder))
    tests = [path / name for name in _TEST_NAMES if (path / name).is_dir()]
    if not (path / "train").is_dir() or not tests:
        raise EhrnetError(
            f"{path} is no data set: expected folders 'train' and 'val' (or 'test') with a folder "
            "of pictures per class, or CIFAR-100's files 'train', 'test' and 'meta'."
        )
    train, test = _folder(path / "train"), _folder(tests[0])
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise EhrnetError(
            f"{path / 'train'} and {tests[0]} do not have the same classes: {odd[0]} is in one "
            "only."
        )
    return train, test


def _folder(path: Path) -> Pictures:
    classes = tuple(sorted(p.name for p in path.iterdir() if p.is_dir()))
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (path / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise EhrnetError(f"{path / name} holds no pictures ({', '.join(_SUFFIXES)}).")
        files += found
        labels += [label] * len(found)
    if len(classes) < 2:
        raise EhrnetError(f"{path} holds {len(classes)} classes: at least two are needed.")
    return Pictures(classes, np.array(labels, np.int64), files)


# CIFAR-100 -------------------------------------------------------------------------------------


def _from_folder(path: Path) -> bytes:
    if path.stat().st_size > _MAX_PICKLE:
        raise EhrnetError(f"{path} is far larger than CIFAR-100's: it is something else.")
    return path.read_bytes()


def _from_archive(path: Path, name: str) -> bytes:
    try:
        with tarfile.open(path) as archive:
            member = archive.getmember(f"cifar-100-python/{name}")
            content = archive.extractfile(member) if member.isfile() else None
            if content is None or member.size > _MAX_PICKLE:
                raise KeyError(name)
            return content.read()
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise EhrnetError(
            f"{path} is not CIFAR-100's cifar-100-python.tar.gz, or only part of it ({error})."
        ) from None


def _cifar(read: Any, origin: str) -> tuple[Pictures, Pictures]:
    names = _unpickle(read("meta"), f"{origin}, meta").get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(n, bytes) for n in names) or not names:
        raise EhrnetError(f"{origin} names no classes: it is not CIFAR-100.")
    classes = tuple(name.decode("utf-8", "replace") for name in names)
    splits = []
    for name in ("train", "test"):
        content = _unpickle(read(name), f"{origin}, {name}")
        rows, labels = content.get("data"), content.get("fine_labels")
        pictures = None
        if isinstance(rows, _Array) and isinstance(labels, list):
            if all(type(v) is int and 0 <= v < len(classes) for v in labels):
                pictures = rows.values(len(labels), 3 * 32 * 32)
        if pictures is None or not len(pictures):
            raise EhrnetError(f"{origin}, {name} does not hold pictures of 32x32 with labels.")
        planes = pictures.reshape(-1, 3, 32, 32)
        splits.append(
            Pictures(
                classes,
                np.array(labels, np.int64),
                np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
            )
        )
    return splits[0], splits[1]


class _Array:
    """What a pickle says about a NumPy array, as it says it."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def values(self, rows: int, columns: int) -> np.ndarray | None:
        """uint8 (rows, columns), or None where it is something else."""
        try:
            _, shape, dtype, fortran, data = self.state
            one_byte = isinstance(dtype, _Type) and dtype.code in (b"u1", "u1")
            if not one_byte or fortran or shape != (rows, columns) or type(data) is not bytes:
                return None
            return np.frombuffer(data, np.uint8).reshape(rows, columns)
        except (TypeError, ValueError):
            return None


class _Type:
    """What a pickle says about a NumPy type."""

    def __init__(self, code: Any = None, *rest: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like say nothing about single bytes."""


def _array(*_: Any) -> _Array:
    return _Array()


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes that were no text")
    return text.encode("latin1")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside")


def _unpickle(data: bytes, origin: str) -> dict[str, Any]:
    """The dictionary in a pickle, with text as keys. Nothing in it is run."""
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise TypeError("no dictionary")
        return {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
    except Exception as error:  # damaged pickles raise nearly every kind
        raise EhrnetError(
            f"{origin} is not of CIFAR-100, or damaged, and was not opened further ({error})."
        ) from None
