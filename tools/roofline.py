"""Writes docs/performance.md: how fast a Jetson could run each variant at best.

python tools/roofline.py              writes the page
python tools/roofline.py --check      only says whether it is current
python tools/roofline.py --layers H-4 prints every kernel of a variant
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ehrnet_model.network.blocks import ConvNorm, Upsample
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.network.kernels import LEVELS, Kernel, kernels, moved
from ehrnet_model.variants import PUBLISHED, VARIANTS, Variant

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Board:
    """What a maker prints about a board, or what follows from it.

    Attributes:
        cores, clock_ghz: CUDA cores and their highest clock.
        fp16, int8: dense tensor-core peaks of the GPU in 1e12 operations per second, an operation
            being a multiplication or an addition.
        tf32: whether its tensor cores take 32-bit floats (at half the FP16 rate).
        bandwidth: of the memory, GB/s.
        source: where that is from.
    """

    name: str
    cores: int
    clock_ghz: float
    fp16: float
    int8: float
    tf32: bool
    bandwidth: float
    source: str

    @property
    def plain_fp16(self) -> float:
        """FP16 peak without tensor cores: two values per core, two operations each."""
        return self.cores * 4 * self.clock_ghz / 1000

    @property
    def fp32(self) -> float:
        """32-bit peak of convolutions."""
        return self.fp16 / 2 if self.tf32 else self.plain_fp16 / 2


_NX_SHEET = (
    "data sheet: cores, clock, 59.7 GB/s (51.2 in its first edition); peaks: 48 tensor cores x 64 "
    "(INT8 128) multiply-accumulates x clock"
)
_ORIN = "data sheet's sparse INT8 of the GPU alone, halved for dense, again for FP16"
BOARDS = (
    Board("Xavier NX", 384, 1.1, 6.76, 13.5, False, 59.7, _NX_SHEET),
    Board("Orin Nano 8GB", 1024, 0.625, 10.2, 20.5, True, 68.0, _ORIN),
    Board("Orin Nano Super", 1024, 1.02, 16.7, 33.4, True, 102.0, "maker's announcement of Super"),
    Board("Orin NX 16GB", 1024, 0.918, 15.0, 30.1, True, 102.4, _ORIN + ", without DLA"),
    Board("AGX Orin 64GB", 2048, 1.3, 42.6, 85.2, True, 204.8, _ORIN + ", without DLA"),
    Board(
        "Thor T5000",
        2560,
        1.57,
        258.0,
        517.0,
        True,
        273.0,
        "maker's page: 2070 sparse FP4; a quarter of it for dense 8-bit, an eighth for FP16",
    ),
)
XAVIER = BOARDS[0]

_EXPORTED = "exported int8"
# Bytes of a value, by mode; of what is not quantised where some of it is.
_REST = {"fp16": 2, "int8": 1, _EXPORTED: 2}


@dataclass(frozen=True)
class Cost:
    """One kernel on one board: milliseconds of arithmetic and of memory."""

    kernel: Kernel
    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """The larger: the kernel's floor."""
        return max(self.compute_ms, self.memory_ms)


def floor(
    found: list[Kernel], board: Board, mode: str = "fp16", align: int = 1, cores_only: bool = False
) -> list[Cost]:
    """Each kernel's floor.

    Args:
        found: the kernels of one image.
        board: the peaks.
        mode: ``fp16``; ``int8``, everything in 8 bits; ``exported int8``, what `ehrnet export
            --precision int8` lowers: the branches, between 16-bit floats.
        align: channels are padded to a multiple of it.
        cores_only: no tensor cores.
    """
    rest = _REST[mode]

    def width(kernel: Kernel) -> int:
        branch = mode == _EXPORTED and kernel.convolves and ".branches." in kernel.place
        return 1 if branch else rest

    costs = []
    for kernel, size in zip(found, moved(found, width, rest, align), strict=True):
        rate = {1: board.int8, 2: board.fp16, 4: board.fp32}[width(kernel)]
        if kernel.depthwise or cores_only:  # no tensor core has a use for one channel
            rate = min(rate, board.plain_fp16)
        compute = 2 * kernel.macs(align) / (rate * 1e9)
        costs.append(Cost(kernel, compute, size / (board.bandwidth * 1e6)))
    return costs


