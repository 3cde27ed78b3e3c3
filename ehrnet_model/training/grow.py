"""A larger variant that starts as the same function as a smaller one that was trained.

Widths: the smaller network's channels come first. Kernels that lead from new channels to old ones
are zero, so nothing reaches the old channels from the new; the other kernels of new channels keep
their fresh random values, so that the zeros have a gradient from the first step on. Depth: blocks
and fusion modules the smaller network lacks add nothing yet, because the last normalisation of
every residual path in them has weight 0 (Goyal et al. 2017, arXiv 1706.02677, section 5.1). After
Net2Net (Chen et al. 2016, arXiv 1511.05641).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ehrnet_model.network.blocks import BasicBlock, ConvNorm, MBConv
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.network.hrnet import FusionModule
from ehrnet_model.variants import Variant


@torch.no_grad()
def grow(network: EfficientHRNet, smaller: Variant, weights: Mapping[str, Tensor]) -> None:
    """Overwrites a fresh network's weights in place, so that it computes what the smaller does.

    Args:
        network: freshly initialised, at least as wide and deep as the smaller one everywhere.
        smaller: the variant of the weights.
        weights: its state by key, as ``EfficientHRNet.state_dict`` names them.

    Raises:
        ValueError: the network is narrower or shallower somewhere.
    """
    used = set()
    for key, new in network.state_dict().items():
        source = _source(key, network.variant, smaller)
        old = weights.get(source)
        if old is None:
            continue
        used.add(source)
        if source == "enlarge.conv.weight":
            # It reads features and then prediction: the prediction stays behind all features.
            old = _spread(old, smaller.branch_widths[0], network.variant.branch_widths[0])
        _place(new, old, transposed=source == "enlarge.conv.weight")
    lost = sorted(set(weights) - used)
    if lost:
        raise ValueError(f"{network.variant.name} has no place for {lost[0]} of {smaller.name}")
    for name, module in network.named_modules():
        if f"{_source(name, network.variant, smaller)}." not in _prefixes(weights):
            for layer in _last_of_residuals(module):
                layer.norm.weight.zero_()


def _source(key: str, larger: Variant, smaller: Variant) -> str:
    """The smaller network's name for a part of the larger: a stage's last module stays its last."""
    parts = key.split(".")
    if parts[0] != "stages" or len(parts) < 4 or parts[2] != "fusions":
        return key
    stage, module = int(parts[1]), int(parts[3])
    many, few = larger.modules[stage], smaller.modules[stage]
    if module == many - 1:
        module = few - 1
    elif module >= few - 1:
        return ""
    return ".".join([*parts[:3], str(module), *parts[4:]])


def _prefixes(weights: Mapping[str, Tensor]) -> set[str]:
    out: set[str] = set()
    for key in weights:
        parts = key.split(".")
        out.update(".".join(parts[:n]) + "." for n in range(1, len(parts)))
    return out


def _last_of_residuals(module: nn.Module) -> list[ConvNorm]:
    """The layers whose sum with what goes past them is all that a module adds."""
    if isinstance(module, BasicBlock):
        return [module.second]
    if isinstance(module, MBConv):
        return [module.project]
    if isinstance(module, FusionModule):
        return [
            [step for step in way.steps if isinstance(step, ConvNorm)][-1]
            for target, ways in enumerate(module.fusion)
            for source, way in enumerate(ways)
            if source != target
        ]
    return []


def _spread(old: Tensor, features: int, room: int) -> Tensor:
    """(features + P, ...) to (room + P, ...), with zeros between."""
    gap = old.new_zeros((room - features, *old.shape[1:]))
    return torch.cat((old[:features], gap, old[features:]))


def _place(new: Tensor, old: Tensor, transposed: bool) -> None:
    """Old values into a tensor's first places; zeros where new channels lead to old ones."""
    if any(n < o for n, o in zip(new.shape, old.shape, strict=True)) or (
        new.shape[2:] != old.shape[2:]
    ):
        raise ValueError(f"{tuple(old.shape)} does not fit into {tuple(new.shape)}")
    if not new.ndim:
        new.copy_(old)
        return
    if transposed:
        new, old = new.transpose(0, 1), old.transpose(0, 1)
    new[: old.shape[0]] = 0
    new[tuple(slice(n) for n in old.shape)] = old
