"""From settings to a loaded model, for the node and for bags."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Optional

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.runtime import ModelInfo, model_info
from ehrnet_model.inference.second_look import batch_of, open_closer
from ehrnet_ros import parameters


def open_estimator(path: Path, settings: parameters.Settings) -> PoseEstimator:
    """Loads the engine and runs it with all batches, so that no image is a slow one.

    Raises:
        EhrnetError: the engine cannot be opened, or not with these settings.
    """
    # An ONNX file tells its named sizes beforehand, an engine only once it is open.
    early = path.suffix == ".onnx"
    size_hw = parameters.input_size(settings, model_info(path).input_size) if early else None
    threads = settings.threads or None
    # What is open is closed where anything fails: a GPU's memory does not come back by itself.
    with contextlib.ExitStack() as opened:
        runtime = open_runtime(path, settings.runtime, size_hw, threads, settings.batch)
        opened.callback(runtime.close)
        wanted = parameters.input_size(settings, runtime.info.input_size)
        if wanted and runtime.size_hw and wanted != runtime.size_hw:
            raise EhrnetError(
                f"Parameter size asks for {wanted[0]}x{wanted[1]} but the engine of {path} is for "
                f"{runtime.size_hw[0]}x{runtime.size_hw[1]}: set size to auto, or build another "
                "engine."
            )
        options = parameters.decode_options(settings, runtime.info.decode)
        closer = open_closer(path, runtime, options, threads, settings.second_look > 0)
        if closer is not None and closer is not runtime:
            opened.callback(closer.close)
        estimator = PoseEstimator(runtime, options, wanted, closer)
        estimator.rotation = parameters.rotation_of(settings, settings.cameras[0])
        estimator(np.zeros((480, 640, 3), np.uint8))
        if closer is not None:
            side = options.second_look_size
            # The largest first: TensorRT in ONNX Runtime builds anew where a size leaves the range.
            for count in range(batch_of(options), 0, -1):
                closer(np.zeros((count, side, side, 3), np.uint8))
        opened.pop_all()
    return estimator


def model_name(info: Optional[ModelInfo]) -> str:
    """Variant, weights and how far they can be trusted: ``H-4 ours-2026-11 (preview)``."""
    if info is None:
        return ""
    return f"{info.variant} {info.weights_name or 'unnamed'} ({info.quality})"
