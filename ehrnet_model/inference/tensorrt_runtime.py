"""Runtime on TensorRT: engines for NVIDIA's GPUs, Jetson first. The only file importing tensorrt.

Written against TensorRT 8.5 to 11 by their published interfaces (names are held by a test); the
builder half runs in tests where TensorRT-RTX is installed. **Execution has never run on a GPU.**

An engine belongs to one TensorRT version and one GPU, so it is built on the robot:
``build_engine`` writes ``NAME.engine`` and ``NAME.engine.json`` beside ``NAME.onnx``. An engine
file is code: only load what was built on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import Buffer, Cuda
from ehrnet_model.inference.runtime import (
    INPUT_NAME,
    MAX_PEAKS,
    OUTPUT_NAME,
    PEAK_CHANNELS,
    check_images,
    check_peaks,
    check_size,
    info_from_json,
    info_to_json,
    model_info,
)

WORKSPACE_BYTES = 1 << 30


class TensorRTRuntime:
    """An engine on GPU 0: one upload of uint8 pixels, one download of peaks.

    Args:
        model: the ``.engine`` file, or the ``.onnx`` file beside which it lies.
        size_hw: the size wanted, must be the engine's; None takes the engine's.

    Raises:
        EhrnetError: TensorRT, the GPU or the engine is missing, or the engine was built for
            another model, size, TensorRT or GPU.
    """

    def __init__(self, model: Path, size_hw: Optional[Tuple[int, int]] = None) -> None:
        self.name = "tensorrt"
        self._context = self._engine = self._runtime = None
        self._input: Optional[Buffer] = None
        self._output: Optional[Buffer] = None
        self._stream = 0
        trt = _import_tensorrt()
        self._cuda = Cuda()
        engine_file = find_engine(model)
        if engine_file is None:
            raise EhrnetError(
                f"there is no TensorRT engine for {model}: build it on this machine with "
                "ehrnet_model.inference.tensorrt_runtime.build_engine, or use runtime onnxruntime."
            )
        sidecar = _read_sidecar(engine_file)
        self.info = info_from_json(json.dumps(sidecar["model"]), str(_sidecar(engine_file)))
        self._check_made_for_this(sidecar, engine_file, model, trt)
        self.size_hw: Optional[Tuple[int, int]] = check_size(sidecar["size_hw"])
        self._max_batch = int(sidecar["max_batch"])
        if size_hw is not None and check_size(size_hw) != self.size_hw:
            raise EhrnetError(
                f"the engine {engine_file} is for images of {self.size_hw[0]}x{self.size_hw[1]}, "
                f"not {size_hw[0]}x{size_hw[1]}: ask for its size or build another."
            )
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = _create(trt.Runtime, self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine_file.read_bytes())
        if self._engine is None:
            raise EhrnetError(
                f"TensorRT {trt.__version__} does not accept {engine_file}: build it again on "
                "this machine."
            )
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {INPUT_NAME, OUTPUT_NAME}:
            raise EhrnetError(
                f"{engine_file} has inputs and outputs {sorted(names)} instead of "
                f"{[INPUT_NAME, OUTPUT_NAME]}: build it again."
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EhrnetError(
                f"the GPU's memory does not suffice for {engine_file} "
                f"({self._cuda.free_memory() >> 20} MiB are free): end other processes or use a "
                "smaller variant."
            )
        self._stream = self._cuda.create_stream()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) BGR -> float32 (N, J, 30, 15). Raises EhrnetError if it cannot."""
        images = check_images(images, self.size_hw)
        if self._context is None:
            raise EhrnetError("this TensorRT engine was closed: open the model again.")
        if len(images) > self._max_batch:
            raise EhrnetError(
                f"this TensorRT engine takes up to {self._max_batch} images at once, not "
                f"{len(images)}: build it with a larger batch."
            )
        if self._input is None or self._input.host.shape != images.shape:
            self._prepare(images.shape)
        assert self._input is not None and self._output is not None
        np.copyto(self._input.host, images)
        self._input.upload(self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise EhrnetError("TensorRT could not start the engine: see its messages in the log.")
        self._output.download(self._stream)
        self._cuda.synchronize(self._stream)
        return check_peaks(self._output.host.copy(), len(images), self.info, self.name)

    def close(self) -> None:
        """Frees buffers, context, engine and runtime, in the order TensorRT wants."""
        self._free_buffers()
        self._context = None
        self._engine = None
        self._runtime = None
        if self._stream:
            self._cuda.destroy_stream(self._stream)
            self._stream = 0

    def _prepare(self, shape: Tuple[int, ...]) -> None:
        self._free_buffers()
        self._input = Buffer(self._cuda, shape, np.uint8)
        peaks = (shape[0], self.info.skeleton.num_keypoints, MAX_PEAKS, PEAK_CHANNELS)
        self._output = Buffer(self._cuda, peaks, np.float32)
        context: Any = self._context
        accepted = (
            context.set_input_shape(INPUT_NAME, shape)
            and tuple(context.get_tensor_shape(OUTPUT_NAME)) == peaks
            and context.set_tensor_address(INPUT_NAME, self._input.device)
            and context.set_tensor_address(OUTPUT_NAME, self._output.device)
        )
        if not accepted:
            self._free_buffers()
            raise EhrnetError(
                f"the TensorRT engine does not take images of shape {tuple(shape)}: build it again."
            )

    def _free_buffers(self) -> None:
        for buffer in (self._input, self._output):
            if buffer is not None:
                buffer.free()
        self._input = self._output = None

    def _check_made_for_this(self, sidecar: Any, engine: Path, model: Path, trt: Any) -> None:
        here = {
            "TensorRT": ("tensorrt", str(trt.__version__)),
            "compute capability": ("compute_capability", self._cuda.compute_capability()),
        }
        if Path(model).suffix == ".onnx":
            here["the model"] = ("onnx_sha256", _sha256(Path(model)))
        for what, (key, value) in here.items():
            if sidecar.get(key) != value:
                raise EhrnetError(
                    f"{engine} was built with {what} {sidecar.get(key)}, here it is {value}: "
                    "build the engine again on this machine."
                )


def build_engine(
    onnx: Path,
    size_hw: Tuple[int, int],
    engine: Optional[Path] = None,
    max_batch: int = 1,
) -> Path:
    """Builds an engine for this machine's GPU; takes minutes.

    Args:
        onnx: file written by ``ehrnet export``.
        size_hw: the height and width of all images.
        engine: file to write; default beside the ONNX file.
        max_batch: most images per call.

    Returns:
        The engine file; its description lies beside it (``.engine.json``).

    Raises:
        EhrnetError: TensorRT or the GPU is missing, or TensorRT refuses the model.
    """
    onnx = Path(onnx)
    engine = onnx.with_suffix(".engine") if engine is None else Path(engine)
    info = model_info(onnx)
    size_hw = check_size(size_hw)
    trt = _import_tensorrt()
    cuda = Cuda()
    workspace = min(WORKSPACE_BYTES, cuda.free_memory() * 2 // 5)
    plan = build_plan(trt, onnx, size_hw, max_batch, workspace)
    sidecar = {
        "model": json.loads(info_to_json(info)),
        "onnx_sha256": _sha256(onnx),
        "tensorrt": str(trt.__version__),
        "compute_capability": cuda.compute_capability(),
        "size_hw": list(size_hw),
        "max_batch": max_batch,
    }
    # The description first: an engine without one is refused, one without an engine is nothing.
    _write(_sidecar(engine), json.dumps(sidecar, indent=1).encode())
    _write(engine, plan)
    return engine


def build_plan(
    trt: Any, onnx: Path, size_hw: Tuple[int, int], max_batch: int, workspace_bytes: int
) -> bytes:
    """The serialised engine, with ``trt`` the module tensorrt or one with its interface.

    Raises:
        EhrnetError: the parser or the builder refuses the model, with its own words.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = _create(trt.Builder, logger)
    flag = trt.NetworkDefinitionCreationFlag
    # From 10 on types are the file's own; before, batch had to be asked for. The values of these
    # flags differ between versions.
    wanted = flag.STRONGLY_TYPED if hasattr(flag, "STRONGLY_TYPED") else flag.EXPLICIT_BATCH
    network = builder.create_network(1 << int(wanted))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        first = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise EhrnetError(
            f"TensorRT {trt.__version__} cannot read {onnx}: {first}; export the model again."
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    profile = builder.create_optimization_profile()
    one, most = (1, *size_hw, 3), (max_batch, *size_hw, 3)
    profile.set_shape(INPUT_NAME, one, one, most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EhrnetError(
            f"TensorRT {trt.__version__} could not build {onnx} for {size_hw[0]}x{size_hw[1]} with "
            f"{workspace_bytes >> 20} MiB of working memory: see its messages in the log; often "
            "memory is short."
        )
    return bytes(plan)


def find_engine(model: Path) -> Optional[Path]:
    """The engine file meant by a model path: itself, or the one beside an ONNX file."""
    model = Path(model)
    engine = model if model.suffix == ".engine" else model.with_suffix(".engine")
    return engine if engine.is_file() else None


def why_unavailable() -> Optional[str]:
    """The reason why TensorRT cannot run here, or None when library and GPU are there."""
    try:
        _import_tensorrt()
        Cuda()
    except EhrnetError as error:
        return str(error).rstrip(".")
    return None


def _import_tensorrt() -> Any:
    try:
        import tensorrt
    except Exception as error:
        raise EhrnetError(
            f"runtime tensorrt is not available: {error}; on a Jetson install the JetPack "
            "packages (apt: python3-libnvinfer), elsewhere use runtime onnxruntime."
        ) from None
    return tensorrt


def _create(factory: Any, logger: Any) -> Any:
    try:
        return factory(logger)
    except TypeError as error:
        # What the bindings say when the library or the driver behind them gives nothing.
        raise EhrnetError(
            f"runtime tensorrt is not available: {error}; install TensorRT's libraries and the "
            "driver, or use runtime onnxruntime."
        ) from None


def _sidecar(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def _read_sidecar(engine: Path) -> Any:
    path = _sidecar(engine)
    try:
        sidecar = json.loads(path.read_text())
        for key in ("model", "tensorrt", "compute_capability", "size_hw", "max_batch"):
            sidecar[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EhrnetError(
            f"the description {path} of the TensorRT engine is missing or broken ({error}): build "
            "the engine again."
        ) from None
    return sidecar


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
