"""The family in one table: phi gives everything Table 1 of the paper says. No files read.

Facts are those of the executed reference network, where paper text and code disagree: branch
widths are ``ceil(32 * 2**n * 1.2455**phi)`` (the paper's Eq. 5 prints 1.25).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Tuple

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
class Variant:
    """One network of the family.

    Attributes:
        name: ``H0`` .. ``H-4``.
        phi: compound coefficient, 0 .. -4.
        input_size: side of the paper's square input in pixels, 512 + 32 phi.
        width_mult, depth_mult: 1.1**phi and 1.2**phi, scale the backbone.
        stem_channels, stages, head_channels: the backbone (the head only as a classifier).
        branch_widths: channels of the HRNet branches at 1/4, 1/8, 1/16, 1/32.
        modules: HRNet modules in stages 2, 3, 4.
    """

    name: str
    phi: int
    input_size: int
    width_mult: float
    depth_mult: float
    stem_channels: int
    stages: Tuple[BackboneStage, ...]
    head_channels: int
    branch_widths: Tuple[int, int, int, int]
    modules: Tuple[int, int, int]

    @staticmethod
    def from_phi(phi: int) -> Variant:
        """The variant for a compound coefficient. Raises EhrnetError outside 0 .. -4."""
        if phi not in _MODULES:
            raise EhrnetError(
                f"phi {phi} does not exist: the family goes from 0 (H0, largest) to -4 (H-4, smallest)."
            )
        return VARIANTS[f"H{phi}"]

    @property
    def backbone_name(self) -> str:
        return f"B{self.phi}"

    @property
    def taps(self) -> Tuple[int, int, int, int]:
        """Index of the last backbone stage at each of the strides 4, 8, 16 and 32."""
        stride, last = 2, {}
        for index, stage in enumerate(self.stages):
            stride *= stage.stride
            last[stride] = index
        return last[4], last[8], last[16], last[32]

    @property
    def tap_channels(self) -> Tuple[int, ...]:
        return tuple(self.stages[i].channels for i in self.taps)


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
        width_mult=width,
        depth_mult=depth,
        stem_channels=_round_channels(_STEM_CHANNELS, width),
        stages=stages,
        head_channels=_round_channels(_HEAD_CHANNELS, width),
        branch_widths=(widths[0], widths[1], widths[2], widths[3]),
        modules=_MODULES[phi],
    )


VARIANTS: Dict[str, Variant] = {f"H{phi}": _make(phi) for phi in (0, -1, -2, -3, -4)}
