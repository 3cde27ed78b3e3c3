"""One set of weights at several input sizes: H-2 as Intel publishes it, beside H-3 and H-4.

    python -m benchmarks.sizes [--runtime onnxruntime] [--rounds 20] [--page FILE]

Weights are random: time does not depend on them. Networks and sizes take turns, so that what else
the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import print_table, summary, write_json, write_page
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.runtime import ModelInfo
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.network.export import export_onnx
from ehrnet_model.variants import pose_variant

SIZES = {
    "H-2-omz": (224, 288, 352, 448),
    "H-3": (224, 320, 416),
    "H-4": (160, 224, 288, 384),
}
STATED = {("H-2-omz", 288): 0.456, ("H-2-omz", 352): 0.511, ("H-2-omz", 448): 0.543}
"""AP on COCO val2017 as the publisher of the weights states it, one pass; not measured by us."""
THREADS = 1


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    times: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for name in SIZES:
            variant = pose_variant(name)
            info = ModelInfo(
                variant=name, phi=variant.phi, quality="random", input_size=variant.input_size
            )
            file = Path(folder) / f"{name}.onnx"
            engines[name] = open_runtime(
                export_onnx(EfficientHRNet(variant).eval(), file, info),
                args.runtime,
                threads=THREADS,
            )
        rng = np.random.default_rng(0)
        for turn in range(args.rounds + 1):
            for name, sizes in SIZES.items():
                for size in sizes:
                    image = rng.integers(0, 256, (1, size, size, 3), np.uint8)
                    start = time.process_time()
                    engines[name](image)
                    if turn:  # the first ones allocate
                        spent = (time.process_time() - start) * 1e3
                        times.setdefault((name, size), []).append(spent)
    rows: list[dict[str, Any]] = []
    for (name, size), values in times.items():
        found = summary(values)
        rows.append(
            {
                "network": name,
                "input": f"{size}x{size}",
                "GMAC": f"{pose_variant(name).cost((size, size)).macs / 1e9:.2f}",
                "ms": f"{found['median_ms']:.1f}",
                "p95": f"{found['p95_ms']:.1f}",
                "stated AP": STATED.get((name, size), ""),
            }
        )
    rows.sort(key=lambda row: float(row["GMAC"]))
    print_table(rows)
    write_json(args.json, "sizes", rows)
    about = (
        "Written by `python -m benchmarks.sizes`. Processor time of the network for one image, "
        f"{args.runtime} with {THREADS} thread, median and 95th percentile of {args.rounds} turns. "
        "H-2-omz is H-2 with the few differences of the weights that `ehrnet get-weights` brings: "
        "one set of weights for every size. Their AP (COCO val2017, one pass) is what their "
        "publisher states; that of our own H-3 and H-4 is in their cards."
    )
    write_page(args.page, "Input sizes by cost", about, {"By cost": rows})


if __name__ == "__main__":
    main()
