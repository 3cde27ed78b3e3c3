"""Runtime on OpenVINO: the same ONNX file on Intel's engine. The only file importing openvino."""

from __future__ import annotations

from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import (
    IMPORT_FAILURES,
    INPUT_NAME,
    OUTPUT_NAME,
    check_images,
    check_peaks,
    check_size,
    default_threads,
    failures_of,
    model_info,
)

# Compiled shapes kept when the size is free; compiling takes about half a second each. Second looks
# alone have as many as MOST_AT_ONCE.
MAX_COMPILED = 12


class OpenVinoRuntime:
    """An ONNX file on the CPU, float32.

    Every shape (batch, height, width) is compiled on its own, because a graph with free sizes is
    up to a quarter slower; the last few are kept.

    Args:
        model: file written by ``ehrnet export``.
        size_hw: pins height and width (multiples of 32) and compiles for one image at once, or
            None for any.
        threads: default two, see default_threads.

    Raises:
        EhrnetError: openvino is not installed, or the file is not one of ours.
    """

    def __init__(
        self,
        model: Path,
        size_hw: Optional[Tuple[int, int]] = None,
        threads: Optional[int] = None,
    ) -> None:
        self.name = "openvino"
        self.size_hw = None if size_hw is None else check_size(size_hw)
        self.info = model_info(model)
        try:
            import openvino
        except IMPORT_FAILURES as error:
            raise EhrnetError(
                f"runtime openvino is not available: {error}; install it with "
                "`pip install openvino`, or use runtime onnxruntime."
            ) from error
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads or default_threads()),
            # Pinned threads wait for a core that another process has.
            "ENABLE_CPU_PINNING": "NO",
            # By itself it takes bfloat16 where the CPU has it, which makes equal neighbours and
            # so wrong sub-pixel positions.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._openvino = openvino
        self._failures = failures_of(import_module(openvino.PartialShape.__module__))
        self._requests: OrderedDict[Tuple[int, ...], Any] = OrderedDict()
        try:
            self._core = openvino.Core()
            self._model = self._core.read_model(str(model))
            names = [i.any_name for i in self._model.inputs]
        except self._failures as error:
            raise EhrnetError(
                f"openvino {openvino.__version__} cannot load {model}: {error}; export the model "
                "again or use runtime onnxruntime."
            ) from error
        if names != [INPUT_NAME]:
            raise EhrnetError(
                f"{model} has inputs {names} instead of [{INPUT_NAME!r}]: export the model again."
            )
        # Its kernels can turn NaN into 0, and a picture of nobody would come out.
        for operation in self._model.get_ops():
            if operation.get_type_name() == "Constant" and not np.isfinite(operation.data).all():
                raise EhrnetError(
                    f"{model} holds values that are not finite ({operation.get_friendly_name()}): "
                    "its weights are broken, use others."
                )
        if self.size_hw is not None:
            self._request((1, *self.size_hw, 3))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) BGR -> float32 (N, J, 30, 15). Raises EhrnetError if it cannot."""
        images = check_images(images, self.size_hw)
        request = self._request(images.shape)
        try:
            request.infer({INPUT_NAME: images})
        except self._failures as error:
            raise EhrnetError(
                f"openvino failed on images of shape {images.shape}: {error}"
            ) from error
        # A copy: the next call writes into the same memory.
        peaks = np.array(request.get_tensor(OUTPUT_NAME).data)
        return check_peaks(peaks, len(images), self.info, self.name)

    def close(self) -> None:
        """Frees all compiled shapes."""
        self._requests.clear()
        self._model = None

    def _request(self, shape: Tuple[int, ...]) -> Any:
        if self._model is None:
            raise EhrnetError("this openvino engine was closed: open the model again.")
        if shape in self._requests:
            self._requests.move_to_end(shape)
            return self._requests[shape]
        try:
            model = self._model.clone()
            model.reshape({INPUT_NAME: self._openvino.PartialShape(list(shape))})
            compiled = self._core.compile_model(model, "CPU", self._options)
        except self._failures as error:
            raise EhrnetError(
                f"openvino cannot compile the model for images of shape {shape}: {error}"
            ) from error
        self._requests[shape] = compiled.create_infer_request()
        if len(self._requests) > MAX_COMPILED:
            self._requests.popitem(last=False)
        return self._requests[shape]
