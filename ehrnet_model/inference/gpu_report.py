"""What a person wants to know of the GPU: versions, memory, power mode, clocks, known traps.

The files of a Jetson are read as its documentation describes them; **never on a real one yet**.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import Cuda
from ehrnet_model.inference.tensorrt_runtime import import_tensorrt, jetson_release

# First version with the trap, first without, only on a Jetson, what it is. What is only reported
# has not been tried.
_TRAPS: Tuple[Tuple[str, str, bool, str], ...] = (
    ("0", "8.5.2", False, "older than 8.5.2: engines cannot be built, update JetPack to 5.1"),
    (
        "8",
        "10",
        False,
        "before 10 the builder may lower more than asked: trust the verdict",
    ),
    (
        "8.4",
        "8.6",
        False,
        "before 8.6 places of peaks were reported to come out as nearly 0 (NVIDIA/TensorRT#2680): "
        "the verdict would be that the engine is wrong",
    ),
    (
        "11.2",
        "12",
        False,
        "from 11.2 on some float16 convolutions in groups were reported to find no kernel "
        "(NVIDIA/TensorRT#4838): if the build says so, export fp32 or use 10.16",
    ),
    ("11.0", "11.4.1", True, "11.0 to 11.4.0 do not support JetPack: install 11.4.1 or 10.x"),
)


def gpu_facts() -> List[Tuple[str, str]]:
    """(name, text) of the GPU and what drives it; empty where there is none to be used."""
    try:
        cuda = Cuda()
        name = cuda.device_name()
        text = f"{name}, compute capability {cuda.compute_capability()}"
        free = cuda.free_memory() >> 20
    except EhrnetError:
        return []
    return [("GPU", f"{text}, {free} MiB of memory free"), *jetson_facts()]


def jetson_facts(root: Path = Path("/")) -> List[Tuple[str, str]]:
    """(name, text) of a Jetson's release, power mode and GPU clock, as far as they can be read.

    Args:
        root: of the file system.
    """
    found = []
    release = jetson_release(root / "etc/nv_tegra_release")
    if release:
        found.append(("L4T", release))
    mode = _power_mode(root)
    if mode:
        found.append(("power mode", f"{mode}; `sudo nvpmodel -q` lists the others"))
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"\.(gpu|g[a-z]\d+b)$|^gpu-gpc-0$", folder.name):  # Orin, Xavier; Thor
            now, most = (_read(folder / name) for name in ("cur_freq", "max_freq"))
            if now.isdigit() and most.isdigit():
                megahertz = [int(value) // 10**6 for value in (now, most)]
                text = "{} of at most {} MHz; `sudo jetson_clocks` holds the most"
                found.append(("GPU clock", text.format(*megahertz)))
    return found


def traps(version: str, jetson: bool, numpy_version: str = np.__version__) -> List[str]:
    """What is known to go wrong with a TensorRT version, one sentence each."""
    here = _parts(version)
    found = [
        f"TensorRT {version}: {text}."
        for first, end, jetson_only, text in _TRAPS
        if _parts(first) <= here < _parts(end) and (jetson or not jetson_only)
    ]
    if here < (8, 6) and _parts(numpy_version) >= (1, 24):
        found.append(
            f"TensorRT {version}: trt.nptype of other programs fails with NumPy {numpy_version}; "
            "this package does not use it."
        )
    return found


def tensorrt_version() -> Optional[str]:
    """The version, or None where the module does not import."""
    try:
        return str(import_tensorrt().__version__)
    except EhrnetError:
        return None


def _power_mode(root: Path) -> str:
    """Name and number of the mode in force."""
    status = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if status is None:
        return ""
    number = int(status.group(1))
    names = re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _read(root / "etc/nvpmodel.conf")
    )
    known = {int(identity): name for identity, name in names}
    return f"{known.get(number, 'unnamed')} (mode {number})"


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""


def _parts(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
