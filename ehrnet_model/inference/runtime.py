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

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Protocol, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

INPUT_NAME = "image"
OUTPUT_NAME = "peaks"
MAX_PEAKS = 30
PEAK_CHANNELS = 15
STRIDE = 32


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
            2 i + 0.5) or ``reference`` (at 2 i + 1: the authors' truncated targets plus half a cell).
        decode: decode defaults stored with the weights (fields of DecodeOptions).
        version: version of ehrnet_model that exported the file.
        input_size: side of the square input the paper uses for this variant.
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
    extra: Dict[str, Any] = field(default_factory=dict)


class Runtime(Protocol):
    """One loaded engine. Not thread-safe: the thread that made it calls it.

    Attributes:
        info: what model this is.
        name: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``torch``; with the device where useful.
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
