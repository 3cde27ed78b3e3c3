"""TensorRT without a GPU: names and argument counts by version, NVIDIA's own parser, refusals."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path

import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import cuda, tensorrt_runtime

API = json.loads((Path(__file__).parents[1] / "facts" / "tensorrt_api.json").read_text())
# What the names in tensorrt_runtime.py hold.
HOLDS = {
    "builder": "Builder",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "self._engine": "ICudaEngine",
    "self._runtime": "Runtime",
    "parser.get_error(0)": "ParserError",
}
MADE_BY = {"trt.Runtime": "Runtime", "trt.Builder": "Builder", "trt.OnnxParser": "OnnxParser"}
TREE = ast.parse(inspect.getsource(tensorrt_runtime))


def used_members() -> dict[tuple[str, str], int | None]:
    """(class, member) -> number of arguments given, None for a property."""
    called = {id(n.func): n for n in ast.walk(TREE) if isinstance(n, ast.Call)}
    used: dict[tuple[str, str], int | None] = {}
    for node in ast.walk(TREE):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in HOLDS:
            call = called.get(id(node))
            key = HOLDS[ast.unparse(node.value)], node.attr
            used[key] = None if call is None else len(call.args)
    return used


def arguments(signature: str) -> tuple[int, int]:
    """Least and most arguments, without self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    names = [part for part in inside.split(",") if part.strip() and part.strip() != "self"]
    return sum("=" not in part for part in names), len(names)


@pytest.mark.parametrize("version", API["versions"])
def test_every_member_exists_with_these_arguments(version: str) -> None:
    used = used_members()
    assert len(used) >= 17, "the names this test looks for are gone from the source"
    for (class_name, member), given in used.items():
        signature = API["classes"][class_name][member][version]
        assert signature, f"{class_name}.{member} does not exist in {version}"
        if given is None:
            assert signature.startswith("property")
        else:
            ranges = [arguments(s) for s in signature.split(" || ")]
            assert any(least <= given <= most for least, most in ranges), signature


@pytest.mark.parametrize("version", API["versions"])
def test_constructors_and_enumerations_exist(version: str) -> None:
    for class_name in MADE_BY.values():
        assert API["classes"][class_name]["__init__"][version]
    flags = API["enums"]["NetworkDefinitionCreationFlag"]
    strongly, explicit = flags["STRONGLY_TYPED"][version], flags["EXPLICIT_BATCH"][version]
    assert strongly is not None or explicit is not None
    assert API["enums"]["MemoryPoolType"]["WORKSPACE"][version] is not None


def test_nothing_of_tensorrt_is_used_that_the_facts_do_not_list() -> None:
    attributes = [n for n in ast.walk(TREE) if isinstance(n, ast.Attribute)]
    names = {n.attr for n in attributes if ast.unparse(n.value) == "trt"}
    known = {*API["classes"], *API["enums"], "__version__"}
    assert names <= known, names - known


@pytest.fixture(scope="module")
def rtx():
    """NVIDIA's parser and builder of the TensorRT 11 line, which build without a GPU."""
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("tensorrt-rtx is not installed (pip install tensorrt-rtx)")


@pytest.mark.parametrize("model", ["dots_model", "h4_model"])
def test_nvidias_parser_and_builder_take_the_exported_graph(rtx, model, request) -> None:
    onnx = request.getfixturevalue(model)
    plan = tensorrt_runtime.build_plan(rtx, onnx, (384, 512), 2, 1 << 28)
    assert len(plan) > 100_000


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
        tensorrt_runtime.build_plan(rtx, path, (32, 32), 1, 1 << 28)


def test_without_the_library_behind_the_bindings(monkeypatch) -> None:
    def nothing_behind(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EhrnetError, match="tensorrt is not available: .*nullptr"):
        tensorrt_runtime._create(nothing_behind, None)


def test_an_engine_lies_beside_its_model(tmp_path: Path) -> None:
    model = tmp_path / "h4.onnx"
    assert tensorrt_runtime.find_engine(model) is None
    engine = tmp_path / "h4.engine"
    engine.write_bytes(b"plan")
    assert tensorrt_runtime.find_engine(model) == engine
    assert tensorrt_runtime.find_engine(engine) == engine


@pytest.mark.parametrize("text", [None, "", "{}", "[]"])
def test_an_engine_without_its_description_is_refused(text, tmp_path: Path) -> None:
    engine = tmp_path / "h4.engine"
    engine.write_bytes(b"plan")
    if text is not None:
        (tmp_path / "h4.engine.json").write_text(text)
    with pytest.raises(EhrnetError, match="missing or broken .* build the engine again"):
        tensorrt_runtime._read_sidecar(engine)


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
