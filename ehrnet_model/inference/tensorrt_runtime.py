"""Runtime on TensorRT: engines for NVIDIA's GPUs, Jetson first.

Written against TensorRT 8.5 to 11 by their published interfaces (a test holds every call).
**Execution has never run on a GPU.** Engines come from engine.py's folder; tensorrt_builder.py
makes them.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import Buffer, Cuda, DeviceLost, OutOfDeviceMemory
from ehrnet_model.inference.engine import (
    ENGINE_SUFFIX,
    EngineInfo,
    EngineSpec,
    Platform,
    find_engine,
    read_plan,
    stored_engines,
)
from ehrnet_model.inference.parity import DIFFERS
from ehrnet_model.inference.runtime import (
    IMPORT_FAILURES,
    INPUT_NAME,
    MAX_PEAKS,
    OUTPUT_NAME,
    PEAK_CHANNELS,
    check_images,
    check_peaks,
    check_size,
)

_log = logging.getLogger(__name__)

RECORD_AFTER = 4
"""Cameras that come and go change the number from batch to batch, and recording takes as long as
some images."""
# Loading takes more than the plan: TensorRT 8 opens cuBLAS and cuDNN, about 300 to 400 MiB by logs.
_BESIDE_A_PLAN = 512 << 20
# The same kernels on the same images, but sums without a fixed order differ in their last digits.
_SAME_SCORE = 1e-3

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_TEGRA_BOARD = Path("/proc/device-tree/model")


class TensorRTRuntime:
    """An engine on GPU 0: one upload of uint8 pixels, one download of peaks.

    A small network's kernels are shorter than it takes to start them one by one, so once
    RECORD_AFTER batches in a row had the same number of images, all of it is recorded as a CUDA
    graph. If it answers the next one as the engine itself does, it is what the later ones start,
    with one call; what cannot be recorded, or answers otherwise, is started as before.

    Args:
        plan: the serialised engine.
        info: its description, engine.py.
        where: what to call the engine in messages.

    Attributes:
        engine: its description, with the verdict of the parity check.

    Raises:
        OutOfDeviceMemory: the GPU has too little memory now.
        EhrnetError: TensorRT or the GPU is missing, the engine does not load, was built for another
            TensorRT or GPU, or was found to be a wrong one.
    """

    def __init__(self, plan: bytes, info: EngineInfo, where: str) -> None:
        self.name = "tensorrt"
        self.engine = info
        self.info = info.model
        self.size_hw: Optional[Tuple[int, int]] = check_size(info.spec.size_hw)
        self._max_batch = info.spec.max_batch
        self._context = self._engine = self._runtime = None
        self._input: Optional[Buffer] = None
        self._output: Optional[Buffer] = None
        self._stream = self._graph = 0
        self._batch = self._in_a_row = 0
        trt = import_tensorrt()
        self._cuda = Cuda()
        here = platform(trt, self._cuda)
        if info.spec.platform != here:
            told = "; ".join(info.spec.differences(_at(info.spec, here)))
            raise EhrnetError(
                f"{where} was built for another machine ({told}): build it here with `ehrnet "
                "build-engine`."
            )
        if info.verdict.state == DIFFERS:
            raise EhrnetError(f"{where} gives wrong answers: {info.verdict.reason}")
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = create(trt.Runtime, self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            # File and machine are the right ones, so that most likely it is this.
            if self._cuda.free_memory() < len(plan) + _BESIDE_A_PLAN:
                raise self._no_room(where)
            raise EhrnetError(
                f"TensorRT {trt.__version__} does not accept {where}: build it again on this "
                "machine with `ehrnet build-engine`."
            )
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {INPUT_NAME, OUTPUT_NAME}:
            raise EhrnetError(
                f"{where} has inputs and outputs {sorted(names)} instead of "
                f"{[INPUT_NAME, OUTPUT_NAME]}: build it again."
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._no_room(where)
        self._stream = self._cuda.create_stream()
        try:
            self._prepare()
        except EhrnetError:
            self.close()
            raise
        _log.info("engine %s of %s: %s", where, info.built, info.verdict)

    @classmethod
    def from_file(
        cls, model: Path, size_hw: Optional[Tuple[int, int]] = None, batch: int = 1
    ) -> TensorRTRuntime:
        """The stored engine of a model.

        Args:
            model: an ``.engine`` file, or the ``.onnx`` file it was built from.
            size_hw: the size wanted; None takes any.
            batch: how many images it must take at once; see find_engine for which it is.

        Raises:
            EhrnetError: see the class; or there is no such engine, and how to build it.
        """
        model = Path(model)
        here = platform(import_tensorrt(), Cuda())
        if model.suffix == ENGINE_SUFFIX:
            engine = find_engine(model)
            if engine is None:
                raise EhrnetError(f"there is no engine file {model}: check the path.")
        else:
            engine = find_engine(model, size_hw, here, batch=batch)
        if engine is None:
            raise EhrnetError(
                f"{_missing(model, size_hw, batch, here)}: run `{_command(model, size_hw, batch)}`."
            )
        spec = engine.info.spec
        if size_hw is not None and check_size(size_hw) != spec.size_hw:
            raise EhrnetError(
                f"the engine {model} is for images of {spec.size_hw[0]}x{spec.size_hw[1]}, not "
                f"{size_hw[0]}x{size_hw[1]}: ask for its size or build another."
            )
        if batch > spec.max_batch:
            raise EhrnetError(
                f"the engine {model} takes up to {spec.max_batch} images at once, not {batch}: ask "
                f"for fewer or build another with --batch {batch}."
            )
        return cls(read_plan(engine), engine.info, str(engine.path or model))

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
        assert self._input is not None and self._output is not None
        if len(images) != self._batch:
            self._take(images.shape)
        self._input.host[: len(images)] = images
        recorded = self._record() if self._in_a_row == RECORD_AFTER else None
        if self._graph and recorded is None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        peaks = self._output.host[: len(images)].copy()
        if recorded is not None and not np.allclose(recorded, peaks[..., 0], atol=_SAME_SCORE):
            self._drop_graph()
            _log.warning("The CUDA graph of the engine gives other answers: it is not used.")
        self._in_a_row += 1
        return check_peaks(peaks, len(images), self.info, self.name)

    def _enqueue(self, recording: bool = False) -> None:
        """Puts upload, engine and download into the stream."""
        assert self._input is not None and self._output is not None
        context: Any = self._context
        self._input.upload(self._batch, self._stream)
        if not context.execute_async_v3(self._stream):
            if not recording:
                self._cuda.synchronize(self._stream)  # says so where the GPU is lost
            raise EhrnetError("TensorRT could not start the engine: see its messages in the log.")
        self._output.download(self._batch, self._stream)

    def _record(self) -> Optional[np.ndarray]:
        """Makes the graph; the scores it gives for images that the GPU has not seen yet."""
        assert self._output is not None
        try:
            self._graph = self._cuda.capture(self._stream, lambda: self._enqueue(recording=True))
            self._output.host.fill(np.nan)
            self._cuda.launch(self._graph, self._stream)
            self._cuda.synchronize(self._stream)
        except DeviceLost:
            raise
        except EhrnetError as error:
            self._drop_graph()
            _log.info("the engine's kernels are started one by one, not as a CUDA graph: %s", error)
            return None
        scores: np.ndarray = self._output.host[: self._batch, ..., 0].copy()
        return scores

    def close(self) -> None:
        """Frees graph, buffers, context, engine and runtime, in the order TensorRT wants."""
        self._drop_graph()
        for buffer in (self._input, self._output):
            if buffer is not None:
                buffer.free()
        self._input = self._output = None
        self._context = None
        self._engine = None
        self._runtime = None
        if self._stream:
            self._cuda.destroy_stream(self._stream)
            self._stream = 0

    def _drop_graph(self) -> None:
        if self._graph:
            self._cuda.destroy_graph(self._graph)
            self._graph = 0

    def _peaks(self, batch: int) -> Tuple[int, ...]:
        return batch, self.info.skeleton.num_keypoints, MAX_PEAKS, PEAK_CHANNELS

    def _no_room(self, where: str) -> OutOfDeviceMemory:
        return OutOfDeviceMemory(
            f"the GPU's memory does not suffice for {where} ({self._cuda.free_memory() >> 20} MiB "
            "are free): end other processes or use a smaller variant."
        )

    def _prepare(self) -> None:
        """Memory for the largest batch."""
        assert self.size_hw is not None
        self._input = Buffer(self._cuda, (self._max_batch, *self.size_hw, 3), np.uint8)
        self._output = Buffer(self._cuda, self._peaks(self._max_batch), np.float32)
        context: Any = self._context
        if not (
            context.set_tensor_address(INPUT_NAME, self._input.device)
            and context.set_tensor_address(OUTPUT_NAME, self._output.device)
        ):
            raise EhrnetError("the TensorRT engine does not take its buffers: build it again.")

    def _take(self, shape: Tuple[int, ...]) -> None:
        """From now on batches have this shape; a graph of another one is void."""
        self._drop_graph()
        self._batch = self._in_a_row = 0
        context: Any = self._context
        accepted = context.set_input_shape(INPUT_NAME, shape)
        if not accepted or tuple(context.get_tensor_shape(OUTPUT_NAME)) != self._peaks(shape[0]):
            raise EhrnetError(
                f"the TensorRT engine does not take images of shape {tuple(shape)}: build it again."
            )
        self._batch = shape[0]


def platform(trt: Any, cuda: Cuda) -> Platform:
    """This machine, as engines are made for it."""
    return Platform(
        tensorrt=str(trt.__version__),
        gpu=cuda.device_name(),
        compute_capability=cuda.compute_capability(),
        system=jetson_release(),
        multiprocessors=cuda.multiprocessors(),
        board=jetson_board(),
    )


def jetson_release(file: Path = _TEGRA_RELEASE) -> str:
    """The Jetson system's release such as ``R36.4.3``; empty on other machines."""
    try:
        words = file.read_text().replace(",", " ").split()
        release = next(word for word in words if word.startswith("R") and word[1:].isdigit())
        return f"{release}.{words[words.index('REVISION:') + 1]}"
    except (OSError, StopIteration, ValueError, IndexError):
        return ""


