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
        decode={"min_score": 0.25},
        licence="none",
    )
    path = folder / "h4.safetensors"
    save_checkpoint(path, network.state_dict(), meta)
    return path


def export_with_command(weights: Path) -> Path:
    """Runs ``ehrnet export`` on a checkpoint, without refinement; the file lies beside it."""
    from ehrnet_ros.cli import export

    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    out = weights.with_suffix(".onnx")
    words = ["--weights", str(weights), "-o", str(out), "--decode", "refine=0"]
    assert export.run(parser.parse_args(words)) == 0
    return out
