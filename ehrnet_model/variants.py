"""The family in one table: phi gives everything Table 1 of the paper says. No files read.

Facts are those of the executed reference network, where paper text and code disagree: branch
widths are ``ceil(32 * 2**n * 1.2455**phi)`` (the paper's Eq. 5 prints 1.25).

Parameters and multiply-accumulates (MACs) are counted here from the same table, without torch:
``Variant.layers`` lists every convolution of the network, ``Variant.cost`` sums them.
``test/support/complexity.py`` counts the same on the modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ehrnet_model.errors import EhrnetError

# EfficientNet-B0: (kernel, stride of the first block, expansion, output channels, repeats).
_B0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_CLASSIFIER_SIZES = {0: 224, -1: 195, -2: 170, -3: 145, -4: 128}
_KEYPOINTS = 17
_MODULES = {0: (1, 4, 3), -1: (1, 3, 3), -2: (1, 2, 3), -3: (1, 1, 3), -4: (1, 1, 2)}


@dataclass(frozen=True)
class BackboneStage:
    """One run of MBConv blocks at one width."""

    kernel: int
    stride: int
    expand: int
    channels: int
    repeats: int


@dataclass(frozen=True)
class Cost:
    """What a network costs, counted truly and as the paper's tables were counted.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image.
        paper_params: as the summary helper behind the paper's tables counts: it adds up every
            module whose class name contains "Conv", so the parameters of an MBConv block enter
            twice, with the block and with its convolutions and normalisations.
        paper_macs: as that helper counts: a transposed convolution's weights times its *output*
            area, four times too much at stride 2.
    """

    params: int = 0
    macs: int = 0
    paper_params: int = 0
    paper_macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.paper_params + other.paper_params,
            self.paper_macs + other.paper_macs,
        )


@dataclass(frozen=True)
class Layer:
    """One convolution with the normalisation that follows it, or a linear layer.

    Attributes:
        part: ``backbone``, ``transition1`` .. ``transition3`` (into stages 2 .. 4), ``stage2`` ..
            ``stage4``, ``final_0``, ``deconv``, ``final_1``; in a classifier also ``head`` and
            ``linear``.
        inputs, outputs: channels.
        kernel: side of the kernel.
        area: cells of its smaller side: the output of a convolution, the input of a transposed one.
        groups: as in a grouped convolution.
        bias: whether it has one.
        norm: whether a batch normalisation (2 parameters per channel) follows.
        transposed: transposed convolution with stride 2.
        in_block: part of an MBConv block.
    """

    part: str
    inputs: int
    outputs: int
    kernel: int
    area: int
    groups: int = 1
    bias: bool = False
    norm: bool = True
    transposed: bool = False
    in_block: bool = False

    @property
    def cost(self) -> Cost:
        """Its share of the network's cost."""
        weights = self.inputs // self.groups * self.outputs * self.kernel**2
        params = weights + self.outputs * (self.bias + 2 * self.norm)
        macs = weights * self.area
        return Cost(
            params, macs, params * (1 + self.in_block), macs * (4 if self.transposed else 1)
        )


