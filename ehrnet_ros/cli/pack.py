"""``ehrnet pack``: pictures and annotations into one file for training."""

from __future__ import annotations

import argparse
import sys

from ehrnet_ros.cli.settings import add_pictures, user_path

HELP = "pack pictures and COCO-style keypoint annotations into one file for training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_pictures(parser)
    parser.add_argument(
        "--pseudo", type=user_path, metavar="JSON[.gz]", help="a teacher's labels to fill gaps with"
    )
    parser.add_argument(
        "--pseudo-set", metavar="NAME", help="use only the teacher's images of this set"
    )
    parser.add_argument(
        "--max-side", type=int, default=448, help="reduce longer pictures to this side (448)"
    )
    parser.add_argument(
        "--jpeg",
        type=int,
        default=0,
        metavar="QUALITY",
        help="store pictures as JPEG of this quality (1 to 100): a tenth of the size, for packs "
        "that must be carried; decoded when first used",
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="spread over N packs named FILE-1ofN.pack; training takes them all",
    )
    parser.add_argument(
        "-o", "--out", type=user_path, required=True, metavar="FILE.pack", help="the file to write"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the pack."""
    from tqdm import tqdm

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.training.pack import shard_names, write_pack

    if not 0 <= args.jpeg <= 100 or args.shards < 1 or args.max_side < 64:
        raise EhrnetError(
            "--jpeg is a quality from 1 to 100, --shards at least 1, --max-side at least 64."
        )
    counts = write_pack(
        args.out,
        args.annotations,
        args.images,
        args.pseudo,
        args.pseudo_set,
        args.max_side,
        progress=lambda items: tqdm(items, unit="image", file=sys.stderr, disable=None),
        jpeg=args.jpeg,
        shards=args.shards,
    )
    names = ", ".join(map(str, shard_names(args.out, args.shards)))
    print(f"{names}: {counts['images']} images, {counts['people']} people")
    return 0
