"""The exported file holds only what TensorRT 8.5 and every later parser read.

Operators and types: onnx-tensorrt's operator tables for 8.5 to 11; refusals (operators on uint8,
k beyond 3840, NonZero) as TensorRT-RTX's parser states them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")

FLOAT = {"float", "float16"}
INDEX = {"int64"}
# Operator: types its inputs may have, beside constant shapes and axes.
ALLOWED = {
    "Cast": {"uint8", "float", "float16", "int64", "bool"},
    "QuantizeLinear": {"float"},
    "DequantizeLinear": {"int8"},
    "Transpose": FLOAT,
    "Gather": FLOAT | INDEX,
    "Sub": FLOAT,
    "Add": FLOAT,
    "Mul": FLOAT,
    "Div": FLOAT,
    "Neg": FLOAT,
    "Log": FLOAT,
    "Floor": FLOAT,
    "Min": FLOAT,
    "Max": FLOAT,
    "Sign": FLOAT,
    "Clip": FLOAT,
    "Relu": FLOAT,
    "Sigmoid": FLOAT,
    "Conv": FLOAT,
    "ConvTranspose": FLOAT,
    "BatchNormalization": FLOAT,
    "GlobalAveragePool": FLOAT,
    "AveragePool": FLOAT,
    "MaxPool": FLOAT,
    "Resize": FLOAT,
    "Slice": FLOAT,
    "Concat": FLOAT,
    "Equal": FLOAT,
    "Reshape": FLOAT,
    "Squeeze": FLOAT,
    "Unsqueeze": FLOAT,
    "ReduceSum": FLOAT,
    "TopK": FLOAT,
    "GatherElements": FLOAT | INDEX,
    "Shape": FLOAT,
}


def name_of(element_type: int) -> str:
    return onnx.TensorProto.DataType.Name(element_type).lower()


@pytest.fixture(scope="module", params=["h4", "dots", "fp16", "int8"])
def graph(request: pytest.FixtureRequest):
    model = onnx.load(str(request.getfixturevalue(f"{request.param}_model")))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).graph


def test_only_operators_and_types_that_all_parsers_know(graph) -> None:
    types = {t.name: name_of(t.data_type) for t in graph.initializer}
    constants = set(types)
    for value in [*graph.input, *graph.value_info, *graph.output]:
        types[value.name] = name_of(value.type.tensor_type.elem_type)
    for node in graph.node:
        assert node.domain == ""
        assert all(node.input[-1:]), f"{node.op_type} ({node.name}) ends with an empty input"
        assert node.op_type in ALLOWED, f"{node.op_type} ({node.name})"
        given = {types[name] for name in node.input if name and name not in constants}
        assert given <= ALLOWED[node.op_type], f"{node.op_type} ({node.name}) reads {given}"


def test_only_cast_reads_the_uint8_image(graph) -> None:
    readers = [node.op_type for node in graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_size_arguments_are_constants(graph) -> None:
    """k, scales, paddings, axes and shapes: nothing of them is computed at run time."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    outputs = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "TopK":
            assert constants[node.input[1]].tolist() == [30]
        if node.op_type == "Reshape":
            assert (constants[node.input[1]][:2] == 0).all(), "batch and keypoints stay"
        if node.op_type == "Resize":
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            mode = (values["mode"], values["coordinate_transformation_mode"])
            assert mode in [(b"nearest", b"asymmetric"), (b"linear", b"half_pixel")]
            assert constants[node.input[2]][:2].tolist() == [1, 1]
        if node.op_type in ("Slice", "Unsqueeze", "Squeeze", "ReduceSum", "Clip"):
            assert all(name in constants for name in node.input[1:] if name)
        if node.op_type == "MaxPool":
            assert len(node.output) == 1, "indices of a maximum are refused"
        if node.op_type == "Shape":
            users = [n.op_type for n in graph.node if node.output[0] in n.input]
            assert set(users) == {"Gather"}
        if node.op_type == "Gather" and node.input[0] in outputs:
            assert node.input[1] in constants


def test_names_types_and_free_sizes_at_the_border(graph) -> None:
    (image,), (peaks,) = graph.input, graph.output

    def describe(value):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        return value.name, name_of(value.type.tensor_type.elem_type), shape

    assert describe(image) == ("image", "uint8", ["batch", "height", "width", 3])
    name, kind, shape = describe(peaks)
    assert (name, kind, shape[1:]) == ("peaks", "float", [17, 30, 15])


def test_one_file_of_the_weights_size(h4_model: Path) -> None:
    assert 10.5e6 < h4_model.stat().st_size < 11.5e6
    written = {p.name for p in h4_model.parent.iterdir() if p.suffix != ".safetensors"}
    assert written == {"h4.onnx", "h4.answers.npz"}
