"""Compact EfficientNet B0 .. B-4 without its head: stem and seven MBConv stages."""

from __future__ import annotations

from torch import Tensor, nn

from ehrnet_model.network.blocks import ConvNorm, MBConv
from ehrnet_model.variants import Variant


class Backbone(nn.Module):
    """Stem and MBConv stages of a variant (paper section 3.1).

    Args:
        variant: gives widths, repeats and the stages whose outputs are tapped.
        drop_connect: see ``MBConv``; one constant rate for all blocks.
    """

    def __init__(self, variant: Variant, drop_connect: float = 0.2) -> None:
        super().__init__()
        self.taps = variant.taps
        same = variant.same_padding
        self.stem = ConvNorm(3, variant.stem_channels, 3, 2, activation="silu", same=same)
        channels = variant.stem_channels
        stages = []
        for stage in variant.stages:
            blocks = []
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    MBConv(
                        channels,
                        stage.channels,
                        stage.kernel,
                        stride,
                        stage.expand,
                        drop_connect,
                        same=same,
                    )
                )
                channels = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to four feature maps at 1/4, 1/8, 1/16 and 1/32."""
        x = self.stem(x)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.taps:
                features.append(x)
        return features
