"""Lower precision is in the graph, where it should be and nowhere else; and the answers hold."""

from __future__ import annotations

from pathlib import Path

import dots
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.inference.answers import read_answers  # noqa: E402
from ehrnet_model.inference.opening import open_runtime  # noqa: E402
from ehrnet_model.inference.parity import check_engine  # noqa: E402
from ehrnet_model.inference.runtime import ModelInfo, model_info  # noqa: E402
from ehrnet_model.network.export import export_onnx  # noqa: E402
from ehrnet_model.network.pictures import read_pictures  # noqa: E402
from ehrnet_model.network.precision import calibration_inputs, quantised_nodes, to_fp16  # noqa: E402

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def graph_of(path: Path):
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.output]}
    return graph, kinds


# float16 -----------------------------------------------------------------------------------------


def test_the_network_computes_in_float16_and_nothing_else_does(fp16_model) -> None:
    graph, kinds = graph_of(fp16_model)
    for node in graph.node:
        kind = kinds[node.output[0]]
        if node.name.startswith("fp32/"):
            assert kind != HALF, node.name
        else:
            assert kind == HALF, node.name
    inside = [n.op_type for n in graph.node if not n.name.startswith("fp32/")]
    assert inside.count("Conv") == 145 and "GlobalAveragePool" not in inside
    outside = {n.op_type for n in graph.node if n.name.startswith("fp32/")}
    assert {"Sub", "TopK", "MaxPool", "Log", "Div", "GlobalAveragePool"} <= outside
    (image,), (peaks,) = graph.input, graph.output
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert peaks.type.tensor_type.elem_type == FLOAT


def test_casts_are_at_borders_only(fp16_model) -> None:
    graph, _ = graph_of(fp16_model)
    makers = {name: node for node in graph.node for name in node.output}
    casts = [n for n in graph.node if n.op_type == "Cast" and "cast/" in n.name]
    # The picture in, both outputs, and each of the ten poolings there and back.
    assert len(casts) <= 1 + 2 + 2 * 10
    assert len({(n.input[0], n.attribute[0].i) for n in casts}) == len(casts)
    for node in casts:
        assert makers[node.input[0]].op_type != "Cast"


def test_weights_take_half_the_room_and_the_file_says_what_it_is(fp16_model, h4_model) -> None:
    assert fp16_model.stat().st_size < 0.53 * h4_model.stat().st_size
    info, exact = model_info(fp16_model), model_info(h4_model)
    assert (info.precision, exact.precision) == ("fp16", "fp32")
    assert info.weights_sha256 == exact.weights_sha256


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_people_are_found_in_float16(name, tmp_path: Path, pictures) -> None:
    pytest.importorskip(name)
    info = ModelInfo(variant="H-4", phi=-4, quality="preview", input_size=384)
    path = export_onnx(
        dots.make_dots_network(),
        tmp_path / "dots.onnx",
        info,
        [dots.draw_people((480, 640), dots.figure((320.3, 240.6), 400)[None])],
        precision="fp16",
    )
    runtime = open_runtime(path, name)
    verdict = check_engine(runtime, read_answers(path, model_info(path)), "fp16")
    assert (verdict.state, verdict.people) == ("same", 3), verdict


def test_a_weight_beyond_float16_is_refused(h4_model) -> None:
    model = onnx.load(str(h4_model))
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0, 0, 0] = 1e5
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with pytest.raises(EhrnetError, match="beyond float16's range: export this model as fp32"):
        to_fp16(model)


# INT8 --------------------------------------------------------------------------------------------


def test_quantisation_is_what_tensorrt_takes(int8_model) -> None:
    model = onnx.load(str(int8_model))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        scale, zero = (constants[name] for name in node.input[1:3])
        assert (scale > 0).all() and scale.dtype == np.float32
        assert (zero == 0).all() and zero.dtype == np.int8
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    quantised = [n for n in convolutions if n.input[1] not in constants]
    for node in quantised:
        for name in node.input[:2]:
            back = makers[name]
            there = makers[back.input[0]]
            assert (there.op_type, back.op_type) == ("QuantizeLinear", "DequantizeLinear")
        weight = makers[makers[node.input[1]].input[0]]
        assert constants[weight.input[0]].dtype == np.float32, "the weights stay float"
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)
        assert all(name in constants for name in node.input[2:]), "biases are not quantised"
    assert len(quantised) == 52
    entering = {name for n in quantised for name in n.input}
    for node in pairs:
        if node.op_type == "DequantizeLinear":
            assert node.output[0] in entering, "only what a convolution reads is quantised"


def test_around_quantised_convolutions_everything_is_float16(int8_model) -> None:
    graph, kinds = graph_of(int8_model)
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    pairs = ("QuantizeLinear", "DequantizeLinear")
    whole = 0
    for node in graph.node:
        if node.name.startswith("fp32/") or node.op_type in pairs:
            continue
        feeding = makers.get(node.input[0])
        quantised = feeding is not None and feeding.op_type == "DequantizeLinear"
        lifted = node.op_type == "Cast" and kinds[node.output[0]] == FLOAT
        between = node.op_type == "Relu" and readers[node.output[0]] == ["QuantizeLinear"]
        if node.op_type == "Conv" and quantised:
            assert kinds[node.output[0]] == FLOAT
        elif between:  # so that the convolution before it can give what the next one takes
            assert kinds[node.output[0]] == FLOAT and feeding.op_type == "Conv"
            whole += 1
        elif not lifted:
            assert kinds[node.output[0]] == HALF, node.name
    assert whole == 26, "one in each block of two"


