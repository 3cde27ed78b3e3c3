"""Networks that a machine might like better, beside the paper's, on the CPU runtimes.

    python -m benchmarks.widths [--phi -4 -3 -2] [--runtime onnxruntime openvino] [--page FILE]

* *multiples of 8*: branch widths rounded to the nearest multiple of 8. Another network, which wants
  weights of its own.
* *padded to 8*: the paper's widths with channels of zeros up to the next multiple of 8 in every
  branch. Computes exactly the same.
* *depth to space*: the transposed convolution as a 3x3 convolution to four times the width and a
  rearrangement. Can compute exactly the same.

Models take turns, so that what else the machine does hits all alike; weights are random, time does
not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import print_table, summary, write_json, write_page
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.runtime import ModelInfo, Runtime
from ehrnet_model.network.blocks import initialise
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.network.export import export_onnx
from ehrnet_model.variants import Variant
from tools.roofline import aligned, deconvolutions, meta_network

THREADS = 1


def padded(variant: Variant, step: int = 8) -> Variant:
    """The size of the variant's network with branches padded to the next multiple of ``step``."""
    widths = tuple(-(-width // step) * step for width in variant.branch_widths)
    return replace(variant, branch_widths=widths, enlarged_channels=widths[0])


def with_values(network: EfficientHRNet) -> EfficientHRNet:
    """A network without data, with random weights."""
    network.to_empty(device="cpu")
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
    initialise(network, heads=(network.head_low, network.head_high))
    return network.eval()


def networks(phi: int) -> dict[str, EfficientHRNet]:
    """The paper's and those beside it, by name."""
    variant = Variant.from_phi(phi)
    shuffled = next(m for name, m in deconvolutions(variant).items() if "depth to space" in name)
    found = {
        "paper": meta_network(variant),
        "multiples of 8": meta_network(aligned(variant)),
        "padded to 8": meta_network(padded(variant)),
        "depth to space": shuffled,
    }
    return {name: with_values(network) for name, network in found.items()}


def measure(phi: int, runtime: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """One row per network: processor time of one image, and as a share of the paper's."""
    variant = Variant.from_phi(phi)
    size_hw = (variant.input_size, variant.input_size)
    engines: dict[str, Runtime] = {}
    for name, network in networks(phi).items():
        file = folder / f"{phi} {name}.onnx"
        if not file.exists():
            info = ModelInfo(
                variant=variant.name,
                phi=phi,
                quality="random",
                input_size=variant.input_size,
            )
            export_onnx(network, file, info)
        engines[name] = open_runtime(file, runtime, size_hw, THREADS)
    image = np.random.default_rng(0).integers(0, 256, (1, *size_hw, 3), np.uint8)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 2):
        for name, engine in engines.items():
            start = time.process_time()
            engine(image)
            if turn >= 2:  # the first ones allocate
                times[name].append((time.process_time() - start) * 1e3)
    for engine in engines.values():
        engine.close()
    rows = []
    for name, values in times.items():
        ratios = np.array(values) / np.array(times["paper"])
        low, high = np.percentile(ratios, (25, 75))
        rows.append(
            {
                "network": f"{variant.name} {name}",
                "runtime": f"{runtime} {THREADS}T",
                "input": "{}x{}".format(*size_hw),
                "ms": summary(values)["median_ms"],
                "of the paper's": f"{np.median(ratios):.2f}",
                "middle half": f"{low:.2f} to {high:.2f}",
            }
        )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phi", type=int, nargs="+", default=[-4, -3, -2])
    parser.add_argument("--runtime", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for phi in args.phi:
            for runtime in args.runtime:
                rows += measure(phi, runtime, args.rounds, Path(folder))
    print_table(rows)
    write_json(args.json, "widths", rows)
    about = (
        "Written by `python -m benchmarks.widths`, which says what the networks are. Processor "
        f"time of one image, the median of {args.rounds} turns; each network's is divided by the "
        "paper's of the same turn."
    )
    write_page(args.page, "Other widths on a CPU", about, {"Time of one image": rows})


if __name__ == "__main__":
    main()
