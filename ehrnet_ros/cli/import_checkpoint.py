"""``ehrnet import-checkpoint``: weights of the published code into a file of ours."""

from __future__ import annotations

import argparse
import sys

HELP = "convert published weights (PyTorch) into a checkpoint of ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this verb."""
    parser.add_argument("file", metavar="FILE", help="PyTorch file; opened without running code")
    parser.add_argument(
        "--variant", help="H0 .. H-4, or B0 .. B-4 for a classifier; recognised when left out"
    )
    parser.add_argument("-o", "--out", required=True, help="target, OUT.safetensors")
    parser.add_argument("--licence", default="", help="licence of the weights, stored with them")


def run(args: argparse.Namespace) -> int:
    """Convert. Raises EhrnetError for a file that does not fit; nothing is written then."""
    from ehrnet_model.network.checkpoint import import_checkpoint

    meta = import_checkpoint(args.file, args.variant, args.out, args.licence)
    print(f"variant {meta.variant}, licence: {meta.licence}", file=sys.stderr)
    if meta.skeleton:
        print(
            f"next: ehrnet export --phi {meta.phi} --weights {args.out} -o {meta.variant}.onnx",
            file=sys.stderr,
        )
    print(args.out)
    return 0
