"""Parameters and multiply-accumulates counted on the modules themselves.

The second opinion to ``ehrnet_model.variants``, which counts from the table: here the network runs
once on shapes without data (torch's meta device) and every layer reports what it did.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ehrnet_model.network.blocks import MBConv
from ehrnet_model.variants import Cost


def count(network: nn.Module, size_hw: tuple[int, int]) -> Cost:
    """Count a network's cost for one image of the given height and width in pixels.

    The paper's columns are counted with the two errors named in ``ehrnet_model.variants.Cost``.
    The network itself is left untouched.
    """
    network = copy.deepcopy(network).to("meta").eval()
    params = sum(p.numel() for p in network.parameters() if p.requires_grad)
    blocks = (module for module in network.modules() if isinstance(module, MBConv))
    twice = sum(p.numel() for block in blocks for p in block.parameters() if p.requires_grad)
    macs = paper = 0

    def observe(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal macs, paper
        weight = module.weight
        assert isinstance(weight, Tensor)
        area_in, area_out = (t.shape[2:].numel() for t in (inputs[0], output))
        transposed = isinstance(module, nn.ConvTranspose2d)
        macs += weight.numel() * (area_in if transposed else area_out)
        paper += weight.numel() * area_out

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(observe)
    with torch.no_grad():
        network(torch.empty((1, 3, *size_hw), device="meta"))
    return Cost(params, macs, params + twice, paper)
