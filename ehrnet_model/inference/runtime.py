"""What an engine is to the rest of the house: uint8 images in, peaks out.

The exported graph (network/export.py) has one input and one output:

* ``image``: uint8 (N, H, W, 3), **BGR** (OpenCV's order), H and W multiples of 32.
* ``peaks``: float32 (N, J, K, 15), K = 30 candidates per keypoint, best first. The last axis is
  ``score, x, y, tag, cell_x, cell_y`` and the 3x3 heatmap patch around the cell in row order.
  x and y are sub-pixel positions in pixels of the network input, pixel centres at whole numbers,
  as far as the weights' coordinate convention knows better; cells count on the map at half size.
  An unused place has score 0.

Everything else about the model travels in the metadata of the ONNX file, see ModelInfo.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Optional, Protocol, Tuple, Type

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.onnx_file import read_metadata
from ehrnet_model.skeleton import COCO_17, SKELETONS, SkeletonInfo

INPUT_NAME = "image"
OUTPUT_NAME = "peaks"
METADATA_KEY = "ehrnet"
# Nodes of the graph named so compute in float32 whatever the precision of the rest.
FP32_PREFIX = "fp32/"
MAX_PEAKS = 30
MAX_SMOOTH = 4.0
# Of the 5x5 maximum filter: two maxima of one plateau lie this near, in cells of the half-size map.
NMS_RADIUS = 2
PEAK_CHANNELS = 15
STRIDE = 32
MAX_INPUT_SIZE = 4096
IMPORT_FAILURES = (ImportError, OSError, AttributeError, RuntimeError, ValueError)
"""What an import of a compiled package raises: it is missing, a library of it is, or it was built
for another NumPy, which comes in the last three ways."""
# Where, in input pixels, the centre of cell 0 of the half-size map lies by each convention. All but
# the first were trained and decoded with a quarter-cell shift instead of a sub-pixel fit.
COORDINATES = {"pixel-centre": 0.5, "reference": 1.0, "first-pixel": 0.0}


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model file; stored as JSON in the ONNX metadata under ``ehrnet``.

    Attributes:
        variant: name such as ``H-3``.
        phi: the compound coefficient, 0..-4.
        skeleton: which keypoints.
        weights_sha256: hash of the weights that were exported (hex).
        weights_name: a short human name of the weights, e.g. ``ours-2026-11`` or ``random``.
        quality: ``released``, ``preview``, ``imported`` or ``random``. Random weights are for tests
            and timing; nothing shows poses from them to a user without saying so.
        coordinates: ``pixel-centre`` (cell i of the half-size map is centred at input pixel
            2 i + 0.5), ``reference`` (at 2 i + 1: the authors' truncated targets plus half a cell)
            or ``first-pixel`` (at 2 i, the first of its two pixels). See COORDINATES.
        decode: decode defaults stored with the weights (fields of DecodeOptions).
        version: version of ehrnet_model that exported the file.
        input_size: short side, in pixels, of the network input that suits the weights best; the
            paper's square unless the weights were trained for another scale. 0: not said.
        precision: what the graph computes in: ``fp32``, ``fp16`` or ``int8``.
        smooth: the graph smooths heatmaps by a Gaussian of so many cells at half the input size
            before it looks for peaks; 0: it does not.
        extra: anything else (licence, metrics, recipe), for people to read.
    """

    variant: str
    phi: int
    skeleton: SkeletonInfo = COCO_17
    weights_sha256: str = ""
    weights_name: str = ""
    quality: str = "random"
    coordinates: str = "pixel-centre"
    decode: Dict[str, Any] = field(default_factory=dict)
    version: str = ""
    input_size: int = 0
    precision: str = "fp32"
    smooth: float = 0.0
    extra: Dict[str, Any] = field(default_factory=dict)


class WrongAnswer(EhrnetError):
    """An engine ran, and what it gave cannot be peaks."""


class Runtime(Protocol):
    """One loaded engine. Not thread-safe: the thread that made it calls it.

    Attributes:
        info: what model this is.
        name: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``torch``; with the device where
            useful.
        size_hw: the only (height, width) it takes, or None when any multiple of 32 is fine.
    """

    info: ModelInfo
    name: str
    size_hw: Optional[Tuple[int, int]]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) BGR -> float32 (N, J, K, 15). Raises EhrnetError if it cannot."""
        ...

    def close(self) -> None:
        """Frees device memory; the object is of no use afterwards."""
        ...


def model_info(path: Path) -> ModelInfo:
    """What an exported ONNX file says about itself. Needs no engine and no onnx package.

    Raises:
        EhrnetError: no such file, not an ONNX file, not one of ours, or a skeleton not known here.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        raise EhrnetError(
            f"{path} holds weights, which run on `torch` only: export them with `ehrnet export "
            f"--weights {path} -o FILE.onnx`, and give that."
        )
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        raise EhrnetError(
            f"{path} is an ONNX file but not one written by `ehrnet export`: export the weights "
            "with it, other graphs have other inputs and outputs."
        )
    return info_from_json(text, str(path))