def test_backbone_heads_and_deconvolution_stay_float(int8_model, h4_model) -> None:
    chosen = quantised_nodes(onnx.load(str(h4_model)).graph)
    assert len(chosen) == 52
    assert all("/branches." in name for name in chosen)
    model = onnx.load(str(int8_model))
    constants = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ConvTranspose":
            assert node.input[1] in constants
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not node.name.startswith("fp32/")


def crowd() -> np.ndarray:
    people = np.stack([dots.figure((x, 240.6), 400) for x in (170.3, 470.8)])
    return dots.draw_people((480, 640), people)


def export_dots_as_int8(tmp_path: Path, pictures) -> Path:
    info = ModelInfo(variant="H-4", phi=-4, quality="preview", input_size=384)
    path = tmp_path / "dots.onnx"
    return export_onnx(dots.make_dots_network(), path, info, pictures, precision="int8")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_people_are_found_in_int8(name, tmp_path: Path) -> None:
    pytest.importorskip(name)
    path = export_dots_as_int8(tmp_path, [crowd()])
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(str(path)).graph.node}
    info = model_info(path)
    assert info.precision == "int8"
    verdict = check_engine(open_runtime(path, name), read_answers(path, info), "int8")
    assert (verdict.state, verdict.people) == ("same", 6), verdict


def test_calibration_sees_what_an_engine_is_given(dots_model, tmp_path: Path) -> None:
    """The picture at 4:3, all of it in a coarse look, and both people, once in a mirror."""
    looks = {"second_look": 3, "second_look_size": 256, "second_look_views": 2, "coarse_look": True}
    model = dots.with_decode(dots_model, tmp_path / "looks.onnx", **looks)
    blank = np.zeros((640, 480, 3), np.uint8)
    first, closer, nobody = calibration_inputs(model, [crowd(), blank])
    assert all(images.dtype == np.uint8 for images in (first, closer, nobody))
    assert first.shape == (1, 384, 512, 3) and nobody.shape == (1, 512, 384, 3)
    assert closer.shape == (6, 256, 256, 3)
    # Windows of the same people: as much of each is lit in the mirror. Nobody is in the last one.
    lit = [int((image.max(2) > 100).sum()) for image in closer]
    assert lit[1] == lit[2] and lit[3] == lit[4] and 0 < lit[0] < min(lit[1:5])
    assert not nobody.any() and lit[5] == 0
    once = dots.with_decode(dots_model, tmp_path / "once.onnx", second_look=0)
    many = calibration_inputs(once, [crowd()] * 9)
    assert [images.shape for images in many] == [(8, 384, 512, 3), (1, 384, 512, 3)]
    most = calibration_inputs(model, [crowd()] * 30)  # of six inputs each
    assert sum(len(images) for images in most) == 128


def test_badly_calibrated_is_not_written(tmp_path: Path) -> None:
    """Forty black pictures teach that nothing is ever bright."""
    black = [np.zeros((480, 640, 3), np.uint8)] * 40
    with pytest.raises(EhrnetError, match="not written: in int8 the model gives other answers"):
        export_dots_as_int8(tmp_path, [crowd(), *black])
    assert list(tmp_path.iterdir()) == []


def test_untrained_weights_are_exported_for_timing_but_proved_by_nothing(int8_model) -> None:
    info = model_info(int8_model)
    verdict = check_engine(open_runtime(int8_model), read_answers(int8_model, info), "int8")
    assert verdict.state == "unchecked" and "untrained weights are for timing" in verdict.reason


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "holds no pictures"),
        (lambda folder: (folder / "a.jpg").write_bytes(b"broken"), "a.jpg does not decode"),
        (lambda folder: folder.rmdir(), "there is no folder"),
    ],
)
def test_a_folder_that_cannot_calibrate(prepare, message, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(EhrnetError, match=message):
        read_pictures(folder, 4)


def test_pictures_are_spread_over_the_folder(tmp_path: Path) -> None:
    import cv2

    for number in range(10):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
    found = [int(p[0, 0, 0]) for p in read_pictures(tmp_path, 3)]
    assert found == [0, 3, 6]
    assert len(read_pictures(tmp_path, 99)) == 10


def test_int8_without_pictures_and_unknown_precision(tmp_path: Path) -> None:
    info = ModelInfo(variant="H-4", phi=-4, input_size=256)
    network = dots.make_dots_network()
    with pytest.raises(EhrnetError, match="INT8 needs pictures .* --images"):
        export_onnx(network, tmp_path / "m.onnx", info, precision="int8")
    with pytest.raises(EhrnetError, match="'int4' is unknown: use one of fp32, fp16, int8"):
        export_onnx(network, tmp_path / "m.onnx", info, precision="int4")
    assert list(tmp_path.iterdir()) == []


def test_the_deconvolutions_normalisation_is_folded(h4_model) -> None:
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(str(h4_model)).graph.node}
