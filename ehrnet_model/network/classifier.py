"""The compact EfficientNets B0 .. B-4 as classifiers (paper Table 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ehrnet_model.network.backbone import Backbone
from ehrnet_model.network.blocks import ConvNorm, initialise
from ehrnet_model.variants import Variant


class EfficientNet(nn.Module):
    """Backbone of a variant with EfficientNet's classification head.

    The backbone's keys are those of ``EfficientHRNet``: weights trained on one load into the other.

    Args:
        variant: whose backbone; ``Variant.classifier_size`` is its input in the paper.
        classes: outputs of the last layer.
        drop_connect: see ``MBConv``.
        dropout: before the last layer, in training mode.
    """

    def __init__(
        self,
        variant: Variant,
        classes: int = 1000,
        drop_connect: float = 0.2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.classes = classes
        self.backbone = Backbone(variant, drop_connect)
        self.head = ConvNorm(
            variant.stages[-1].channels, variant.head_channels, 1, activation="silu"
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(variant.head_channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), any size from 32 on, to logits (N, classes)."""
        x = self.head(self.backbone(x)[-1])
        logits: Tensor = self.linear(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return logits
