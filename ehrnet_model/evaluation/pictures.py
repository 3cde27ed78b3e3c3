"""Pictures by name, from folders and zip files."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.picture import decode_picture


class ImageFiles:
    """Image files by name, from folders and zip files.

    A file is looked for under its name in the annotations, then under its last part alone.
    Raises EhrnetError for a place that is neither a folder nor a zip file.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        self._folders: list[Path] = []
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._short: dict[str, str] = {}
        for place in places:
            place = Path(place)
            if place.is_dir():
                self._folders.append(place)
                continue
            try:
                archive = zipfile.ZipFile(place)
            except (OSError, zipfile.BadZipFile) as error:
                raise EhrnetError(
                    f"{place} is neither a folder nor a zip file ({error})."
                ) from None
            for name in archive.namelist():
                self._zips.setdefault(name, archive)
                self._short.setdefault(name.rsplit("/", 1)[-1], name)
        self._short.update((name, name) for name in self._zips if "/" not in name)

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None where no place has it."""
        found = self._find(name)
        if isinstance(found, Path):
            return found.read_bytes()
        return None if found is None else self._zips[found].read(found)

    def _find(self, name: str) -> Path | str | None:
        """A file of a folder, or its name in the zip files."""
        short = name.rsplit("/", 1)[-1]
        for candidate, packed in ((name, name), (short, self._short.get(short, ""))):
            for folder in self._folders:
                if os.path.isfile(folder / candidate):
                    return folder / candidate
            if packed in self._zips:
                return packed
        return None

    def require(self, names: Iterable[str]) -> None:
        """Raises EhrnetError when a file is missing: how many, and the first one's name."""
        names = list(names)
        missing = [name for name in names if self._find(name) is None]
        if missing:
            raise EhrnetError(
                f"{len(missing)} of {len(names)} images are in none of the given folders and zip "
                f"files, {missing[0]} for one: check --images."
            )

    def picture(self, image: Mapping[str, Any]) -> np.ndarray:
        """``decode`` for the record of an image, whose places are in pixels of its own size.

        Raises EhrnetError as well where the record says another size than the file has.
        """
        picture = self.decode(image["file_name"])
        height, width = picture.shape[:2]
        told = image.get("height", height), image.get("width", width)
        if told != (height, width):
            raise EhrnetError(
                f"image {image['file_name']} is {height}x{width} (HxW), but its annotations are of "
                f"{told[0]}x{told[1]}: give the images that were annotated, not smaller copies."
            )
        return picture

    def decode(self, name: str) -> np.ndarray:
        """The picture as uint8 (H, W, 3) RGB. Raises EhrnetError when missing or not an image."""
        try:
            data = self.read(name)
        # RuntimeError: a zip file with a password, or of a method that Python does not know.
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise EhrnetError(f"image {name} cannot be read ({error}).") from None
        if data is None:
            raise EhrnetError(f"image {name} is in none of the given folders and zip files.")
        # Annotations count pixels as they are stored, whatever way up the camera was.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = decode_picture(data, name, flags)
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