def jetson_board(file: Path = _TEGRA_BOARD) -> str:
    """What the system calls the board, such as ``NVIDIA Orin NX Developer Kit``; else empty."""
    if not _TEGRA_RELEASE.exists():  # other boards with a device tree
        return ""
    try:
        return file.read_text().rstrip("\0").strip()
    except (OSError, ValueError):
        return ""


def why_unavailable() -> Optional[str]:
    """The reason why TensorRT cannot run here, or None when library and GPU are there."""
    try:
        import_tensorrt()
        Cuda()
    except EhrnetError as error:
        return str(error).rstrip(".")
    return None


def why_no_engine(
    model: Path, size_hw: Optional[Tuple[int, int]] = None, batch: int = 1
) -> Optional[str]:
    """Why TensorRT, which is there, has no engine of this model; None when it has one."""
    model = Path(model)
    here = platform(import_tensorrt(), Cuda())
    if find_engine(model, size_hw, here, batch=batch) is not None:
        return None
    missing = _missing(model, size_hw, batch, here)
    return f"{missing} (`{_command(model, size_hw, batch)}` builds one)"


def import_tensorrt() -> Any:
    """The module tensorrt. Raises EhrnetError, with what to do, where it is not to be had."""
    try:
        import tensorrt
    except IMPORT_FAILURES as error:
        raise EhrnetError(
            f"runtime tensorrt is not available: {error}; on a Jetson install the JetPack "
            "packages (apt: python3-libnvinfer), elsewhere use runtime onnxruntime."
        ) from error
    return tensorrt


