"""A network as the kernels a device would run: multiply-accumulates and bytes of each.

The network is traced on shapes without data, operation by operation; ``kernels`` then joins
operations as an engine does. Nothing here knows a device: tools/roofline.py brings the peaks.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

# How far operations are joined: every one alone, as the network's code says them; as exported,
# where paddings and normalisations are part of the convolutions; as engines run it.
LEVELS = ("alone", "exported", "fused")

_FUNCTIONS = {
    F.relu: "activation",
    F.silu: "activation",
    torch.sigmoid: "activation",
    operator.add: "add",
    operator.mul: "product",
    F.pad: "pad",
    F.interpolate: "resize",
    F.adaptive_avg_pool2d: "mean",
    torch.cat: "concat",
}
_MODULES = {
    nn.Conv2d: "conv",
    nn.ConvTranspose2d: "deconv",
    nn.BatchNorm2d: "norm",
    nn.ReLU: "activation",
    nn.SiLU: "activation",
    nn.PixelShuffle: "shuffle",
    nn.Identity: "nothing",
}
_CONVOLUTIONS = ("conv", "deconv")
_POINTWISE = ("activation", "add", "product")


@dataclass(frozen=True)
class Map:
    """A feature map of one image: name, channels, cells (height times width)."""

    name: str
    channels: int
    cells: int

    def elements(self, align: int = 1) -> int:
        """Values it holds when its channels are padded to a multiple of ``align``."""
        return padded(self.channels, align) * self.cells


@dataclass(frozen=True)
class Kernel:
    """One launch: reads maps and weights, computes, writes one map.

    Attributes:
        place: the module it belongs to, such as ``stages.0.fusions.0.branches.1.0.first.conv``.
        kinds: the operations in it, in order.
        reads: the maps it reads; ``addends`` of them are only added to the result.
        write: the map it writes.
        sides: input channels per group, output channels and cells of the convolution's kernel;
            zeros where there is none.
        area: cells the convolution's weights are applied to: of its output, of the input of a
            transposed one.
        vector: other parameters, one value per channel each: biases, normalisations.
        depthwise: one group per channel.
    """

    place: str
    kinds: tuple[str, ...]
    reads: tuple[Map, ...]
    write: Map
    sides: tuple[int, int, int] = (0, 0, 0)
    area: int = 0
    vector: int = 0
    depthwise: bool = False
    addends: tuple[Map, ...] = ()

    @property
    def convolves(self) -> bool:
        """Whether there is a convolution in it."""
        return any(kind in _CONVOLUTIONS for kind in self.kinds)

    def weights(self, align: int = 1) -> int:
        """Weights of the convolution, both channel counts padded to multiples of ``align``."""
        inputs, outputs, cells = self.sides
        if not self.depthwise:
            inputs = padded(inputs, align)
        return inputs * padded(outputs, align) * cells

    def macs(self, align: int = 1) -> int:
        """Multiply-accumulates of the convolution for one image."""
        return self.weights(align) * self.area

    def parameters(self, align: int = 1) -> int:
        """All values it reads beside maps."""
        outputs = self.write.channels
        return self.weights(align) + self.vector * padded(outputs, align) // outputs

    def traffic(self, width: int, align: int = 1) -> int:
        """Bytes it moves when every value has ``width`` bytes and is moved once."""
        values = sum(m.elements(align) for m in (*self.reads, self.write))
        return width * (values + self.parameters(align))


def padded(channels: int, align: int) -> int:
    """The next multiple of ``align``."""
    return -(-channels // align) * align


def kernels(network: nn.Module, size_hw: tuple[int, int], level: str = "fused") -> list[Kernel]:
    """The kernels of a network for one image of the given height and width in pixels.

    ``fused`` joins what TensorRT joins: a convolution with its padding, normalisation, one sum and
    activations; runs of pointwise operations; a concatenation costs nothing, its parts are written
    to their place. The network is left untouched.

    Raises:
        ValueError: an operation of the network or ``level`` is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is unknown: use one of {', '.join(LEVELS)}.")
    found, outputs = _trace(network, size_hw)
    silent = {"alone": (), "exported": ("pad",), "fused": ("pad", "concat")}[level]
    found, outputs = _without(found, outputs, ("nothing", *silent))
    may_join = {"alone": _never, "exported": _norms, "fused": _engine}[level]
    uses = Counter([m.name for k in found for m in k.reads] + [m.name for m in outputs])
    done: dict[str, Kernel] = {}
    for kernel in found:
        for read in kernel.reads:
            first = done.get(read.name)
            if first is not None and uses[read.name] == 1 and may_join(first, kernel):
                kernel = _joined(done.pop(read.name), kernel)
        done[kernel.write.name] = kernel
    return list(done.values())


