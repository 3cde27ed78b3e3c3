"""What a run computes with: devices, and what makes the CPU quicker."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from typing import Any

import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.blocks import ConvNorm

OLDEST_TORCH = (2, 6)
"""Fused AdamW came to CPUs with 2.4; before 2.6 it may refuse kernels of size 1 on a GPU, whose
gradients' strides need not be theirs."""

# What <malloc.h> calls M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX, and values: keep what is
# freed up to 2 GiB, ask the kernel for 256 MiB at a time, have nothing mapped by itself.
_KEEP = ((-1, 2**31 - 1), (-2, 2**28), (-4, 0))


@dataclass(frozen=True)
class Hardware:
    """What a run computes with; nothing here changes what it learns, but for rounding.

    Attributes:
        device: ``cpu``, ``cuda`` or ``auto`` (CUDA where there is a GPU).
        windows_on: ``device`` (see ``painter``), ``host`` or ``auto`` (device if it is a GPU).
        workers: processes that prepare windows; 0: a thread; -1: 0 for a CPU, for a GPU
            one a core but one.
    """

    device: str = "cpu"
    windows_on: str = "auto"
    workers: int = -1


def open_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``auto``; one of several processes takes the GPU of its local rank.

    Raises EhrnetError where CUDA is asked for and not there, and where PyTorch is too old to train.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise EhrnetError(
            f"PyTorch {torch.__version__} is too old to train with, it takes "
            f"{'.'.join(map(str, OLDEST_TORCH))} or later: pip install -U torch."
        )
    if name not in ("cpu", "cuda", "auto"):
        raise EhrnetError(f"there is no device '{name}': cpu, cuda or auto.")
    there = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise EhrnetError(
            f"PyTorch {torch.__version__} sees no CUDA device: install a build for your GPU's "
            "driver (pytorch.org), or train with --device cpu."
        )
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise EhrnetError(
            f"process {number} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}: start as many processes as there are GPUs."
        )
    torch.cuda.set_device(number)
    # Window sizes are few and come again and again.
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", number)


def keep_memory() -> bool:
    """Has this process keep what it frees for what it asks for next, once and for all.

    A step frees as much as the next one asks for, and glibc gives tensors of 128 KiB to 32 MiB and
    more back to the kernel, which then has to clear their pages again: on a CPU a sixth of a step.
    The process then takes a seventh more memory at its most (docs/training.md). On a GPU this was
    not measured.

    Returns whether the C library is one that can be told so.
    """
    if os.name != "posix":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(name, value) for name, value in _KEEP])


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for bfloat16.

    Without them a convolution on a CPU takes ten times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Dense(torch.autograd.Function):
    """Nothing forward; a gradient without gaps in memory backward.

    The gradient of a padded tensor is a view with gaps, on which the backward pass of batch
    normalisation is ten times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


def _depthwise_in_float32(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        y = torch.nn.functional.conv2d(
            x.float(), conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups
        )
    return y.to(x.dtype)


def quicken(network: torch.nn.Module) -> None:
    """Makes training on a CPU faster; what is computed stays.

    The backward pass of bfloat16 depthwise convolutions with stride 2 or 5x5 kernels takes 3 to 50
    times as long as the same in float32: a step is 1.24 times faster without (docs/training.md).
    """
    for module in network.modules():
        if not isinstance(module, ConvNorm):
            continue
        if module.pad is not None:
            module.register_forward_pre_hook(lambda _, inputs: (_Dense.apply(inputs[0]),))
        conv = module.conv
        if conv.groups > 1 and (conv.stride[0] > 1 or conv.kernel_size[0] > 3):
            conv.forward = functools.partial(_depthwise_in_float32, conv)
