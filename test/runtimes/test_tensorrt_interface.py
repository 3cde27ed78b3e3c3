"""TensorRT without a GPU: names and argument counts by version, NVIDIA's own parser, refusals."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import sys
from pathlib import Path

import pytest
from tensorrt_facts import ANSWERS, API, LAYERS, VERSIONS, arguments, interface

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import cuda, tensorrt_builder, tensorrt_runtime
from ehrnet_model.inference.engine import EngineSpec, Platform
from ehrnet_model.inference.runtime import model_info

SPEC = EngineSpec("0" * 64, "fp32", (384, 512), 2, Platform("10.3.0", "Orin", "8.7"))
# What the names in the two files hold.
HOLDS = {
    "builder": "Builder",
    "parser": "OnnxParser",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "timing": "ITimingCache",
    "image": "ITensor",
    "layer": "ILayer",
    "layer.get_output(i)": "ITensor",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "self._engine": "ICudaEngine",
    "self._runtime": "Runtime",
    "parser.get_error(0)": "ParserError",
}
# Not in every version: the code must ask first, and the run below shows that it does.
ASKED_FOR = {
    ("IBuilderConfig", "builder_optimization_level"),
    ("IBuilderConfig", "progress_monitor"),
    ("ILayer", "precision"),
    ("ILayer", "set_output_type"),
}
FUNCTIONS = [
    node
    for module in (tensorrt_builder, tensorrt_runtime)
    for node in ast.walk(ast.parse(inspect.getsource(module)))
    if isinstance(node, ast.FunctionDef)
]
# In these, ``engine`` and ``layer`` are ours.
OWN_ENGINES = ("from_file", "_missing", "why_no_engine", "layer_precisions")


def used_members() -> dict[tuple[str, str], int | None]:
    """(class, member) -> number of arguments given, None for a property."""
    used: dict[tuple[str, str], int | None] = {}
    for function in FUNCTIONS:
        if function.name in OWN_ENGINES:
            continue
        called = {id(n.func): n for n in ast.walk(function) if isinstance(n, ast.Call)}
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in HOLDS:
                call = called.get(id(node))
                key = HOLDS[ast.unparse(node.value)], node.attr
                used[key] = None if call is None else len(call.args)
    return used


@pytest.mark.parametrize("version", VERSIONS)
def test_every_member_exists_with_these_arguments(version: str) -> None:
    used = used_members()
    assert len(used) >= 30, "the names this test looks for are gone from the source"
    for (class_name, member), given in used.items():
        signature = API["classes"][class_name][member][version]
        if signature is None and (class_name, member) in ASKED_FOR:
            continue
        assert signature, f"{class_name}.{member} does not exist in {version}"
        if given is None:
            assert signature.startswith("property")
        else:
            ranges = [arguments(s) for s in signature.split(" || ")]
            assert any(least <= given <= most for least, most in ranges), signature


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_runs_through_each_versions_interface(version, precision, tmp_path) -> None:
    trt = interface(version)
    spec = dataclasses.replace(SPEC, precision=precision)
    told: list[str] = []
    built = tensorrt_builder.build_plan(
        trt, tmp_path / "m.onnx", spec, 1 << 28, b"cache", lambda share, text: told.append(text)
    )
    assert (built.plan, built.timing_cache) == (b"plan", b"plan")
    assert told[0] == "TensorRT is building"
    assert trt.values["ITensor", "shape"] == [(-1, 384, 512, 3)]
    old, done = version < "9" and version[0] != "1", set(trt.calls)
    pins = {("ILayer", "precision"), ("ILayer", "set_output_type")}
    assert (pins <= done) == (old and precision != "fp32")
    assert (("IBuilderConfig", "set_flag") in done) == (old and precision != "fp32")
    assert (("IBuilderConfig", "progress_monitor") in done) == (not old)
    assert (("IBuilderConfig", "builder_optimization_level") in done) == (version != "8.5.2")
    assert tensorrt_builder._inspect(trt, b"plan") == '{"Layers": []}'


def test_what_makes_whole_numbers_of_floats_is_pinned_too(tmp_path, monkeypatch) -> None:
    """Else TensorRT 8 may take half a float, which has no 2049: an index would be another."""
    trt = interface("8.6.1")
    kinds = itertools.cycle([object(), trt.DataType.FLOAT])  # gives, is given
    monkeypatch.setitem(ANSWERS, ("ITensor", "dtype"), lambda: next(kinds))
    spec = dataclasses.replace(SPEC, precision="fp16")
    tensorrt_builder.build_plan(trt, tmp_path / "m.onnx", spec, 1 << 28)
    pinned = [name for name in LAYERS if name.startswith("fp32/")]
    assert trt.values["ILayer", "precision"] == [trt.DataType.FLOAT] * len(pinned)
    assert ("ILayer", "set_output_type") not in trt.calls


@pytest.mark.parametrize("version", VERSIONS)
def test_for_one_image_at_a_time_every_shape_is_known(version: str, tmp_path: Path) -> None:
    trt, spec = interface(version), dataclasses.replace(SPEC, max_batch=1)
    tensorrt_builder.build_plan(trt, tmp_path / "m.onnx", spec, 1 << 28)
    assert trt.values["ITensor", "shape"] == [(1, 384, 512, 3)]
    assert ("IOptimizationProfile", "set_shape") not in trt.calls


@pytest.mark.parametrize("version", VERSIONS)
def test_constructors_and_enumerations_exist(version: str) -> None:
    for class_name in ("Runtime", "Builder", "OnnxParser"):
        assert API["classes"][class_name]["__init__"][version]
    flags = API["enums"]["NetworkDefinitionCreationFlag"]
    strongly, explicit = flags["STRONGLY_TYPED"][version], flags["EXPLICIT_BATCH"][version]
    assert strongly is not None or explicit is not None


def test_nothing_of_tensorrt_is_used_that_the_facts_do_not_list() -> None:
    attributes = [n for f in FUNCTIONS for n in ast.walk(f) if isinstance(n, ast.Attribute)]
    names = {n.attr for n in attributes if ast.unparse(n.value) == "trt"}
    known = {*API["classes"], *API["enums"], "__version__"}
    assert names <= known, names - known


def test_the_monitor_overrides_what_each_version_calls() -> None:
    versions = [v for v in VERSIONS if API["classes"]["IProgressMonitor"]["__init__"][v]]
    assert versions == ["10.3.0", "10.16.1", "11.4.0"]
    for version in versions:
        phases = tensorrt_builder.Phases(lambda share, text: None)
        monitor = tensorrt_builder._monitor(interface(version), phases)
        for name in ("phase_start", "step_complete", "phase_finish"):
            least, most = arguments(API["classes"]["IProgressMonitor"][name][version])
            assert least == most == len(inspect.signature(getattr(monitor, name)).parameters)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_an_interrupted_build_is_called_off(version: str) -> None:
    """TensorRT swallows what its callbacks raise and asks after each step whether to go on."""

    def interrupted(share: float, text: str) -> None:
        if text == "tactics":
            raise KeyboardInterrupt

    phases = tensorrt_builder.Phases(interrupted)
    monitor = tensorrt_builder._monitor(interface(version), phases)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0)
    monitor.phase_start("tactics", "build", 4)
    assert not monitor.step_complete("build", 1) and phases.interrupted


def test_nested_phases_are_one_share_that_only_grows() -> None:
    told: list[tuple[float, str]] = []
    phases = tensorrt_builder.Phases(lambda share, text: told.append((share, text)))
    phases.start("build", 2)
    phases.start("tactics", 4)
    phases.step("tactics", 0)
    phases.step("tactics", 2)
    phases.finish("tactics")
    phases.step("build", 0)
    phases.start("serialise", 0)
    phases.step("serialise", 0)
    phases.finish("serialise")
    phases.step("build", 1)
    phases.finish("build")
    phases.finish("unheard of")
    shares = [share for share, _ in told]
    assert shares == [0, 0, 0.125, 0.375, 0.5, 0.5, 1, 1]
    assert told[2][1] == "tactics"


# Layers as the inspectors of TensorRT 8 and of 10 describe them, in public reports.
INSPECTED = (
    '{"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},'
    ' {"Name": "b", "Outputs": [{"Format/Datatype": "Two wide channel vectorized row major FP16 '
    'format"}]}, {"Name": "c", "Outputs": [{"Format/Datatype": "Half"}]},'
    ' {"Name": "d", "Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major '
    'Int8 format"}]}, {"Name": "e", "Outputs": []}, "f",'
    ' {"Name": "g", "Outputs": [{"Format/Datatype": "Row major linear UInt8 format"}]},'
    ' {"Name": "h", "Outputs": [{"Format/Datatype": "UInt8"}, {"Format/Datatype": "Half"}]}]}'
)
# The same for batches of several sizes; the last two say nothing.
UNKNOWN = '"Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]'
INSPECTED_DYNAMIC = (
    f'{{"Layers": [{{"Name": "a", "Weights": {{"Type": "Half", "Count": 9408}}, {UNKNOWN}}},'
    f' {{"Name": "b", "Weights": {{"Type": "Int8", "Count": 9}}, {UNKNOWN}}},'
    ' {"Name": "c", "Weights": {"Type": "Half", "Count": 9}, "Outputs": [{"Format/Datatype": '
    '"Row major linear FP32"}]},'
    f' {{"Name": "d", "Weights": {{"Type": "Float", "Count": 0}}, {UNKNOWN}}}, {{{UNKNOWN}}}]}}'
)


def test_precisions_are_read_from_the_inspectors_words() -> None:
    read = tensorrt_builder.layer_precisions
    assert read(INSPECTED) == {"fp32": 1, "fp16": 3, "int8": 1}
    assert read(INSPECTED_DYNAMIC) == {"fp16": 2, "int8": 1}
    assert read(INSPECTED, weights_only=True) == {}
    assert read(INSPECTED_DYNAMIC, weights_only=True) == {"fp16": 2, "int8": 1}
    assert read('{"Layers": ["names", "only"]}') == read("{}") == read("not json") == {}


@pytest.mark.parametrize(
    ("layers", "precision", "fault"),
    [
        ({"fp32": 9, "fp16": 90}, "fp32", "has fp16 layers where the graph is fp32"),
        ({"fp32": 99}, "fp16", "has no fp16 layer (99 fp32)"),
        ({"fp32": 50, "fp16": 49}, "int8", "has no int8 layer"),
        ({"fp32": 9, "fp16": 90, "bf16": 1}, "fp16", "has bf16 layers"),
    ],
)
def test_an_engine_of_another_precision_is_at_fault(layers, precision, fault) -> None:
    assert fault in tensorrt_builder.wrong_precisions(layers, precision)


def test_engines_of_the_right_precision_pass(caplog) -> None:
    fault = tensorrt_builder.wrong_precisions
    assert fault({}, "fp16") == ""  # the inspector did not say
    assert "names no precision of weights" in caplog.text
    assert fault({"fp32": 9}, "fp32") == ""
    assert fault({"fp32": 9, "fp16": 90}, "fp16") == ""
    assert fault({"fp32": 9, "int8": 90, "fp16": 1}, "int8") == ""


@pytest.fixture(scope="module")
def rtx():
    """NVIDIA's parser and builder of the TensorRT 11 line, which build without a GPU."""
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("tensorrt-rtx is not installed (pip install tensorrt-rtx)")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("model", ["dots_model", "h4_model", "fp16_model", "int8_model"])
def test_nvidias_parser_and_builder_take_the_exported_graph(rtx, model, batch, request) -> None:
    onnx = request.getfixturevalue(model)
    told: list[float] = []
    spec = dataclasses.replace(SPEC, precision=model_info(onnx).precision, max_batch=batch)
    built = tensorrt_builder.build_plan(
        rtx, onnx, spec, 1 << 28, b"", lambda share, text: told.append(share or 0.0)
    )
    assert len(built.plan) > 100_000
    assert max(told) > 0.5, "the real IProgressMonitor reports"


