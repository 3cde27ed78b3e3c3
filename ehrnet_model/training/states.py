"""Training states on disk: the full one of a run folder, and a compact one to carry away.

The full state (``state.pt``) continues a run exactly. The compact one is a safetensors file with
the optimiser's moments in bfloat16 and everything else of the state in its metadata: small enough
to keep beside the weights, and what it rounds is forgotten within some tens of steps.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.atomic import save_bytes

_KEY = "ehrnet_training_state"
_MOMENTS = {"exp_avg", "exp_avg_sq", "momentum"}


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes beside, flushes, renames: the file is the old one or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        raise EhrnetError(
            f"{path} could not be written ({error}); the previous state is untouched."
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a line to a CSV file; the first also writes the names. Raises EhrnetError.

    A file that an earlier version began, perhaps with other columns, keeps them.
    """
    columns = list(row)
    try:
        fresh = not path.exists()
        if not fresh:
            with open(path, newline="") as file:
                columns = next(csv.reader(file), columns)
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    except OSError as error:
        raise EhrnetError(f"{path} could not be written ({error}).") from None


def load_state(path: Path) -> dict[str, Any]:
    """A state.pt, tensors and plain values only. Raises EhrnetError for anything else."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise EhrnetError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception:  # torch raises many kinds, and advises to load what is not trusted
        raise EhrnetError(
            f"{path} is not a training state, or damaged: give the state.pt of a run, or weights "
            "(*.safetensors) where a run may begin at them."
        ) from None


def write_compact(state: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Writes a compact state.

    Args:
        state: as in state.pt.
        names: of the parameters in the optimiser's order.
        path: target, ``*.safetensors``.
    """
    from safetensors.torch import save

    tensors = {f"network.{k}": v.contiguous() for k, v in state["network"].items()}
    tensors.update({f"average.{k}": v.contiguous() for k, v in state["average"].items()})
    steps = {}
    for index, moments in state["optimiser"]["state"].items():
        name = names[index]
        steps[name] = float(moments["step"])
        for key in sorted(_MOMENTS & moments.keys()):
            tensors[f"{key}.{name}"] = moments[key].to(torch.bfloat16).contiguous()
    rest = {k: state[k] for k in ("config", "average_count", "step", "images", "seconds")}
    rest.update(
        steps=steps,
        names=list(names),
        groups=state["optimiser"]["param_groups"],
        rng=state["rng"].tolist(),
    )
    save_bytes(path, save(tensors, {_KEY: json.dumps(rest)}))


def read_compact(path: Path) -> dict[str, Any]:
    """The state of a compact file, as in state.pt. Raises EhrnetError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EhrnetError(f"{path} is not a compact training state ({error}).") from None

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    moments = {}
    for index, name in enumerate(rest["names"]):
        if name in rest["steps"]:
            keys = [key for key in _MOMENTS if f"{key}.{name}" in tensors]
            moments[index] = {
                "step": torch.tensor(rest["steps"][name]),
                **{key: tensors[f"{key}.{name}"].float() for key in keys},
            }
    return {
        "config": rest["config"],
        "network": part("network."),
        "average": part("average."),
        "average_count": rest["average_count"],
        "optimiser": {"state": moments, "param_groups": rest["groups"]},
        "step": rest["step"],
        "images": rest["images"],
        "seconds": rest["seconds"],
        "rng": torch.tensor(rest["rng"], dtype=torch.uint8),
    }
