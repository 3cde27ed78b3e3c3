"""From a network in PyTorch to the one ONNX file that every engine reads."""

from __future__ import annotations

import inspect
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterable, Sequence, Tuple

import numpy as np
import torch
from torch import nn

import ehrnet_model
from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.answers import Answers, answers_file, write_answers
from ehrnet_model.inference.atomic import check_target, write_atomically
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.parity import DIFFERS, UNCHECKED, check_engine, compare_peaks
from ehrnet_model.inference.runtime import (
    INPUT_NAME,
    METADATA_KEY,
    OUTPUT_NAME,
    STRIDE,
    ModelInfo,
    info_to_json,
)
from ehrnet_model.inference.second_look import closer_hw
from ehrnet_model.inference.sizes import NAMED_SIZES, parse_size
from ehrnet_model.network.checkpoint import weights_sha256
from ehrnet_model.network.deploy import DeployedNetwork, example_images
from ehrnet_model.network.precision import (
    PRECISIONS,
    calibration_inputs,
    name_nodes,
    to_fp16,
    to_int8,
)
from ehrnet_model.network.torch_runtime import random_network

_log = logging.getLogger(__name__)

# TensorRT 8.5 and 8.6 read up to opset 17, which only the TorchScript exporter writes.
OPSET = 17
# Relative difference of values, distance in input pixels and share of unpaired peaks below which
# the exported graph is the network. Two correct float32 engines stay ten times below.
MAX_VALUE_DIFFERENCE = 1e-3
MAX_DISTANCE_PX = 0.05
MAX_MISSING = 0.005
# Inputs of each size whose answers are stored with the file, at most.
STORED_INPUTS = 2


