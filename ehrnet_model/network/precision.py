"""Lower precision, written into the graph: float16 with casts, INT8 with quantised values.

One graph means the same on every engine: ONNX Runtime executes it here, and TensorRT from 10 on
knows no other way (networks are strongly typed). Only the network itself is lowered. What is around
it stays float32 and carries ``fp32/`` in its nodes' names: the normalisation, since pixels lose
their last bits otherwise; the averaging of the two heatmaps and everything behind it, since close
neighbours become equal and the sub-pixel fit goes wrong; and global average pooling, whose sums
over a whole map do not fit into float16.

INT8 is float16 with quantised convolutions in it: memory decides a small network's time on a GPU,
so what is not quantised must not stay float32 (docs/performance.md). Quantisation itself, and the
convolution between, speak float32, the only type that ONNX's Q/DQ had before opset 19; TensorRT is
meant to make one INT8 layer of them and the casts around them.

float16 is a pass of its own: the converters of onnxconverter-common and ONNX Runtime put a pair of
casts around every node that is kept, so that values between two kept nodes still pass through
float16. INT8 is ONNX Runtime's static quantisation with what TensorRT takes: symmetric, per-channel
weights, biases left in float.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.runtime import FP32_PREFIX, INPUT_NAME, Runtime

PRECISIONS = ("fp32", "fp16", "int8")
# The exporter names nodes by modules; DeployedNetwork calls the network so.
_NETWORK = "/network/"
# Pictures a quantised graph is calibrated on, at most, and inputs made of them: more change nothing
# but the time.
CALIBRATION_PICTURES, CALIBRATION_INPUTS = 64, 128
# Ranges are the mean of the extremes of so many inputs together. That of single ones cuts off too
# much; with the extremes of all, percentiles or entropy peaks move as far or further.
_TOGETHER = 8
# Sums of a whole map: beyond float16's 65504 at a map of 192x192 with a mean of 2.
_ACCUMULATING = ("GlobalAveragePool",)
# Quantised where a network has branches: their 3x3 convolutions, of H-4 44 % of the arithmetic. The
# backbone's swish and squeeze-and-excite have long-tailed ranges, and fusions and entries feed
# several sums: with these, half-trained weights have half as many regrouped keypoints again.
_BRANCHES = "/branches."


def name_nodes(graph: Any) -> None:
    """Marks every node that keeps float32 with FP32_PREFIX, whatever the precision."""
    for node in graph.node:
        inside = node.name.startswith(_NETWORK) and node.op_type not in _ACCUMULATING
        if not inside and not node.name.startswith(FP32_PREFIX):
            node.name = FP32_PREFIX + node.name.lstrip("/")


def to_fp16(model: Any, float32: Collection[str] = ()) -> None:
    """Computes the network in float16, in place; one cast wherever a value crosses the border.

    Args:
        model: the float32 graph; nodes named FP32_PREFIX are left alone,
        float32: and so are those of these names.

    Raises:
        EhrnetError: a weight is too large for float16.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.input]}
    kinds.update({v.name: v.type.tensor_type.elem_type for v in inferred.output})
    weights = {t.name: t for t in graph.initializer}
    kept_nodes = set(float32)

    def inside(node: Any) -> bool:
        return not node.name.startswith(FP32_PREFIX) and node.name not in kept_nodes

    lowered = {
        name
        for node in graph.node
        if inside(node)
        for name in node.output
        if kinds.get(name) == TensorProto.FLOAT
    }
    halves: dict[str, Any] = {}
    casts: dict[tuple[str, int], str] = {}
    nodes: list[Any] = []

    def cast(name: str, kind: int) -> str:
        if (name, kind) not in casts:
            half = kind == TensorProto.FLOAT16
            casts[name, kind] = f"{name}/{'fp16' if half else 'fp32'}"
            label = f"cast/{name}" if half else f"{FP32_PREFIX}cast/{name}"
            made = helper.make_node("Cast", [name], [casts[name, kind]], label, to=kind)
            nodes.append(made)
        return casts[name, kind]

    for node in graph.node:
        for i, name in enumerate(node.input):
            if not inside(node):
                if name in lowered:
                    node.input[i] = cast(name, TensorProto.FLOAT)
            elif name in weights:
                # The sizes of a Resize stay float32 by ONNX's definition.
                if weights[name].data_type == TensorProto.FLOAT and node.op_type != "Resize":
                    halves[name] = _half(numpy_helper.to_array(weights[name]), name)
                    node.input[i] = halves[name].name
            elif name not in lowered and kinds.get(name) == TensorProto.FLOAT:
                node.input[i] = cast(name, TensorProto.FLOAT16)
        if inside(node) and node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(copied)
    graph.initializer.extend([*kept, *halves.values()])


