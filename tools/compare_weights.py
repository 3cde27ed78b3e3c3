"""Which of several weights is best on the images that training held back.

python tools/compare_weights.py A.safetensors B.safetensors ... --pack P.pack[:WEIGHT] ...

Prints the loss on the same windows for each and, with its standard error, how far it is from the
first one's (below 0: better), then boxOKS. Give the packs that they were trained on, with the same
weights. Gains of sides are taken out before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.network.checkpoint import load_checkpoint
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.hardware import has_bfloat16
from ehrnet_model.training.holdout import PARTS, HeldBackWindows, box_oks, held_back_people
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.sides import widen
from ehrnet_model.variants import VARIANTS
from ehrnet_ros.cli.train import weighted_pack

HELD_BACK = TrainOptions.holdout


def network_of(file: Path) -> EfficientHRNet:
    """With the weights of a checkpoint, as training ended with them, for use."""
    state, about = load_checkpoint(file)
    gains = about.recipe.get("side_gain", {})
    network = EfficientHRNet(VARIANTS[about.variant])
    network.load_state_dict(widen(state, {pair: 1 / gain for pair, gain in gains.items()}))
    return network.to(memory_format=torch.channels_last).eval()


def main() -> int:
    """0 when all were measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--pack", type=weighted_pack, nargs="+", required=True)
    args = parser.parse_args()
    try:
        packs = [(Pack(Path(file)), weight) for file, weight in args.pack]
        windows = HeldBackWindows(packs, HELD_BACK)
        if not windows.num_people:
            raise EhrnetError("the packs hold nobody whom training held back.")
        people = held_back_people([pack for pack, _ in packs], HELD_BACK)
        bf16 = has_bfloat16(torch.device("cpu"))
        first = None
        for file in args.weights:
            network = network_of(file)
            losses = windows.losses(network, bf16)
            first = losses if first is None else first
            apart = losses[:, 0] - first[:, 0]
            means = " ".join(f"{name} {v:.4f}" for name, v in zip(PARTS, losses.mean(0)))
            error = apart.std(ddof=1) / np.sqrt(len(apart))
            oks = f" boxOKS {box_oks(network, people, bf16)['box_oks']:.4f}" if people else ""
            print(f"{file}: {means}{oks}; {apart.mean():+.4f} +- {error:.4f}", flush=True)
    except EhrnetError as error:
        print(f"compare_weights: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
