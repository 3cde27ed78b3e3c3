"""The optimiser: orthogonal updates for kernels (Muon), AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the averaged gradient
of a kernel, seen as a matrix of outputs x (inputs * height * width), by the nearest matrix whose
singular values are all near one, so that rare directions are learnt as fast as frequent ones. In
a short run it reached with half the windows what AdamW did (docs/training.md). ``torch.optim.Muon``
takes matrices only, one after the other and on one process.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

# Quintic coefficients and number of iterations of the publication: singular values come to lie
# between about 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_MOMENTUM = 0.95


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1.

    Newton and Schulz's iteration X <- aX + b(XX')X + c(XX')^2 X. Every X is a polynomial in the
    first XX' times the first X, so the iteration runs on the small square side alone: a third of
    the products where kernels are nine times as wide as high.

    Args:
        matrices: (K, M, N), K of one shape, float32.

    Returns:
        (K, M, N) float32; zeros stay zeros.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    first = matrices.mT if tall else matrices
    first = first / (first.norm(dim=(1, 2), keepdim=True) + 1e-12)
    gram = first @ first.mT
    one = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    factor = None
    for iteration in range(_ITERATIONS):
        step = _A * one + _B * gram + _C * (gram @ gram)
        factor = step if factor is None else step @ factor
        if iteration < _ITERATIONS - 1:
            gram = step @ (step @ gram)
            gram = (gram + gram.mT) / 2  # rounding must not grow an antisymmetric part
    out: Tensor = factor @ first
    return out.mT if tall else out


def kernels_for_muon(network: nn.Module, heads: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Kernels that mix channels, but not those of the last layers."""
    last = {id(parameter) for head in heads for parameter in head.parameters()}
    return [
        part.weight
        for part in network.modules()
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))
        and part.groups == 1
        and id(part.weight) not in last
    ]


class Muon(torch.optim.AdamW):
    """Muon for the groups marked ``orthogonal``, AdamW for the others.

    An update's root mean square is 0.2 times the learning rate, that of AdamW's in practice (Liu et
    al. 2025, arXiv 2502.16982), so that both share rate and decay. With several processes, which
    must all have the same gradients, each makes a part of the updates and all get the whole.

    Args:
        groups: parameter groups as for ``torch.optim.AdamW``, some with ``"orthogonal": True``.
        lr: learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        for group in groups:
            group.setdefault("orthogonal", False)
        super().__init__(groups, lr=lr, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A state, however it lies in memory: a compact one was written without channels last."""
        super().load_state_dict(state_dict)
        for parameter, values in self.state.items():
            for key, value in values.items():
                # The fused AdamW walks through a parameter and its moments as they lie.
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    values[key] = torch.empty_like(parameter).copy_(value)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; kernels' gradients are used up."""
        for group in self.param_groups:
            if group["orthogonal"]:
                kernels = [p for p in group["params"] if p.grad is not None]
                if kernels:
                    updates = self._updates(kernels)
                    torch._foreach_mul_(updates, group["lr"])
                    torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
                    torch._foreach_sub_(kernels, updates)
                for kernel in kernels:
                    kernel.grad = None  # AdamW leaves alone what has none
        super().step()

    def _updates(self, kernels: list[Tensor]) -> list[Tensor]:
        """The updates, one in the shape of each kernel."""
        for kernel in kernels:
            state = self.state[kernel]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(kernel)
                state["step"] = torch.zeros(())  # AdamW expects every state to have one
            state["step"] += 1
        gradients = [kernel.grad for kernel in kernels]
        momenta = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        averaged = [m.flatten(1) for m in torch._foreach_lerp(gradients, momenta, _MOMENTUM)]
        world = distributed.get_world_size() if distributed.is_initialized() else 1
        owner = _shared_out([matrix.shape for matrix in averaged], world)
        rank = distributed.get_rank() if world > 1 else 0
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        for index, matrix in enumerate(averaged):
            if owner[index] == rank:
                alike[matrix.shape].append(index)
        flat = torch.zeros(sum(m.numel() for m in averaged), device=averaged[0].device)
        updates = [
            part.view(kernel.shape)
            for part, kernel in zip(flat.split([m.numel() for m in averaged]), kernels, strict=True)
        ]
        for shape, indices in alike.items():
            made = orthogonalise(torch.stack([averaged[i] for i in indices]))
            made *= 0.2 * math.sqrt(max(shape))
            for i, update in zip(indices, made, strict=True):
                updates[i].copy_(update.view(kernels[i].shape))
        if world > 1:
            distributed.all_reduce(flat)
        return updates


def _shared_out(shapes: Sequence[torch.Size], world: int) -> list[int]:
    """Which process makes which update, so that all have about the same to do."""
    costs = [max(s) * min(s) ** 2 for s in shapes]
    load, owner = [0] * world, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda i: -costs[i]):
        owner[index] = load.index(min(load))
        load[owner[index]] += costs[index]
    return owner
