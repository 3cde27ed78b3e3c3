"""Frames from pictures, videos, streams and cameras, as OpenCV opens them. No ROS."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Set, Tuple

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.picture import read_picture

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class Source(NamedTuple):
    """Where frames come from.

    Attributes:
        name: what a file made of it may be called, without an ending.
        frames: gives an iterator over (H, W, 3) uint8 BGR frames from the beginning.
        rate: frames per second of the source itself, 0 where it has none.
        endless: a camera or a stream: where it broke off, ``frames`` opens it again.
        length: how many frames, 0 where that is not known.
        files: the pictures that a picture or a folder consists of.

    """

    name: str
    frames: Callable[[], Iterator[np.ndarray]]
    rate: float
    endless: bool
    length: int = 0
    files: Tuple[Path, ...] = ()


def open_source(text: str, skip: Callable[[Path, EhrnetError], None] = lambda *_: None) -> Source:
    """The source that a path, a stream's address or a camera index names.

    Args:
        text: that names it.
        skip: hears once of each picture of a folder that its frames leave out: it cannot be read.

    Raises:
        EhrnetError: there is no such source, or nothing in it can be read.

    """
    if not text:
        raise EhrnetError(
            "The parameter source is empty: give it a picture, a folder, a video file, the address "
            "of a stream, or the index or device of a camera."
        )
    if re.fullmatch("[0-9]{1,2}", text):
        return _capture(
            int(text),
            text,
            True,
            f"OpenCV cannot open camera {text}: check that it exists and is not in use.",
        )
    if re.match(r"(rtsp|https?)://", text, re.IGNORECASE):
        return _capture(
            text,
            "stream",
            True,
            f"OpenCV cannot open the stream {public(text)}: check its address and that it is sent.",
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, skip)
    if path.is_char_device():  # /dev/v4l/by-id/... stays the same camera
        return _capture(
            str(path),
            path.name,
            True,
            f"OpenCV cannot open the camera {path}: check that it is one and is not in use.",
        )
    if not path.is_file():
        raise EhrnetError(
            f"There is no file or folder {path}: give a picture, a folder, a video file, the "
            "address of a stream (rtsp://, http://), or the index or device of a camera."
        )
    if path.suffix.lower() in PICTURES:
        picture = read_picture(path)
        return Source(path.stem, lambda: iter((picture,)), 0.0, False, 1, (path,))
    return _capture(
        str(path.absolute()),  # else FFmpeg takes 10:00:00.mp4 for the address of a stream
        path.stem,
        False,
        f"{path} is no video that OpenCV can read: give another, or a picture "
        f"({', '.join(PICTURES)}).",
    )


def public(source: str) -> str:
    """A source as logs and results may name it: a stream's address without its password."""
    return re.sub(r"(?<=://)[^/?#]*@", "...@", source)


def readable(
    files: Iterable[Path], skip: Callable[[Path, EhrnetError], None]
) -> Iterator[Tuple[Path, np.ndarray]]:
    """The pictures that can be read, with their files; ``skip`` hears of the others."""
    for file in files:
        try:
            picture = read_picture(file)
        except EhrnetError as error:
            skip(file, error)
            continue
        yield file, picture


def _folder(path: Path, skip: Callable[[Path, EhrnetError], None]) -> Source:
    names = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES))
    if not names:
        raise EhrnetError(f"The folder {path} holds no picture ({', '.join(PICTURES)}).")
    if next(readable(names, lambda *_: None), None) is None:
        read_picture(names[0])  # which says why not
    skipped: Set[Path] = set()

    def once(file: Path, error: EhrnetError) -> None:
        if file not in skipped:
            skipped.add(file)
            skip(file, error)

    def frames() -> Iterator[np.ndarray]:
        some = False
        for _, picture in readable(names, once):
            some = True
            yield picture
        if not some:  # whoever begins again at the end would do so for ever
            raise EhrnetError(
                f"No picture of the folder {path} can be read any more: check that it is there."
            )

    name = path.resolve().name or "pictures"  # of . and /
    return Source(name, frames, 0.0, False, len(names), names)


def _capture(device: Any, name: str, endless: bool, failed: str) -> Source:
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        raise EhrnetError(failed)
    rate = capture.get(cv2.CAP_PROP_FPS)
    length = 0 if endless else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    begun = False

    def frames() -> Iterator[np.ndarray]:
        nonlocal begun
        if begun:
            capture.open(device)
        begun = True
        ok, frame = capture.read()
        if not ok and not endless:  # whoever begins again at the end would do so for ever
            raise EhrnetError(failed)
        while ok:
            yield frame
            ok, frame = capture.read()

    rate = rate if rate > 0 and math.isfinite(rate) else 0.0
    return Source(name, frames, rate, endless, length)
