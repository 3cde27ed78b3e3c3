"""The mean of several runs' weights, which may be better than each of them.

python tools/average.py A.safetensors B.safetensors ... -o H-3.safetensors [--short-side 192]
    [--side-gain knees=3 ankles=4] [--smooth 1] [--tuned T.json] [--pack P.pack ...]

The runs have to come from one another, or from one beginning, else the mean is of no use (Wortsman
et al., "Model soups", 2022). The weights are as runs end with them, without gains of sides; what
is stored beside them comes from the last. With packs, boxOKS of the people held back is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.tune import tuned_options
from ehrnet_model.inference.runtime import ModelInfo
from ehrnet_model.network.checkpoint import (
    CheckpointMeta,
    load_checkpoint,
    save_checkpoint,
    weights_sha256,
)
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.holdout import box_oks, held_back_people, partly_seen_people
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.sides import check_pairs, widen
from ehrnet_model.variants import VARIANTS
from ehrnet_ros.cli.settings import name_number

HELD_BACK = TrainOptions.holdout


def mean(files: list[Path]) -> tuple[dict[str, torch.Tensor], CheckpointMeta]:
    """The mean of checkpoints' weights, with the last one's description and the names of all.

    Raises:
        EhrnetError: fewer than two, of several variants, or with gains of sides.
    """
    if len(files) < 2:
        raise EhrnetError("a mean takes two files or more.")
    read = [load_checkpoint(file) for file in files]
    last = read[-1][1]
    for file, (_, about) in zip(files, read, strict=True):
        if about.variant != last.variant:
            raise EhrnetError(f"{file} is of {about.variant}, not of {last.variant}.")
        if about.recipe.get("side_gain"):
            raise EhrnetError(f"{file} has gains of sides: give the weights a run ends with.")
    share = 1 / len(read)
    state = {
        key: sum((one[key].double() * share for one, _ in read), torch.zeros(())).to(value.dtype)
        for key, value in read[-1][0].items()
    }
    recipe = {**last.recipe, "mean_of": [about.weights_name for _, about in read]}
    name = f"{last.weights_name}-mean{len(read)}"
    return state, dataclasses.replace(last, weights_name=name, recipe=recipe, metrics={})


def measure(state: dict[str, torch.Tensor], variant: str, files: list[Path]) -> dict[str, Any]:
    """BoxOKS of the people of these packs that training held back."""
    packs = [Pack(file) for file in files]
    network = EfficientHRNet(VARIANTS[variant])
    network.load_state_dict(state)
    network = network.to(memory_format=torch.channels_last).eval()
    values = box_oks(network, held_back_people(packs, HELD_BACK), False)
    partly = box_oks(network, partly_seen_people(packs, HELD_BACK), False)
    return {**values, "partly_seen": partly["box_oks"]}


def main() -> int:
    """0 when the file is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--side-gain", type=name_number, nargs="*", default=[])
    parser.add_argument("--short-side", type=int, default=0)
    parser.add_argument("--smooth", type=float, default=0.0)
    parser.add_argument("--tuned", type=Path)
    parser.add_argument("--pack", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    try:
        gains = dict(args.side_gain)
        check_pairs(gains)
        state, about = mean(args.weights)
        state = widen(state, gains)
        if gains:
            about.recipe["side_gain"] = gains
        decode = about.decode
        if args.tuned is not None:
            info = ModelInfo(
                about.variant, VARIANTS[about.variant].phi, weights_sha256=weights_sha256(state)
            )
            decode = tuned_options(args.tuned, "display", info)
        metrics = {"held_back": measure(state, about.variant, args.pack)} if args.pack else {}
        about = dataclasses.replace(
            about,
            decode=decode,
            metrics=metrics,
            input_size=args.short_side,
            smooth=args.smooth,
        )
        save_checkpoint(args.out, state, about)
    except EhrnetError as error:
        print(f"average: {error}", file=sys.stderr)
        return 2
    print(f"{args.out} ({about.weights_name}, {weights_sha256(state)[:16]}) {metrics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