def export_onnx(
    model: nn.Module,
    path: Path,
    info: ModelInfo,
    pictures: Sequence[np.ndarray] = (),
    sizes: Iterable[str] = NAMED_SIZES,
    precision: str = "fp32",
    tell: Callable[[str], None] = lambda stage: None,
) -> Path:
    """Write a network as ONNX and prove on several sizes that it still is the same network.

    Args:
        model: gives (lowres, highres) for normalised images, see DeployedNetwork.
        path: the file; written beside and renamed, only when all checks passed.
        info: stored in the metadata; an empty ``weights_sha256`` and ``version`` are filled in.
        pictures: BGR images, the first of which become the inputs of the stored answers
            (inference/answers.py); without any, colour fields in which nobody is. INT8 is
            calibrated on all of them, as ``calibration_inputs`` says.
        sizes: the input sizes (``4:3``, ``384x512``) answers are stored for, beside that of the
            windows for second looks, if ``info.decode`` has any.
        precision: ``fp32``, ``fp16`` or ``int8``, see precision.py. The graph is proved in float32
            first; in a lower one it must stay within the limits of parity.LIMITS.
        tell: hears the name of each stage when it begins; together they take minutes.

    Returns:
        ``path``; the answers lie beside it.

    Raises:
        EhrnetError: onnx is missing, the folder cannot be written or is full, there are no pictures
            for INT8, or the exported graph's peaks differ from PyTorch's; then ``path`` is left as
            it was.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  (the parity check needs it)
    except ImportError as error:
        raise EhrnetError(
            f"exporting needs the package {error.name}: pip install {error.name}."
        ) from None
    path = Path(path)
    if precision not in PRECISIONS:
        raise EhrnetError(
            f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}."
        )
    # Before anything is traced, which takes a while.
    check_target(path)
    check_target(answers_file(path))
    side = info.input_size or parity_shapes(info.input_size)[0][1]
    sizes_hw = [parse_size(size, side) for size in sizes]
    info = replace(
        info,
        weights_sha256=info.weights_sha256 or weights_sha256(model.state_dict()),
        version=info.version or ehrnet_model.__version__,
    )
    was_training = model.training
    deployed = DeployedNetwork(
        model, info.coordinates, info.skeleton.num_keypoints, info.smooth
    ).eval()
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            tell("tracing the network")
            proto = onnx.load_model_from_string(_trace(deployed))
            _fold_constants(proto.graph)
            _fold_pads(proto.graph)
            _fold_batch_norms(proto.graph)
            _drop_empty_inputs(proto.graph)
            name_nodes(proto.graph)
            exact = _save(proto, info, Path(folder) / "fp32.onnx")
            tell("checking that the graph is the network")
            _assert_parity(deployed, exact, info, path)
            tell("computing the answers that engines are checked with")
            answers = _answers(deployed, info, pictures, sizes_hw)
            if precision != "fp32":
                tell(f"lowering it to {precision}")
            if precision == "fp16":
                to_fp16(proto)
            elif precision == "int8":
                proto = to_int8(proto, calibration_inputs(exact, pictures))
            file = exact
            if precision != "fp32":
                info = replace(info, precision=precision)
                file = _save(proto, info, Path(folder) / "lowered.onnx")
                tell(f"checking it in {precision}")
                _assert_close(file, answers, precision, path)
            # First, so that no file is without; of other weights they are not taken.
            beside = answers_file(path)
            alone = not beside.exists()
            write_answers(beside, answers)
            try:
                write_atomically(path, file.read_bytes())
            except BaseException:  # an interrupt leaves nothing behind either
                if alone:
                    beside.unlink()
                raise
    except OSError as error:
        raise EhrnetError(
            f"cannot write {path}: {error.strerror or error}; make room, or choose another folder."
        ) from error
    finally:
        model.train(was_training)
    return path


def timing_model(phi: int, folder: Path) -> Path:
    """A model with untrained weights, for timing: speed does not depend on them."""
    network, info = random_network(phi)
    return export_onnx(network, folder / f"{info.variant}.onnx", info)


def parity_shapes(input_size: int) -> Sequence[Tuple[int, int, int]]:
    """(N, H, W) on which an export is checked: square, 4:3, 16:9, tall and small, one and two."""
    side = max(STRIDE * 2, round(input_size / STRIDE) * STRIDE)

    def longer(ratio: float) -> int:
        return -(-round(side * ratio) // STRIDE) * STRIDE

    return (
        (1, side, side),
        (1, side, longer(4 / 3)),
        (1, side, longer(16 / 9)),
        (2, longer(4 / 3) // 2 // STRIDE * STRIDE or STRIDE, side // 2 // STRIDE * STRIDE),
        (2, 96, 64),
        (1, 32, 32),
    )


def _save(proto: Any, info: ModelInfo, file: Path) -> Path:
    """The checked model with its description as a file."""
    import onnx

    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, info_to_json(info)
    onnx.checker.check_model(proto, full_check=True)
    file.write_bytes(proto.SerializeToString())
    return file


def _assert_close(file: Path, answers: Answers, precision: str, path: Path) -> None:
    """Raises EhrnetError when lower precision changed too much of what a user sees."""
    from ehrnet_model.inference.onnx_runtime import OnnxRuntime

    verdict = check_engine(OnnxRuntime(file), answers, precision)
    if verdict.state == DIFFERS:
        raise EhrnetError(
            f"{path} was not written: in {precision} the model gives other answers. "
            f"{verdict.reason} Use another precision, or other --images."
        )
    if verdict.state == UNCHECKED:
        _log.warning("In %s nothing proves the model's answers: %s", precision, verdict.reason)


def _answers(
    deployed: DeployedNetwork,
    info: ModelInfo,
    pictures: Sequence[np.ndarray],
    sizes_hw: Sequence[Tuple[int, int]],
) -> Answers:
    """What the network itself says to a few inputs of each size and as windows, in float32."""
    by_size = {}
    closer = closer_hw(DecodeOptions.from_dict(info.decode))
    for size_hw in [*sizes_hw, *([closer] if closer else [])]:
        if pictures:
            images = np.zeros((min(len(pictures), STORED_INPUTS), *size_hw, 3), np.uint8)
            for image, picture in zip(images, pictures):
                Letterbox.fit(picture.shape[:2], size_hw).apply(picture, image)
        else:
            images = example_images((STORED_INPUTS, *size_hw), seed=1, noise=0).numpy()
        with torch.inference_mode():
            by_size[size_hw] = images, deployed(torch.from_numpy(images)).numpy()
    return Answers(info.weights_sha256, by_size)


def _trace(deployed: DeployedNetwork) -> bytes:
    axes = {0: "batch", 1: "height", 2: "width"}
    # Before torch 2.5 there was only this exporter, and no name for it.
    named = "dynamo" in inspect.signature(torch.onnx.export).parameters
    exporter: Dict[str, Any] = {"dynamo": False} if named else {}
    # The exporter of opset 17 is called old, and traces shapes on purpose: both by intention.
    with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        file = Path(folder) / "traced.onnx"
        warnings.simplefilter("ignore")
        torch.onnx.export(
            deployed,
            (example_images((2, 96, 128)),),
            file,
            **exporter,
            opset_version=OPSET,
            do_constant_folding=True,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: axes, OUTPUT_NAME: {0: "batch"}},
        )
        return file.read_bytes()


def _fold_constants(graph: Any) -> None:
    """Leaves only nodes that depend on the image; everything else becomes an initialiser.

    The exporter writes constants as nodes, shares weights through Identity and computes paddings
    with small graphs; TensorRT 8.5 wants initialisers.
    """
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {tensor.name: tensor for tensor in graph.initializer}
    renamed: Dict[str, str] = {}
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        inputs = [name for name in node.input if name]
        if not all(name in constants for name in inputs):
            kept.append(node)
        elif node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
        else:
            outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
            alone = helper.make_model(
                helper.make_graph([node], "constant", [], outputs, [constants[i] for i in inputs]),
                opset_imports=[helper.make_opsetid("", OPSET)],
            )
            for name, value in zip(
                node.output, ReferenceEvaluator(alone).run(None, {}), strict=True
            ):
                constants[name] = numpy_helper.from_array(np.asarray(value), name)
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)


def _drop_empty_inputs(graph: Any) -> None:
    """An input that is not given at the end of a node's is left out: it means the same.

    TensorRT 8's parser takes an empty one of Clip for a tensor and makes layers without names of
    it, which no name pins to float32.
    """
    for node in graph.node:
        while node.input and not node.input[-1]:
            del node.input[-1]


def _fold_pads(graph: Any) -> None:
    """Zero padding in front of a convolution becomes the convolution's own, which costs nothing.

    The backbone pads one side more than the other; PyTorch's convolutions cannot say that, ONNX's
    can. (H-4 on onnxruntime: four percent of the time.)
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: Dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        modes = [helper.get_attribute_value(a) for a in pad.attribute if a.name == "mode"]
        value = pad.input[2] if len(pad.input) > 2 else ""
        zero = not value or not numpy_helper.to_array(constants[value]).any()
        amounts = numpy_helper.to_array(constants[pad.input[1]]).tolist()
        before, after = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
        users = readers.get(pad.output[0], [])
        if modes not in ([], [b"constant"]) or not zero or any(before[:2] + after[:2]):
            continue
        if not users or any(user.op_type != "Conv" for user in users):
            continue
        for conv in users:
            attribute = next(a for a in conv.attribute if a.name == "pads")
            own = list(attribute.ints)
            attribute.ints[:] = [a + b for a, b in zip(own, before[2:] + after[2:], strict=True)]
            conv.input[0] = pad.input[0]
        graph.node.remove(pad)


