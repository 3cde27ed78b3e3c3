"""Which engines there are, and how a model file is opened with one of them."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any, Optional, Tuple

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import Runtime, check_size, default_threads

RUNTIMES = (
    "auto",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "openvino",
    "tensorrt",
    "torch",
)

_log = logging.getLogger(__name__)


def open_runtime(
    model: Path,
    runtime: str = "auto",
    size_hw: Optional[Tuple[int, int]] = None,
    threads: Optional[int] = None,
    batch: int = 1,
) -> Runtime:
    """Load a model file into an engine.

    Args:
        model: an exported ``.onnx`` file, for ``tensorrt`` one of which `ehrnet build-engine` built
            an engine on this machine, or the ``.engine`` itself; ``torch`` wants the weights
            (``.safetensors``).
        runtime: one of RUNTIMES. ``auto`` takes TensorRT where its library loads, a GPU is there
            and an engine exists, else onnxruntime, and logs why. A runtime named explicitly is
            never replaced by another.
        size_hw: pins height and width, multiples of 32: every other size is refused, and the
            engine may plan for this one.
        threads: CPU threads of the engine; default: two, or one where there is only one core.
            Those of torch are the whole process's.
        batch: how many images it must take at once; TensorRT's engines are built for so many.

    Raises:
        EhrnetError: the file, the library or the device is missing or of no use.
    """
    model = Path(model)
    if runtime not in RUNTIMES:
        raise EhrnetError(f"runtime {runtime!r} is unknown: use one of {', '.join(RUNTIMES)}.")
    if size_hw is not None:
        size_hw = check_size(size_hw)
    if threads is not None and threads < 1:
        raise EhrnetError(f"{threads} threads are not possible: give 1 or more, or leave it out.")
    if not model.is_file():
        raise EhrnetError(
            f"there is no model file {model}: check the path, or write one with "
            "`ehrnet export --phi -4 --weights FILE -o FILE.onnx`."
        )
    if runtime == "auto":
        runtime = _choose(model, size_hw, batch)
    if runtime == "torch":
        # The only dotted name in the house: this folder does not import torch.
        module: Any = importlib.import_module("ehrnet_model.network.torch_runtime")
        threads = threads or default_threads()
        opened: Runtime = module.TorchRuntime.from_file(model, size_hw, threads)
        return opened
    if runtime == "tensorrt":
        from ehrnet_model.inference.tensorrt_runtime import TensorRTRuntime

        return TensorRTRuntime.from_file(model, size_hw, batch)
    if runtime == "openvino":
        from ehrnet_model.inference.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(model, size_hw, threads)
    from ehrnet_model.inference.onnx_runtime import OnnxRuntime

    return OnnxRuntime(model, size_hw, threads, runtime)


def _choose(model: Path, size_hw: Optional[Tuple[int, int]], batch: int) -> str:
    """What ``auto`` means for this file on this machine, logged with the reason."""
    from ehrnet_model.inference.tensorrt_runtime import why_no_engine, why_unavailable

    if model.suffix == ".engine":
        return "tensorrt"
    if model.suffix == ".safetensors":
        raise EhrnetError(
            f"{model} holds weights, not a graph: export it first with `ehrnet export --weights "
            f"{model} -o FILE.onnx`, or ask for runtime torch."
        )
    reason = why_unavailable()
    if reason is None:
        reason = why_no_engine(model, size_hw, batch)
    if reason is None:
        _log.info("runtime tensorrt: library, GPU and engine are there")
        return "tensorrt"
    _log.info("runtime onnxruntime: TensorRT is not used because %s", reason)
    return "onnxruntime"
