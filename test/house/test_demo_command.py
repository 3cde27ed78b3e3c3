"""`ehrnet demo`: the known people of a drawn picture come back in the JSON."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from ehrnet_ros.cli import main
from ehrnet_ros.recording import VideoFile

pytest.importorskip("onnxruntime", reason="the command computes with onnxruntime")


@pytest.fixture
def people():
    import dots

    return np.stack([dots.figure((150, 200), 300), dots.figure((450, 240), 280)])


@pytest.fixture
def picture(people, tmp_path):
    import dots

    path = tmp_path / "two people.png"
    cv2.imwrite(str(path), dots.draw_people((480, 640), people))
    return path


def _found(frame):
    return np.array([[keypoint[:2] for keypoint in p["keypoints"]] for p in frame["people"]])


def test_a_picture_gives_keypoints_in_its_pixels(picture, people, dots_model, tmp_path, capsys):
    out = tmp_path / "out"
    code = main(["demo", str(picture), "--model", str(dots_model), "-o", str(out)])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.splitlines() == [
        str(out / "two people_poses.png"),
        str(out / "two people_poses.json"),
    ]
    result = json.loads((out / "two people_poses.json").read_text())
    (frame,) = result["frames"]
    assert (frame["width"], frame["height"]) == (640, 480)
    found = _found(frame)
    order = np.argsort(found[:, 0, 0])
    assert np.abs(found[order] - people).max() < 1
    assert len(result["keypoints"]) == 17
    drawn, original = cv2.imread(said.out.splitlines()[0]), cv2.imread(str(picture))
    assert drawn.shape == original.shape and (drawn != original).any()


def test_unsure_keypoints_are_written_and_not_drawn(picture, dots_model, tmp_path):
    sure = tmp_path / "sure"
    words = ["demo", str(picture), "--model", str(dots_model), "-o"]
    assert main([*words, str(sure)]) == 0
    result = json.loads((sure / "two people_poses.json").read_text())
    scores = [score for p in result["frames"][0]["people"] for *_, score in p["keypoints"]]
    above = max(scores) + 1e-3
    assert result["min_keypoint_score"] == 0 and above < 1
    out = tmp_path / "unsure"
    assert main([*words, str(out), "--decode", f"min_keypoint_score={above}"]) == 0
    unsure = json.loads((out / "two people_poses.json").read_text())
    assert unsure["min_keypoint_score"] == above
    assert unsure["frames"][0]["people"] == result["frames"][0]["people"]
    original = cv2.imread(str(picture))
    assert (cv2.imread(str(out / "two people_poses.png")) == original).all()


def test_a_video_gives_a_video_of_as_many_frames(people, dots_model, tmp_path, capsys):
    import dots

    from ehrnet_ros.recording import VideoFile

    with VideoFile(tmp_path / "v.mp4", 12.0) as video:
        for shift in (0, 20):
            video.write(dots.draw_people((480, 640), people + (shift, 0)))
    code = main(["demo", str(tmp_path / "v.mp4"), f"--model={dots_model}", f"-o={tmp_path}"])
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "v_poses.json").read_text())
    assert [len(frame["people"]) for frame in result["frames"]] == [2, 2]
    capture = cv2.VideoCapture(str(tmp_path / "v_poses.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert round(capture.get(cv2.CAP_PROP_FPS)) == 12


def test_nobody_is_exit_code_1_and_json_goes_to_stdout(dots_model, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((100, 100, 3), np.uint8))
    args = ["demo", str(tmp_path / "black.png"), f"--model={dots_model}", f"-o={tmp_path}"]
    assert main([*args, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["frames"][0]["people"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "there is no source: give a picture"),
        (["absent.png"], "There is no file or folder absent.png"),
        (["two people.png", "--model", "absent.onnx"], "there is no model file absent.onnx"),
        (["two people.png", "--phi", "2"], "phi 2 does not exist"),
        (["two people.png", "--size", "17x17"], "multiples of 32"),
        (["two people.png", "--frames", "0"], "--frames 0"),
        (["0"], "a camera or a stream never ends"),
        (["http://127.0.0.1:1/x"], "OpenCV cannot open the stream http://127.0.0.1:1/x"),
        # Logs and results are shared more freely than a camera's password.
        (["http://me:pass@word@127.0.0.1:1/x@y"], "the stream http://...@127.0.0.1:1/x@y:"),
        (["rtsp://127.0.0.1:1/x"], "OpenCV cannot open the stream rtsp://127.0.0.1:1/x"),
        (["words.txt"], "words.txt is no video that OpenCV can read"),
        (["frameless.avi"], "frameless.avi is no video that OpenCV can read"),
        (["/dev/null", "--frames", "1"], "OpenCV cannot open the camera /dev/null"),
        (["2026"], "There is no file or folder 2026"),
        (["\N{SUPERSCRIPT TWO}"], "There is no file or folder \N{SUPERSCRIPT TWO}"),
        (["two people.png", "-o", "words.txt"], "words.txt is a file, not a folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said, picture, dots_model, monkeypatch, capsys):
    monkeypatch.chdir(picture.parent)
    (picture.parent / "words.txt").write_text("words")
    motion_jpeg = cv2.VideoWriter_fourcc(*"MJPG")
    cv2.VideoWriter(str(picture.parent / "frameless.avi"), motion_jpeg, 10, (64, 48)).release()
    if arguments == ["0"] and not cv2.VideoCapture(0).isOpened():
        said = "OpenCV cannot open camera 0"
    if "--phi" not in arguments and "--model" not in arguments:
        arguments = [*arguments, "--model", str(dots_model)]
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_names_that_shells_and_ffmpeg_know_otherwise(picture, dots_model, tmp_path, monkeypatch):
    """A tilde after =, a time of day, a number that is no camera."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "2026").mkdir()
    shutil.copy(picture, tmp_path / "2026" / "a.png")
    model = f"--model={dots_model}"
    assert main(["demo", "2026", model, "--out=~/found"]) == 0
    assert (tmp_path / "found/a_poses.png").is_file() and not (tmp_path / "~").exists()
    name = "at 10:00:00.mp4"
    with VideoFile(Path(name), 10.0) as video:
        video.write(cv2.imread(str(picture)))
    assert main(["demo", name, model, "--out", "o:ut"]) == 0
    assert (tmp_path / "o:ut/at 10:00:00_poses.mp4").is_file()


