"""One behaviour for every engine: same peaks, same refusals."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from os import umask
from pathlib import Path

import dots
import numpy as np
import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import onnx_runtime
from ehrnet_model.inference import runtime as border
from ehrnet_model.inference.cuda import DeviceLost
from ehrnet_model.inference.onnx_file import read_metadata
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.parity import compare_peaks
from ehrnet_model.inference.runtime import model_info

ENGINES = ["onnxruntime", "openvino"]
ALL = [*ENGINES, "torch"]
# Sizes and batches; a runtime with free size takes them one after another.
SHAPES = [(1, 384, 384), (2, 96, 64), (1, 128, 224), (1, 32, 32)]


def pictures(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """uint8 (N, H, W, 3) with structure at several scales."""
    n, h, w = shape
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 25, (n, h, w, 3))
    for cell in (8, 32):
        coarse = rng.normal(0, 45, (n, -(-h // cell), -(-w // cell), 3))
        image += coarse.repeat(cell, 1).repeat(cell, 2)[:, :h, :w]
    return np.clip(image + 128, 0, 255).astype(np.uint8)


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.fixture
def file(name: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("h4_weights" if name == "torch" else "h4_model")


@pytest.fixture(scope="module")
def truth(h4_weights: Path) -> list[np.ndarray]:
    """Peaks of SHAPES from the plain network and a tail of its own, all in torch."""
    import torch

    from ehrnet_model.network.checkpoint import load_network
    from ehrnet_model.network.deploy import DeployedNetwork

    network, _ = load_network(h4_weights)
    deployed = DeployedNetwork(network).eval()
    with torch.inference_mode():
        return [deployed(torch.from_numpy(pictures(s))).numpy() for s in SHAPES]


def test_all_runtimes_give_the_same_peaks_at_any_size(name, file, truth) -> None:
    engine = open_runtime(file, name)
    assert engine.size_hw is None
    assert engine.name == name
    assert engine.info.variant == "H-4"
    for shape, expected in zip(SHAPES, truth):
        peaks = engine(pictures(shape))
        assert peaks.dtype == np.float32
        difference = compare_peaks(expected, peaks)
        assert difference.compared > 17 * 2 * shape[0]
        assert difference.within(values=1e-4, xy=0.01, missing=0.005), difference


def test_pinning_the_size_changes_nothing_but_what_is_taken(name, file) -> None:
    free, pinned = open_runtime(file, name), open_runtime(file, name, size_hw=(96, 128))
    assert pinned.size_hw == (96, 128)
    images = pictures((1, 96, 128))
    assert compare_peaks(free(images), pinned(images)).within(1e-5, 0.001, 0)
    with pytest.raises(EhrnetError, match="opened for images of 96x128 .* given 128x96"):
        pinned(pictures((1, 128, 96)))


def test_images_of_a_batch_do_not_touch_each_other(name, file) -> None:
    engine = open_runtime(file, name)
    images = pictures((2, 96, 64))
    together = engine(images)
    apart = np.concatenate([engine(images[:1]), engine(images[1:])])
    assert compare_peaks(together, apart).within(1e-5, 0.001, 0)


def test_an_answer_survives_the_next_call(name, file) -> None:
    engine = open_runtime(file, name)
    first = engine(pictures((1, 64, 64)))
    kept = first.copy()
    engine(pictures((1, 64, 64), seed=1))
    np.testing.assert_array_equal(first, kept)


def test_images_need_not_be_contiguous(name, file) -> None:
    engine = open_runtime(file, name)
    wide = pictures((1, 64, 128))
    view = wide[:, :, ::2]
    np.testing.assert_array_equal(engine(view), engine(view.copy()))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "type uint8, not float32"),
        (np.zeros((64, 64, 3), np.uint8), r"shape \(64, 64, 3\): add the batch axis"),
        (np.zeros((1, 64, 64, 4), np.uint8), "three channels in BGR"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"shape \(0, 64, 64, 3\)"),
        (np.zeros((1, 60, 64, 3), np.uint8), "60x64 .* multiples of 32"),
        (np.zeros((1, 0, 64, 3), np.uint8), "0x64"),
        ([[0]], "uint8, not list"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(name, file, images, message) -> None:
    engine = open_runtime(file, name)
    with pytest.raises(EhrnetError, match=message):
        engine(images)


def test_a_closed_runtime_says_so(name, file) -> None:
    engine = open_runtime(file, name)
    engine.close()
    with pytest.raises(EhrnetError, match="closed: open the model again"):
        engine(pictures((1, 32, 32)))


@pytest.mark.parametrize("where", ["backbone", "one heatmap"])
@pytest.mark.parametrize("name", ENGINES)
def test_broken_weights_never_give_peaks(name, where, h4_model, tmp_path) -> None:
    pytest.importorskip(name)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(h4_model))
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if where == "one heatmap" and tensor.name.endswith("head_high.bias"):
            array[3] = np.nan
        elif where == "backbone" and array.ndim == 4 and array.shape[:2] == (24, 3):
            array[0, 0, 0, 0] = np.nan
        else:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    broken = tmp_path / "broken.onnx"
    onnx.save(model, str(broken))
    assert broken.read_bytes() != h4_model.read_bytes()
    with pytest.raises(EhrnetError, match="not finite .* weights are broken"):
        open_runtime(broken, name)(pictures((1, 64, 64)))


def test_broken_weights_never_give_peaks_in_torch(h4_weights) -> None:
    torch = pytest.importorskip("torch")
    from ehrnet_model.network.torch_runtime import TorchRuntime, load_weights

    network, info = load_weights(h4_weights)
    with torch.no_grad():
        network.head_low.bias[2] = float("nan")
    with pytest.raises(EhrnetError, match="not finite"):
        TorchRuntime(network, info)(pictures((1, 64, 64)))


@pytest.mark.parametrize("name", ENGINES)
def test_drawn_people_are_found_by_every_engine(name, dots_model) -> None:
    pytest.importorskip(name)
    people = np.stack([dots.figure((100.4, 190.7), 220), dots.figure((280.2, 200.1), 210)])
    image = dots.draw_people((384, 384), people)
    peaks = open_runtime(dots_model, name)(image[None])[0]
    for keypoint in range(17):
        found = peaks[keypoint][peaks[keypoint, :, 0] > 0.1]
        distance = np.hypot(*(found[:, None, 1:3] - people[None, :, keypoint]).transpose(2, 0, 1))
        assert (distance.min(0) < 0.3).all() and (distance.min(1) < 0.3).all()


# Opening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", True),
        ("CUDA failure 2: out of memory ; GPU=0", False),
        ("Non-zero status code returned while running Conv node.", False),
    ],
)
def test_a_lost_gpu_is_told_from_what_may_pass(said, lost, h4_model, monkeypatch) -> None:
    """In ONNX Runtime's words, as in public reports; its failures here are its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    class Fails:
        def run(self, *given):
            raise state.Fail(said)

    runtime = onnx_runtime.OnnxRuntime(h4_model)
    monkeypatch.setattr(runtime, "_session", Fails())
    with pytest.raises(EhrnetError, match="failed on images of shape") as raised:
        runtime(np.zeros((1, 64, 64, 3), np.uint8))
    assert isinstance(raised.value, DeviceLost) is lost


