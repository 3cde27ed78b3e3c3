"""EfficientHRNet: compact backbone, high-resolution stages, two heatmap heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrnet_model.network.backbone import Backbone
from ehrnet_model.network.blocks import BasicBlock, batch_norm, initialise
from ehrnet_model.network.hrnet import Stage
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.variants import Variant


class Enlarge(nn.Module):
    """Doubles the resolution: transposed convolution 4x4, normalisation, ReLU, basic blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = batch_norm(outputs)
        self.blocks = nn.Sequential(*(BasicBlock(outputs) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, 2h, 2w)."""
        out: Tensor = self.blocks(F.relu(self.norm(self.conv(x)), inplace=True))
        return out


class EfficientHRNet(nn.Module):
    """Bottom-up multi-person pose network (paper section 3).

    Args:
        variant: one of ``ehrnet_model.variants.VARIANTS`` or ``RELATED``.
        keypoints: K, heatmaps and tags per image.
        drop_connect: rate of the backbone's drop-connect in training mode.

    Attributes:
        backbone: ``Backbone``; maps at 1/4, 1/8, 1/16, 1/32.
        stages: three ``Stage``: those the paper's Table 1 numbers 2, 3 and 4.
        head_low: 1x1 convolution to 2K channels at 1/4.
        enlarge: ``Enlarge`` of features and low-resolution prediction to 1/2.
        head_high: 1x1 convolution to K channels at 1/2.
    """

    def __init__(
        self, variant: Variant, keypoints: int = COCO_17.num_keypoints, drop_connect: float = 0.2
    ) -> None:
        super().__init__()
        self.variant = variant
        self.keypoints = keypoints
        self.backbone = Backbone(variant, drop_connect)
        taps, widths = variant.tap_channels, variant.branch_widths
        stages = []
        for index, modules in enumerate(variant.modules):
            branches = index + 2
            inputs = taps[:2] if index == 0 else widths[: branches - 1] + (taps[branches - 1],)
            outputs = 1 if branches == 4 else branches
            stages.append(
                Stage(inputs, widths[:branches], modules, outputs, variant.entry_everywhere)
            )
        self.stages = nn.ModuleList(stages)
        self.head_low = nn.Conv2d(widths[0], 2 * keypoints, 1)
        wide = variant.enlarged_channels
        self.enlarge = Enlarge(widths[0] + 2 * keypoints, wide, variant.enlarged_blocks)
        self.head_high = nn.Conv2d(wide, keypoints, 1)
        initialise(self, heads=(self.head_low, self.head_high))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict heatmaps and tags.

        Args:
            x: (N, 3, H, W) float, RGB / 255 normalised with ImageNet's mean and deviation; H and
                W multiples of 32.

        Returns:
            ``lowres`` (N, 2K, H/4, W/4): K heatmaps, then K tags; ``highres`` (N, K, H/2, W/2):
            K heatmaps. No activation.
        """
        return self.heads(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to what the heads read, (N, C, H/4, W/4)."""
        taps: list[Tensor] = self.backbone(x)
        xs = taps[:1]
        for stage, tap in zip(self.stages, taps[1:], strict=True):
            xs = stage([*xs, tap])
        return xs[0]

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """From ``features`` to what ``forward`` gives."""
        lowres = self.head_low(features)
        highres = self.head_high(self.enlarge(torch.cat((features, lowres), 1)))
        return lowres, highres
