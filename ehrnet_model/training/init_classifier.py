"""A start for a variant's backbone: that of a classifier from ``ehrnet train-classifier``."""

from __future__ import annotations

from pathlib import Path

from ehrnet_model.network.checkpoint import load_classifier
from ehrnet_model.network.efficienthrnet import EfficientHRNet


def init_from_classifier(network: EfficientHRNet, path: Path) -> None:
    """Overwrites the backbone's weights and statistics in place.

    Args:
        network: any variant; everything outside the backbone is left alone.
        path: a classifier's checkpoint, of the same variant.

    Raises:
        EhrnetError: the file is missing, damaged, a pose network's, or of another variant.
    """
    classifier, _ = load_classifier(path, network.variant.backbone_name)
    network.backbone.load_state_dict(classifier.backbone.state_dict())
