"""Averages that live on the device: of weights over the steps, of losses between two log lines."""

from __future__ import annotations

import torch
from torch import distributed


class Average:
    """Exponential moving average of weights and statistics; its memory grows from a few steps.

    Args:
        network: on the device where it is trained; its tensors stay the same objects.
        decay: of the average once it is old.
        state, count: an average to go on with.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        decay: float,
        state: dict[str, torch.Tensor] | None = None,
        count: int = 0,
    ) -> None:
        self.decay = decay
        self.count = count
        live = {k: v.detach() for k, v in network.state_dict().items()}
        self.state = {k: v.clone() for k, v in live.items()}
        for key, value in (state or {}).items():
            self.state[key].copy_(value)
        # Lists, made once: a GPU has done a step in the time that gathering them takes.
        float_keys = [k for k, v in live.items() if v.is_floating_point()]
        self._floats = [live[k] for k in float_keys], [self.state[k] for k in float_keys]
        whole_keys = [k for k in live if k not in set(float_keys)]
        self._wholes = [live[k] for k in whole_keys], [self.state[k] for k in whole_keys]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the network's present weights in."""
        self.count += 1
        weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._floats[1], self._floats[0], weight)
        torch._foreach_copy_(self._wholes[1], self._wholes[0])


class Sums:
    """Sums of the parts of the loss, kept on the device: adding waits for nothing."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: torch.Tensor | None = None
        self.count = 0

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        """Adds scalars; the names are the same every time."""
        values = torch.stack(list(parts.values())).double()
        self.names = list(parts)
        self.values = values if self.values is None else self.values + values
        self.count += 1

    def means(self, world: int) -> dict[str, float]:
        """Means over the steps, and over all processes where all of them ask; waits for the GPU."""
        if self.values is None:
            return {}
        values = (self.values / self.count).cpu()
        if world > 1:
            distributed.all_reduce(values)
            values /= world
        return dict(zip(self.names, values.tolist(), strict=True))
