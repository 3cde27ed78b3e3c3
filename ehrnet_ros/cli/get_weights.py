"""ehrnet get-weights: published weights, fetched, checked and made into a model the node finds."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Callable, Tuple

from ehrnet_ros.cli.packages import lacking, too_old
from ehrnet_ros.cli.settings import user_path
from ehrnet_ros.start import ends_at_once

HELP = "fetch published weights that everybody may use, and make a model of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument("--phi", type=int, default=-2, help="which variant (default: -2, H-2)")
    parser.add_argument(
        "--from",
        dest="files",
        type=user_path,
        nargs="+",
        metavar="FILE",
        help="take these published files (.xml and .bin) instead of fetching them",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=user_path,
        metavar="FILE",
        help="the .onnx file (default: where nodes look)",
    )
    parser.add_argument(
        "--replace", action="store_true", help="write over another model of that name"
    )


def run(args: argparse.Namespace) -> int:
    """Brings the model; 0 when it is there, also when it was before."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.atomic import check_target
    from ehrnet_model.inference.models import user_folder
    from ehrnet_model.published import cache_folder, published, recognise
    from ehrnet_model.variants import Variant

    variant = Variant.from_phi(args.phi)
    what = published(args.phi)
    out = args.out or user_folder() / f"{variant.name}.onnx"
    if out.suffix != ".onnx":
        raise EhrnetError(f"{out} should end in .onnx: that is what is written.")
    if not args.replace and _is_there(out, what):
        print(out)
        return 0
    check_target(out, made=True)
    packages = ("torch", "safetensors", "onnx", "onnxruntime", "tqdm")
    making = "making a model of published weights"
    lack = too_old(making) or lacking(making, packages, "export")
    if lack:
        raise EhrnetError(
            f"{lack}; or run this on a machine that has them, and bring {out.name} to {out.parent}."
        )
    print(f"{what.source}; licence {what.licence}", file=sys.stderr)
    if args.files:
        graph, weights = recognise(args.files, what)
    else:
        graph, weights = _fetch(what, cache_folder())
    with ends_at_once():
        from ehrnet_model.network.omz import install

    print("making a model of it, checking it ...", file=sys.stderr)
    info = install(graph, weights, out, {"source": what.source, "sha384": what.weights.sha384})
    if not args.files:
        for path in (graph, weights):
            path.unlink()
    print(f"{info.variant}, input {info.input_size}, {info.extra['licence']}", file=sys.stderr)
    print(out)
    return 0


def _is_there(out: Path, what: Any) -> bool:
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.runtime import model_info

    for path in (out, out.with_suffix(".safetensors")):
        if os.path.exists(path) and not os.path.isfile(path):
            raise EhrnetError(f"{path} is not a file: remove it, or give another one with -o.")
    if not os.path.exists(out):
        beside = out.with_suffix(".safetensors")
        if os.path.exists(beside):
            raise EhrnetError(
                f"there are weights {beside} without the model {out.name}: say --replace to write "
                "over them, or give another file with -o."
            )
        return False
    try:
        info = model_info(out)
        recipe = info.extra.get("recipe") or {}
        if recipe.get("sha384") == what.weights.sha384:
            return True
        name = f"{info.variant} {info.weights_name}"
    except EhrnetError:
        name = "not readable"
    raise EhrnetError(
        f"there is another model {out} ({name}): say --replace to write over it, or give another "
        "file with -o."
    )


def _fetch(what: Any, folder: Path) -> Tuple[Path, Path]:
    """Downloads graph and weights with one bar."""
    from tqdm import tqdm

    from ehrnet_model.download import NoConnection, download
    from ehrnet_model.published import how_to_bring

    paths = []
    total = sum(file.size for file in what.files)
    before = 0
    with tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:

        def progress(start: int) -> Callable[[int], None]:
            def show(done: int) -> None:
                bar.n = start + done
                bar.refresh() if done == total else bar.update(0)

            return show

        for file in what.files:
            bar.set_description(file.name)
            try:
                paths.append(download(file, folder, progress(before)))
            except NoConnection as error:
                raise how_to_bring(error, what) from None
            before += file.size
    return paths[0], paths[1]