def test_a_missing_library_is_named_with_the_remedy(name, file, monkeypatch) -> None:
    if name == "torch":
        pytest.skip("torch is there when its weights are")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EhrnetError, match=f"runtime {name} is not available: .*pip install {name}"):
        open_runtime(file, name)


def test_auto_takes_onnxruntime_without_gpu_and_says_why(h4_model, caplog, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with caplog.at_level(logging.INFO, logger="ehrnet_model"):
        engine = open_runtime(h4_model)
    assert engine.name == "onnxruntime"
    assert "TensorRT is not used because runtime tensorrt is not available" in caplog.text


def test_tensorrt_asked_for_is_never_replaced(h4_model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EhrnetError, match="tensorrt is not available: .* JetPack"):
        open_runtime(h4_model, "tensorrt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "runtime 'tflite' is unknown: use one of auto, onnxruntime"),
        ({"size_hw": (100, 128)}, "100x128 is not possible: .* multiples of 32"),
        ({"size_hw": (0, 128)}, "0x128"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_impossible_options_are_refused(h4_model, options, message) -> None:
    with pytest.raises(EhrnetError, match=message):
        open_runtime(h4_model, **options)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["auto", *ENGINES])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "not an ONNX file, or only part"),
        (lambda whole: whole[: len(whole) // 2], "not an ONNX file, or only part"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha", "git lfs pull"),
        (lambda whole: bytes(range(256)) * 4, "not an ONNX file"),
    ],
    ids=["empty", "truncated", "lfs pointer", "noise"],
)
def test_files_that_are_no_models(name, content, message, dots_model, tmp_path) -> None:
    path = write(tmp_path / "m.onnx", content(dots_model.read_bytes()))
    with pytest.raises(EhrnetError, match=message):
        open_runtime(path, name)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(EhrnetError, match="no model file .*none.onnx: .*ehrnet export"):
        open_runtime(tmp_path / "none.onnx")


def with_metadata(model: Path, out: Path, text: str | None) -> Path:
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(str(model))
    del proto.metadata_props[:]
    if text is not None:
        entry = proto.metadata_props.add()
        entry.key, entry.value = border.METADATA_KEY, text
    onnx.save(proto, str(out))
    return out


def test_a_foreign_graph_is_not_taken_for_ours(dots_model, tmp_path) -> None:
    foreign = with_metadata(dots_model, tmp_path / "foreign.onnx", None)
    with pytest.raises(EhrnetError, match="not one written by `ehrnet export`"):
        open_runtime(foreign)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"skeleton": 3, "variant": "H0"}'])
