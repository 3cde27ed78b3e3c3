"""Which packages a verb needs beside the ordinary ones, and the line that brings them."""

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


def lacking_for(verb: str, models: Sequence[object]) -> str:
    """The same for a verb with these model files."""
    if verb not in NEEDED:
        return ""
    extra, packages = NEEDED[verb]
    extras = [extra]
    if any(str(model).endswith(".safetensors") for model in models):  # weights, not a graph
        extras, packages = [extra, "export"], (*packages, "torch", "safetensors")
    return lacking(f"`ehrnet {verb}`", packages, *extras)
