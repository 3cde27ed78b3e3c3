"""A small real model for tests: H-4 with random weights that answer all over the picture."""

from __future__ import annotations

import argparse
from pathlib import Path


def save_random_h4(folder: Path) -> Path:
    """Writes ``h4.safetensors``; fixed seed, heads strong enough for scores around 1."""
    import torch

    from ehrnet_model.network.checkpoint import CheckpointMeta, save_checkpoint
    from ehrnet_model.network.torch_runtime import random_network

    network, info = random_network(-4, seed=7)
    with torch.no_grad():
        for head in (network.head_low, network.head_high):
            head.weight *= 30
    meta = CheckpointMeta(
        variant=info.variant,
        weights_name="test-random",
        quality="random",
        decode={"keypoint_threshold": 0.25},
        licence="none",
    )
    path = folder / "h4.safetensors"
    save_checkpoint(path, network.state_dict(), meta)
    return path


def export_with_command(weights: Path, out: Path | None = None, *options: str) -> Path:
    """Runs ``ehrnet export`` on a checkpoint, without refinement.

    The ONNX file lies beside it, or at ``out``.
    """
    from ehrnet_ros.cli import export

    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    out = out or weights.with_suffix(".onnx")
    words = ["--weights", str(weights), "-o", str(out), "--decode", "refine=0", *options]
    assert export.run(parser.parse_args(words)) == 0
    return out


def draw_pictures(folder: Path) -> Path:
    """Three noisy pictures of dots, and a file that is none; gives the folder."""
    import cv2
    import dots
    import numpy as np

    rng = np.random.default_rng(0)
    for number in range(3):
        people = np.stack([dots.figure((x + 5.5 * number, 240.6), 400) for x in (170.3, 460.8)])
        picture = dots.draw_people((480, 640), people, 90)
        noisy = np.clip(picture + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), noisy)
    (folder / "notes.txt").write_text("not a picture")
    return folder
