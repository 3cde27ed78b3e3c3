"""Weights of the Open Model Zoo's human-pose-estimation-0005, -0006 and -0007 as our H-2-omz.

The three are one EfficientHRNet at three input sizes (Intel, Apache-2.0), published in OpenVINO's
format with every normalisation folded into its convolution. The graph is followed from its one
transposed convolution back to the image along our own network's modules: each must find the layers
it stands for, of its own shape, stride and padding, and no weight may be left over. Neither names
nor the order of layers, nor offsets, matter: they differ between releases.

In these files heatmaps and tags at low resolution have a convolution each; ours is both, one after
the other. Behind the maps the graph averages and marks maxima; that part is not ours (deploy.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.answers import answers_file
from ehrnet_model.inference.runtime import ModelInfo
from ehrnet_model.network.blocks import NORM_EPS, BasicBlock, ConvNorm, MBConv
from ehrnet_model.network.checkpoint import CheckpointMeta, save_checkpoint
from ehrnet_model.network.deploy import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.network.export import export_onnx
from ehrnet_model.network.hrnet import Exchange, FusionModule, Stage
from ehrnet_model.network.openvino_ir import Graph, Layer, read_graph
from ehrnet_model.network.torch_runtime import load_weights
from ehrnet_model.variants import pose_variant

VARIANT = "H-2-omz"
# Short side of the largest of the three, with the best published accuracy.
INPUT_SIZE = 448
# What is left of an input of the mean colour, in standard deviations; half precision leaves 5e-4.
_MAX_OFFSET = 2e-3

META = CheckpointMeta(
    variant=VARIANT,
    weights_name="human-pose-estimation-0007",
    quality="imported",
    # Their publisher decodes with a quarter-cell shift and no half cell.
    coordinates="first-pixel",
    input_size=INPUT_SIZE,
    decode={"keypoint_threshold": 0.1, "tag_threshold": 1.0},
    metrics={
        "measured_by": "the publisher, not here: COCO val2017, one pass, short side to the size",
        "AP at 288": 0.456,
        "AP at 352": 0.511,
        "AP at 448": 0.543,
    },
    licence="Apache-2.0 (Intel, Open Model Zoo)",
)


def import_omz(xml: Path, weights: Path, out: Path, recipe: dict[str, Any]) -> CheckpointMeta:
    """Writes a checkpoint of ours from the published files.

    Args:
        xml: any of the three networks' .xml.
        weights: the .bin of the same release.
        out: target, ``*.safetensors``.
        recipe: where they come from, stored with the weights.

    Returns:
        The description that was written.

    Raises:
        EhrnetError: unreadable, or another network; nothing is written then.
    """
    state = read_state(read_graph(xml, weights))
    meta = CheckpointMeta(**{**vars(META), "recipe": recipe})
    return save_checkpoint(out, state, meta)


def install(xml: Path, weights: Path, out: Path, recipe: dict[str, Any]) -> ModelInfo:
    """Writes the model every runtime reads; beside it its stored answers and its checkpoint.

    Args:
        xml: as for ``import_omz``.
        weights: likewise.
        out: target, ``*.onnx``; its folder is made where it does not exist.
        recipe: as for ``import_omz``.

    Returns:
        What the model says about itself.

    Raises:
        EhrnetError: as ``import_omz``, or the exported graph differs from the network, or the
            target cannot be written. Nothing is written then.
    """
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".get-weights.", dir=out.parent) as folder:
            checkpoint, model = Path(folder) / "weights.safetensors", Path(folder) / "model.onnx"
            import_omz(xml, weights, checkpoint, recipe)
            network, info = load_weights(checkpoint)
            export_onnx(network, model, info)
            os.replace(checkpoint, out.with_suffix(".safetensors"))
            os.replace(answers_file(model), answers_file(out))
            os.replace(model, out)  # last, so that no model is without its answers
    except OSError as error:
        raise EhrnetError(f"{out} cannot be written: {error.strerror}.") from None
    return info


def read_state(graph: Graph) -> dict[str, Tensor]:
    """float32 tensors for ``build("H-2-omz").load_state_dict``. Raises EhrnetError."""
    with torch.device("meta"):
        network = EfficientHRNet(pose_variant(VARIANT))
    walk = _Walk(graph)
    try:
        walk.network(network)
    except (IndexError, KeyError, ValueError) as error:  # layers without what they work on
        raise EhrnetError(f"{graph.origin} is damaged, or another network ({error}).") from None
    walk.refuse_leftovers()
    for key, template in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            walk.found[key] = torch.zeros((), dtype=torch.int64)
        value = walk.found[key]
        if value.shape != template.shape or not torch.isfinite(value).all():
            raise EhrnetError(f"{graph.origin}: the weights for {key} are broken.")
    return walk.found


class _Mismatch(EhrnetError):
    """The graph is not the network that was expected."""


class _Conv(NamedTuple):
    """A convolution of the graph with the bias added behind it."""

    layer: Layer
    weight: np.ndarray
    bias: np.ndarray
    source: str


class _Walk:
    """One way through a graph, from outputs to the image.

    Methods take a module of ours, its name, and the id of the layer that gives its output; they
    put the module's tensors into ``found`` and return the id of the layer that feeds it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: dict[str, Tensor] = {}
        self.used: set[str] = set()

    def network(self, network: EfficientHRNet) -> None:
        """Everything."""
        deconvs = self.graph.of_kind("ConvolutionBackpropData")
        if len(deconvs) != 1:
            raise _Mismatch(
                f"{self.graph.origin} has {len(deconvs)} transposed convolutions, where the human "
                "pose networks 0005, 0006 and 0007 have one: it is another network."
            )
        features, *low = self._concatenated(deconvs[0].inputs[0])
        self._heads(network, deconvs[0], features, low)
        outputs = [features]
        taps: list[str] = []
        for index in reversed(range(len(network.stages))):
            stage = network.stages[index]
            assert isinstance(stage, Stage)
            *outputs, tap = self._stage(f"stages.{index}", stage, outputs)
            taps.insert(0, tap)
        self._backbone(network, [*outputs, *taps])

    def refuse_leftovers(self) -> None:
        """Raises where the graph has weights that no module of ours took."""
        constants = {self.graph.constant_id(id_) for id_ in self.used}
        for layer in self.graph.of_kind("Const"):
            shape = [int(n) for n in layer.attributes.get("shape", "").split(",") if n.strip()]
            floats = layer.attributes.get("element_type") in ("f16", "f32")
            if layer.id not in constants and floats and len(shape) > 3 and np.prod(shape) > 3:
                raise self._mismatch(layer, "weights that our network has no place for")

    # The parts of the network, last first

    def _heads(self, network: EfficientHRNet, deconv: Layer, features: str, low: list[str]) -> None:
        heads = [self._conv(id_) for id_ in low]
        if len(heads) != 2 or any(head.source != features for head in heads):
            raise self._mismatch(deconv, "not features, heatmaps and tags as its inputs")
        # Only heatmaps are averaged with those of high resolution.
        if [self._is_averaged(id_) for id_ in low] != [True, False]:
            raise self._mismatch(deconv, "tags before heatmaps")
        joined = _Conv(
            heads[0].layer,
            np.concatenate([head.weight for head in heads]),
            np.concatenate([head.bias for head in heads]),
            features,
        )
        self._check(heads[1].layer, network.head_low)
        self._keep("head_low", network.head_low, joined)

        enlarge = network.enlarge
        bias = self._reader(deconv.id, "Add")
        if self._conv_norm("enlarge", enlarge, bias) != deconv.inputs[0]:
            raise self._mismatch(deconv, "another input than expected")
        entry = node = self._reader(bias, "ReLU")
        for _ in enlarge.blocks:
            conv = self._reader(self._reader(node, "Convolution"), "Add")
            conv = self._reader(self._reader(self._reader(conv, "ReLU"), "Convolution"), "Add")
            node = self._reader(self._reader(conv, "Add"), "ReLU")
        last = node
        for index in reversed(range(len(enlarge.blocks))):
            block = enlarge.blocks[index]
            assert isinstance(block, BasicBlock)
            last = self._basic_block(f"enlarge.blocks.{index}", block, last)
        if last != entry:
            raise self._mismatch(deconv, "other blocks behind it than expected")
        high = self._reader(node, "Convolution")
        head = self._conv(self._reader(high, "Add"))
        self._check(head.layer, network.head_high)
        self._keep("head_high", network.head_high, head)

    def _stage(self, name: str, stage: Stage, outputs: list[str]) -> list[str]:
        for index in reversed(range(len(stage.fusions))):
            fusion = stage.fusions[index]
            assert isinstance(fusion, FusionModule)
            outputs = self._fusion(f"{name}.fusions.{index}", fusion, outputs)
        return [
            self._conv_norm(f"{name}.entries.{index}", entry, output)
            if isinstance(entry, ConvNorm)
            else output
            for index, (entry, output) in enumerate(zip(stage.entries, outputs, strict=True))
        ]

    def _fusion(self, name: str, module: FusionModule, outputs: list[str]) -> list[str]:
        branches = len(module.branches)
        ends: dict[int, str] = {}
        for target, output in enumerate(outputs):
            ways = module.fusion[target]
            assert isinstance(ways, nn.ModuleList)
            summands = self._summands(self._through(output, "ReLU"))
            seen = set()
            for summand in summands:
                source = self._source(summand, target, ways)
                way = ways[source]
                assert isinstance(way, Exchange)
                end = self._exchange(f"{name}.fusion.{target}.{source}", way, summand)
                seen.add(source)
                if ends.setdefault(source, end) != end:
                    raise self._mismatch(self.graph.layers[summand], "another branch as its input")
            if len(summands) != branches or len(seen) != branches:
                raise self._mismatch(
                    self.graph.layers[output], f"{len(summands)} summands instead of {branches}"
                )
        inputs = []
        for number, branch in enumerate(module.branches):
            assert isinstance(branch, nn.Sequential)
            node = ends[number]
            for index in reversed(range(len(branch))):
                block = branch[index]
                assert isinstance(block, BasicBlock)
                node = self._basic_block(f"{name}.branches.{number}.{index}", block, node)
            inputs.append(node)
        return inputs

    def _source(self, summand: str, target: int, ways: nn.ModuleList) -> int:
        """The branch that a summand of branch ``target`` comes from."""
        layer = self.graph.layers[summand]
        if layer.kind == "Interpolate":
            inputs = self._conv(layer.inputs[0]).weight.shape[1]
            for source in range(target + 1, len(ways)):
                if ways[source].steps[0].conv.in_channels == inputs:
                    return source
            raise self._mismatch(layer, f"an input of {inputs} channels")
        if not self._is_conv(summand):
            return target
        source = target - 1
        node = self._conv(summand).source
        while source > 0 and self.graph.layers[node].kind == "ReLU":
            node = self._through(node, "ReLU")
            if not self._is_conv(node):
                break
            source, node = source - 1, self._conv(node).source
        return source

    def _exchange(self, name: str, way: Exchange, node: str) -> str:
        if len(way.steps) and not isinstance(way.steps[-1], ConvNorm):
            layer = self.graph.layers[node]
            if layer.attributes.get("mode") != "nearest":
                raise self._mismatch(layer, "another interpolation than the nearest neighbour")
            return self._conv_norm(f"{name}.steps.0", way.steps[0], layer.inputs[0])
        for step in reversed(range(len(way.steps))):
            node = self._conv_norm(f"{name}.steps.{step}", way.steps[step], node)
        return node

    def _basic_block(self, name: str, block: BasicBlock, node: str) -> str:
        added = self._two(self._through(node, "ReLU"), "Add")
        for inner, outer in (added, added[::-1]):
            # What is handed round the convolutions never ends in one: it was activated.
            if self._is_conv(inner):
                middle = self._conv_norm(f"{name}.second", block.second, inner)
                if self._conv_norm(f"{name}.first", block.first, middle) == outer:
                    return outer
        raise self._mismatch(self.graph.layers[node], "no residual block before it")

    def _backbone(self, network: EfficientHRNet, taps: list[str]) -> None:
        stages = network.backbone.stages
        expected = dict(zip(network.backbone.taps, taps, strict=True))
        node = taps[-1]
        for number in reversed(range(len(stages))):
            if expected.get(number, node) != node:
                raise self._mismatch(self.graph.layers[node], "no branch where one is expected")
            stage = stages[number]
            assert isinstance(stage, nn.Sequential)
            for index in reversed(range(len(stage))):
                block = stage[index]
                assert isinstance(block, MBConv)
                node = self._mbconv(f"backbone.stages.{number}.{index}", block, node)
        image = self._conv_norm("backbone.stem", network.backbone.stem, node)
        self._fold_input(image)

    def _mbconv(self, name: str, block: MBConv, node: str) -> str:
        if not block.residual:
            return self._inverted(name, block, node)
        added = self._two(node, "Add")
        for inner, outer in (added, added[::-1]):
            # Both may end in a convolution; only the right one is of this block's shapes and
            # begins where the other comes from.
            try:
                if self._inverted(name, block, inner) == outer:
                    return outer
            except _Mismatch:
                continue
        raise self._mismatch(self.graph.layers[node], "no inverted residual block before it")

    def _inverted(self, name: str, block: MBConv, node: str) -> str:
        gated = self._conv_norm(f"{name}.project", block.project, node)
        wide, gate = sorted(
            self._two(gated, "Multiply"), key=lambda id_: self.graph.layers[id_].kind == "Sigmoid"
        )
        restored = self._conv(self._through(gate, "Sigmoid"))
        reduced = self._conv(self._through_swish(restored.source))
        for part, conv in (("restore", restored), ("reduce", reduced)):
            module = getattr(block.squeeze, part)
            self._check(conv.layer, module)
            self._keep(f"{name}.squeeze.{part}", module, conv)
        if self._through(reduced.source, "ReduceMean") != wide:
            raise self._mismatch(self.graph.layers[gated], "a gate computed from something else")
        node = self._conv_norm(f"{name}.depthwise", block.depthwise, wide)
        if block.expand is not None:
            node = self._conv_norm(f"{name}.expand", block.expand, node)
        return node

    def _fold_input(self, node: str) -> None:
        """Turns the stem from what the graph makes of BGR bytes to RGB normalised as ours."""
        scale, shift = self._affine(node)
        std = 255 * np.array(IMAGENET_STD_RGB[::-1])
        mean = 255 * np.array(IMAGENET_MEAN_RGB[::-1])
        gain, rest = scale * std, scale * mean + shift
        if not (np.abs(rest) <= _MAX_OFFSET * np.abs(gain)).all():
            raise self._mismatch(self.graph.layers[node], "another normalisation of the image")
        weight = self.found["backbone.stem.conv.weight"].double().numpy()
        bias = self.found["backbone.stem.norm.bias"].double().numpy()
        bias = bias + (weight * rest[:, None, None]).sum((1, 2, 3))
        weight = (weight * gain[:, None, None])[:, ::-1]
        self.found["backbone.stem.conv.weight"] = _tensor(weight)
        self.found["backbone.stem.norm.bias"] = _tensor(bias)

    def _affine(self, node: str) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift per channel (3,) between the image and a layer."""
        layer = self.graph.layers[node]
        if layer.kind == "Parameter":
            return np.ones(3), np.zeros(3)
        inner, constant = layer.inputs if len(layer.inputs) == 2 else (node, node)
        if layer.kind in ("Add", "Multiply") and self.graph.constant_id(inner) is not None:
            inner, constant = constant, inner
        arithmetic = layer.kind in ("Add", "Subtract", "Multiply", "Divide")
        if not arithmetic or self.graph.constant_id(constant) is None:
            raise self._mismatch(layer, "no arithmetic with a constant per channel")
        scale, shift = self._affine(inner)
        value = np.broadcast_to(self._value(constant).reshape(-1).astype(np.float64), 3)
        if layer.kind in ("Multiply", "Divide"):
            factor = value if layer.kind == "Multiply" else 1 / value
            return scale * factor, shift * factor
        return scale, shift + (value if layer.kind == "Add" else -value)

    # Convolutions

    def _conv_norm(self, name: str, module: Any, node: str) -> str:
        """A ConvNorm, or the transposed convolution of an Enlarge; normalisations are folded."""
        activation = getattr(module, "activation", None)
        if isinstance(activation, nn.ReLU):
            node = self._through(node, "ReLU")
        elif isinstance(activation, nn.SiLU):
            node = self._through_swish(node)
        conv = self._conv(node)
        self._check(conv.layer, module.conv)
        self._keep(f"{name}.conv", module.conv, conv)
        zeros, ones = np.zeros_like(conv.bias), np.ones_like(conv.bias)
        if module.conv.bias is not None:
            self.found[f"{name}.conv.bias"] = _tensor(zeros)
        self.found[f"{name}.norm.weight"] = _tensor(ones)
        self.found[f"{name}.norm.bias"] = _tensor(conv.bias)
        self.found[f"{name}.norm.running_mean"] = _tensor(zeros)
        # Plus the normalisation's epsilon this is one.
        self.found[f"{name}.norm.running_var"] = _tensor(ones - NORM_EPS)
        return conv.source

    def _keep(self, name: str, module: Any, conv: _Conv) -> None:
        if conv.weight.shape != tuple(module.weight.shape):
            raise self._mismatch(
                conv.layer, f"kernels {conv.weight.shape} instead of {tuple(module.weight.shape)}"
            )
        self.found[f"{name}.weight"] = _tensor(conv.weight)
        if module.bias is not None:
            self.found[f"{name}.bias"] = _tensor(conv.bias)

    def _check(self, layer: Layer, module: Any) -> None:
        """Stride, padding and dilation of a convolution are those of a module of ours."""

        def numbers(name: str, default: str) -> tuple[int, ...]:
            return tuple(int(n) for n in layer.attributes.get(name, default).split(","))

        expected = (module.stride, module.padding, module.padding, (1, 1))
        given = (
            numbers("strides", "1,1"),
            numbers("pads_begin", "0,0"),
            numbers("pads_end", "0,0"),
            numbers("dilations", "1,1"),
        )
        explicit = layer.attributes.get("auto_pad", "explicit") == "explicit"
        if given != expected or not explicit or any(numbers("output_padding", "0,0")):
            raise self._mismatch(layer, f"stride and padding {given} instead of {expected}")

    def _is_conv(self, node: str) -> bool:
        layer = self.graph.layers[node]
        if layer.kind == "Add":
            kinds = [self.graph.layers[id_].kind for id_ in layer.inputs]
            constants = [self.graph.constant_id(id_) is not None for id_ in layer.inputs]
            return any(constants) and any(kind in _CONVOLUTIONS for kind in kinds)
        return layer.kind in _CONVOLUTIONS

    def _conv(self, node: str) -> _Conv:
        layer = self.graph.layers[node]
        if not self._is_conv(node):
            raise self._mismatch(layer, "no convolution")
        bias = None
        if layer.kind == "Add":
            inner, constant = layer.inputs
            if self.graph.constant_id(inner) is not None:
                inner, constant = constant, inner
            bias = self._value(constant).reshape(-1)
            layer = self.graph.layers[inner]
        weight = self._value(layer.inputs[1])
        if layer.kind == "GroupConvolution":
            weight = weight.reshape(-1, *weight.shape[-3:])
        outputs = weight.shape[1 if layer.kind == "ConvolutionBackpropData" else 0]
        if bias is None:
            bias = np.zeros(outputs, np.float32)
        if len(bias) != outputs:
            raise self._mismatch(layer, f"{len(bias)} biases for {outputs} channels")
        return _Conv(layer, weight, bias, layer.inputs[0])

    def _value(self, id_: str) -> np.ndarray:
        self.used.add(id_)
        return self.graph.value(id_)

    # Steps from layer to layer

    def _through(self, node: str, kind: str) -> str:
        layer = self.graph.layers[node]
        if layer.kind != kind:
            raise self._mismatch(layer, f"no {kind}")
        return layer.inputs[0]

    def _through_swish(self, node: str) -> str:
        layer = self.graph.layers[node]
        if layer.kind == "Multiply":  # written out: x times its sigmoid
            for x, gate in (layer.inputs, layer.inputs[::-1]):
                if (
                    self.graph.layers[gate].kind == "Sigmoid"
                    and self._through(gate, "Sigmoid") == x
                ):
                    return x
        return self._through(node, "Swish")

    def _two(self, node: str, kind: str) -> tuple[str, str]:
        layer = self.graph.layers[node]
        if layer.kind != kind or len(layer.inputs) != 2:
            raise self._mismatch(layer, f"no {kind} of two maps")
        return layer.inputs[0], layer.inputs[1]

    def _summands(self, node: str) -> list[str]:
        if self.graph.layers[node].kind != "Add" or self._is_conv(node):
            return [node]
        return [summand for id_ in self._two(node, "Add") for summand in self._summands(id_)]

    def _concatenated(self, node: str) -> list[str]:
        layer = self.graph.layers[node]
        if layer.kind != "Concat":
            return [node]
        if layer.attributes.get("axis") not in ("1", "-3"):
            raise self._mismatch(layer, "maps that are not joined by channels")
        return [part for id_ in layer.inputs for part in self._concatenated(id_)]

    def _reader(self, node: str, kind: str) -> str:
        """The one layer of a kind that reads another."""
        found = [id_ for id_ in self.graph.readers.get(node, ()) if self._kind(id_) == kind]
        if len(found) != 1:
            raise self._mismatch(self.graph.layers[node], f"{len(found)} {kind} behind it, not 1")
        return found[0]

    def _is_averaged(self, node: str) -> bool:
        enlarged = [id_ for id_ in self.graph.readers[node] if self._kind(id_) == "Interpolate"]
        return any(self._kind(r) == "Add" for id_ in enlarged for r in self._readers(id_))

    def _readers(self, node: str) -> Iterable[str]:
        return self.graph.readers.get(node, ())

    def _kind(self, node: str) -> str:
        return self.graph.layers[node].kind

    def _mismatch(self, layer: Layer, fault: str) -> _Mismatch:
        return _Mismatch(
            f"{self.graph.origin} is not one of the human pose networks 0005, 0006 and 0007: "
            f"{fault} at layer {layer.name} ({layer.kind})."
        )


_CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).copy())