def test_in_a_video_people_keep_their_ids_when_their_order_changes(dots_model, tmp_path, capsys):
    """The order is that of scores, which changes from frame to frame."""
    import dots

    from ehrnet_ros.recording import VideoFile

    one, two = dots.figure((150, 200), 300), dots.figure((450, 240), 280)
    with VideoFile(tmp_path / "v.mp4", 12.0) as video:
        for shift in range(6):
            video.write(dots.draw_people((480, 640), np.stack([one, two + (2 * shift, 0)])))
    assert main(["demo", str(tmp_path / "v.mp4"), f"--model={dots_model}", f"-o={tmp_path}"]) == 0
    frames = json.loads((tmp_path / "v_poses.json").read_text())["frames"]
    ids = [
        [person["id"] for person in sorted(f["people"], key=lambda p: p["bbox"][0])] for f in frames
    ]
    # Ids are given once somebody was found in three frames.
    assert ids[:2] == [[-1, -1]] * 2 and -1 not in ids[2] and ids[2:] == [ids[2]] * 4


def test_decode_options_reach_it(picture, dots_model, tmp_path, capsys):
    words = ["demo", str(picture), f"--model={dots_model}", f"-o={tmp_path}"]
    assert main([*words, "--decode", "max_people=1"]) == 0
    assert "1 frame, 1 person," in capsys.readouterr().err
    assert main([*words, "--decode", "max_person=1"]) == 2
    assert "decode option 'max_person' does not exist" in capsys.readouterr().err


@pytest.fixture
def film(people, tmp_path):
    """A video of five frames."""
    import dots

    from ehrnet_ros.recording import VideoFile

    with VideoFile(tmp_path / "film.mp4", 12.0) as video:
        for shift in range(5):
            video.write(dots.draw_people((480, 640), people + (shift, 0)))
    return video.path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_amid_a_video_the_frames_done_are_kept(
    number, code, film, dots_model, tmp_path, capsys, monkeypatch
):
    from ehrnet_model.inference.estimator import PoseEstimator

    real, calls = PoseEstimator.estimate, []

    def estimate(self, picture, rgb=False, expected=None):
        calls.append(1)
        if len(calls) == 4:  # the first frame is seen twice
            os.kill(os.getpid(), number)
        return real(self, picture, rgb, expected)

    monkeypatch.setattr(PoseEstimator, "estimate", estimate)
    before = signal.getsignal(number)
    out = tmp_path / "out"
    assert main(["demo", str(film), f"--model={dots_model}", f"-o={out}"]) == code
    assert signal.getsignal(number) is before
    frames = json.loads((out / "film_poses.json").read_text())["frames"]
    capture = cv2.VideoCapture(str(out / "film_poses.mp4"))
    assert len(frames) == capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped: ")
    assert {p.name for p in out.iterdir()} == {"film_poses.mp4", "film_poses.json"}


