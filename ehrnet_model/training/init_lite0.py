"""A start for any variant's backbone: slices of an EfficientNet-Lite0 trained on ImageNet.

Lite0 has the widths, kernels and strides of B0 without squeeze-and-excitation. A smaller variant
takes the first blocks of each stage and, of each tensor, the channels that carry most: a channel's
worth is the standard deviation of what it puts out on real pictures (times the norm of what the
next layer makes of it, where it is hidden inside a block).

The source is an npz file with batch normalisation folded into kernels and biases: ``stem``,
``blocks.0`` .. ``blocks.15`` with ``expand``, ``dw`` and ``project``, each with ``.weight`` and
``.bias``.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch.nn import functional as F

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.blocks import ConvNorm
from ehrnet_model.network.efficienthrnet import EfficientHRNet

_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_STD = (0.229, 0.224, 0.225)
_MEAN = (0.485, 0.456, 0.406)


class _Statistics:
    """Mean and deviation of every convolution's output (before its bias) in the source network."""

    def __init__(self, tensors: dict[str, torch.Tensor], pictures: torch.Tensor) -> None:
        self.tensors = tensors
        self.mean: dict[str, torch.Tensor] = {}
        self.std: dict[str, torch.Tensor] = {}
        mean = torch.tensor(_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(_STD).view(1, 3, 1, 1)
        x = ((pictures * std + mean) * 255 - 127) / 128
        x = F.relu6(self._layer("stem", x, 2))
        block = 0
        for repeats, stride in zip(_REPEATS, _STRIDES, strict=True):
            for i in range(repeats):
                name, y = f"blocks.{block}", x
                if f"{name}.expand.weight" in tensors:
                    y = F.relu6(self._layer(f"{name}.expand", y, 1))
                y = F.relu6(self._layer(f"{name}.dw", y, stride if i == 0 else 1))
                y = self._layer(f"{name}.project", y, 1)
                x = x + y if i > 0 else y
                block += 1

    def _layer(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        weight = self.tensors[f"{name}.weight"]
        total = weight.shape[-1] - stride
        if total > 0:
            x = F.pad(x, (total // 2, total - total // 2) * 2)
        groups = x.shape[1] if weight.shape[1] == 1 and x.shape[1] > 1 else 1
        y = F.conv2d(x, weight, stride=stride, groups=groups)
        self.mean[name] = y.mean((0, 2, 3))
        self.std[name] = y.std((0, 2, 3))
        return y + self.tensors[f"{name}.bias"].view(1, -1, 1, 1)


def _best(worth: torch.Tensor, count: int) -> torch.Tensor:
    if count > len(worth):
        raise EhrnetError(
            f"the source has {len(worth)} channels where {count} are needed: use it for H0 and "
            "smaller."
        )
    return worth.topk(count).indices.sort().values


@torch.no_grad()
def init_from_lite0(network: EfficientHRNet, path: Path, pictures: torch.Tensor) -> None:
    """Overwrites the backbone's weights in place.

    Args:
        network: any variant; everything outside the backbone is left alone.
        path: the npz file.
        pictures: (N, 3, H, W) float32, normalised as for the network; some 50 to 100 are enough.

    Raises:
        EhrnetError: the file is missing or holds something else.
    """
    try:
        with np.load(path) as data:
            tensors = {key: torch.from_numpy(data[key].astype(np.float32)) for key in data.files}
        tensors["blocks.15.project.weight"], tensors["stem.weight"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise EhrnetError(f"{path} does not hold EfficientNet-Lite0 weights ({error}).") from None
    stats = _Statistics(tensors, pictures)
    backbone = network.backbone
    norms = {k: v.flatten(1).norm(dim=1) for k, v in tensors.items() if k.endswith("dw.weight")}

    def put(
        layer: ConvNorm,
        name: str,
        rows: torch.Tensor,
        columns: torch.Tensor | None,
        gain: torch.Tensor | None = None,
    ) -> None:
        weight = tensors[f"{name}.weight"][rows]
        if columns is not None:
            weight = weight[:, columns]
        if gain is not None:
            weight = weight * gain
        layer.conv.weight.copy_(weight)
        std, mean = stats.std[name][rows], stats.mean[name][rows]
        layer.norm.weight.copy_(std)
        layer.norm.bias.copy_(mean + tensors[f"{name}.bias"][rows])
        layer.norm.running_mean.copy_(mean)
        layer.norm.running_var.copy_(std**2)

    stem = _best(stats.std["stem"] * norms["blocks.0.dw.weight"], backbone.stem.conv.out_channels)
    gain = (255 * torch.tensor(_STD) / 128).view(1, 3, 1, 1)
    put(backbone.stem, "stem", stem, None, gain)
    kept, first = stem, 0
    for stage, repeats in zip(backbone.stages, _REPEATS, strict=True):
        names = [f"blocks.{first + i}" for i in range(len(stage))]
        worth = torch.stack([stats.std[f"{n}.project"] for n in names]).norm(dim=0)
        stream = _best(worth, stage[0].project.conv.out_channels)
        for block, name in zip(stage, names, strict=True):
            hidden = kept
            if block.expand is not None:
                columns = tensors[f"{name}.project.weight"][stream].flatten(1).norm(dim=0)
                hidden = _best(stats.std[f"{name}.dw"] * columns, block.expand.conv.out_channels)
                put(block.expand, f"{name}.expand", hidden, kept)
            put(block.depthwise, f"{name}.dw", hidden, None)
            put(block.project, f"{name}.project", stream, hidden)
            # Gates start open (0.98): the source has none.
            block.squeeze.restore.weight.zero_()
            block.squeeze.restore.bias.fill_(4.0)
            kept = stream
        first += repeats
