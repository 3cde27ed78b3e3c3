"""``ehrnet build-engine``: the TensorRT engine of a model, for this machine's GPU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, List, Optional, Tuple

from ehrnet_ros.cli.settings import user_path

HELP = "build a model's TensorRT engine on this machine, and check its answers"
# What most cameras give.
_USUAL_SIZE = "4:3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    parser.add_argument("--phi", type=int, default=-4, help="which model (default -4)")
    parser.add_argument("--model", metavar="FILE", help="an .onnx file instead")
    parser.add_argument(
        "--size",
        default="auto",
        help="input: square, 4:3, 16:9 or HxW; auto (default): any engine of the model that is "
        f"there, else {_USUAL_SIZE}. A model that looks twice gets an engine for that, too",
    )
    parser.add_argument("--batch", type=int, default=1, help="most images per call (default 1)")
    parser.add_argument(
        "--engines", type=user_path, metavar="DIR", help="where engines lie (default: user's cache)"
    )
    parser.add_argument(
        "--if-missing", action="store_true", help="keep an engine that is valid and loads"
    )
    parser.add_argument(
        "--diagnostics", action="store_true", help="tell /diagnostics how far it is (needs ROS)"
    )


def run(args: argparse.Namespace, builder: Optional[Any] = None) -> int:
    """Builds; 0 when the engine is there and right. ``builder`` replaces TensorRT's."""
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.inference.engine import check_batch, find_engine, is_closer
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.runtime import model_info
    from ehrnet_model.inference.sizes import parse_size

    model = find_model(args.phi, args.model)
    info = model_info(model)
    size_hw = None if args.size == "auto" else parse_size(args.size, info.input_size)
    check_batch(args.batch)
    if builder is None:
        from ehrnet_model.inference.tensorrt_builder import TensorRTBuilder

        builder = TensorRTBuilder()
    batch = args.batch
    if args.if_missing:
        there = find_engine(model, size_hw, builder.platform(), args.engines, batch)
        # One of a larger batch will do, but not the one for second looks alone.
        if there is not None and not (size_hw is None and is_closer(there.info)):
            size_hw, batch = there.info.spec.size_hw, there.info.spec.max_batch
    size_hw = size_hw or parse_size(_USUAL_SIZE, info.input_size)
    told: List[Any] = [to_terminal()]
    if args.diagnostics:
        from ehrnet_ros.build_status import BuildStatus

        told.append(BuildStatus(f"{info.variant} {info.precision}"))

    def progress(seconds: float, share: Optional[float], text: str) -> None:
        for tell in told:
            tell(seconds, share, text)

    try:
        built = engines_of(
            model, size_hw, builder, batch, args.engines, not args.if_missing, progress
        )
    except EhrnetError as error:
        for tell in told[1:]:
            tell.done(False, str(error))
        raise
    verdicts = [engine.info.verdict for engine in built]
    worst = next((verdict for verdict in verdicts if verdict.state != "same"), verdicts[0])
    for tell in told[1:]:
        tell.done(worst.state == "same", str(worst))
    if any(engine.path is None for engine in built):
        raise EhrnetError(
            "the engine was built but could be stored nowhere, neither on disk nor in memory: make "
            "room, or name another folder with --engines."
        )
    for engine in built:
        print(f"{engine.path} ({_describe(engine.info)})")
    return 0


def engines_of(
    model: Path,
    size_hw: Tuple[int, int],
    builder: Any,
    batch: int = 1,
    folder: Optional[Path] = None,
    rebuild: bool = False,
    progress: Any = None,
) -> List[Any]:
    """A model's engine for whole images and, if it looks twice, the one for that.

    See ``ensure_engine`` for the arguments and what is raised.
    """
    from ehrnet_model.inference.decode import DecodeOptions
    from ehrnet_model.inference.engine import ensure_engine
    from ehrnet_model.inference.runtime import model_info
    from ehrnet_model.inference.second_look import batch_of, closer_hw

    wanted = [(size_hw, batch)]
    options = DecodeOptions.from_dict(model_info(model).decode)
    closer = closer_hw(options)
    if closer is not None and closer != size_hw:
        wanted.append((closer, batch_of(options)))
    return [
        ensure_engine(model, each_hw, builder, most, folder, rebuild, progress)
        for each_hw, most in wanted
    ]


def _describe(info: Any) -> str:
    height, width = info.spec.size_hw
    return (
        f"{info.model.variant}, {info.spec.precision}, {height}x{width}, batch "
        f"{info.spec.max_batch}, built in {info.seconds:.0f} s; {info.verdict}"
    )


def to_terminal() -> Any:
    """Writes one line over itself on a terminal, and one each ten seconds to a file."""
    terminal = sys.stderr.isatty()
    last = [-10.0]

    def tell(seconds: float, share: Optional[float], text: str) -> None:
        done = "" if share is None else f"{share:4.0%} "
        line = f"{int(seconds) // 60}:{int(seconds) % 60:02d} {done}{text}"
        if terminal:
            print(f"\r\033[K{line[:100]}", end="", file=sys.stderr, flush=True)
        elif seconds - last[0] >= 10:
            last[0] = seconds
            print(line, file=sys.stderr, flush=True)

    return tell
