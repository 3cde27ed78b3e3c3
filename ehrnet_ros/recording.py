"""Pictures, videos and JSON written so that a file of that name is always whole. No ROS."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.atomic import save_bytes
from ehrnet_model.inference.letterbox import Letterbox


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a (H, W, 3) uint8 BGR picture; the name's ending chooses JPEG or PNG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    ok, content = cv2.imencode(path.suffix, picture, options)
    if not ok:
        raise EhrnetError(f"OpenCV cannot write the picture {path}: use .jpg or .png.")
    save_bytes(path, content.tobytes())


class VideoFile:
    """An MP4 video that is there when it is whole; use it in a ``with`` statement.

    Every frame takes the size of the first one, with black beside it where its shape is another.
    Nothing is left where no frame was written or the block ends in an exception.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.frames = 0
        self._part = _beside(path)
        self._rate = rate
        self._writer: Optional[cv2.VideoWriter] = None
        self._size_wh = (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Adds a (H, W, 3) uint8 BGR frame.

        Raises:
            EhrnetError: the video cannot be written there.

        """
        if self._writer is None:
            # Compressed chroma has half the resolution: an odd last row or column would be lost.
            self._size_wh = (max(2, frame.shape[1] // 2 * 2), max(2, frame.shape[0] // 2 * 2))
            fourcc = cv2.VideoWriter_fourcc(*"mp4v")
            # Absolute: FFmpeg takes what has a colon for the address of a stream.
            part = str(self._part.absolute())
            self._writer = cv2.VideoWriter(part, fourcc, self._rate, self._size_wh)
            if not self._writer.isOpened():
                raise EhrnetError(f"OpenCV cannot write a video to {self.path}.")
        if frame.shape[1::-1] != self._size_wh:
            if (frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2) == self._size_wh:
                frame = np.ascontiguousarray(frame[: self._size_wh[1], : self._size_wh[0]])
            else:
                size_hw = self._size_wh[::-1]
                frame = Letterbox.fit((frame.shape[0], frame.shape[1]), size_hw).apply(frame)
        self._writer.write(frame)
        self.frames += 1

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if kind is None:
                os.replace(self._part, self.path)
        if self._part.exists():
            self._part.unlink()


def make_folder(path: Path) -> Path:
    """The folder, made where it is not there.

    Raises:
        EhrnetError: it cannot be made.

    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise EhrnetError(f"{path} is a file, not a folder: name another place.") from None
    except OSError as error:
        raise EhrnetError(f"The folder {path} cannot be made ({error.strerror}).") from None
    return path


def _beside(path: Path) -> Path:
    # The ending stays: OpenCV and others choose the format by it.
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
