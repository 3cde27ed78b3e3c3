"""``ehrnet benchmark``: speed, power and efficiency of the models on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Iterator, List, Optional

from ehrnet_ros.cli.settings import user_path

HELP = "measure speed and power of models on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument("--phi", type=int, nargs="+", help="which models (default -4)")
    parser.add_argument("--model", type=user_path, metavar="FILE", help="an .onnx file instead")
    parser.add_argument(
        "--runtime",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="what computes (default auto)",
    )
    parser.add_argument("--size", nargs="+", default=["4:3"], help="inputs (default 4:3)")
    parser.add_argument(
        "--all", action="store_true", help="every model, precision, size and runtime that is here"
    )
    parser.add_argument("--image", type=user_path, help="the picture to run on (default: noise)")
    parser.add_argument("--frames", type=int, default=50, help="images per row (default 50)")
    parser.add_argument("--threads", type=int, help="of CPU runtimes (default: as the node)")
    parser.add_argument(
        "--evaluation",
        type=user_path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="results of `ehrnet evaluate --json`, for AP and Æ, before those the model came with",
    )
    parser.add_argument(
        "--json",
        type=user_path,
        metavar="FILE",
        help="write only these rows, here, instead of adding them to those that phi:=auto looks at",
    )


def run(args: argparse.Namespace, builder: Optional[Any] = None) -> int:
    """Measures row by row, keeps each at once and prints the table; 1 without any row.

    TensorRT's engines are built where there are none; ``builder`` replaces TensorRT's.
    """
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation import benchmark
    from ehrnet_model.inference.atomic import check_target
    from ehrnet_model.variants import Variant

    path = args.json or benchmark.result_file()
    check_target(path, made=args.json is None)
    if args.model is not None and args.phi is not None:
        raise EhrnetError(f"--phi and --model {args.model} name two models: leave one of them out.")
    args.phi = [-4] if args.phi is None else args.phi
    for phi in args.phi:
        Variant.from_phi(phi)  # one that does not exist is wrong use
    before = [] if args.json else benchmark.read_result(path)
    rows: List[Any] = []
    try:
        for row in _rows(args, builder):
            rows.append(row)
            benchmark.write_result(path, rows, before)
            if len(rows) == 1:
                print(f"every row is written to {path} at once", file=sys.stderr)
    finally:  # also after Ctrl-C
        if rows:
            print(benchmark.table(rows))
    return 0 if rows else 1


def _rows(args: argparse.Namespace, builder: Optional[Any]) -> Iterator[Any]:
    """The rows that were asked for, each when it is measured; trained weights come first."""
    import tempfile

    import numpy as np

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation import benchmark
    from ehrnet_model.inference.models import available_models
    from ehrnet_model.inference.runtime import default_threads, model_info
    from ehrnet_model.inference.sizes import NAMED_SIZES, parse_size
    from ehrnet_model.picture import read_picture
    from ehrnet_model.variants import VARIANTS
    from ehrnet_ros.cli.build_engine import engines_of, to_terminal

    if args.image is None:
        image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    else:
        image = read_picture(args.image)
    phis = [variant.phi for variant in VARIANTS.values()] if args.all else args.phi
    phis = sorted(phis, key=lambda phi: phi not in available_models())
    runtimes = benchmark.installed_runtimes() if args.all else args.runtime
    sizes = NAMED_SIZES if args.all else args.size
    threads = default_threads() if args.threads is None else args.threads
    on_tensorrt = {"auto", "tensorrt"}
    if builder is None and on_tensorrt & set(runtimes):
        builder = _tensorrt_builder()
    with tempfile.TemporaryDirectory() as folder:
        for phi in phis if args.model is None else [None]:
            try:
                model = args.model if phi is None else _model(phi, Path(folder))
            except EhrnetError as error:
                print(error, file=sys.stderr)
                continue
            for file in benchmark.model_files(model) if args.all else [model]:
                for runtime in runtimes:
                    for size in sizes:
                        info, shipped = model_info(file), benchmark.shipped_evaluation(file)
                        ap = benchmark.known_ap([*args.evaluation, *shipped], info, size)
                        unfit = benchmark.why_none_fits(args.evaluation, info, size)
                        if unfit:
                            print(f"{file.name} {size}: {unfit}", file=sys.stderr)
                        print(f"{file.name} {runtime} {size} ...", file=sys.stderr)
                        try:
                            if builder and runtime in on_tensorrt and file.suffix == ".onnx":
                                size_hw = parse_size(size, info.input_size)
                                engines_of(file, size_hw, builder, progress=to_terminal())
                            row = benchmark.measure(
                                file, runtime, size, threads, image, args.frames, ap
                            )
                        except EhrnetError as error:
                            if not args.all:
                                raise
                            print(error, file=sys.stderr)
                            continue
                        yield row


def _tensorrt_builder() -> Optional[Any]:
    """What builds engines here; None where TensorRT is not to be had."""
    from ehrnet_model.inference.tensorrt_builder import TensorRTBuilder
    from ehrnet_model.inference.tensorrt_runtime import why_unavailable

    return TensorRTBuilder() if why_unavailable() is None else None


def _model(phi: int, folder: Path) -> Path:
    """The model of this machine; without one, untrained weights of the same speed."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.variants import Variant

    try:
        return find_model(phi)
    except EhrnetError as error:
        try:
            from ehrnet_model.network.export import timing_model
        except ImportError:  # no PyTorch, as on a robot
            raise error from None
        print(
            f"there are no weights of {Variant.from_phi(phi).name} here: an untrained model is "
            "made for timing, which takes minutes ...",
            file=sys.stderr,
        )
        return timing_model(phi, folder)
