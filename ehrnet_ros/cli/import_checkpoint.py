"""``ehrnet import-checkpoint``: weights of the published code into a file of ours."""

from __future__ import annotations

import argparse
import os
import sys

from ehrnet_ros.start import ends_at_once

HELP = "convert published weights (PyTorch) into a checkpoint of ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this verb."""
    parser.add_argument("file", metavar="FILE", help="PyTorch file; opened without running code")
    parser.add_argument(
        "--variant", help="H0 .. H-4, or B0 .. B-4 for a classifier; recognised when left out"
    )
    parser.add_argument("-o", "--out", required=True, help="target, OUT.safetensors")
    parser.add_argument(
        "--replace", action="store_true", help="write over another file of that name"
    )
    parser.add_argument("--licence", default="", help="licence of the weights, stored with them")


def run(args: argparse.Namespace) -> int:
    """Convert. Raises EhrnetError for a file that does not fit; nothing is written then."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.atomic import check_source, check_target

    # Before PyTorch is imported, which takes a while.
    check_source(args.file)
    check_target(args.out)
    if os.path.exists(args.out) and os.path.samefile(args.file, args.out):
        raise EhrnetError(
            f"{args.out} is the file to convert, and is not written over: give another one with -o."
        )
    if os.path.lexists(args.out) and not args.replace:
        raise EhrnetError(
            f"there is another file {args.out}: say --replace to write over it, or give another "
            "file with -o."
        )
    with ends_at_once():
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
