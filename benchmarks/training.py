"""Images per second of training, and whether the making of windows or the network limits it.

    python -m benchmarks.training [--json FILE] [--phi -4] [--device auto] [--window 128:8 256:8]
                                  [--windows-on host device] [--echo 1] [--workers -1]
                                  [--pack FILE ...]

Each row is a real run of some steps in a fresh folder, and its stages alone. Speed depends neither
on the weights' values nor on whose pictures they are: without --pack the pictures are made up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import machine, print_table, write_json
from ehrnet_model.training.batches import collate
from ehrnet_model.training.echo import change
from ehrnet_model.training.hardware import Hardware, keep_memory
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pack import write_pack
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.trainer import Trainer

WARM_UP = 3


def made_up_pack(folder: Path, pictures: int = 64, people: int = 3) -> Path:
    """A pack of smooth noise, 448x336, with people of 17 keypoints at random places."""
    import cv2

    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(pictures):
        coarse = rng.integers(0, 256, (43, 57, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(coarse, (448, 336)))
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 336, "width": 448})
        for _ in range(people):
            side = rng.uniform(80, 250)
            low = rng.uniform(0, np.array([448, 336]) - side)
            xy = low + rng.random((17, 2)) * side
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": i,
                    "bbox": [*low.tolist(), side, side],
                    "keypoints": np.column_stack([xy, np.full(17, 2)]).ravel().tolist(),
                }
            )
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    write_pack(folder / "a.pack", folder / "a.json", [folder])
    return folder / "a.pack"


def milliseconds(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """Median time of some work, the device's included."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - start) * 1e3)
    return float(np.median(found[1:]))


def measure(options: TrainOptions, hardware: Hardware, folder: Path, steps: int) -> dict[str, Any]:
    """One row: a run of some steps, and its stages alone."""
    trainer = Trainer(options, folder, hardware=hardware)
    if trainer.device.type == "cuda":
        trainer.record()
    device, (side, count, _) = trainer.device, options.windows[0]
    if device.type == "cpu":
        keep_memory()  # as the command does
    sample, sampler, painter = options.sample, trainer.sampler, trainer.painter
    plans = [sampler.plan(i, side, sample) for i in range(count)]
    times = max(3, min(10, steps))
    plan = milliseconds(
        lambda: [sampler.plan(i, side, sample) for i in range(count)], torch.device("cpu"), times
    )
    anew = 0.0
    if painter is None:
        gather = 0.0
        draw = milliseconds(
            lambda: collate([sampler.sample(i, side, sample) for i in range(count)]), device, times
        )
        draw -= plan
    else:
        gather = milliseconds(lambda: painter.gather(plans), torch.device("cpu"), times)
        whole, rng = painter.gather(plans), np.random.default_rng(0)
        if options.echo > 1:
            anew = milliseconds(lambda: change(whole, sample, rng), torch.device("cpu"), times)
        gathered = whole.to(device)
        draw = milliseconds(lambda: painter(gathered), device, times)
    batches = trainer.batches()
    for _ in range(WARM_UP):
        batch = next(batches)
        trainer.train_step(batch)
    step = milliseconds(lambda: trainer.train_step(batch), device, times)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        trainer.train_step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    total = time.perf_counter() - start
    batches.close()
    # A GPU draws when it comes to it, not when it is asked: nobody is seen waiting.
    share = waited / total if painter is None else max(waited, steps * draw / 1e3) / total
    return {
        "model": trainer.network.variant.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "window": f"{side}:{count}",
        "windows on": "host" if painter is None else "device",
        "echo": options.echo,
        "workers": trainer.workers,
        "plan ms": round(plan, 1),
        "gather ms": round(gather, 1),
        "change ms": round(anew, 1),
        "draw ms": round(draw, 1),
        "learn ms": round(step, 1),
        "images/s": round(steps * count / total, 1),
        "for windows": f"{share:.1%}",
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phi", type=int, default=-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--window", nargs="+", default=["128:8"], metavar="SIDE:BATCH")
    parser.add_argument("--windows-on", nargs="+", default=["host", "device"])
    parser.add_argument("--echo", type=int, nargs="+", default=[1], help="above 1 on the device")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--pack", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packs = args.pack or [made_up_pack(folder)]
        for window in args.window:
            side, count = map(int, window.split(":"))
            for where, echo in itertools.product(args.windows_on, args.echo):
                if echo > 1 and where != "device":
                    continue
                options = TrainOptions(
                    phi=args.phi,
                    packs=tuple((str(pack), 1.0) for pack in packs),
                    windows=((side, count, 1.0),),
                    echo=echo,
                    steps=10**9,
                    holdout=0.0,
                    bf16=not args.fp32,
                    sample=SampleOptions(),
                )
                hardware = Hardware(args.device, where, args.workers)
                run = folder / f"{window}-{where}-{echo}"
                rows.append(measure(options, hardware, run, args.steps))
    print(
        f"{machine()}\nPyTorch {torch.__version__}, {torch.get_num_threads()} threads; "
        "milliseconds per batch (median), plan, gather and change of one core; 'for windows': "
        "share of the run that made or awaited windows\n"
    )
    print_table(rows)
    write_json(args.json, "training", rows)


if __name__ == "__main__":
    main()
