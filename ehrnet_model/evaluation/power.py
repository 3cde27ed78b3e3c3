"""Electrical power while something runs, from whatever meter the machine has.

Jetson boards measure their supply (INA3221, in mV and mA), Intel and AMD processors count the
package's energy (RAPL), NVIDIA's cards tell their draw (NVML). They measure different things, so a
figure always comes with its source. **The Jetson's and NVML's meters have not been read on real
hardware**; their files and calls are those of the kernel's and NVIDIA's documentation.
"""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path
from typing import Callable, List, Optional, Tuple

_SYS = Path("/sys")
_SAMPLE_S = 0.1
# Rails that together are the board; the first list of which all are there is taken.
_RAILS = (
    ("VDD_IN",),  # Xavier NX, Orin Nano, Orin NX
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


class PowerMeter:
    """Mean power of a block: ``with PowerMeter() as meter: ...``, then ``meter.watts``.

    Attributes:
        source: what is measured, empty where there is no meter.
        watts: mean over the block; None without a meter or before the block ends.
    """

    def __init__(self, sys: Path = _SYS) -> None:
        self.watts: Optional[float] = None
        self.source, self._read, self._counter = _find(sys)
        self._samples: List[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> PowerMeter:
        self._started = time.monotonic()
        self._first = self._counter() if self._counter is not None else 0.0
        if self._read is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._read is not None:
            self._done.set()
            self._thread.join()
            if self._samples:
                self.watts = sum(self._samples) / len(self._samples)
        elif self._counter is not None:
            seconds = time.monotonic() - self._started
            joules = self._counter() - self._first
            if seconds > 0 and joules >= 0:  # less than 0: the counter began again
                self.watts = joules / seconds

    def _run(self) -> None:
        assert self._read is not None
        while True:
            self._samples.append(self._read())
            if self._done.wait(_SAMPLE_S):
                return


_Reader = Optional[Callable[[], float]]


def _find(sys: Path) -> Tuple[str, _Reader, _Reader]:
    """Name, reader of watts, reader of joules; one of the readers where there is a meter."""
    rails = _jetson_rails(sys)
    if rails:
        names = " + ".join(name for name, _, _ in rails)
        return f"board ({names})", lambda: sum(_product(v, a) for _, v, a in rails), None
    card = _nvml() if sys == _SYS else None
    if card is not None:
        return "GPU (NVML)", card, None
    packages = [
        folder / "energy_uj"
        for folder in sorted((sys / "class" / "powercap").glob("*-rapl:[0-9]*"))
        if folder.name.count(":") == 1 and _number(folder / "energy_uj") is not None
    ]
    if packages:
        return "processor (RAPL)", None, lambda: sum(_number(p) or 0.0 for p in packages) / 1e6
    return "", None, None


def _jetson_rails(sys: Path) -> List[Tuple[str, Path, Path]]:
    """(name, file of mV, file of mA) of the rails that make up the board."""
    found = {}
    for label in sorted(sys.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        number = label.name[2 : -len("_label")]
        volts = label.with_name(f"in{number}_input")
        amperes = label.with_name(f"curr{number}_input")
        if _number(volts) is not None and _number(amperes) is not None:
            found[label.read_text().strip()] = (volts, amperes)
    for names in _RAILS:
        if all(name in found for name in names):
            return [(name, *found[name]) for name in names]
    return []


def _nvml() -> _Reader:
    """Reader of the first card's power through NVIDIA's management library, or None."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        card, milliwatts = ctypes.c_void_p(), ctypes.c_uint()
        failed = (
            library.nvmlInit_v2()
            or library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(card))
            or library.nvmlDeviceGetPowerUsage(card, ctypes.byref(milliwatts))
        )
    except (OSError, AttributeError):
        return None
    if failed:
        return None

    def read() -> float:
        library.nvmlDeviceGetPowerUsage(card, ctypes.byref(milliwatts))
        return milliwatts.value / 1000

    return read


def _product(millivolts: Path, milliamperes: Path) -> float:
    return (_number(millivolts) or 0.0) * (_number(milliamperes) or 0.0) / 1e6


def _number(file: Path) -> Optional[float]:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None
