"""The command ``ehrnet``: a table of verbs, each in a module of its own.

A verb's module holds ``HELP``, ``add_arguments(parser)`` and ``run(args) -> exit code``, and
imports what it needs inside ``run``. Results go to stdout, talk to stderr. Exit codes: 0 done, 1
the answer is no, or stdout takes none, 2 wrong use or something missing.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
from typing import Any, Iterator, List, Optional

from ehrnet_model.errors import EhrnetError
from ehrnet_ros.cli.packages import install, lacking_for

# In the order of the help. The module is the verb with _ for -.
VERBS = (
    "demo",
    "doctor",
    "bag",
    "variants",
    "get-weights",
    "export",
    "build-engine",
    "import-checkpoint",
    "pack",
    "train-classifier",
    "train",
    "evaluate",
    "benchmark",
    "tune",
    "plot",
)

# They wait for minutes where Python hears no signal: for TensorRT, or for each other's gradients.
DIE_BY_SIGTERM = ("build-engine", "train", "train-classifier")

# What to do about a package that is not there, by its import name; of extras see packages.py.
REMEDIES = {
    "numpy": "pip install numpy",
    "cv2": "pip install opencv-python-headless",
    "onnxruntime": "pip install onnxruntime",
    "tqdm": "pip install tqdm",
    "openvino": "pip install openvino",
    "torch": f"{install('export')}, or see pytorch.org for your machine",
    "tensorrt": "install TensorRT from NVIDIA; on a Jetson it is part of JetPack",
    "rclpy": "source a ROS 2 installation (. /opt/ros/<distro>/setup.bash), or run ./demo once "
    "and use .venv/bin/ehrnet",
    "ehrnet_msgs": "build the workspace (colcon build) and source install/setup.bash, or run "
    "./demo once and use .venv/bin/ehrnet",
}


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one verb and gives its exit code."""
    if sys.stdout is None:
        return _refuse("stdout is closed (>&-): send it to a file or to /dev/null.", 1)
    argv = sys.argv[1:] if argv is None else argv
    try:
        with _sigterm_raises(argv):
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _forget_stdout()
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _forget_stdout()
        return _refuse("there is no room left where it writes to: make room there.", 1)


def _run(argv: List[str]) -> int:
    parser = _parser(argv)
    args = parser.parse_args(argv)
    if args.verb is None:
        parser.print_help()
        return 2
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    models = getattr(args, "model", None) or []
    lack = lacking_for(args.verb, models if isinstance(models, list) else [models])
    if lack:
        return _refuse(f"{lack}.")
    try:
        code: int = _module(args.verb).run(args)
        return code
    except EhrnetError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in REMEDIES:
            raise
        return _refuse(f"`ehrnet {args.verb}` needs {name}, which is not here: {REMEDIES[name]}.")
    except MemoryError:
        return _refuse(
            "there is not enough memory for this: use smaller sizes, or end other programs."
        )


@contextlib.contextmanager
def _sigterm_raises(argv: List[str]) -> Iterator[None]:
    """SIGTERM removes what was begun, as Ctrl-C does; verbs may take it for themselves."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or _asked(argv) in DIE_BY_SIGTERM:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _forget_stdout() -> None:
    """What is still in its buffer would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(text: str, code: int = 2) -> int:
    print(f"ehrnet: {text}", file=sys.stderr)
    return code


def _module(verb: str) -> Any:
    return importlib.import_module(f"{__name__}.{verb.replace('-', '_')}")


def _parser(argv: List[str]) -> argparse.ArgumentParser:
    from ehrnet_model import __version__

    parser = argparse.ArgumentParser(
        prog="ehrnet",
        description="2D poses of several people: inference, models, training.",
        epilog="`ehrnet VERB --help` tells what a verb takes.",
    )
    parser.add_argument("--version", action="version", version=f"ehrnet {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    # Only the verb that was asked for is imported; for the help and for a typo, all of them are.
    asked = _asked(argv)
    for verb in (asked,) if asked in VERBS else VERBS:
        module = _module(verb)
        verb_parser = verbs.add_parser(verb, help=module.HELP, description=_sentence(module.HELP))
        module.add_arguments(verb_parser)
    return parser


def _asked(argv: List[str]) -> str:
    return next((word for word in argv if not word.startswith("-")), "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