def total(costs: Iterable[Cost]) -> float:
    """Milliseconds of kernels that run one after the other."""
    return sum(cost.ms for cost in costs)


def meta_network(variant: Variant) -> EfficientHRNet:
    """The network of a variant without data."""
    with torch.device("meta"):
        return EfficientHRNet(variant)


@cache
def of_variant(name: str, level: str = "fused") -> list[Kernel]:
    """The kernels of one of the paper's networks at its own size."""
    variant = VARIANTS[name]
    return kernels(meta_network(variant), (variant.input_size,) * 2, level)


def part(kernel: Kernel) -> str:
    """The part of the network a kernel belongs to."""
    words = kernel.place.split(".")
    if words[0] == "stages":
        kind = {"entries": "entries"}.get(words[2], "exchange")
        kind = "branches" if "branches" in words else kind
        return f"stage {int(words[1]) + 2} {kind}"
    if words[0] == "backbone":
        return "backbone, depthwise" if kernel.depthwise else "backbone, rest"
    return {"enlarge": "deconvolution block"}.get(words[0], "heads")


def aligned(variant: Variant) -> Variant:
    """The variant with branch widths rounded to the nearest multiple of 8."""
    a, b, c, d = (max(8, (w + 4) // 8 * 8) for w in variant.branch_widths)
    return replace(variant, branch_widths=(a, b, c, d), enlarged_channels=a)


def enlarged_by(variant: Variant, first: nn.Module) -> EfficientHRNet:
    """The network with another first step of its deconvolution block."""
    network = meta_network(variant)
    network.enlarge = nn.Sequential(first, network.enlarge.blocks)  # type: ignore[assignment]
    return network


def deconvolutions(variant: Variant) -> dict[str, nn.Module]:
    """Networks with other deconvolution blocks."""
    wide = variant.enlarged_channels
    inputs = variant.branch_widths[0] + 34
    with torch.device("meta"):
        firsts: dict[str, nn.Module] = {
            "3x3 to four times the width, depth to space (same function)": nn.Sequential(
                ConvNorm(inputs, 4 * wide, 3, activation="relu"), nn.PixelShuffle(2)
            ),
            "nearest x2, then 3x3": nn.Sequential(
                Upsample(2), ConvNorm(inputs, wide, 3, activation="relu")
            ),
            "3x3, then nearest x2": nn.Sequential(
                ConvNorm(inputs, wide, 3, activation="relu"), Upsample(2)
            ),
            "1x1, then nearest x2": nn.Sequential(
                ConvNorm(inputs, wide, 1, activation="relu"), Upsample(2)
            ),
        }
    networks: dict[str, nn.Module] = {"as in the paper": meta_network(variant)}
    networks.update({name: enlarged_by(variant, first) for name, first in firsts.items()})
    networks["one basic block behind it, not two"] = meta_network(
        replace(variant, enlarged_blocks=1)
    )
    return networks


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def _boards() -> str:
    head = ("board", "FP16 TFLOP/s", "INT8 TOP/s", "FP16 without tensor cores", "GB/s", "source")
    rows = [(b.name, b.fp16, b.int8, f"{b.plain_fp16:.1f}", b.bandwidth, b.source) for b in BOARDS]
    return table(head, rows)


def network_row(name: str) -> tuple[str, ...]:
    """What one variant computes and moves."""
    fused = of_variant(name)
    macs = sum(k.macs() for k in fused) / 1e9
    weights = sum(k.parameters() for k in fused) * 2 / 1e6
    by_level = [of_variant(name, level) for level in LEVELS]
    counts = [str(len(found)) for found in by_level]
    sizes = [f"{sum(k.traffic(2) for k in found) / 1e6:.0f}" for found in by_level]
    side = VARIANTS[name].input_size
    per_byte = 2e3 * macs / float(sizes[-1])
    return (
        name, str(side), f"{macs:.3f}", f"{weights:.1f}", *counts, *sizes, f"{per_byte:.0f}",
    )  # fmt: skip


def _networks() -> str:
    head = ("", "input", "GMAC", "weights MB", *(f"kernels {level}" for level in LEVELS))
    head += (*(f"MB {level}" for level in LEVELS), "operations per byte, fused")
    balance = ", ".join(f"{b.name} {b.fp16 * 1e3 / b.bandwidth:.0f}" for b in BOARDS)
    return (
        table(head, map(network_row, VARIANTS))
        + f"\n\nA board's memory keeps up from this many operations per byte on (FP16): {balance}."
    )


def _floors() -> str:
    rows = []
    for mode in _REST:
        for name in VARIANTS:
            ms = [total(floor(of_variant(name), b, mode)) for b in BOARDS]
            rows.append((mode, name, *(f"{t:.2f} ({1000 / t:.0f})" for t in ms)))
    return table(("", "", *(b.name for b in BOARDS)), rows)


def _paper() -> str:
    rows = []
    for name, printed in PUBLISHED.items():
        found = of_variant(name)
        ms = 1000 / printed.fps_xavier_nx
        best = total(floor(found, XAVIER))
        eight = total(floor(found, XAVIER, align=8))
        rows.append(
            (
                name, printed.fps_xavier_nx, f"{ms:.1f}", f"{best:.1f}", f"{100 * best / ms:.0f} %",
                f"{100 * eight / ms:.0f} %", len(found), f"{1000 * (ms - best) / len(found):.0f}",
            )
        )  # fmt: skip
    head = ("", "paper's FPS", "ms", "floor FP16 ms", "floor / paper", "the same, channels padded")
    return table((*head, "kernels", "µs per kernel above the floor"), rows)


def _bound() -> str:
    rows = []
    for name in VARIANTS:
        for mode in ("fp16", "int8"):
            cells = []
            for board in BOARDS:
                costs = floor(of_variant(name), board, mode)
                by_compute = [c for c in costs if c.compute_ms > c.memory_ms]
                cells.append(f"{100 * total(by_compute) / total(costs):.0f} % ({len(by_compute)})")
            rows.append((name, mode, *cells))
    return table(("", "", *(b.name for b in BOARDS)), rows)


def _parts() -> str:
    names = list(dict.fromkeys(part(k) for name in VARIANTS for k in of_variant(name)))
    rows = []
    for label in names:
        cells = []
        for name in VARIANTS:
            costs = floor(of_variant(name), XAVIER)
            own = [c for c in costs if part(c.kernel) == label]
            share = 100 * total(own) / total(costs)
            cells.append(f"{sum(c.kernel.macs() for c in own) / 1e9:.2f} / {share:.0f} %")
        rows.append((label, *cells))
    return table(("GMAC / share of the floor", *VARIANTS), rows)


_LAYER_HEAD = ("module", "in it", "channels", "cells", "MMAC", "MB", "compute ms", "memory ms")


def _layer(cost: Cost) -> tuple[Any, ...]:
    kernel = cost.kernel
    inputs, outputs, _ = kernel.sides
    channels = f"{inputs} > {outputs}" if outputs else str(kernel.write.channels)
    return (
        kernel.place, " ".join(kernel.kinds), channels + (" depthwise" if kernel.depthwise else ""),
        kernel.write.cells, f"{kernel.macs() / 1e6:.1f}", f"{kernel.traffic(2) / 1e6:.2f}",
        f"{cost.compute_ms:.4f}", f"{cost.memory_ms:.4f}",
    )  # fmt: skip


def layers(name: str) -> str:
    """Every fused kernel of a variant, FP16 on the Xavier NX."""
    return table(_LAYER_HEAD, map(_layer, floor(of_variant(name), XAVIER)))


def _dearest() -> str:
    blocks = []
    for name in VARIANTS:
        costs = sorted(floor(of_variant(name), XAVIER), key=lambda c: -c.ms)[:8]
        blocks.append(f"{name}:\n\n" + table(_LAYER_HEAD, map(_layer, costs)))
    return "\n\n".join(blocks)


def _fusing() -> str:
    rows = []
    for name in VARIANTS:
        ms = [total(floor(of_variant(name, level), XAVIER)) for level in LEVELS]
        rows.append((name, *(f"{t:.2f}" for t in ms), f"{ms[0] / ms[2]:.2f}x"))
    return table(("", *(f"{level}, ms" for level in LEVELS), "fusing everything gives"), rows)


def _padding() -> str:
    rows = []
    for name in VARIANTS:
        found = of_variant(name)
        macs, size = sum(k.macs() for k in found), sum(k.traffic(2) for k in found)
        cells = []
        for align in (8, 16, 32):
            more = sum(k.macs(align) for k in found) / macs
            bytes_more = sum(k.traffic(2, align) for k in found) / size
            cells.append(f"{more:.2f} / {bytes_more:.2f}")
        for board in (XAVIER, BOARDS[3]):
            plain = total(floor(found, board, cores_only=True))
            bare, eight = (total(floor(found, board, align=align)) for align in (1, 8))
            cells.append(f"{plain:.2f} / {bare:.2f} / {eight:.2f}")
        rows.append((name, " ".join(map(str, VARIANTS[name].branch_widths)), *cells))
    head: tuple[str, ...] = ("", "widths", "to 8: MACs / bytes", "to 16", "to 32")
    head += tuple(f"{b.name}, ms: cores / ideal / padded to 8" for b in (XAVIER, BOARDS[3]))
    return table(head, rows)


def _aligned() -> str:
    rows = []
    for name, variant in VARIANTS.items():
        other = aligned(variant)
        before = of_variant(name)
        after = kernels(meta_network(other), (other.input_size,) * 2)
        one, two = variant.cost(), other.cost()
        cells = []
        for board in (XAVIER, BOARDS[3]):
            old, new = (total(floor(k, board, align=8)) for k in (before, after))
            cells.append(f"{old:.2f} > {new:.2f} ({100 * (new / old - 1):+.0f} %)")
        paid = [sum(k.macs(8) for k in k_) / 1e9 for k_ in (before, after)]
        rows.append(
            (
                name, " ".join(map(str, other.branch_widths)),
                f"{one.params / 1e6:.2f} > {two.params / 1e6:.2f}",
                f"{one.macs / 1e9:.2f} > {two.macs / 1e9:.2f}",
                f"{paid[0]:.2f} > {paid[1]:.2f}", *cells,
            )
        )  # fmt: skip
    head = ("", "widths", "M parameters", "GMAC", "GMAC padded to 8")
    return table((*head, f"{XAVIER.name} FP16, ms", f"{BOARDS[3].name} FP16, ms"), rows)


def _deconvolution() -> str:
    rows = []
    for name in ("H0", "H-2", "H-4"):
        variant = VARIANTS[name]
        size = (variant.input_size,) * 2
        whole = 0.0
        for label, network in deconvolutions(variant).items():
            found = kernels(network, size)
            block = [c for c in floor(found, XAVIER) if c.kernel.place.startswith("enlarge")]
            ms = total(floor(found, XAVIER))
            whole = whole or ms
            rows.append(
                (
                    name, label, f"{sum(c.kernel.macs() for c in block) / 1e9:.2f}",
                    f"{sum(c.kernel.traffic(2) for c in block) / 1e6:.1f}", f"{total(block):.2f}",
                    f"{ms:.2f} ({100 * (ms / whole - 1):+.1f} %)",
                )
            )  # fmt: skip
    return table(("", "block", "GMAC", "MB", "block ms", "whole network ms"), rows)


def _findings() -> str:
    """What the tables say, with their numbers."""
    slow, fast = "H0", "H-4"
    shares = [
        total(floor(of_variant(n), XAVIER)) * PUBLISHED[n].fps_xavier_nx / 10 for n in VARIANTS
    ]
    lines = [
        f"The paper's times are {100 / max(shares):.1f} to {100 / min(shares):.1f} times the FP16 "
        f"floor of its board: {max(shares):.0f} % of it reached by the best variant, "
        f"{min(shares):.0f} % by the worst. Small variants are further away: what they lose is not "
        "arithmetic."
    ]
    memory = []
    for name in (slow, fast):
        costs = floor(of_variant(name), XAVIER)
        memory.append(100 * total(c for c in costs if c.memory_ms >= c.compute_ms) / total(costs))
    lines.append(
        f"On the Xavier NX {memory[0]:.0f} % of {slow}'s floor and {memory[1]:.0f} % of {fast}'s "
        "lie in kernels that wait for memory, so fewer bytes are worth more than fewer MACs."
    )
    gains = [
        total(floor(of_variant(n, "exported"), XAVIER)) / total(floor(of_variant(n), XAVIER))
        for n in VARIANTS
    ]
    lines.append(
        f"Fusing sums and activations makes the exported graph's floor {min(gains):.2f} to "
        f"{max(gains):.2f} times shorter. TensorRT does that by itself; its inspector shows "
        "whether it did."
    )
    costs_more = {
        n: total(floor(of_variant(n), XAVIER, align=8)) / total(floor(of_variant(n), XAVIER)) - 1
        for n in VARIANTS
    }
    worst = max(costs_more, key=lambda name: costs_more[name])
    lines.append(
        f"Padding to multiples of 8 costs {worst} most, {100 * costs_more[worst]:.0f} % of "
        "its floor. Tensor-core formats pad anyhow, so padding in the graph changes no number and "
        "gains nothing that the engine would not do; widths that are multiples of 8 from the start "
        "would."
    )
    ratios = sorted(
        total(floor(of_variant(n), XAVIER, _EXPORTED)) / total(floor(of_variant(n), XAVIER))
        for n in VARIANTS
    )
    lines.append(
        "The INT8 graph as exported keeps 16-bit floats outside of the branches: its floor on the "
        f"Xavier NX is {ratios[0]:.2f} to {ratios[-1]:.2f} times FP16's."
    )
    return "\n".join(f"* {line}" for line in lines)


def page() -> str:
    """The whole page."""
    return f"""# Performance: a model of the hardware

Written by `python tools/roofline.py`; `--layers H-4` prints every kernel of a variant.

**Nothing on this page was run on any of these boards.** Every time is computed from what makers
print: a kernel takes as long as its arithmetic at the dense peak or its bytes at the peak of the
memory, whichever is longer, and kernels run one after the other, for one image. Launches, lower
clocks and other users of the memory are not in it, so an engine is slower; only a map that stays
in the GPU's cache from one kernel to the next could make it faster than this floor. The one
measurement here is the paper's frames per second. Counted is the network at its square input;
conversion of the image and the search for peaks are not.

## What follows

{_findings()}

## Boards

Highest power mode. The GPU alone, dense, no DLA. Depthwise convolutions use no tensor cores.

{_boards()}

## Networks

MACs are those of `ehrnet variants`. Bytes are FP16's: every kernel reads its maps and weights and
writes its map, once. *alone*: every operation of the code by itself. *exported*: paddings and
normalisations are part of the convolutions, as in the ONNX file. *fused*: a convolution also takes
one sum and its activations, pointwise operations run together, concatenation is free.

{_networks()}

## Floors

Milliseconds per image, fused (images per second). *int8*: everything in 8 bits. *exported int8*:
what `ehrnet export --precision int8` writes, branches in 8 bits and the rest in 16-bit floats, if
the engine makes one layer of a quantised convolution and the casts around it.

{_floors()}

## Beside the paper

Xavier NX with TensorRT, the paper's Table 4, which does not say in which precision.

{_paper()}

## What binds

Share of the floor that lies in kernels bound by arithmetic (how many kernels); all others wait for
memory.

{_bound()}

Where the floor lies, FP16 on the Xavier NX:

{_parts()}

The eight dearest kernels of each variant there:

{_dearest()}

## Fusing

FP16 on the Xavier NX.

{_fusing()}

## Channels in multiples of 8

Tensor cores take channels in eights (INT8: 16 or 32). First, how much more there is to compute and
to move when every map of the same network is padded; then its floor in FP16: on plain cores, at
the ideal of no padding, padded to 8 on tensor cores.

{_padding()}

Another family, its branch widths rounded to the nearest multiple of 8 (H0's are already). It needs
weights of its own: to be worth shipping beside the paper's, these must reach the paper's AP at the
same size within what two trainings differ by, and the gain must be measured on a board; on CPU
runtimes [it was](widths.md): H-3 is 27 to 29 % faster, H-4 and H-2 are 3 % faster to 11 % slower.
Padding the paper's widths instead, which computes the same, gave 2 % at best and cost up to 38 %.
Floors here with both padded to 8, as tensor cores see them:

{_aligned()}

## Another deconvolution block

FP16 on the Xavier NX. Only the second computes what the trained weights compute; the others need
training. How well an engine runs a transposed convolution is not in a floor.

{_deconvolution()}
"""


def main() -> int:
    """Writes, checks or prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="say whether the page is current")
    parser.add_argument("--layers", choices=list(VARIANTS), help="print a variant's kernels")
    arguments = parser.parse_args()
    if arguments.layers:
        print(layers(arguments.layers))
        return 0
    text = page()
    if arguments.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not current:
            print(f"{PAGE.name} is not current: run `python tools/roofline.py`.", file=sys.stderr)
        return int(not current)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
