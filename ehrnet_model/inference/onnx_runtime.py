"""Runtime on ONNX Runtime: the default on every machine. The only file importing onnxruntime.

Its execution providers for NVIDIA's GPUs are runtimes of their own here, since they are chosen by
name and never replaced by another. **They have never run on a GPU**; what tests see is how they are
refused without one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Type

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import DeviceLost, is_fatal
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

PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's own name for each runtime of this file."""

# The first built on TensorRT 10, whose networks can be strongly typed, with all options used here.
_OLDEST_FOR_GPUS = (1, 18)


class OnnxRuntime:
    """An ONNX file in the precision of its graph.

    Args:
        model: file written by ``ehrnet export``.
        size_hw: pins height and width (multiples of 32), or None for any. With
            ``onnxruntime-tensorrt`` every new size and batch costs minutes.
        threads: default two, see default_threads.
        name: one of PROVIDERS.

    Raises:
        EhrnetError: onnxruntime or the provider is not installed, the provider finds no GPU, or the
            file is not one of ours.
    """

    def __init__(
        self,
        model: Path,
        size_hw: Optional[Tuple[int, int]] = None,
        threads: Optional[int] = None,
        name: str = "onnxruntime",
    ) -> None:
        self.name = name
        self.size_hw = None if size_hw is None else check_size(size_hw)
        self.info = model_info(model)
        onnxruntime = _import()
        provider = PROVIDERS[name]
        if provider not in onnxruntime.get_available_providers():
            raise EhrnetError(
                f"runtime {name} is not available: the installed onnxruntime "
                f"{onnxruntime.__version__} has no {provider}; install onnxruntime-gpu instead, or "
                "use runtime onnxruntime."
            )
        if name != "onnxruntime":
            _check_version(name, str(onnxruntime.__version__))
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
                str(model), options, providers=_providers(name, model)
            )
        except _failures() as error:
            raise EhrnetError(
                f"onnxruntime {onnxruntime.__version__} cannot load {model}: {error}; export the "
                "model again or use another version."
            ) from error
        # Where a provider fails, ONNX Runtime goes on with the next one.
        if self._session.get_providers()[0] != provider:
            raise EhrnetError(
                f"runtime {name} is not available: {provider} found no GPU, or not the CUDA and "
                f"cuDNN that onnxruntime {onnxruntime.__version__} was built for; see its messages "
                "above, or use runtime onnxruntime."
            )
        self._session.disable_fallback()
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
            raise EhrnetError(f"this {self.name} engine was closed: open the model again.")
        try:
            (peaks,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: images})
        except _failures() as error:
            kind = DeviceLost if _lost(str(error)) else EhrnetError
            raise kind(f"{self.name} failed on images of shape {images.shape}: {error}") from error
        return check_peaks(peaks, len(images), self.info, self.name)

    def close(self) -> None:
        """Frees the session."""
        self._session = None


def installed() -> List[str]:
    """Which of PROVIDERS the installed onnxruntime has; a GPU may still be missing."""
    try:
        available = _import().get_available_providers()
    except EhrnetError:
        return []
    return [name for name, provider in PROVIDERS.items() if provider in available]


def _lost(said: str) -> bool:
    """Whether the CUDA provider's words name an error after which the process must end."""
    code = re.search(r"CUDA (?:failure|error) (\d+)", said)
    return code is not None and is_fatal(int(code.group(1)))


def _import() -> Any:
    try:
        import onnxruntime
    except IMPORT_FAILURES as error:
        raise EhrnetError(
            f"runtime onnxruntime is not available: {error}; install it with "
            "`pip install onnxruntime`."
        ) from error
    return onnxruntime


def _failures() -> Tuple[Type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state

    return failures_of(onnxruntime_pybind11_state)


def _check_version(name: str, version: str) -> None:
    """Raises EhrnetError where the GPUs' providers do not know what they are asked for here."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_FOR_GPUS:
        oldest = ".".join(map(str, _OLDEST_FOR_GPUS))
        raise EhrnetError(
            f"runtime {name} needs onnxruntime-gpu {oldest} or later, this is {version}: install "
            "a later one, or use runtime tensorrt or onnxruntime."
        )


def _providers(name: str, model: Path) -> List[Any]:
    """What a session is asked for: the provider with its options, then who takes the rest.

    Raises EhrnetError where the folder of TensorRT's engines cannot be made, or others write there.
    """
    if name == "onnxruntime":
        return [PROVIDERS[name]]
    # With TF32 float32 would silently have float16's ten bits of mantissa.
    cuda = (PROVIDERS["onnxruntime-cuda"], {"use_tf32": "0"})
    if name == "onnxruntime-cuda":
        return [cuda, PROVIDERS["onnxruntime"]]
    from ehrnet_model.inference.engine_folder import engine_folder, file_sha256, make_private

    folder = engine_folder()
    try:
        # ONNX Runtime tells engines apart by their graph alone, not by its weights.
        for part in ("", "onnxruntime", file_sha256(model)[:16]):
            folder = folder / part
            make_private(folder)
    except OSError as error:
        raise EhrnetError(
            f"the folder {folder} for TensorRT's engines cannot be made ({error.strerror}): name "
            "another one with $EHRNET_ENGINES."
        ) from None
    # TensorRT's provider has no option against TF32; NVIDIA's libraries look at this.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options: Dict[str, str] = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        # Types are the graph's own: with either of these ONNX Runtime lets TensorRT lower what it
        # likes, the places of peaks as well.
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
    }
    return [(PROVIDERS[name], options), cuda, PROVIDERS["onnxruntime"]]
