"""The demo's video: people that move, on frames that the nodes can take."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ehrnet_model.errors import EhrnetError

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def demo_video():
    spec = importlib.util.spec_from_file_location("demo_video", TOOLS / "demo_video.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_video"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo_video"]


def test_scenes_show_one_person_and_several_inside_the_frame(demo_video):
    counts = []
    for scene in demo_video.SCENES:
        assert [a.photograph for a in scene.first] == [b.photograph for b in scene.last]
        counts.append(len(scene.first))
        for layer in scene.first + scene.last:
            assert layer.photograph in demo_video.PHOTOGRAPHS
            assert 0 <= layer.x <= 4 / 3 and 0 <= layer.y <= 1 and 0.5 <= layer.height <= 1.2
    assert min(counts) == 1 and max(counts) >= 3
    assert {layer.photograph for s in demo_video.SCENES for layer in s.first} == set(
        demo_video.PHOTOGRAPHS
    )


def test_frames_move_and_hold_the_photographs(demo_video):
    values = dict(zip(demo_video.PHOTOGRAPHS, (60, 150, 240), strict=True))
    pictures = {name: np.full((200, 200, 3), value, np.uint8) for name, value in values.items()}
    frames = list(demo_video.frames(pictures, rate=4))
    assert len(frames) == round(4 * sum(scene.seconds for scene in demo_video.SCENES))
    assert all(frame.shape == (480, 640, 3) and frame.dtype == np.uint8 for frame in frames)
    layer = demo_video.SCENES[0].first[0]
    assert frames[0][int(layer.y * 480), int(layer.x * 480)].tolist() == [60, 60, 60]
    assert all((frames[i] != frames[i + 1]).any() for i in (4, 16))


def test_a_photograph_lands_where_it_is_put(demo_video):
    """Against drawing at the same place by hand: centre, size and mirroring."""
    picture = np.zeros((101, 81, 3), np.uint8)
    cv2.circle(picture, (20, 50), 8, (255, 255, 255), -1)
    frame = np.zeros((480, 640, 3), np.uint8)
    demo_video._place(frame, picture, 0.5, 0.5, 404 / 480, False)
    ys, xs = np.nonzero(frame[..., 0] > 128)
    assert abs(xs.mean() - (240 + 4 * (20 - 40))) < 1 and abs(ys.mean() - 240) < 1
    demo_video._place(frame, picture, 0.5, 0.5, 404 / 480, True)
    ys, xs = np.nonzero(frame[..., 0] > 128)
    assert abs(xs.mean() - (240 + 4 * (40 - 20))) < 1


def test_photographs_are_found_or_told(demo_video, tmp_path, monkeypatch):
    for name, (_, file, _) in demo_video.PHOTOGRAPHS.items():
        shade = 50 + len(name)
        cv2.imwrite(str(tmp_path / Path(file).name), np.full((100, 100, 3), shade, np.uint8))
    pictures = demo_video.photographs(tmp_path)
    assert set(pictures) == set(demo_video.PHOTOGRAPHS)
    left, top, right, bottom = demo_video.PHOTOGRAPHS["astronaut"][2]
    expected = (round(100 * (bottom - top)), round(100 * (right - left)), 3)
    assert pictures["astronaut"].shape == expected
    (tmp_path / "camera.png").write_bytes(b"")
    with pytest.raises(EhrnetError, match=r"camera\.png is broken"):
        demo_video.photographs(tmp_path)
    monkeypatch.setattr(demo_video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EhrnetError, match=r"is not there: run \./demo"):
        demo_video.photographs(tmp_path / "nothing")
