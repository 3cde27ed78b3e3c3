"""Which packages and which Python a verb needs beside the ordinary ones; how to come by them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Sequence, Tuple

# By verb: an extra of setup.py, and what of it the verb cannot do without.
NEEDED: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    "bag": ("bag", ("rosbags", "tqdm")),
    "export": ("export", ("torch", "safetensors", "onnx")),
    "import-checkpoint": ("export", ("torch", "safetensors")),
    "pack": ("train", ("tqdm",)),
    "train-classifier": ("train", ("torch", "safetensors", "tqdm")),
    "train": ("train", ("torch", "safetensors", "tqdm")),
    "evaluate": ("evaluate", ("pycocotools", "tqdm")),
    "tune": ("evaluate", ("pycocotools", "tqdm")),
    "plot": ("plot", ("matplotlib",)),
}


def install(*extras: str) -> str:
    """The line that installs extras for the Python that runs this."""
    repository = Path(__file__).resolve().parents[2]
    # The environment that ./demo made is linked to the repository, and stays so.
    private = Path(sys.prefix) == repository / ".venv"
    pip = ".venv/bin/pip install -e" if private else "pip install"
    return f"`{pip} '.[{','.join(extras)}]'` in the repository"


def lacking(what: str, packages: Sequence[str], *extras: str) -> str:
    """``what needs A, B, which are not here: ...``; empty where nothing is missing.

    Args:
        what: somebody who needs packages.
        packages: their import names.
        extras: what brings them all.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if not absent:
        return ""
    are = "is" if len(absent) == 1 else "are"
    return f"{what} needs {', '.join(absent)}, which {are} not here: {install(*extras)}"


def too_old(what: str) -> str:
    """``what needs Python 3.10 or later ...``; empty where this one is."""
    if sys.version_info >= (3, 10):
        return ""
    here = ".".join(map(str, sys.version_info[:3]))
    return (
        f"{what} needs Python 3.10 or later, and this is {here}: use a later one, on this machine "
        "or another; models are the same everywhere"
    )


def lacking_for(verb: str, models: Sequence[object]) -> str:
    """What of Python and packages a verb with these model files lacks; empty where nothing."""
    weights = any(str(model).endswith(".safetensors") for model in models)  # not a graph
    old = ""
    if weights or (verb in NEEDED and verb != "bag"):
        old = too_old(f"`ehrnet {verb}`{' of .safetensors' if weights else ''}")
    if old or verb not in NEEDED:
        return old
    extra, packages = NEEDED[verb]
    extras = [extra]
    if weights:
        extras, packages = [extra, "export"], (*packages, "torch", "safetensors")
    return lacking(f"`ehrnet {verb}`", packages, *extras)