def calibration_inputs(file: Path, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What an engine is given where the robot sees these pictures.

    Whole pictures at the named size they fit best, and the windows of second looks, which are most
    of an engine's work.

    Args:
        file: the float32 graph with its description, which says who is looked at again.
        pictures: BGR images (h, w, 3).

    Returns:
        Batches uint8 (N, H, W, 3) of equal size, at most CALIBRATION_INPUTS images in all, from
        all over.
    """
    from ehrnet_model.inference.onnx_runtime import OnnxRuntime

    recorder = _Recorder(OnnxRuntime(file))
    with contextlib.closing(PoseEstimator(recorder)) as estimator:
        for picture in pictures:
            estimator.infer([picture], [False])
    count = len(recorder.given)
    chosen = np.linspace(0, count - 1, min(count, CALIBRATION_INPUTS)).round().astype(int)
    alike: dict[tuple[int, ...], list[np.ndarray]] = {}
    for number in chosen:
        alike.setdefault(recorder.given[number].shape, []).append(recorder.given[number])
    return [
        np.concatenate(images[start : start + _TOGETHER])
        for images in alike.values()
        for start in range(0, len(images), _TOGETHER)
    ]


def to_int8(model: Any, inputs: Sequence[np.ndarray]) -> Any:
    """The model in float16 with quantised convolutions, calibrated on inputs.

    Quantised are the convolutions of the branches (of a network without branches: all but depthwise
    ones and the heads) with their inputs, weights per channel.

    Args:
        model: the float32 graph.
        inputs: uint8 (N, H, W, 3) each, see ``calibration_inputs``.

    Raises:
        EhrnetError: there are none.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    if not inputs:
        raise EhrnetError(
            "INT8 needs pictures to measure ranges on: give --images with a folder of pictures of "
            "people, such as the robot's camera takes."
        )
    chosen = quantised_nodes(model.graph)
    # What ONNX Runtime would do first is done: constants are folded, shapes need no inference.
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        quantize_static(
            str(source),
            str(out),
            _Inputs(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            nodes_to_quantize=chosen,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                # Only what goes into a convolution, not what comes out.
                "OpTypesToExcludeOutputQuantization": ["Conv"],
                # Weights stay float with a pair of nodes behind them, as TensorRT wants it.
                "AddQDQPairToWeight": True,
                # The mean of each batch's extremes: one outlier does not set the range.
                "CalibMovingAverage": True,
            },
        )
        quantised = onnx.load(str(out))
    del quantised.metadata_props[:]
    for domain in [d for d in quantised.opset_import if d.domain not in ("", "ai.onnx")]:
        quantised.opset_import.remove(domain)
    to_fp16(quantised, _quantising(quantised.graph))
    return quantised


def _quantising(graph: Any) -> set[str]:
    """Names of the quantising nodes, of the convolutions they feed, and of what lies between.

    Between is a Relu alone: with casts around it TensorRT would have each convolution write
    float32, and another kernel quantise that.
    """
    pairs = ("QuantizeLinear", "DequantizeLinear")
    made = {name for node in graph.node if node.op_type == pairs[1] for name in node.output}
    convs = [n for n in graph.node if n.op_type == "Conv" and n.input[0] in made]
    given = {name for node in convs for name in node.output}
    quantised_only = {n.input[0] for n in graph.node if n.op_type == pairs[0]} - {
        name for n in graph.node if n.op_type != pairs[0] for name in n.input
    }
    between = [
        n
        for n in graph.node
        if n.op_type == "Relu" and n.input[0] in given and n.output[0] in quantised_only
    ]
    return {n.name for n in graph.node if n.op_type in pairs} | {n.name for n in convs + between}


def quantised_nodes(graph: Any) -> list[str]:
    """Names of the convolutions that INT8 lowers."""
    from onnx import helper

    leaving = {
        name
        for node in graph.node
        if node.name.startswith(FP32_PREFIX) and node.op_type not in _ACCUMULATING
        for name in node.input
    }
    chosen = []
    for node in graph.node:
        if node.op_type != "Conv" or node.name.startswith(FP32_PREFIX):
            continue
        groups = [helper.get_attribute_value(a) for a in node.attribute if a.name == "group"]
        head = any(name in leaving for name in node.output)
        if groups in ([], [1]) and not head:
            chosen.append(node.name)
    return [name for name in chosen if _BRANCHES in name] or chosen


def _half(array: np.ndarray, name: str) -> Any:
    from onnx import numpy_helper

    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise EhrnetError(
            f"the weight {name} has values beyond float16's range: export this model as fp32."
        )
    return numpy_helper.from_array(array.astype(np.float16), f"{name}/fp16")


class _Recorder:
    """A runtime that keeps what it is given, one image after the other."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.info, self.name, self.size_hw = runtime.info, runtime.name, runtime.size_hw
        self.given: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.given.extend(images[n : n + 1].copy() for n in range(len(images)))
        return self._runtime(images)

    def close(self) -> None:
        self._runtime.close()


class _Inputs:
    """Gives the calibrator one batch after the other."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._inputs, None)
        return None if images is None else {INPUT_NAME: images}
