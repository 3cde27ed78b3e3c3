"""Files are whole or not there."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.atomic import save_bytes, save_json
from ehrnet_ros.recording import VideoFile, make_folder, write_picture


def test_files_are_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    save_json(path, {"old": 1})
    save_json(path, {"new": [1.5, None]})
    assert json.loads(path.read_text()) == {"new": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        save_json(path, math.nan)
    assert json.loads(path.read_text()) == {"new": [1.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EhrnetError, match="cannot be made"):
        make_folder(tmp_path / "file" / "out")
    with pytest.raises(EhrnetError, match=r"file/a cannot be written"):
        save_bytes(tmp_path / "file" / "a", b"")


@pytest.mark.parametrize("name", ["é ü.png", "a.jpg"])
def test_picture_comes_back(tmp_path, name):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, 30:] = (200, 100, 50)
    write_picture(tmp_path / name, picture)
    read = cv2.imdecode(np.fromfile(tmp_path / name, np.uint8), cv2.IMREAD_COLOR)
    assert read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("size_wh", [(64, 48), (65, 49)])
def test_video_comes_back_frame_by_frame(tmp_path, size_wh):
    width, height = size_wh
    with VideoFile(tmp_path / "v.mp4", 20.0) as video:
        for value in (30, 120, 210):
            video.write(np.full((height, width, 3), value, np.uint8))
        assert not (tmp_path / "v.mp4").exists()
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert round(capture.get(cv2.CAP_PROP_FPS)) == 20
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frames.append(frame)
    assert [round(frame.mean() / 10) for frame in frames] == [3, 12, 21]
    assert all(frame.shape == (48, 64, 3) for frame in frames)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_frames_of_another_size_take_that_of_the_first_and_keep_their_shape(tmp_path):
    with VideoFile(tmp_path / "v.mp4", 10.0) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
        video.write(np.full((96, 128, 3), 200, np.uint8))
        video.write(np.full((128, 64, 3), 200, np.uint8))  # upright
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    frames = [capture.read()[1] for _ in range(3)]
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3 and not capture.read()[0]
    assert frames[1].min() > 150
    assert (frames[2][24, 24:40] > 150).all()
    assert (frames[2][:, :16] < 50).all() and (frames[2][:, 48:] < 50).all()


def test_a_video_that_was_not_finished_is_not_there(tmp_path):
    with pytest.raises(RuntimeError), VideoFile(tmp_path / "v.mp4", 10.0) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
        raise RuntimeError
    with VideoFile(tmp_path / "empty.mp4", 10.0):
        pass
    assert not list(tmp_path.iterdir())