def test_a_broken_description_is_refused(text, dots_model, tmp_path) -> None:
    broken = with_metadata(dots_model, tmp_path / "broken.onnx", text)
    with pytest.raises(EhrnetError, match="cannot be read .* export the model again"):
        open_runtime(broken)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", 4),
        ("weights_name", None),
        ("precision", ["fp32"]),
        ("phi", "-4"),
        ("phi", True),
        ("input_size", 384.5),
        ("input_size", -32),
        ("input_size", 1 << 40),
        ("decode", [0.1]),
        ("extra", "none"),
    ],
)
def test_values_that_no_model_has_are_refused(field, value) -> None:
    values = json.loads(border.info_to_json(border.ModelInfo("H-4", -4)))
    assert border.info_from_json(json.dumps(values), "m.onnx").input_size == 0
    text = json.dumps({**values, field: value})
    with pytest.raises(EhrnetError, match=f"m.onnx cannot be read .*{field} .*: export the model"):
        border.info_from_json(text, "m.onnx")


def test_another_skeleton_is_refused(dots_model, tmp_path) -> None:
    values = json.loads(border.info_to_json(model_info(dots_model)))
    values["skeleton"].update(name="crowdpose-14", names=values["skeleton"]["names"][:14])
    other = with_metadata(dots_model, tmp_path / "other.onnx", json.dumps(values))
    with pytest.raises(EhrnetError, match="14 keypoints of skeleton 'crowdpose-14'"):
        open_runtime(other)


def test_fields_of_later_versions_are_ignored(dots_model, tmp_path) -> None:
    info = model_info(dots_model)
    values = {**json.loads(border.info_to_json(info)), "mood": "sunny"}
    later = with_metadata(dots_model, tmp_path / "later.onnx", json.dumps(values))
    assert model_info(later) == info


def test_the_description_survives_json() -> None:
    info = border.ModelInfo("H-2", -2, decode={"x": 1.5}, extra={"licence": "Größe"}, version="9")
    assert border.info_from_json(border.info_to_json(info), "here") == info
    assert dataclasses.asdict(info)["skeleton"]["name"] == "coco-17"


