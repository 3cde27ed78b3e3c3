"""The order of calls around an engine, on a stand-in for the CUDA runtime: no GPU is in it."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorrt_facts import ANSWERS, VERSIONS, interface

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import cuda, tensorrt_runtime
from ehrnet_model.inference.engine import EngineInfo, EngineSpec, Platform
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.parity import UNCHECKED, Verdict
from ehrnet_model.inference.runtime import ModelInfo
from ehrnet_model.inference.tensorrt_runtime import RECORD_AFTER

SIZE, BATCH = (64, 96), 3


def compile_cudart(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = Path(__file__).parents[1] / "support" / "stand_in_cudart.c"
    out = folder / "libcudart.so"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, str(source), "-o"]
    subprocess.run([*command, str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cudart(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def counts(library: Path):
    """Reads and sets the stand-in's counters; all memory must be back at the end."""
    loaded = ctypes.CDLL(str(library))

    def value(name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(loaded, name)

    for name in (
        "copies_made",
        "graphs_launched",
        "refuse_capture",
        "broken",
        "integrated",
        "forgets",
        "remembered",
    ):
        value(name).value = 0
    value("memory_left").value = -1
    yield value
    for name in ("graphs_alive", "streams_alive", "memory_alive"):
        assert value(name).value == 0, name


def info(version: str, batch: int = BATCH, onnx: bytes = b"", plan: bytes = b"plan") -> EngineInfo:
    """The description of an engine for the stand-in."""
    here = Platform(version, "stand-in", "8.7", multiprocessors=14)
    return EngineInfo(
        spec=EngineSpec(hashlib.sha256(onnx).hexdigest(), "fp32", SIZE, batch, here),
        model=ModelInfo(variant="H-4", phi=-4, quality="random", input_size=64),
        onnx="m.onnx",
        sha256=hashlib.sha256(plan).hexdigest(),
        built="",
        seconds=0.0,
        layers={},
        verdict=Verdict(UNCHECKED, "nothing computes here"),
    )


@pytest.fixture(params=VERSIONS)
def opening(request, library, counts, monkeypatch):
    """What opens an engine of one TensorRT version's interface, and that; it answers with zeros."""
    trt = interface(request.param)
    batch = [0]

    def set_input_shape(name, shape):
        batch[0] = shape[0]
        return True

    monkeypatch.setitem(ANSWERS, ("IExecutionContext", "set_input_shape"), set_input_shape)
    monkeypatch.setitem(
        ANSWERS, ("IExecutionContext", "get_tensor_shape"), lambda name: (batch[0], 17, 30, 15)
    )
    monkeypatch.setattr(tensorrt_runtime, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_runtime, "Cuda", lambda: cuda.Cuda(str(library)))
    monkeypatch.setattr(cuda.Cuda, "device_name", lambda self: "stand-in")
    return lambda: tensorrt_runtime.TensorRTRuntime(b"plan", info(request.param), "it"), trt


@pytest.fixture
def engine(opening):
    """An engine that is open, and TensorRT."""
    open_engine, trt = opening
    opened = open_engine()
    yield opened, trt
    opened.close()


def images(value: int, batch: int = 1) -> np.ndarray:
    return np.full((batch, *SIZE, 3), value, np.uint8)


def uploaded(runtime: tensorrt_runtime.TensorRTRuntime) -> list[int]:
    """The one value of each picture in the stand-in's device memory."""
    buffer = runtime._input
    assert buffer is not None
    memory = (ctypes.c_uint8 * buffer.nbytes).from_address(buffer.device)
    pictures = np.frombuffer(memory, np.uint8).reshape(BATCH, -1)
    assert (pictures == pictures[:, :1]).all()
    return pictures[:, 0].tolist()


def test_after_some_images_a_graph_does_it_all(engine, counts) -> None:
    runtime, trt = engine
    for number in range(1, RECORD_AFTER + 4):
        assert (runtime(images(number)) == 0).all()
        assert uploaded(runtime)[0] == number, "the newest image is on the device"
        assert counts("graphs_launched").value == max(0, number - RECORD_AFTER)
        proved = number > RECORD_AFTER  # one image went both ways
        assert counts("copies_made").value == 2 * (number + proved), "one up, one down an image"
    started = [c for c in trt.calls if c == ("IExecutionContext", "execute_async_v3")]
    assert len(started) == RECORD_AFTER + 2, "once to record, once to hold the graph to"


def test_a_graph_that_leaves_the_last_answer_where_it_was_is_not_used(
    engine, counts, caplog
) -> None:
    runtime, _ = engine
    counts("forgets").value = 2
    for number in range(1, RECORD_AFTER + 4):
        assert (runtime(images(number)) == 0).all()
        assert uploaded(runtime)[0] == number
    assert (counts("graphs_launched").value, counts("graphs_alive").value) == (1, 0)
    assert "The CUDA graph of the engine gives other answers" in caplog.text


def test_batches_of_changing_size_go_without_and_touch_only_their_rows(engine, counts) -> None:
    runtime, _ = engine
    expected = [0, 0, 0]
    for number, batch in enumerate((1, 3, 2, 1, 2, 3, 1, 2), 1):
        assert runtime(images(number, batch)).shape[0] == batch
        expected[:batch] = [number] * batch
        assert uploaded(runtime) == expected
    assert counts("graphs_launched").value == counts("graphs_alive").value == 0
    for number in range(RECORD_AFTER + 2):
        runtime(images(number, 2))
    assert counts("graphs_launched").value == 3 and counts("graphs_alive").value == 1
    runtime(images(9, 3))
    assert counts("graphs_alive").value == 0, "a graph is of one batch size"
    with pytest.raises(EhrnetError, match="up to 3 images at once, not 4"):
        runtime(images(1, 4))


def test_what_cannot_be_recorded_runs_as_before(engine, counts, caplog) -> None:
    runtime, trt = engine
    counts("refuse_capture").value = 1
    with caplog.at_level(logging.INFO):
        for number in range(1, RECORD_AFTER + 3):
            runtime(images(number))
            assert uploaded(runtime)[0] == number
            assert counts("remembered").value == 0, "TensorRT would take it for its own error"
    assert counts("graphs_launched").value == 0
    told = [r.getMessage() for r in caplog.records if "one by one" in r.getMessage()]
    assert len(told) == 1 and "cudaStreamBeginCapture failed with error 900" in told[0]


def test_an_engine_that_refuses_while_recording_leaves_no_graph(engine, counts, monkeypatch):
    runtime, _ = engine
    answers = iter([True] * RECORD_AFTER + [False, True, False])  # not recorded, runs, refuses
    start = ("IExecutionContext", "execute_async_v3")
    monkeypatch.setitem(ANSWERS, start, lambda stream: next(answers))
    for number in range(RECORD_AFTER + 1):
        runtime(images(number))
        assert uploaded(runtime)[0] == number
    assert counts("graphs_launched").value == counts("graphs_alive").value == 0
    with pytest.raises(EhrnetError, match="could not start the engine"):
        runtime(images(3))


def test_an_interrupt_while_recording_ends_the_recording(engine, counts, monkeypatch) -> None:
    runtime, _ = engine
    for number in range(RECORD_AFTER):
        runtime(images(number))
    start = ("IExecutionContext", "execute_async_v3")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(ANSWERS, start, lambda stream: (_ for _ in ()).throw(KeyboardInterrupt))
        runtime(images(5))
    assert counts("graphs_alive").value == 0
    runtime(images(7, 2))  # a stream that is being recorded would not take this
    assert uploaded(runtime)[:2] == [7, 7]


def test_after_an_error_everything_is_given_back_and_its_cause_is_told(engine, counts, caplog):
    runtime, _ = engine
    for number in range(RECORD_AFTER + 1):
        runtime(images(number))
    assert counts("graphs_alive").value == 1
    counts("broken").value = 700
    lost = "cudaStreamSynchronize failed with error 700 .* start it again"
    with pytest.raises(cuda.DeviceLost, match=lost):
        runtime(images(1))
    with caplog.at_level(logging.DEBUG):
        runtime.close()
    assert "cudaFree failed with error 700" in caplog.text
    assert [counts(f"{what}_alive").value for what in ("graphs", "streams", "memory")] == [0, 0, 0]


def test_why_an_engine_does_not_start_is_asked_of_cuda(engine, counts, monkeypatch) -> None:
    runtime, _ = engine
    monkeypatch.setitem(ANSWERS, ("IExecutionContext", "execute_async_v3"), lambda stream: False)
    with pytest.raises(EhrnetError, match="could not start the engine") as raised:
        runtime(images(1))
    assert not isinstance(raised.value, cuda.DeviceLost)
    counts("broken").value = 719
    with pytest.raises(cuda.DeviceLost, match="error 719"):
        runtime(images(1))


@pytest.mark.parametrize(
    ("left", "refused"),
    [(0, "cudaHostAlloc"), (1, "cudaMalloc"), (3, "cudaMalloc")],
)
def test_short_memory_is_told_apart_and_all_is_given_back(left, refused, opening, counts) -> None:
    counts("memory_left").value = left
    with pytest.raises(cuda.OutOfDeviceMemory, match=f"{refused} failed with error 2"):
        opening[0]()


@pytest.mark.parametrize(
    ("refused", "free", "kind", "words"),
    [
        ("create_execution_context", 1 << 30, cuda.OutOfDeviceMemory, "the GPU's memory does not"),
        ("deserialize_cuda_engine", 3, cuda.OutOfDeviceMemory, "the GPU's memory does not"),
        ("deserialize_cuda_engine", 500 << 20, cuda.OutOfDeviceMemory, "the GPU's memory does not"),
        ("deserialize_cuda_engine", 1 << 30, EhrnetError, "does not accept it"),
    ],
)
def test_what_tensorrt_refuses_may_be_for_memory(
    refused, free, kind, words, opening, monkeypatch
) -> None:
    owner = "Runtime" if refused.startswith("deserialize") else "ICudaEngine"
    monkeypatch.setitem(ANSWERS, (owner, refused), lambda *given: None)
    monkeypatch.setattr(cuda.Cuda, "free_memory", lambda self: free)
    with pytest.raises(EhrnetError, match=words) as raised:
        opening[0]()
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("integrated", "said", "mib"),
    [
        (0, "MemFree: 9 kB\nMemAvailable:    3145728 kB\n", 1024),  # a card has its own
        (1, "MemFree: 9 kB\nMemAvailable:    3145728 kB\n", 3072),
        (1, "MemFree: 9 kB\nMemAvailable: 1024 kB\n", 1024),
        (1, "MemFree: 9 kB\n", 1024),
        (1, None, 1024),
    ],
)
def test_a_jetsons_copies_of_files_are_memory_to_be_had(
    integrated, said, mib, library, counts, tmp_path, monkeypatch
) -> None:
    """The stand-in says that 1024 MiB are unused."""
    counts("integrated").value = integrated
    monkeypatch.setattr(cuda, "_MEMINFO", tmp_path / "meminfo")
    if said is not None:
        (tmp_path / "meminfo").write_text(said)
    there = cuda.Cuda(str(library))
    assert (there.free_memory() >> 20, there.unused_memory() >> 20) == (mib, 1024)
    assert there.compute_capability() == "8.7" and there.multiprocessors() == 14


