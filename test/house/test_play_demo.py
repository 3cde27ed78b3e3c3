"""The demo as a user runs it: three real processes, a line on the screen, files to look at."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
pytest.importorskip("onnxruntime", reason="the nodes compute with onnxruntime")


def _start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / "play_demo.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}),  # as ./demo
    )


def _finish(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"did not end within {seconds} s:\n{out}\n{err}")
    return process.returncode, out, err


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    import dots

    from ehrnet_ros.recording import VideoFile

    path = tmp_path_factory.mktemp("video") / "two 'people'.mp4"
    with VideoFile(path, 10.0) as file:
        for shift in range(20):
            people = [dots.figure((150 + 3 * shift, 200), 300), dots.figure((450, 240), 280)]
            file.write(dots.draw_people((480, 640), np.stack(people)))
    return path


def test_a_video_comes_back_annotated_with_its_numbers(video, dots_model, tmp_path):
    code, out, err = _finish(_start(video, "--model", dots_model, "--out", tmp_path))
    assert code == 0, err
    line, *files = out.splitlines()
    assert re.match(r"2 people in \d+ images, [\d.]+ images/s, from image to poses \d+ ms", line)
    assert files == [str(tmp_path / f"two 'people'_poses.{e}") for e in ("mp4", "jpg")]
    images = int(re.search(r"in (\d+) images", line)[1])
    left_out = re.search(r"(\d+) images left out", line)
    frames = cv2.VideoCapture(files[0]).get(cv2.CAP_PROP_FRAME_COUNT)
    # Every image that reached us was answered or counted as left out; the first may precede us.
    assert images + int(left_out[1] if left_out else 0) == frames and 15 <= frames <= 20
    drawn = cv2.imread(files[1])
    assert drawn.shape == (480, 640, 3)
    # Between the shoulders the video was black; the skeleton has a line there.
    assert drawn[round(240 - 0.25 * 280), 450].max() > 100


def test_interrupt_ends_everything_and_still_reports(video, dots_model, tmp_path):
    picture = tmp_path / "first.png"
    capture = cv2.VideoCapture(str(video))
    cv2.imwrite(str(picture), capture.read()[1])
    process = _start(picture, "--model", dots_model, "--out", tmp_path / "out")
    seen = ""
    end = time.monotonic() + 60
    while ": 2 people" not in seen and time.monotonic() < end and process.poll() is None:
        seen += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    code, out, err = _finish(process, 30)
    assert code == 130, seen + err
    assert out.startswith("2 people in ")
    assert err.splitlines()[-1] == "demo: stopped." and "Traceback" not in err


@pytest.mark.parametrize("seconds", [0, 0.4])  # nothing plays so early
def test_interrupt_before_that_is_one_word(seconds, video, dots_model, tmp_path):
    process = _start(video, "--model", dots_model, "--out", tmp_path / "out")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    code, out, err = _finish(process, 30)
    assert (code, out, err.splitlines()[-1]) == (130, "", "demo: stopped."), err
    assert "Traceback" not in err and "playing" not in err
    assert not list(tmp_path.glob("out/*"))


def test_every_picture_of_a_folder_comes_back_in_its_shape(dots_model, tmp_path):
    """More of them than the network, given a large input, would manage at a camera's rate."""
    import dots

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        shape, x = ((480, 640), 320) if number < 7 else ((640, 480), 240)
        picture = dots.draw_people(shape, [dots.figure((x, shape[0] / 2), 300)])
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    words = ["--model", dots_model, "--out", tmp_path / "out", "--size", "960x1280"]
    code, out, err = _finish(_start(folder, *words))
    assert code == 0, err
    assert out.startswith("1 person in 8 images, ") and "left out" not in out
    capture = cv2.VideoCapture(out.splitlines()[1])
    frames = [capture.read()[1] for _ in range(8)]
    assert not capture.read()[0]
    left, middle = frames[7][:, :120], frames[7][:, 200:440]  # 360 of 640 pixels wide
    assert left.max() < 50 and middle.max() > 150


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.mp4"], "There is no file or folder absent.mp4"),
        (["--runtime", "absent"], "runtime"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said, video, dots_model, tmp_path):
    if arguments[0].startswith("--"):
        arguments = [video, *arguments]
    process = _start(*arguments, "--model", dots_model, "--out", tmp_path)
    code, out, err = _finish(process)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here")
def test_a_node_that_cannot_load_its_network_is_not_waited_for(video, dots_model, tmp_path):
    """It goes on, for a manager that could configure it again; here nobody would for a minute."""
    code, out, err = _finish(
        _start(video, "--runtime", "tensorrt", "--model", dots_model, "--out", tmp_path), 40
    )
    assert (code, out) == (2, "")
    assert "pose_node does not get ready: " in err and "tensorrt" in err.splitlines()[-1].lower()


def test_a_reader_that_has_seen_enough_costs_no_file(dots_model, tmp_path):
    import dots

    picture = tmp_path / "one.png"
    cv2.imwrite(str(picture), dots.draw_people((480, 640), [dots.figure((320, 240), 300)]))
    process = _start(picture, "--model", dots_model, "--out", tmp_path)
    process.stdout.close()
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()
    assert (tmp_path / "one_poses.jpg").is_file() and (tmp_path / "one_poses.mp4").is_file()


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("--phi=three", 2)])
def test_what_can_be_told_is_known_before_anything_is_installed(word, code, tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    command = [sys.executable, "-I", str(tmp_path / "tools" / "run_demo.py"), word]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and "usage: ./demo" in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("target", ["theirs", "gone"])
def test_a_venv_that_is_a_link_gives_way_and_what_it_leads_to_stays(target, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import setup_env

    stamp = tmp_path / "theirs" / "ehrnet-setup.json"
    stamp.parent.mkdir()
    stamp.write_text('{"python": "3.11", "path": "elsewhere"}')
    venv = tmp_path / ".venv"
    venv.symlink_to(tmp_path / target)
    monkeypatch.setattr(setup_env, "VENV", venv)
    monkeypatch.setattr(setup_env, "STAMP", venv / stamp.name)
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(setup_env.subprocess, "run", lambda *_, **__: done)
    setup_env._make_venv(venv / "bin" / "python")
    assert venv.is_dir() and not venv.is_symlink()
    assert "elsewhere" in stamp.read_text()


def test_without_weights_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    code, out, err = _finish(_start("--phi", "-1", "--out", tmp_path))
    assert (code, out) == (2, "")
    assert "there are no weights for phi -1" in err
