"""``ehrnet plot``: the paper's Fig. 1 and Fig. 3 with our models."""

from __future__ import annotations

import argparse
import contextlib

from ehrnet_ros.cli.settings import user_path

HELP = "draw accuracy against cost (paper Fig. 1) or pictures by variants (Fig. 3)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the figures and their options."""
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)
    accuracy = figures.add_parser("accuracy", help="AP against MACs: the paper's rows and ours")
    accuracy.add_argument(
        "measures",
        type=user_path,
        nargs="*",
        metavar="JSON",
        help="written by `ehrnet evaluate --json`, or the .evaluations.json beside a model",
    )
    sheet = figures.add_parser("sheet", help="pictures (rows) through models (columns)")
    sheet.add_argument(
        "pictures",
        type=user_path,
        nargs="+",
        metavar="IMAGE",
        help="JPEG, PNG or the like, a row each",
    )
    sheet.add_argument(
        "--model",
        type=user_path,
        nargs="+",
        metavar="FILE",
        help=".onnx, .engine or .safetensors; default: the models on this machine, largest first",
    )
    for figure in (accuracy, sheet):
        figure.add_argument(
            "-o", "--out", type=user_path, required=True, metavar="FILE", help=".png, .pdf or .svg"
        )


def run(args: argparse.Namespace) -> int:
    """Draws and writes one figure."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation import plot
    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.models import available_models
    from ehrnet_model.picture import read_picture

    plot.check_target(args.out)
    if args.figure == "accuracy":
        figure = plot.accuracy_figure(
            [row for path in args.measures for row in plot.read_measures(path)]
        )
    else:
        models = args.model or list(available_models().values())
        if not models:
            raise EhrnetError("there is no model on this machine to draw with: give --model FILE.")
        pictures = [read_picture(path) for path in args.pictures]
        with contextlib.ExitStack() as stack:
            estimators = []
            for model in models:
                engine = "torch" if model.suffix == ".safetensors" else "auto"
                estimators.append(PoseEstimator.open(model, engine))
                stack.callback(estimators[-1].close)
            figure = plot.sheet_figure(pictures, estimators)
    plot.save_figure(figure, args.out)
    print(args.out)
    return 0
