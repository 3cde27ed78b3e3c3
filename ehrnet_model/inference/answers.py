"""Inputs and their FP32 answers, stored beside an ONNX file: what every engine is held to.

``H-4.onnx`` has ``H-4.answers.npz``: for each size a few images exactly as the network gets them
(PNG, which loses nothing) and the peaks PyTorch computed for them in float32. An engine built on a
robot, where there is neither PyTorch nor a picture, is checked with these (parity.py).
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Tuple

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.atomic import write_atomically
from ehrnet_model.inference.runtime import MAX_PEAKS, PEAK_CHANNELS, ModelInfo, check_size

SUFFIX = ".answers.npz"
_ABOUT = "about"
_BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class Answers:
    """What the network says in float32.

    Attributes:
        weights_sha256: the weights they were computed with.
        by_size: (height, width) -> images uint8 (N, H, W, 3) BGR and peaks float32
            (N, J, 30, 15).
    """

    weights_sha256: str
    by_size: Dict[Tuple[int, int], Tuple[np.ndarray, np.ndarray]]


def answers_file(model: Path) -> Path:
    """Where the answers of an ONNX file lie: ``NAME.answers.npz`` beside ``NAME.onnx``."""
    return Path(model).with_suffix(SUFFIX)


def write_answers(path: Path, answers: Answers) -> None:
    """Writes the file, whole or not at all. Raises OSError where that is not possible."""
    about = {"weights_sha256": answers.weights_sha256, "sizes": {}}
    arrays: Dict[str, np.ndarray] = {}
    for (height, width), (images, peaks) in sorted(answers.by_size.items()):
        size = f"{height}x{width}"
        about["sizes"][size] = len(images)  # type: ignore[index]
        for number, image in enumerate(images):
            _, png = cv2.imencode(".png", image)
            arrays[f"{size}/{number}.png"] = np.asarray(png).ravel()
        arrays[f"{size}/peaks"] = np.asarray(peaks, np.float32)
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def read_answers(model: Path, info: ModelInfo) -> Answers:
    """The answers stored beside a model.

    Args:
        model: the ONNX file.
        info: its description; the answers must be of the same weights.

    Raises:
        EhrnetError: no such file, a broken one, or one of other weights.
    """
    path = answers_file(model)
    if not path.is_file():
        raise EhrnetError(
            f"{model} has no stored answers to check an engine with ({path.name} is missing): "
            "export the model again, or copy both files."
        )
    try:
        with np.load(str(path), allow_pickle=False) as file:
            about = json.loads(file[_ABOUT].tobytes().decode())
            by_size = {}
            for size, count in about["sizes"].items():
                size_hw = check_size(tuple(int(v) for v in size.split("x")))  # type: ignore[arg-type]
                images = [
                    cv2.imdecode(file[f"{size}/{i}.png"], cv2.IMREAD_COLOR) for i in range(count)
                ]
                by_size[size_hw] = np.stack(images), file[f"{size}/peaks"]
                _check(size_hw, *by_size[size_hw], info)
            weights = str(about["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, *_BROKEN) as error:
        raise EhrnetError(
            f"the stored answers {path} cannot be read ({error}): export the model again."
        ) from None
    except (cv2.error, EhrnetError) as error:
        raise EhrnetError(
            f"the stored answers {path} hold something else ({str(error).rstrip('.')}): export the "
            "model again."
        ) from None
    if weights != info.weights_sha256:
        raise EhrnetError(
            f"{path} belongs to other weights than {model}: export the model again, or copy the "
            "file that was written with it."
        )
    return Answers(weights, by_size)


def _check(
    size_hw: Tuple[int, int], images: np.ndarray, peaks: np.ndarray, info: ModelInfo
) -> None:
    expected = (len(images), info.skeleton.num_keypoints, MAX_PEAKS, PEAK_CHANNELS)
    if images.shape[1:] != (*size_hw, 3) or images.dtype != np.uint8:
        raise ValueError(f"images of shape {images.shape} for size {size_hw[0]}x{size_hw[1]}")
    if peaks.shape != expected or peaks.dtype != np.float32 or not np.isfinite(peaks).all():
        raise ValueError(f"peaks of shape {peaks.shape} instead of {expected}, or not finite")
