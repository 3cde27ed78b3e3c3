"""``ehrnet evaluate``: COCO keypoint accuracy of a model."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List

from ehrnet_ros.cli.settings import add_decode, add_pictures, user_path

HELP = "measure COCO keypoint AP and AR of a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    add_pictures(parser)
    parser.add_argument("--phi", type=int, default=-4, help="which shipped model (default -4)")
    parser.add_argument(
        "--model", type=user_path, metavar="FILE", help=".onnx, .engine or .safetensors instead"
    )
    parser.add_argument("--runtime", default="auto", help="engine (default auto)")
    parser.add_argument(
        "--size",
        default="best",
        help="input: best (aspect with least border; default), a number (the same with this short "
        "side), square, 4:3, 16:9, HxW, or paper (the whole picture, sides rounded up to 64)",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="look at each image mirrored as well, as published figures do (weights only)",
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="several passes at these relative sizes, for example 0.5 1 1.5 (weights only)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    add_decode(parser)
    parser.add_argument(
        "--tuned",
        type=user_path,
        metavar="JSON",
        help="take the options for AP that `ehrnet tune --json` wrote for this model",
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the measures here")
    parser.add_argument("--results", type=user_path, metavar="FILE", help="write COCO results here")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints a table."""
    from tqdm import tqdm

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation.coco import load_annotations
    from ehrnet_model.evaluation.measure import Settings, evaluate
    from ehrnet_model.evaluation.pictures import ImageFiles
    from ehrnet_model.evaluation.tune import tuned_options
    from ehrnet_model.inference.atomic import check_target, save_json
    from ehrnet_model.inference.decode import DecodeOptions, typed_options
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.opening import open_runtime
    from ehrnet_model.inference.runtime import Runtime
    from ehrnet_model.inference.second_look import open_closer

    settings = Settings(args.size, args.flip, tuple(args.scales))
    if args.limit is not None and args.limit < 1:
        raise EhrnetError(f"--limit {args.limit} leaves no image: give 1 or more.")
    for target in (args.json, args.results):
        if target is not None:
            check_target(target)
    annotations = load_annotations(args.annotations, truth=True)
    files = ImageFiles(args.images)
    model = find_model(args.phi, None if args.model is None else str(args.model))
    runtime_name = args.runtime
    if runtime_name == "auto" and model.suffix == ".safetensors":
        runtime_name = "torch"
    runtime: Runtime
    if not settings.single and runtime_name == "torch":
        from ehrnet_model.network.passes import PassesRuntime

        runtime = PassesRuntime.from_file(model)
    else:
        runtime = open_runtime(model, runtime_name)
    closer = None
    try:
        stored = runtime.info.decode
        if args.tuned is not None:
            stored = tuned_options(args.tuned, "ap", runtime.info)
        options = DecodeOptions.from_dict({**stored, **typed_options(args.decode)})
        closer = open_closer(model, runtime, options, insist=True)
        measures, results = evaluate(
            runtime,
            options,
            annotations,
            files,
            settings,
            args.limit,
            closer,
            lambda items: tqdm(items, unit="image", file=sys.stderr, disable=None),
        )
    finally:
        runtime.close()
        if closer is not None and closer is not runtime:
            closer.close()
    print("\n".join(report(measures)), flush=True)
    if args.json is not None:
        save_json(args.json, measures)
    if args.results is not None:
        save_json(args.results, results)
    return 0


def report(measures: Dict[str, Any]) -> List[str]:
    """Lines of text: one row with its settings, then the breakdowns."""
    from ehrnet_model.evaluation.coco import NAMES

    def share(value: Any) -> str:
        return "  -  " if value is None else f"{value:.3f}"

    def span(row: Dict[str, Any]) -> str:
        low, high = row["from"], row["to"]
        if high is None:
            return f"{low:g} and more"
        return f"{low:g}" if high == low else f"{low:g} to {high:g}"

    lines = [
        f"{measures['variant']} ({measures['weights'] or 'unnamed'}, {measures['quality']} weights)"
        f" on {measures['images']} images, {measures['runtime']}",
        "",
        "".join(f"{name:>6s} " for name in NAMES) + "  size      mirror scales      GMACs      ms",
        "".join(f"{share(measures[name]):>6s} " for name in NAMES)
        + f"  {measures['size']:9s} {'yes' if measures['mirror'] else 'no':6s} "
        + f"{' '.join(f'{s:g}' for s in measures['scales']):9s}"
        + f"{measures['gmacs']:8.2f} {measures['median_ms']:7.1f}",
        "",
    ]
    for row in measures["by_height"]:
        where = f"people {span(row)} pixels high"
        lines.append(f"AP {share(row['AP'])}  {where} ({row['people']} people)")
    for row in measures["by_people"]:
        where = f"images with {span(row)} people"
        lines.append(f"AP {share(row['AP'])}  {where} ({row['images']} images)")
    names = [name for name in measures if name.startswith("PCK")]
    lines.append(", ".join(f"{name} {measures[name]:.3f}" for name in names))
    least = measures["decode"]["min_keypoint_score"]
    lines.append(
        f"of the keypoints with a score from {least:g} on {share(measures['keypoint_precision'])} "
        f"are right, and of the labelled ones {share(measures['keypoint_recall'])} are there: "
        f"F1 {share(measures['keypoint_f1'])}"
    )
    for row in measures["by_score"]:
        where = f"keypoints with a score of {span(row)} ({row['keypoints']} of them)"
        lines.append(f"{share(row['right'])} right of the {where}")
    if measures["std_fit"] is not None:
        lines.append(f"errors of right keypoints are {measures['std_fit']:.2f} times their std")
    stray = measures["false_positives_per_person_free_image"]
    if stray is not None:
        count = measures["person_free_images"]
        lines.append(f"{stray:.2f} people found per person-free image ({count} of them)")
    if measures["second_looks_per_image"]:
        again = measures["second_looks_per_image"]
        lines.append(f"{again:.1f} people per image were looked at again, in GMACs and ms, too")
    lines.append("ms: median per image, letterbox to poses; GMACs: mean of all its passes")
    return lines
