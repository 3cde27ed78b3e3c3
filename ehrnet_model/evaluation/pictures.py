"""Pictures by name, from folders and zip files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ehrnet_model.errors import EhrnetError


class ImageFiles:
    """Image files by name, from folders and zip files.

    A file is looked for under its name in the annotations, then under its last part alone.
    Raises EhrnetError for a place that is neither a folder nor a zip file.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        self._folders: list[Path] = []
        self._zips: dict[str, tuple[zipfile.ZipFile, str]] = {}
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
                self._zips.setdefault(name, (archive, name))
                self._zips.setdefault(name.rsplit("/", 1)[-1], (archive, name))

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None where no place has it."""
        short = name.rsplit("/", 1)[-1]
        for folder in self._folders:
            for candidate in (folder / name, folder / short):
                if candidate.is_file():
                    return candidate.read_bytes()
        for candidate_name in (name, short):
            if candidate_name in self._zips:
                archive, inner = self._zips[candidate_name]
                return archive.read(inner)
        return None

    def require(self, names: Iterable[str]) -> None:
        """Raises EhrnetError when a file is missing: how many, and the first one's name."""
        names = list(names)
        missing = [name for name in names if not self._has(name)]
        if missing:
            raise EhrnetError(
                f"{len(missing)} of {len(names)} images are in none of the given folders and zip "
                f"files, {missing[0]} for one: check --images."
            )

    def _has(self, name: str) -> bool:
        short = name.rsplit("/", 1)[-1]
        places = [folder / each for folder in self._folders for each in (name, short)]
        return name in self._zips or short in self._zips or any(p.is_file() for p in places)

    def decode(self, name: str) -> np.ndarray:
        """The picture as uint8 (H, W, 3) RGB. Raises EhrnetError when missing or not an image."""
        import cv2

        try:
            data = self.read(name)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise EhrnetError(f"image {name} cannot be read ({error}).") from None
        if data is None:
            raise EhrnetError(f"image {name} is in none of the given folders and zip files.")
        picture = None
        if data:
            # Annotations count pixels as they are stored, whatever way up the camera was.
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if picture is None:
            raise EhrnetError(f"image {name} does not decode: it is damaged or not an image.")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