def _fold_batch_norms(graph: Any) -> None:
    """The normalisation behind the deconvolution goes into its weights, as behind convolutions.

    The exporter does it for convolutions only. Exactly equivalent but for rounding.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: Dict[str, list[Any]] = {}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = makers.get(norm.input[0])
        if conv is None or conv.op_type != "ConvTranspose" or len(users[norm.input[0]]) > 1:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
        if attributes.get("group", 1) != 1:
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:5]
        )
        epsilon = {a.name: helper.get_attribute_value(a) for a in norm.attribute}["epsilon"]
        factor = scale / np.sqrt(variance + epsilon)
        weight = numpy_helper.to_array(constants[conv.input[1]]) * factor[:, None, None]
        given = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else 0.0
        bias = (given - mean) * factor + shift
        names = [f"{conv.name}/weight", f"{conv.name}/bias"]
        for name, array in zip(names, (weight, bias), strict=True):
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _assert_parity(deployed: DeployedNetwork, file: Path, info: ModelInfo, path: Path) -> None:
    from ehrnet_model.inference.onnx_runtime import OnnxRuntime

    runtime = OnnxRuntime(file)
    for seed, shape in enumerate(parity_shapes(info.input_size)):
        images = example_images(shape, seed)
        with torch.inference_mode():
            expected = deployed(images).numpy()
        size = "x".join(map(str, shape))
        if not np.isfinite(expected).all():
            raise EhrnetError(
                f"{path} was not written: the network itself gives values that are not finite "
                f"(input {size}); the weights are broken."
            )
        difference = compare_peaks(expected, runtime(images.numpy()))
        if not difference.within(MAX_VALUE_DIFFERENCE, MAX_DISTANCE_PX, MAX_MISSING):
            raise EhrnetError(
                f"{path} was not written: on input {size} the exported graph differs from the "
                f"network ({difference}); please report this with the weights and versions used."
            )
