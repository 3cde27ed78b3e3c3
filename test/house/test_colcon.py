"""A real `colcon build` of a workspace that holds the repository, and what pip installs instead.

Runs where ./check has put colcon, CMake and a ROS 2 from wheels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "build" / "colcon" / "venv"
NODES = ("depth_node", "picture_node", "pose_node", "tracking_node")

pytestmark = pytest.mark.skipif(
    not (VENV / "bin" / "colcon").exists(), reason="colcon is not here: ./check brings it"
)

# Starts a command, waits for the services of a node named `pose`, and ends it with SIGINT.
START = """
import signal, subprocess, sys, time
import rclpy
from ehrnet_msgs.msg import PoseArray, SkeletonInfo
process = subprocess.Popen(sys.argv[1:])
rclpy.init()
node = rclpy.create_node("looker")
end = time.monotonic() + 60
up = False
while not up and process.poll() is None and time.monotonic() < end:
    up = node.count_services("/pose/get_state") > 0
    time.sleep(0.1)
print("up" if up else "not up", PoseArray.__module__, sys.modules["ehrnet_msgs"].__file__)
if process.poll() is None:
    process.send_signal(signal.SIGINT)
sys.exit(process.wait(20))
"""


def environment(home: Path) -> dict[str, str]:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import setup_env
    finally:
        sys.path.pop(0)
    env = setup_env.environment(VENV)
    env["CMAKE_PREFIX_PATH"] = str(VENV)
    env["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    env["ROS_LOG_DIR"] = env["COLCON_HOME"] = str(home)
    return env


def run(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def colcon_build(workspace: Path, *more: str, env: dict[str, str]) -> Path:
    run(["colcon", "build", "--cmake-args", "-G", "Ninja", *more], workspace, env)
    return workspace / "install"


def in_workspace(install: Path, *command: str, env: dict[str, str]) -> str:
    script = '. "$0/setup.bash" >/dev/null 2>&1; exec "$@"'
    return run(["bash", "-c", script, str(install), *command], install.parent, env)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: pip builds inside the folder that it is given."""
    copy = tmp_path_factory.mktemp("source") / "a clone"
    made = shutil.ignore_patterns(
        *(".*", "build", "install", "log", "dist", "demo_out", "runs", "*.egg-info", "__pycache__")
    )
    shutil.copytree(ROOT, copy, ignore=made)
    return copy


@pytest.fixture(scope="module")
def install(source: Path, tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    workspace = tmp_path_factory.mktemp("ws")
    (workspace / "src").mkdir()
    (workspace / "src" / "ehrnet_ros").symlink_to(source)
    return colcon_build(workspace, env=env)


def test_one_build_gives_both_packages(install: Path, env: dict[str, str]) -> None:
    index = install / "ehrnet_ros" / "share" / "ament_index" / "resource_index"
    assert {"ehrnet_ros", "ehrnet_msgs"} <= {p.name for p in (index / "packages").iterdir()}
    assert (index / "rosidl_interfaces" / "ehrnet_msgs").is_file()


def test_the_node_starts_and_stops(install: Path, env: dict[str, str]) -> None:
    node = install / "ehrnet_ros" / "lib" / "ehrnet_ros" / "pose_node"
    arguments = ("--ros-args", "-p", "autostart:=false")
    said = in_workspace(install, "python", "-c", START, str(node), *arguments, env=env)
    assert said.startswith("up ehrnet_msgs.msg")
    assert str(install) in said, "the messages did not come from the workspace"


def test_commands(install: Path, env: dict[str, str]) -> None:
    commands = {p.name for p in (install / "ehrnet_ros" / "lib" / "ehrnet_ros").iterdir()}
    assert commands >= {"ehrnet", *NODES}
    which = in_workspace(install, "bash", "-c", "command -v ehrnet", env=env)
    assert which.strip() == str(install / "ehrnet_ros" / "bin" / "ehrnet")
    assert '"H-4"' in in_workspace(install, "ehrnet", "variants", "--json", env=env)


def test_messages_of_an_underlay_are_used(
    source: Path, install: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """Also: --symlink-install."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "ehrnet_ros").symlink_to(source)
    under = dict(env)
    under["CMAKE_PREFIX_PATH"] = f"{install / 'ehrnet_ros'}{os.pathsep}{env['CMAKE_PREFIX_PATH']}"
    over = colcon_build(tmp_path, "--no-warn-unused-cli", env=under)
    assert not (over / "ehrnet_ros" / "share" / "ehrnet_msgs").exists()
    assert (over / "ehrnet_ros" / "lib" / "ehrnet_ros" / "pose_node").exists()


def test_what_it_installed_before_is_no_underlay(
    source: Path, install: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """Found after `. install/setup.bash`; ehrnet_msgs installed as a package of its own is one."""
    prefix = tmp_path / "install"
    shutil.copytree(install / "ehrnet_ros", prefix)
    (tmp_path / "link").symlink_to(prefix)

    def builds_messages(sourced: Path) -> bool:
        under = dict(env)
        under["CMAKE_PREFIX_PATH"] = f"{sourced}{os.pathsep}{env['CMAKE_PREFIX_PATH']}"
        command = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(tmp_path / "build")]
        said = run([*command, f"-DCMAKE_INSTALL_PREFIX={prefix}"], tmp_path, under)
        return "ehrnet_msgs is not in the environment" in said

    assert builds_messages(prefix)
    assert builds_messages(tmp_path / "link")
    own = prefix / "share" / "colcon-core" / "packages" / "ehrnet_msgs"
    own.touch()
    assert not builds_messages(prefix)


def files(prefix: Path, folder: str) -> dict[str, bytes]:
    top = prefix / folder
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_pip_installs_the_same_files(
    source: Path, install: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    # Without --ignore-installed pip would first take our own install out of this environment.
    pip += ["--ignore-installed", "--no-compile", "--prefix", str(tmp_path)]
    run([*pip, "."], source, dict(os.environ))
    colcon = install / "ehrnet_ros"
    packages = f"lib/python3.{sys.version_info[1]}/site-packages"
    for folder in (f"{packages}/ehrnet_model", f"{packages}/ehrnet_ros"):
        ours, theirs = files(tmp_path, folder), files(colcon, folder)
        assert ours, f"pip installed nothing in {folder}"
        assert sorted(ours) == sorted(theirs)
        assert ours == theirs
    for folder in ("share/ehrnet_ros/launch", "share/ehrnet_ros/config"):
        assert files(tmp_path, folder) == files(colcon, folder)
    for name in (
        "share/ehrnet_ros/package.xml",
        "bin/ehrnet",
        *(f"lib/ehrnet_ros/{n}" for n in NODES),
    ):
        assert (tmp_path / name).is_file() and (colcon / name).is_file(), name
    entries = [p.read_text() for p in (tmp_path / packages).glob("*.dist-info/entry_points.txt")]
    assert len(entries) == 1
    for command in ("ehrnet", *NODES):
        assert f"{command} = " in entries[0]
        assert (colcon / "lib" / "ehrnet_ros" / command).is_file()