def test_nvidias_parser_refuses_what_it_should(rtx, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 32, 32, 3])
    out = helper.make_tensor_value_info("peaks", onnx.TensorProto.UINT8, [1, 3, 32, 32])
    node = helper.make_node("Transpose", ["image"], ["peaks"], perm=[0, 3, 1, 2])
    graph = helper.make_graph([node], "uint8", [image], [out])
    path = tmp_path / "uint8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    with pytest.raises(EhrnetError, match="cannot read .*(?i:uint8)"):
        tensorrt_builder.build_plan(rtx, path, dataclasses.replace(SPEC, max_batch=1), 1 << 28)


def test_without_the_library_behind_the_bindings(monkeypatch) -> None:
    def nothing_behind(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EhrnetError, match="tensorrt is not available: .*nullptr"):
        tensorrt_runtime.create(nothing_behind, None)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
            "R36.4.3",
        ),
        ("# R35 (release), REVISION: 6.0, GCID: 1, BOARD: t186ref", "R35.6.0"),
        ("something else", ""),
        (None, ""),
    ],
)
def test_the_jetsons_release_is_read(text, release, tmp_path: Path) -> None:
    file = tmp_path / "nv_tegra_release"
    if text is not None:
        file.write_text(text)
    assert tensorrt_runtime.jetson_release(file) == release


def test_cuda_without_library_says_what_was_tried() -> None:
    with pytest.raises(EhrnetError, match="tried libnothing.so"):
        cuda.Cuda("libnothing.so")


def test_cuda_without_driver_says_what_cuda_says() -> None:
    """The real runtime library, as the nvidia-cuda-runtime wheels bring it."""
    found = [p for entry in sys.path for p in Path(entry).glob("nvidia/c*/lib/libcudart.so.1?*")]
    if not found:
        pytest.skip("no CUDA runtime library is installed")
    try:
        cuda.Cuda(str(found[0]))
    except EhrnetError as error:
        said = str(error)
        assert "cudaGetDeviceCount failed with error" in said or "no CUDA device" in said
