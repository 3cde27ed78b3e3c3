"""Picture files to arrays, for whoever reads some: one way, one set of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Union

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError


def read_picture(path: Path) -> np.ndarray:
    """A picture file, turned as its EXIF data say.

    Not ``cv2.imread``: it takes no path with characters outside the locale's everywhere.

    Returns:
        uint8 (h, w, 3) BGR.

    Raises:
        EhrnetError: it cannot be read, or is no picture.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EhrnetError(
            f"the picture {path} cannot be read: {error.strerror or error}."
        ) from None
    return decode_picture(data, path)


def decode_picture(
    data: bytes, name: Union[str, Path], flags: int = cv2.IMREAD_COLOR
) -> np.ndarray:
    """The same from a file's bytes.

    Args:
        data: as stored, JPEG or PNG for instance.
        name: for the error.
        flags: OpenCV's, with ``IMREAD_COLOR`` among them.
    """
    picture = None
    try:
        if data:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # a header that promises more pixels than OpenCV allows
        pass
    if picture is None:
        raise EhrnetError(f"the picture {name} does not decode: it is damaged or not an image.")
    return picture