def create(factory: Any, logger: Any) -> Any:
    """``factory(logger)`` of Builder or Runtime, with TensorRT's way to fail put into words."""
    try:
        return factory(logger)
    except TypeError as error:
        # What the bindings say when the library or the driver behind them gives nothing.
        raise EhrnetError(
            f"runtime tensorrt is not available: {error}; install TensorRT's libraries and the "
            "driver, or use runtime onnxruntime."
        ) from None


def _missing(model: Path, size_hw: Optional[Tuple[int, int]], batch: int, here: Platform) -> str:
    wanted = "" if size_hw is None else f" at {size_hw[0]}x{size_hw[1]}"
    wanted += "" if batch == 1 else f" for {batch} images at once"
    other = find_engine(model, size_hw, batch=batch)
    if other is not None:
        told = "; ".join(_at(other.info.spec, here).differences(other.info.spec))
        return f"the TensorRT engine of {model}{wanted} was built for another machine ({told})"
    have = {
        "{}x{} with batch {}".format(*engine.info.spec.size_hw, engine.info.spec.max_batch)
        for engine in stored_engines()
        if engine.info.onnx == model.name
    }
    instead = f"; there is one of {model.name} for {', '.join(sorted(have))}" if have else ""
    return f"there is no TensorRT engine for {model}{wanted}{instead}"


def _command(model: Path, size_hw: Optional[Tuple[int, int]], batch: int) -> str:
    size = "" if size_hw is None else f" --size {size_hw[0]}x{size_hw[1]}"
    many = "" if batch == 1 else f" --batch {batch}"
    return f"ehrnet build-engine --model {model}{size}{many}"


def _at(spec: EngineSpec, here: Platform) -> EngineSpec:
    return dataclasses.replace(spec, platform=here)