@dataclass(frozen=True)
class Variant:
    """One network of the family.

    Attributes:
        name: ``H0`` .. ``H-4``, or the name of a related network.
        phi: compound coefficient, 0 .. -4.
        input_size: side of the paper's square input in pixels, 512 + 32 phi.
        stem_channels, stages, head_channels: the backbone (the head only as a classifier).
        branch_widths: channels of the HRNet branches at 1/4, 1/8, 1/16, 1/32.
        modules: HRNet modules in stages 2, 3, 4.
        same_padding: whether the backbone pads as TensorFlow's SAME does, the odd cell on the right
            and at the bottom; otherwise half a kernel on every side.
        entry_everywhere: whether every branch enters a stage through a convolution; otherwise only
            where it changes the width.
        enlarged_channels: channels of the map at 1/2 that the heatmaps are read from.
        enlarged_blocks: basic blocks on that map.
    """

    name: str
    phi: int
    input_size: int
    stem_channels: int
    stages: tuple[BackboneStage, ...]
    head_channels: int
    branch_widths: tuple[int, int, int, int]
    modules: tuple[int, int, int]
    same_padding: bool
    entry_everywhere: bool
    enlarged_channels: int
    enlarged_blocks: int

    @staticmethod
    def from_phi(phi: int) -> Variant:
        """The variant for a compound coefficient. Raises EhrnetError outside 0 .. -4."""
        if phi not in _MODULES:
            raise EhrnetError(
                f"phi {phi} does not exist: the family goes from 0 (H0, largest) to -4 (H-4, "
                "smallest)."
            )
        return VARIANTS[f"H{phi}"]

    @property
    def backbone_name(self) -> str:
        """Name of the compact EfficientNet, ``B0`` .. ``B-4``."""
        return f"B{self.phi}"

    @property
    def classifier_size(self) -> int:
        """Side of the square input the paper uses for the backbone as a classifier (Table 2)."""
        return _CLASSIFIER_SIZES[self.phi]

    @property
    def taps(self) -> tuple[int, int, int, int]:
        """Index of the last backbone stage at each of the strides 4, 8, 16 and 32."""
        stride, last = 2, {}
        for index, stage in enumerate(self.stages):
            stride *= stage.stride
            last[stride] = index
        return last[4], last[8], last[16], last[32]

    @property
    def tap_channels(self) -> tuple[int, int, int, int]:
        """Channels of the four backbone outputs, finest first."""
        a, b, c, d = (self.stages[i].channels for i in self.taps)
        return a, b, c, d

    def layers(self, size_hw: tuple[int, int] | None = None) -> Iterator[Layer]:
        """Every convolution of the pose network, in order.

        Args:
            size_hw: height and width of the input in pixels, multiples of 32; the paper's square
                by default.
        """
        height, width = size_hw or (self.input_size, self.input_size)
        if height % 32 or width % 32 or height <= 0 or width <= 0:
            raise EhrnetError(f"size {height}x{width} does not fit: both must be multiples of 32.")
        yield from self._backbone_layers(height, width)
        areas = [height * width // 4 ** (n + 2) for n in range(4)]
        widths, taps = self.branch_widths, self.tap_channels
        for index, modules in enumerate(self.modules):
            branches = index + 2
            part = f"stage{index + 2}"
            for b in range(branches):
                inputs = taps[b] if index == 0 or b == branches - 1 else widths[b]
                if self.entry_everywhere or inputs != widths[b]:
                    yield Layer(f"transition{index + 1}", inputs, widths[b], 3, areas[b], bias=True)
            for module in range(modules):
                for b in range(branches):
                    for _ in range(4):  # two basic blocks of two convolutions
                        yield Layer(part, widths[b], widths[b], 3, areas[b])
                outputs = 1 if branches == 4 and module == modules - 1 else branches
                for to in range(outputs):
                    for source in range(to + 1, branches):
                        yield Layer(part, widths[source], widths[to], 1, areas[source])
                    for source in range(to):
                        for step in range(source + 1, to + 1):
                            channels = widths[to] if step == to else widths[source]
                            yield Layer(part, widths[source], channels, 3, areas[step])
        finest, low = widths[0], 2 * _KEYPOINTS
        yield Layer("final_0", finest, low, 1, areas[0], bias=True, norm=False)
        wide = self.enlarged_channels
        yield Layer("deconv", finest + low, wide, 4, areas[0], transposed=True)
        for _ in range(2 * self.enlarged_blocks):
            yield Layer("deconv", wide, wide, 3, 4 * areas[0])
        yield Layer("final_1", wide, _KEYPOINTS, 1, 4 * areas[0], bias=True, norm=False)

    def classifier_layers(self, classes: int) -> Iterator[Layer]:
        """Every layer of the backbone as a classifier, for its square input (paper Table 2)."""
        last = None
        for last in self._backbone_layers(self.classifier_size, self.classifier_size):
            yield last
        assert last is not None
        yield Layer("head", last.outputs, self.head_channels, 1, last.area)
        yield Layer("linear", self.head_channels, classes, 1, 1, bias=True, norm=False)

    def cost(self, size_hw: tuple[int, int] | None = None) -> Cost:
        """Parameters and MACs of the pose network; size as in ``layers``."""
        return sum((layer.cost for layer in self.layers(size_hw)), Cost())

    def cost_by_part(self, size_hw: tuple[int, int] | None = None) -> dict[str, Cost]:
        """The same for each part of the network, see ``Layer.part``."""
        parts: dict[str, Cost] = {}
        for layer in self.layers(size_hw):
            parts[layer.part] = parts.get(layer.part, Cost()) + layer.cost
        return parts

    def classifier_cost(self, classes: int) -> Cost:
        """Parameters and MACs of the classifier; the paper counts these truly."""
        return sum((layer.cost for layer in self.classifier_layers(classes)), Cost())

    def _backbone_layers(self, height: int, width: int) -> Iterator[Layer]:
        # With kernel - stride cells of padding a stride of 2 halves and rounds down; sizes that are
        # multiples of 32 come out the same with the other padding.
        height, width = height // 2, width // 2
        yield Layer("backbone", 3, self.stem_channels, 3, height * width)
        channels = self.stem_channels
        for stage in self.stages:
            for index in range(stage.repeats):
                block: list[Layer] = []
                hidden = channels * stage.expand
                if stage.expand != 1:
                    block.append(Layer("backbone", channels, hidden, 1, height * width))
                if index == 0 and stage.stride == 2:
                    height, width = height // 2, width // 2
                area = height * width
                squeezed = channels // 4
                block += [
                    Layer("backbone", hidden, hidden, stage.kernel, area, groups=hidden),
                    Layer("backbone", hidden, squeezed, 1, 1, bias=True, norm=False),
                    Layer("backbone", squeezed, hidden, 1, 1, bias=True, norm=False),
                    Layer("backbone", hidden, stage.channels, 1, area),
                ]
                for layer in block:
                    yield replace(layer, in_block=True)
                channels = stage.channels


def _round_channels(channels: int, width_mult: float) -> int:
    """Scaled channels as EfficientNet rounds them: to 8, never below 90 % of the exact value."""
    exact = channels * width_mult
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _make(phi: int) -> Variant:
    width, depth = 1.1**phi, 1.2**phi
    stages = tuple(
        BackboneStage(k, s, e, _round_channels(c, width), math.ceil(depth * n))
        for k, s, e, c, n in _B0_STAGES
    )
    widths = tuple(math.ceil(32 * 2**n * 1.2455**phi) for n in range(4))
    return Variant(
        name=f"H{phi}",
        phi=phi,
        input_size=512 + 32 * phi,
        stem_channels=_round_channels(_STEM_CHANNELS, width),
        stages=stages,
        head_channels=_round_channels(_HEAD_CHANNELS, width),
        branch_widths=(widths[0], widths[1], widths[2], widths[3]),
        modules=_MODULES[phi],
        same_padding=True,
        entry_everywhere=True,
        enlarged_channels=widths[0],
        enlarged_blocks=2,
    )


VARIANTS: dict[str, Variant] = {f"H{phi}": _make(phi) for phi in (0, -1, -2, -3, -4)}

# Networks of others that are a variant of ours but for a few fields; their phi is its phi.
# H-2-omz: human-pose-estimation-0005, -0006 and -0007 of the Open Model Zoo.
RELATED: dict[str, Variant] = {
    "H-2-omz": replace(
        VARIANTS["H-2"],
        name="H-2-omz",
        same_padding=False,
        entry_everywhere=False,
        enlarged_channels=32,
        enlarged_blocks=1,
    )
}


def pose_variant(name: str) -> Variant:
    """The variant of that name, ours or related. Raises EhrnetError for any other name."""
    variant = VARIANTS.get(name) or RELATED.get(name)
    if variant is None:
        raise EhrnetError(
            f"variant '{name}' does not exist: choose one of {', '.join([*VARIANTS, *RELATED])}."
        )
    return variant


@dataclass(frozen=True)
class Published:
    """What the paper prints about a variant (Tables 3 and 4). None of it was measured here.

    Attributes:
        params, flops: as printed, see ``Cost`` for why they differ from the true numbers.
        ap_val, ap_test_dev, ap_multi_scale: COCO keypoint AP; the last on test-dev. With mirrored
            second pass, on non-square inputs, so at more than the printed cost.
        fps_xavier_nx: frames per second on a Jetson Xavier NX with TensorRT.
    """

    params: str
    flops: str
    ap_val: float
    ap_test_dev: float
    ap_multi_scale: float
    fps_xavier_nx: float


PUBLISHED: dict[str, Published] = {
    "H0": Published("23.3M", "25.6B", 64.8, 64.0, 67.1, 22.95),
    "H-1": Published("16M", "14.2B", 59.2, 59.1, 62.3, 20.43),
    "H-2": Published("10.3M", "7.7B", 52.9, 52.8, 55.0, 24.53),
    "H-3": Published("6.9M", "4.2B", 44.8, 44.5, 45.5, 33.78),
    "H-4": Published("3.7M", "2.1B", 35.7, 35.5, 39.7, 50.96),
}
