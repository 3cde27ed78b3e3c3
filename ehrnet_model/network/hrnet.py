"""The high-resolution part: parallel branches that exchange their features, module by module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ehrnet_model.network.blocks import BasicBlock, ConvNorm, Upsample

BLOCKS_PER_BRANCH = 2


class Exchange(nn.Module):
    """One way from a branch to another: enlarge, shrink or hand through."""

    def __init__(self, widths: Sequence[int], source: int, target: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        if source > target:
            steps.append(ConvNorm(widths[source], widths[target], 1))
            steps.append(Upsample(2 ** (source - target)))
        else:
            # Every step halves; only the last changes the width and is linear.
            for step in range(target - source):
                last = step == target - source - 1
                steps.append(
                    ConvNorm(
                        widths[source],
                        widths[target] if last else widths[source],
                        3,
                        2,
                        activation="" if last else "relu",
                    )
                )
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_source, h, w) to (N, C_target, h', w')."""
        for step in self.steps:
            x = step(x)
        return x


class FusionModule(nn.Module):
    """Two basic blocks on every branch, then each output is the sum over all branches.

    Args:
        widths: channels of the branches, finest first.
        outputs: number of branches that are fused and returned, finest first.
    """

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(BLOCKS_PER_BRANCH)))
            for width in widths
        )
        self.fusion = nn.ModuleList(
            nn.ModuleList(Exchange(widths, source, target) for source in range(len(widths)))
            for target in range(outputs)
        )

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        """One map per branch to one map per output; each output has its branch's shape."""
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for ways in self.fusion:
            assert isinstance(ways, nn.ModuleList)
            total = ways[0](xs[0])
            for way, x in zip(ways[1:], xs[1:], strict=True):
                total = total + way(x)
            fused.append(F.relu(total))
        return fused


class Stage(nn.Module):
    """Entry convolutions, which bring each input to its branch's width, and a chain of modules.

    Args:
        inputs: channels of the maps that come in, finest first.
        widths: channels of the branches, finest first; as many as inputs.
        modules: number of fusion modules.
        outputs: branches the last module fuses to.
        entry_everywhere: whether a map that already has its branch's width is convolved as well.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        widths: Sequence[int],
        modules: int,
        outputs: int,
        entry_everywhere: bool = True,
    ) -> None:
        super().__init__()
        # With bias although a normalisation follows: so in the reference, and counted there.
        self.entries = nn.ModuleList(
            ConvNorm(i, w, 3, bias=True, activation="relu")
            if entry_everywhere or i != w
            else nn.Identity()
            for i, w in zip(inputs, widths, strict=True)
        )
        self.fusions = nn.ModuleList(
            FusionModule(widths, outputs if index == modules - 1 else len(widths))
            for index in range(modules)
        )

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        """Maps at 1/4, 1/8 .. with ``inputs`` channels to ``outputs`` maps, finest first."""
        xs = [entry(x) for entry, x in zip(self.entries, xs, strict=True)]
        for fusion in self.fusions:
            xs = fusion(xs)
        return xs