def test_waiting_for_the_gpu_sleeps(library, counts) -> None:
    cuda.Cuda(str(library))
    assert counts("device_flags").value == 4  # cudaDeviceScheduleBlockingSync


@pytest.mark.parametrize(
    "name", ["nvidia/cu13/lib/libcudart.so.13", "nvidia/cuda_runtime/lib/libcudart.so.12"]
)
def test_the_library_that_pip_installs_is_found(name, library, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARIES", ("libnothing.so",))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(EhrnetError, match="tried libnothing.so"):
        cuda.Cuda()
    (tmp_path / name).parent.mkdir(parents=True)
    shutil.copy(library, tmp_path / name)
    assert cuda.Cuda().compute_capability() == "8.7"


@pytest.fixture
def stored(opening, tmp_path, monkeypatch) -> Path:
    """A model of which there are engines for 1 and 3 images at once."""
    monkeypatch.setenv("EHRNET_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "engines").mkdir(0o700)
    model = tmp_path / "m.onnx"
    model.write_bytes(b"graph")
    for batch in (1, 3):
        file = tmp_path / "engines" / f"b{batch}.engine"
        file.write_bytes(b"plan")
        described = info(opening[1].__version__, batch, b"graph").to_json()
        file.with_suffix(".engine.json").write_text(described)
    return model


def test_an_engine_for_so_many_images_is_opened(stored) -> None:
    for name, batch, rows in (("tensorrt", 1, 1), ("tensorrt", 2, 3), ("auto", 3, 3)):
        runtime = open_runtime(stored, name, SIZE, batch=batch)
        assert (runtime.name, runtime.engine.spec.max_batch) == ("tensorrt", rows)
        assert runtime(images(0, batch)).shape[0] == batch
        runtime.close()


def test_without_an_engine_for_so_many_the_command_is_named(stored, caplog) -> None:
    for size_hw, words in ((SIZE, " --size 64x96"), (None, "")):
        with pytest.raises(EhrnetError) as raised:
            open_runtime(stored, "tensorrt", size_hw, batch=4)
        said = str(raised.value)
        assert f"`ehrnet build-engine --model {stored}{words} --batch 4`" in said
        assert "for 4 images at once; there is one of m.onnx for 64x96 with batch 1, 64" in said
    with caplog.at_level(logging.INFO), pytest.raises(EhrnetError, match="not an ONNX file"):
        open_runtime(stored, "auto", SIZE, batch=4)
    assert "runtime onnxruntime: TensorRT is not used because" in caplog.text
    file = stored.parent / "engines" / "b3.engine"
    with pytest.raises(EhrnetError, match="up to 3 images at once, not 4: .* --batch 4"):
        open_runtime(file, batch=4)


def test_engines_are_closed_when_the_first_run_fails(stored, counts) -> None:
    """By the fixture ``counts``: all of the stand-in's memory is back."""
    parameters = pytest.importorskip("ehrnet_ros.parameters", reason="needs ROS 2 (rclpy)")
    from ehrnet_ros.engine import open_estimator

    counts("broken").value = 1
    file = stored.parent / "engines" / "b3.engine"
    with pytest.raises(EhrnetError, match="cudaStreamSynchronize failed with error 1 "):
        open_estimator(file, parameters.Settings(batch=3))


def test_a_cuda_that_is_too_old_is_passed_over(library, tmp_path, monkeypatch) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler  # made ``library``
    (tmp_path / "old.c").write_text("int cudaGetDeviceCount(int *count) { *count = 1; return 0; }")
    old = str(tmp_path / "libcudart.so.11.0")
    subprocess.run([compiler, "-shared", "-fPIC", str(tmp_path / "old.c"), "-o", old], check=True)
    with pytest.raises(EhrnetError, match="libcudart.so.11.0 is too old .*: CUDA 11.4 or later"):
        cuda.Cuda(old)
    monkeypatch.setattr(cuda, "LIBRARIES", (old, str(library)))
    assert cuda.Cuda().compute_capability() == "8.7"


def test_the_nodes_parameter_batch_reaches_the_engine(stored) -> None:
    parameters = pytest.importorskip("ehrnet_ros.parameters", reason="needs ROS 2 (rclpy)")
    from ehrnet_ros.engine import open_estimator

    file = stored.parent / "engines" / "b3.engine"
    open_estimator(file, parameters.Settings(batch=3)).runtime.close()
    with pytest.raises(EhrnetError, match="up to 3 images at once, not 4"):
        open_estimator(file, parameters.Settings(batch=4))


def test_a_library_too_new_for_the_driver_is_passed_over(library, tmp_path, monkeypatch) -> None:
    newer = str(compile_cudart(tmp_path, "-DDEVICE_COUNT_ERROR=35"))
    monkeypatch.setattr(cuda, "LIBRARIES", ("libnothing.so", newer, str(library)))
    assert cuda.Cuda().compute_capability() == "8.7"
    monkeypatch.setattr(cuda, "LIBRARIES", (newer, "libnothing.so"))
    with pytest.raises(EhrnetError, match="cudaGetDeviceCount failed with error 35"):
        cuda.Cuda()
