"""Where model files lie: given by path, in the user's data folder, or shipped with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Optional

from ehrnet_model.errors import EhrnetError
from ehrnet_model.published import published_phis
from ehrnet_model.variants import VARIANTS, Variant

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent / "data"


def user_folder() -> Path:
    """Where models of this user lie: ``$XDG_DATA_HOME/ehrnet/models``, XDG base directories.

    Raises:
        EhrnetError: the variable is not set and the user has no home.
    """
    try:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    except RuntimeError:
        raise EhrnetError("this user has no home folder: set XDG_DATA_HOME or HOME.") from None
    return Path(base) / "ehrnet" / "models"


def available_models() -> Dict[int, Path]:
    """Model file by phi, for every variant that has one; the user's own come before ours."""
    found = {}
    for variant in VARIANTS.values():
        for folder in (user_folder(), PACKAGE_FOLDER):
            path = folder / f"{variant.name}.onnx"
            if variant.phi not in found and os.path.isfile(path):
                found[variant.phi] = path
    return found


def find_model(phi: int, model: Optional[str] = None) -> Path:
    """The ONNX file to load.

    Args:
        phi: which variant, 0 .. -4; only used without ``model``.
        model: path of a file that is taken instead.

    Raises:
        EhrnetError: no such file, no such variant, no weights for it, or a user without home; says
            what to do.
    """
    if model:
        # os.path: unlike pathlib it raises neither for unknown users nor for closed folders.
        path = Path(os.path.expanduser(model))
        if not os.path.isfile(path):
            raise EhrnetError(
                f"there is no model file {path} that this user can reach: check the path."
            )
        return path
    variant = Variant.from_phi(phi)
    models = available_models()
    if phi in models:
        return models[phi]
    if phi in published_phis():
        raise EhrnetError(
            f"there are no weights for phi {phi} ({variant.name}) on this machine yet: fetch them "
            f"with `ehrnet get-weights --phi {phi}`."
        )
    have = ", ".join(f"phi {p} ({path.stem})" for p, path in models.items()) or "none"
    raise EhrnetError(
        f"there are no weights for phi {phi} ({variant.name}) on this machine (present: {have}): "
        f"bring or train a checkpoint (`ehrnet import-checkpoint`, `ehrnet train`) and run "
        f"`ehrnet export --phi {phi} --weights FILE -o {user_folder() / (variant.name + '.onnx')}`."
    )
