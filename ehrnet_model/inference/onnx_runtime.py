"""Runtime on ONNX Runtime: the default on every machine. The only file importing onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import (
    INPUT_NAME,
    OUTPUT_NAME,
    check_images,
    check_peaks,
    check_size,
    default_threads,
    model_info,
)


class OnnxRuntime:
    """An ONNX file on the CPU, float32.

    Args:
        model: file written by ``ehrnet export``.
        size_hw: pins height and width (multiples of 32), or None for any.
        threads: default two, see default_threads.

    Raises:
        EhrnetError: onnxruntime is not installed, or the file is not one of ours.
    """

    def __init__(
        self,
        model: Path,
        size_hw: Optional[Tuple[int, int]] = None,
        threads: Optional[int] = None,
    ) -> None:
        self.name = "onnxruntime"
        self.size_hw = None if size_hw is None else check_size(size_hw)
        self.info = model_info(model)
        try:
            import onnxruntime
        except Exception as error:
            raise EhrnetError(
                f"runtime onnxruntime is not available: {error}; install it with "
                "`pip install onnxruntime`."
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Waiting threads that spin take the cores that a robot's other nodes need: half the
        # latency at twice the load, for a tenth lost on an idle machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if self.size_hw is not None:
            for axis, size in zip(("height", "width"), self.size_hw):
                options.add_free_dimension_override_by_name(axis, size)
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise EhrnetError(
                f"onnxruntime {onnxruntime.__version__} cannot load {model}: {error}; export the "
                "model again or use another version."
            ) from None
        names = [i.name for i in self._session.get_inputs()]
        if names != [INPUT_NAME] or OUTPUT_NAME not in [
            o.name for o in self._session.get_outputs()
        ]:
            raise EhrnetError(
                f"{model} has inputs {names} instead of [{INPUT_NAME!r}]: export the model again."
            )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) BGR -> float32 (N, J, 30, 15). Raises EhrnetError if it cannot."""
        images = check_images(images, self.size_hw)
        if self._session is None:
            raise EhrnetError("this onnxruntime engine was closed: open the model again.")
        try:
            (peaks,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: images})
        except Exception as error:
            raise EhrnetError(
                f"onnxruntime failed on images of shape {images.shape}: {error}"
            ) from None
        return check_peaks(peaks, len(images), self.info, self.name)

    def close(self) -> None:
        """Frees the session."""
        self._session = None