def test_metadata_is_read_as_the_onnx_package_reads_it(h4_model) -> None:
    onnx = pytest.importorskip("onnx")
    expected = {p.key: p.value for p in onnx.load(str(h4_model)).metadata_props}
    assert read_metadata(h4_model) == expected


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_weights_are_not_a_graph(name, h4_weights) -> None:
    with pytest.raises(EhrnetError, match="holds weights, (not a graph|which run on .torch. only)"):
        open_runtime(h4_weights, name)


@pytest.mark.parametrize(("given", "expected"), [(None, border.default_threads()), (3, 3)])
def test_torch_leaves_the_other_cores_alone_too(given, expected, h4_weights) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        open_runtime(h4_weights, "torch", threads=given).close()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_torch_wants_weights(h4_model) -> None:
    pytest.importorskip("torch")
    with pytest.raises(EhrnetError, match="torch takes weights"):
        open_runtime(h4_model, "torch")


def test_inference_needs_neither_torch_nor_onnx(dots_model) -> None:
    code = (
        "import sys, numpy as np\n"
        "for name in ('torch', 'onnx', 'rclpy', 'google.protobuf'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from ehrnet_model.inference.opening import open_runtime\n"
        "runtime = open_runtime(Path(sys.argv[1]))\n"
        "print(runtime(np.zeros((1, 64, 96, 3), np.uint8)).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(dots_model)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(1, 17, 30, 15)", done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_without_package_or_gpu_is_refused_not_replaced(name, h4_model) -> None:
    pytest.importorskip("onnxruntime")
    if name in onnx_runtime.installed():
        reason = "found no GPU, or not the CUDA"
    else:
        reason = "has no .*ExecutionProvider; install onnxruntime-gpu"
    with pytest.raises(EhrnetError, match=f"runtime {name} is not available: .*{reason}"):
        open_runtime(h4_model, name).close()
        pytest.skip("there is a GPU")


@pytest.mark.parametrize("version", ["1.17.3", "1.9.0", "0.5"])
def test_providers_that_do_not_know_their_options_are_refused(version) -> None:
    """ONNX Runtime would go on without them, and it would look as if there was no GPU."""
    with pytest.raises(
        EhrnetError, match=f"needs onnxruntime-gpu 1.18 or later, this is {version}"
    ):
        onnx_runtime._check_version("onnxruntime-cuda", version)
    for later in ("1.18.0", "1.20", "2.0.0.dev1"):
        onnx_runtime._check_version("onnxruntime-cuda", later)


def test_tensorrt_behind_onnxruntime_lowers_nothing_by_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EHRNET_ENGINES", str(tmp_path))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    model = write(tmp_path / "m.onnx", b"graph")
    (_, options), (_, cuda), _ = onnx_runtime._providers("onnxruntime-tensorrt", model)
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("0", "0")
    assert cuda["use_tf32"] == os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_each_content_of_a_model_has_its_own_engines(tmp_path, monkeypatch) -> None:
    """ONNX Runtime would take an engine of the same graph with the weights of before."""
    engines = tmp_path / "cache" / "engines"
    monkeypatch.setenv("EHRNET_ENGINES", str(engines))
    model, copy = tmp_path / "H-4.onnx", tmp_path / "copy.onnx"

    def folder(path: Path) -> Path:
        (_, options), *_ = onnx_runtime._providers("onnxruntime-tensorrt", path)
        assert options["trt_timing_cache_path"] == options["trt_engine_cache_path"]
        return Path(options["trt_engine_cache_path"])

    old = umask(0o002)
    try:
        first = folder(write(model, b"first"))
    finally:
        umask(old)
    assert first.parent == engines / "onnxruntime" and first.is_dir()
    assert {p.stat().st_mode & 0o777 for p in (first, first.parent, engines)} == {0o700}
    second = folder(write(model, b"second"))
    assert second != first and second.parent == first.parent
    assert folder(write(copy, b"first")) == first
    first.chmod(0o777)
    with pytest.raises(EhrnetError, match="others can write to"):
        folder(copy)
    monkeypatch.setenv("EHRNET_ENGINES", str(model))
    with pytest.raises(EhrnetError, match="cannot be made .*EHRNET_ENGINES"):
        folder(copy)
