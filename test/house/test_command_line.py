"""What every verb of `ehrnet` shares: what goes wrong is one sentence and an exit code."""

from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ehrnet_ros.cli import main, variants

ROOT = Path(__file__).resolve().parents[2]


def test_memory_that_is_not_there_is_one_sentence(monkeypatch, capsys) -> None:
    def run(args):
        raise MemoryError

    monkeypatch.setattr(variants, "run", run)
    assert main(["variants"]) == 2
    assert capsys.readouterr().err.startswith("ehrnet: there is not enough memory")


@pytest.mark.parametrize(
    ("words", "stdout", "said"),
    [
        (["--help"], ">&-", "stdout is closed"),  # of a full one argparse says nothing
        (["variants"], ">&-", "stdout is closed"),
        (["variants"], ">/dev/full", "there is no room left"),
        (["variants", "--json"], ">/dev/full", "there is no room left"),
        (["variants"], ">file", "there is no room left"),  # none of any size may be written
    ],
)
def test_a_stdout_that_takes_nothing_is_one_sentence(words, stdout, said, tmp_path) -> None:
    shell = f'ulimit -f 0; exec "$@" {stdout}'
    command = ["sh", "-c", shell, "sh", sys.executable, "-B", "-m", "ehrnet_ros.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ehrnet: {said}") and len(done.stderr.splitlines()) == 1


def test_more_than_a_buffer_for_a_full_stdout() -> None:
    code = (
        "import sys\nfrom ehrnet_ros.cli import main, variants\n"
        "variants.run = lambda args: print('x' * 100000) or 0\n"
        "sys.exit(main(['variants']))"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("amid", ["ehrnet_ros.cli.packages", "ehrnet_ros.cli.variants"])
def test_ctrl_c_amid_the_imports_leaves_no_traceback(amid) -> None:
    """The command as it is installed, before main() and within it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = dict(
        line.split(" = ")
        for line in config["options.entry_points"]["console_scripts"].split("\n")[1:]
    )
    module, function = scripts["ehrnet"].split(":")
    code = (
        "import os, signal, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {amid!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"from {module} import {function}\n"
        f"sys.exit({function}())"
    )
    command = [sys.executable, "-c", code, "variants"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_sigterm_removes_what_was_begun(tmp_path) -> None:
    pytest.importorskip("torch", reason="exporting needs torch")
    pytest.importorskip("onnx", reason="exporting needs onnx")
    words = ["export", "--phi", "-4", "--random", "-o", str(tmp_path / "x.onnx")]
    command = [sys.executable, "-m", "ehrnet_ros.cli", *words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob(".x.onnx.*")) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "Traceback" not in said, said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("node", "lacks", "remedy"),
    [
        *(
            (node, ("rclpy", "rcl_interfaces", "diagnostic_msgs"), "source a ROS 2 installation")
            for node in ("pose_node", "picture_node", "tracking_node", "depth_node")
        ),
        *(
            (node, ("ehrnet_msgs",), "build the workspace")
            for node in ("pose_node", "tracking_node", "depth_node")
        ),
    ],
)
def test_nodes_without_ros_say_what_is_missing(node, lacks, remedy):
    """As after `pip install`, which takes what comes with ROS from nowhere."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({lacks}))\n"
        "from ehrnet_ros import start\n"
        f"sys.exit(start.{node}())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{node} needs ") and remedy in done.stderr
    assert done.stderr.count("\n") == 1