def info_to_json(info: ModelInfo) -> str:
    """The text stored with a model; read back by info_from_json."""
    return json.dumps(dataclasses.asdict(info), sort_keys=True)


def info_from_json(text: str, where: str) -> ModelInfo:
    """Reads what info_to_json wrote; fields of later versions are ignored.

    Raises:
        EhrnetError: broken text, a value of another type or no possible size, or a skeleton that is
            not one of SKELETONS; ``where`` names it.
    """
    try:
        values = json.loads(text)
        known = {f.name for f in dataclasses.fields(ModelInfo)}
        values = {name: value for name, value in values.items() if name in known}
        stored = values.pop("skeleton")
        info = ModelInfo(**values)
        _check_values(info)
        name, keypoints = str(stored["name"]), tuple(stored["names"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EhrnetError(
            f"the model description in {where} cannot be read ({error!r}): export the model again."
        ) from None
    skeleton = SKELETONS.get(name)
    if skeleton is None or skeleton.names != keypoints:
        raise EhrnetError(
            f"{where} finds {len(keypoints)} keypoints of skeleton {name!r}, but this version "
            f"knows {', '.join(SKELETONS)} only: use a model exported for one of these."
        )
    return dataclasses.replace(info, skeleton=skeleton)


def _check_values(info: ModelInfo) -> None:
    """Raises TypeError or ValueError for what no model has; the skeleton is not looked at."""
    kinds = {"str": str, "int": int, "float": float, "Dict[str, Any]": dict}
    for f in dataclasses.fields(info):
        value, kind = getattr(info, f.name), kinds.get(str(f.type))
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{f.name} cannot be {value!r}")
    if not 0 <= info.smooth <= MAX_SMOOTH:
        raise ValueError(f"smooth cannot be {info.smooth}")
    if not 0 <= info.input_size <= MAX_INPUT_SIZE:
        raise ValueError(f"input_size cannot be {info.input_size}")


def failures_of(bindings: ModuleType) -> Tuple[Type[Exception], ...]:
    """What calls into a compiled package raise.

    Classes of its own, which have no common base, and what pybind11 makes of C++'s exceptions.

    Args:
        bindings: the compiled module.
    """
    own = [v for v in vars(bindings).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*own, RuntimeError, ValueError)


def default_threads() -> int:
    """Two, or one on a single core: a robot's other nodes want the rest."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return min(2, cores)


def check_size(size_hw: Tuple[int, int]) -> Tuple[int, int]:
    """(height, width) as integers. Raises EhrnetError unless positive multiples of 32."""
    height, width = (int(v) for v in size_hw)
    if height <= 0 or width <= 0 or height % STRIDE or width % STRIDE:
        raise EhrnetError(
            f"input size {height}x{width} is not possible: height and width must be multiples of "
            f"{STRIDE}, such as 384x512."
        )
    return height, width


def check_images(images: np.ndarray, size_hw: Optional[Tuple[int, int]]) -> np.ndarray:
    """The images, contiguous. Raises EhrnetError unless uint8 (N, H, W, 3) of a size allowed."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise EhrnetError(f"the network takes images of type uint8, not {kind}.")
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[0] < 1:
        raise EhrnetError(
            f"the network takes a batch of images (N, H, W, 3), not an array of shape "
            f"{images.shape}: add the batch axis, three channels in BGR order."
        )
    given = check_size((images.shape[1], images.shape[2]))
    if size_hw is not None and given != size_hw:
        raise EhrnetError(
            f"this engine was opened for images of {size_hw[0]}x{size_hw[1]} (height x width) and "
            f"was given {given[0]}x{given[1]}: letterbox to its size, or open it without one."
        )
    return np.ascontiguousarray(images)


def check_peaks(peaks: np.ndarray, batch: int, info: ModelInfo, name: str) -> np.ndarray:
    """The engine's answer as float32. Raises WrongAnswer: another shape, or values not finite."""
    expected = (batch, info.skeleton.num_keypoints, MAX_PEAKS, PEAK_CHANNELS)
    if peaks.shape != expected:
        raise WrongAnswer(
            f"{name} answered with shape {peaks.shape} instead of {expected}: the model file does "
            "not fit its own description, export it again."
        )
    if not np.isfinite(peaks).all():
        raise WrongAnswer(
            f"{name} gave values that are not finite for model {info.variant} "
            f"({info.weights_name or 'unnamed weights'}): its weights are broken or the engine's "
            "precision is too low; use other weights or another runtime."
        )
    return np.asarray(peaks, np.float32)
