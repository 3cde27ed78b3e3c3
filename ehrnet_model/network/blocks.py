"""Building blocks: same-padded convolution, MBConv with squeeze-and-excitation, basic block.

Every shape is fixed at construction: no forward pass here asks a tensor for its size, so an
exported graph holds no shape arithmetic and height and width stay free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# PyTorch's defaults, written down because weights depend on them: EfficientNet's TensorFlow
# original uses 1e-3, the published EfficientHRNet was trained and evaluated with 1e-5.
NORM_EPS = 1e-5
NORM_MOMENTUM = 0.1


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the family's constants."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class _ExportedPad(torch.autograd.Function):
    """Zero padding as one ONNX node with constant amounts.

    The exporter's own translation computes the amounts in the graph, which older TensorRT parsers
    do not fold.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
        return F.pad(x, pad)

    @staticmethod
    def symbolic(g: Any, x: Any, pad: tuple[int, int, int, int]) -> Any:
        left, right, top, bottom = pad
        amounts = torch.tensor([0, 0, top, left, 0, 0, bottom, right])
        return g.op("Pad", x, g.op("Constant", value_t=amounts))


class ConvNorm(nn.Module):
    """Convolution, batch normalisation and an optional activation.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel in cells.
        stride: 1 or 2.
        groups: as in ``torch.nn.Conv2d``.
        bias: whether the convolution has one.
        activation: ``relu``, ``silu`` (the paper's swish) or empty for none.
        same: pad as TensorFlow's SAME does for even sizes: ``kernel - stride`` cells in total, the
            odd one on the right and at the bottom. Otherwise ``kernel // 2`` on every side.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        activation: str = "",
        same: bool = False,
    ) -> None:
        super().__init__()
        total = kernel - stride if same else kernel // 2 * 2
        before, after = total // 2, total - total // 2
        self.pad = (before, after, before, after) if before != after else None
        padding = before if before == after else 0
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=padding, groups=groups, bias=bias
        )
        self.norm = batch_norm(outputs)
        self.activation = {"relu": nn.ReLU(inplace=True), "silu": nn.SiLU(inplace=True)}.get(
            activation, nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        if self.pad is not None:
            x = (
                _ExportedPad.apply(x, self.pad)
                if torch.onnx.is_in_onnx_export()
                else F.pad(x, self.pad)
            )
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class SqueezeExcite(nn.Module):
    """Channel attention: global mean, two 1x1 convolutions with bias, sigmoid, product."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.restore = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        gate = self.restore(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


class MBConv(nn.Module):
    """Inverted residual block of EfficientNet.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the depthwise kernel.
        stride: of the depthwise convolution.
        expand: hidden channels as a multiple of ``inputs``; 1 leaves the expansion out.
        drop_connect: probability with which a training step leaves the block out, per sample.
            Applies only where there is a residual connection (stride 1, equal widths).
        same: padding of the depthwise convolution, see ``ConvNorm``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expand: int,
        drop_connect: float = 0.2,
        same: bool = True,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.drop_connect = drop_connect
        self.expand = ConvNorm(inputs, hidden, 1, activation="silu") if expand != 1 else None
        self.depthwise = ConvNorm(
            hidden, hidden, kernel, stride, groups=hidden, activation="silu", same=same
        )
        # A quarter of the block's input, not of the hidden width.
        self.squeeze = SqueezeExcite(hidden, max(1, inputs // 4))
        self.project = ConvNorm(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = x if self.expand is None else self.expand(x)
        out = self.project(self.squeeze(self.depthwise(out)))
        if not self.residual:
            return out
        if self.training and self.drop_connect > 0:
            keep = 1 - self.drop_connect
            mask = torch.rand((x.shape[0], 1, 1, 1), device=x.device) < keep
            out = out * (mask.to(out.dtype) / keep)
        return x + out


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions at constant width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, activation="relu")
        self.second = ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return F.relu(self.second(self.first(x)) + x, inplace=True)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by a whole number."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H * factor, W * factor)."""
        return F.interpolate(x, scale_factor=self.factor, mode="nearest")


def initialise(module: nn.Module, heads: Sequence[nn.Module] = ()) -> None:
    """Draw fresh weights from torch's global generator; nothing for parameters without data.

    Convolutions get He's normal distribution over their outputs, biases 0, normalisations the
    identity; ``heads`` N(0, 0.001), so that first predictions are close to 0. The published trainer
    draws N(0, 0.001) throughout, which relies on a pretrained backbone being loaded afterwards.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=0.001 if part in heads else (2.0 / fan_out) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