def _trace(network: nn.Module, size_hw: tuple[int, int]) -> tuple[list[Kernel], list[Map]]:
    """Every operation as a kernel of its own, and the maps the network gives."""
    network = copy.deepcopy(network).to("meta").eval()
    graph: GraphModule = symbolic_trace(network)
    with torch.no_grad():
        ShapeProp(graph).propagate(torch.empty((1, 3, *size_hw), device="meta"))
    maps: dict[Node, Map] = {}
    found: list[Kernel] = []
    outputs: list[Map] = []
    for node in graph.graph.nodes:
        if node.op == "output":
            outputs = [maps[n] for n in node.all_input_nodes]
            continue
        shape = node.meta["tensor_meta"].shape
        maps[node] = Map(node.name, shape[1], shape[2:].numel())
        if node.op != "placeholder":
            reads = tuple(maps[n] for n in node.all_input_nodes)
            found.append(_operation(node, graph, reads, maps[node]))
    return found, outputs


def _operation(node: Node, graph: GraphModule, reads: tuple[Map, ...], write: Map) -> Kernel:
    if node.op == "call_module":
        place = str(node.target)
        module: Any = graph.get_submodule(place)
        kind = _MODULES.get(type(module), "")
    else:
        place = list(node.meta.get("nn_module_stack") or {"": None})[-1]
        module = None
        kind = _FUNCTIONS.get(node.target, "") if node.op == "call_function" else ""
    if not kind:
        what = node.target if module is None else type(module).__name__
        raise ValueError(f"cannot count {what} at {place!r}: add it to the table of kinds.")
    kernel = Kernel(place, (kind,), reads, write)
    if kind == "norm":  # mean, variance, scale, shift
        return replace(kernel, vector=4 * write.channels)
    if kind not in _CONVOLUTIONS:
        return kernel
    area = reads[0].cells if kind == "deconv" else write.cells
    cells = module.kernel_size[0] * module.kernel_size[1]
    return replace(
        kernel,
        sides=(module.in_channels // module.groups, module.out_channels, cells),
        area=area,
        vector=0 if module.bias is None else write.channels,
        depthwise=module.groups > 1 and module.groups == module.in_channels,
    )


def _without(
    found: Iterable[Kernel], outputs: Iterable[Map], kinds: tuple[str, ...]
) -> tuple[list[Kernel], list[Map]]:
    """The same without operations of some kinds: who read their result reads their input."""
    instead: dict[str, tuple[Map, ...]] = {}
    kept: list[Kernel] = []
    for kernel in found:
        reads = tuple(m for read in kernel.reads for m in instead.get(read.name, (read,)))
        if kernel.kinds[0] in kinds:
            instead[kernel.write.name] = reads
        else:
            kept.append(replace(kernel, reads=reads))
    return kept, [m for out in outputs for m in instead.get(out.name, (out,))]


def _never(first: Kernel, then: Kernel) -> bool:
    return False


def _norms(first: Kernel, then: Kernel) -> bool:
    return first.kinds[-1] in _CONVOLUTIONS and then.kinds == ("norm",)


def _engine(first: Kernel, then: Kernel) -> bool:
    if _norms(first, then):
        return True
    if then.kinds[0] not in _POINTWISE or first.write.elements() != then.write.elements():
        return False
    if not first.convolves:
        return first.kinds[0] in _POINTWISE
    kinds = first.kinds + then.kinds
    return "product" not in kinds and kinds.count("add") <= 1


def _joined(first: Kernel, then: Kernel) -> Kernel:
    """One kernel of two, the second of which reads what the first wrote."""
    others = tuple(m for m in then.reads if m.name != first.write.name)
    reads = dict.fromkeys((*first.reads, *others))
    vector = first.vector + then.vector
    if then.kinds == ("norm",):  # folded into weights and one bias
        vector = first.write.channels
    return replace(
        first,
        kinds=first.kinds + then.kinds,
        reads=tuple(reads),
        write=then.write,
        vector=vector,
        addends=first.addends + others if first.convolves else (),
    )


_Width = Callable[[Kernel], int]


def moved(all_kernels: list[Kernel], width: _Width, rest: int, align: int = 1) -> list[int]:
    """Bytes each kernel moves when kernels compute in values of different width.

    A kernel reads its inputs and weights in its own width and what is only added in ``rest``; it
    writes its map once in every width that somebody reads, in ``rest`` what nobody reads.
    """
    wanted: dict[str, set[int]] = {}
    reads: list[int] = []
    for kernel in all_kernels:
        own, total = width(kernel), 0
        for read in kernel.reads:
            size = rest if read in kernel.addends else own
            wanted.setdefault(read.name, set()).add(size)
            total += size * read.elements(align)
        reads.append(total + own * kernel.parameters(align))
    return [
        total + sum(wanted.get(k.write.name, {rest})) * k.write.elements(align)
        for k, total in zip(all_kernels, reads, strict=True)
    ]
