"""Batch normalisation over the batches of all processes."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F


class _OnCpu(nn.BatchNorm2d):
    """What ``torch.nn.SyncBatchNorm`` is on GPUs; all processes have batches of one size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        values = x.float()
        world = distributed.get_world_size()
        moments = torch.stack([values.mean((0, 2, 3)), (values**2).mean((0, 2, 3))])
        mean, square = all_reduce(moments) / world
        var = (square - mean**2).clamp(min=0)
        with torch.no_grad():
            count = values.numel() // values.shape[1] * world
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        gain = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * gain
        return (values * gain[:, None, None] + shift[:, None, None]).to(x.dtype)


def share_norms(network: nn.Module, device: torch.device) -> None:
    """Makes every batch normalisation count all processes' batches; names and weights stay."""
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            if device.type == "cuda":
                shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
            else:
                shared = _OnCpu(norm.num_features, norm.eps, norm.momentum)
                shared.weight, shared.bias = norm.weight, norm.bias
                shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
                shared.num_batches_tracked = norm.num_batches_tracked
            setattr(parent, name, shared)
