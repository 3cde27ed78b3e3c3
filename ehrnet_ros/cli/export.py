"""ehrnet export: weights in, one ONNX file out, proved to be the same network."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from ehrnet_ros.cli.settings import add_decode, user_path
from ehrnet_ros.start import ends_at_once

HELP = "write a model as ONNX, the file every runtime reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument(
        "--phi",
        type=int,
        help="compound coefficient, 0 (H0) to -4 (H-4); with --weights it must be theirs",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", type=user_path, metavar="FILE", help="checkpoint to export (.safetensors)"
    )
    source.add_argument(
        "--random",
        action="store_true",
        help="untrained weights, for tests and timing: such a model finds nobody",
    )
    parser.add_argument(
        "-o", "--out", type=user_path, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="what the network computes in; int8 needs --images (default fp32)",
    )
    add_decode(parser, "to store instead of the weights' own")
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="of the named input sizes, to store instead of the weights' own: multiple of 32",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        metavar="CELLS",
        help="smooth heatmaps by a Gaussian of so many cells at half the input size before peaks "
        "are looked for, instead of the weights' own; 0: not",
    )
    parser.add_argument(
        "--images",
        type=user_path,
        metavar="DIR",
        help="pictures with people: the first ones become the inputs that engines are checked "
        "with; int8 is calibrated on them",
    )
    parser.add_argument(
        "--tuned",
        type=user_path,
        metavar="JSON",
        help="take the options for use and the scores that `ehrnet tune --json` wrote",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        default=[],
        metavar="HxW",
        help="more input sizes to check engines of, beside square, 4:3, 16:9 and that of second "
        "looks",
    )


def run(args: argparse.Namespace) -> int:
    """Exports; 0 when the file was written and agrees with PyTorch."""
    from dataclasses import replace

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.atomic import check_target
    from ehrnet_model.inference.decode import typed_options
    from ehrnet_model.inference.models import user_folder
    from ehrnet_model.inference.runtime import STRIDE
    from ehrnet_model.inference.sizes import NAMED_SIZES, parse_size
    from ehrnet_model.variants import Variant

    decode = typed_options(args.decode)
    name = "" if args.phi is None else Variant.from_phi(args.phi).name
    if args.out.suffix != ".onnx":
        raise EhrnetError(f"{args.out} should end in .onnx: that is what is written.")
    made = not os.path.isdir(args.out.parent) and args.out.parent == user_folder()
    check_target(args.out, made)
    if args.short_side is not None:
        parse_size("square", args.short_side)
    for size in args.size:  # what an aspect is in pixels may depend on the weights
        parse_size(size, args.short_side or STRIDE)
    if args.weights is None and not args.random:
        raise EhrnetError(
            "nothing to export: give --weights FILE (a checkpoint made by `ehrnet train` or "
            "`ehrnet import-checkpoint`), or --random for untrained weights to test or time with."
        )
    if args.random and not name:
        raise EhrnetError("random weights of which size? Give --phi, 0 to -4.")
    if args.precision == "int8" and args.images is None:
        raise EhrnetError(
            "INT8 needs pictures to measure ranges on: give --images with a folder of pictures of "
            "people."
        )
    with ends_at_once():
        from ehrnet_model.evaluation.tune import tuned_options
        from ehrnet_model.inference.decode import DecodeOptions
        from ehrnet_model.inference.runtime import MAX_SMOOTH
        from ehrnet_model.network.export import STORED_INPUTS, export_onnx
        from ehrnet_model.network.pictures import read_pictures
        from ehrnet_model.network.precision import CALIBRATION_PICTURES
        from ehrnet_model.network.torch_runtime import load_weights, random_network

    if args.random:
        network, info = random_network(args.phi)
    else:
        network, info = load_weights(args.weights)
        if name and info.phi != args.phi:
            raise EhrnetError(
                f"{args.weights} holds weights of {info.variant}, not of {name}: leave --phi out "
                f"or give --phi {info.phi}."
            )
    count = CALIBRATION_PICTURES if args.precision == "int8" else STORED_INPUTS
    stored = info.decode
    if args.tuned is not None:
        stored = tuned_options(args.tuned, "display", info)
    info = replace(info, decode={**stored, **decode})
    DecodeOptions.from_dict(info.decode)  # what no program would open is not written
    if args.short_side is not None:
        info = replace(info, input_size=args.short_side)
    if args.smooth is not None:
        if not 0 <= args.smooth <= MAX_SMOOTH:
            raise EhrnetError(f"--smooth is a number of cells from 0 to {MAX_SMOOTH:g}.")
        info = replace(info, smooth=args.smooth)
    # Where models are looked for is made, since nobody else does; other folders have to be there.
    with contextlib.suppress(EhrnetError, OSError):
        if args.out.parent == user_folder():
            args.out.parent.mkdir(parents=True, exist_ok=True)
    pictures = [] if args.images is None else read_pictures(args.images, count)
    print(f"exporting {info.variant} ({info.weights_name})", file=sys.stderr)
    sizes = (*NAMED_SIZES, *args.size)
    path = export_onnx(
        network,
        args.out,
        info,
        pictures,
        sizes,
        args.precision,
        lambda stage: print(f"{stage} ...", file=sys.stderr),
    )
    print(
        f"{path} ({path.stat().st_size / 1e6:.1f} MB, {info.variant}, {args.precision}, "
        f"{info.quality} weights)"
    )
    return 0