def test_a_bar_only_where_somebody_watches(film, dots_model, tmp_path, capsys, monkeypatch):
    words = ["demo", str(film), f"--model={dots_model}", f"-o={tmp_path}"]
    assert main(words) == 0
    assert "\r" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main([*words, "--frames", "4"]) == 0
    said = capsys.readouterr().err
    assert "\r" in said and "4/4 [" in said and " frame/s" in said


@pytest.mark.parametrize("broken", ["0.jpg", "two people 2.png"])  # before and behind the good one
def test_an_unreadable_picture_of_a_folder_is_skipped_and_named(
    broken, picture, dots_model, tmp_path, capsys
):
    (tmp_path / broken).write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["demo", str(tmp_path), f"--model={dots_model}", f"-o={out}"]) == 0
    assert f"skipped: the picture {tmp_path / broken} does not decode" in capsys.readouterr().err
    (path,) = out.glob("*.json")
    result = json.loads(path.read_text())
    assert result["skipped"] == [broken] and len(result["frames"]) == len(result["files"]) == 1
    picture.unlink()
    assert main(["demo", str(tmp_path), f"--model={dots_model}", f"-o={out}"]) == 2
    assert f"the picture {tmp_path / broken} does not decode" in capsys.readouterr().err


def test_results_of_a_folder_are_traced_back_to_its_pictures(
    picture, dots_model, tmp_path, capsys, monkeypatch
):
    content = picture.read_bytes()
    picture.unlink()
    folder = tmp_path / "a folder.d"
    folder.mkdir()
    good = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    names = ["a.JPG", "b.bmp", "b.png", "c.jpeg", "c_poses.jpeg"]
    for name in names:
        cv2.imwrite(str(folder / name), good)
    given = (folder / "c_poses.jpeg").read_bytes()
    monkeypatch.chdir(folder)
    assert main(["demo", ".", f"--model={dots_model}", "-o=."]) == 0, capsys.readouterr().err
    result = json.loads((folder / "a folder.d_poses.json").read_text())
    assert [frame["file"] for frame in result["frames"]] == names
    made = ["a_poses.JPG", "b_poses.png", "b_poses_2.png", "c_poses_2.jpeg", "c_poses_poses.jpeg"]
    assert result["files"] == made and all((folder / name).is_file() for name in made)
    assert (folder / "c_poses.jpeg").read_bytes() == given


def test_the_time_of_a_single_picture_is_not_that_of_the_first_call(
    picture, dots_model, tmp_path, capsys, monkeypatch
):
    from ehrnet_model.inference.estimator import PoseEstimator
    from ehrnet_model.inference.poses import Timings

    real, seen = PoseEstimator.estimate, []

    def estimate(self, picture, rgb=False, expected=None):
        seen.append(picture.shape)
        return real(self, picture, rgb, expected)[0], Timings(0.0, 7.0 if seen[1:] else 5000.0, 0.0)

    monkeypatch.setattr(PoseEstimator, "estimate", estimate)
    assert main(["demo", str(picture), f"--model={dots_model}", f"-o={tmp_path}"]) == 0
    assert "1 frame, 2 people, 7 ms each" in capsys.readouterr().err
    assert seen == [(480, 640, 3)] * 2


def test_a_stream_is_taken_until_enough_frames(people, dots_model, tmp_path, capsys):
    import dots

    path = tmp_path / "film.avi"  # a format that needs no seeking
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (640, 480))
    for _ in range(5):
        writer.write(dots.draw_people((480, 640), people))
    writer.release()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/film.avi"
        words = ["demo", address, f"--model={dots_model}", f"-o={tmp_path / 'out'}"]
        assert main(words) == 2
        assert "a stream never ends: say with --frames" in capsys.readouterr().err
        assert main([*words, "--frames", "3"]) == 0, capsys.readouterr().err
        server.shutdown()
    result = json.loads((tmp_path / "out" / "stream_poses.json").read_text())
    assert [len(frame["people"]) for frame in result["frames"]] == [2, 2, 2]
    assert cv2.VideoCapture(result["files"][0]).get(cv2.CAP_PROP_FRAME_COUNT) == 3
