"""``ehrnet evaluate``: COCO keypoint accuracy of a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Tuple

HELP = "measure COCO keypoint AP and AR of a model"


def _option(text: str) -> Tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        if sign:
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("write NAME=NUMBER, for example keypoint_threshold=0.2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON[.gz]", help="COCO keypoint file"
    )
    parser.add_argument("--images", type=Path, required=True, nargs="+", metavar="DIR_OR_ZIP")
    parser.add_argument("--phi", type=int, default=-4, help="which shipped model (default -4)")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help=".onnx, .engine or .safetensors instead"
    )
    parser.add_argument("--runtime", default="auto", help="engine (default auto)")
    parser.add_argument(
        "--size",
        default="best",
        help="input: best (aspect with least border; default), a number (the same with this short "
        "side), square, 4:3, 16:9 or HxW",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--decode",
        type=_option,
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="decode options other than the model's own",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measures here")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write COCO results here")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints a table."""
    import json

    from tqdm import tqdm

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation.coco import NAMES, evaluate, load_annotations, typed_options
    from ehrnet_model.evaluation.pictures import ImageFiles
    from ehrnet_model.inference.decode import DecodeOptions
    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.runtime import open_runtime

    annotations = load_annotations(args.annotations)
    model = find_model(args.phi, None if args.model is None else str(args.model))
    runtime_name = args.runtime
    if runtime_name == "auto" and model.suffix == ".safetensors":
        runtime_name = "torch"
    runtime = open_runtime(model, runtime_name)
    options = DecodeOptions.from_dict({**runtime.info.decode, **typed_options(args.decode)})
    estimator = PoseEstimator(runtime, options)
    try:
        measures, results = evaluate(
            estimator,
            annotations,
            ImageFiles(args.images),
            args.size,
            args.limit,
            lambda items: tqdm(items, unit="image", file=sys.stderr),
        )
    finally:
        runtime.close()
    measures["variant"] = runtime.info.variant
    measures["weights"] = runtime.info.weights_name
    measures["weights_sha256"] = runtime.info.weights_sha256
    measures["quality"] = runtime.info.quality
    measures["precision"] = runtime.info.precision
    try:
        if args.json is not None:
            args.json.write_text(json.dumps(measures, indent=1) + "\n")
        if args.results is not None:
            args.results.write_text(json.dumps(results))
    except OSError as error:
        raise EhrnetError(f"the measures could not be written: {error}.") from None
    print(
        f"{runtime.info.variant} ({runtime.info.weights_name}, {runtime.info.quality}) on "
        f"{measures['images']} images, size {measures['size']}, no mirror, {runtime.name}"
    )
    for name in NAMES:
        print(f"{name:6s} {measures[name]:.3f}")
    stray = measures["false_positives_per_person_free_image"]
    if stray is not None:
        print(
            f"people found in {measures['person_free_images']} person-free images: {stray:.2f} each"
        )
    print(f"{measures['median_ms']:.1f} ms per image (median, letterbox to poses)")
    return 0
