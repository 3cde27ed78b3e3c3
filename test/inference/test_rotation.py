"""Cameras that are mounted sideways or upside down."""

from __future__ import annotations

from pathlib import Path

import cv2
import dots
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.rotation import (
    ROTATIONS,
    turned,
    turned_along,
    turned_back,
    turned_hw,
)
from ehrnet_model.inference.way_up import way_up_advice


@given(st.sampled_from(ROTATIONS), st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_pixel_is_found_where_it_was(degrees, height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image = np.zeros((height, width, 3), np.uint8)
    image[y, x] = 255
    away = turned(image, degrees)
    assert away.shape[:2] == turned_hw((height, width), degrees)
    row, column = np.unravel_index(away[..., 0].argmax(), away.shape[:2])
    score = np.array([[0.5, 0.0]])
    xy = np.array([[[column, row], [np.nan, np.nan]]], float)
    poses = Poses.build(xy, score, np.full((1, 2), 2.0), np.array([0.7]))
    poses.id[:] = 6
    back = turned_back(poses, degrees, (height, width))
    np.testing.assert_array_equal(back.xy[0, 0], [x, y])
    assert np.isnan(back.xy[0, 1]).all() and back.id.tolist() == [6]
    np.testing.assert_array_equal(back.bbox[0], [x, y, x, y])
    np.testing.assert_array_equal(back.score, poses.score)
    np.testing.assert_array_equal(back.std, poses.std)
    along = turned_along(back, degrees, (height, width))
    np.testing.assert_array_equal(along.xy, poses.xy)
    assert along.id.tolist() == [6]


def test_clockwise_is_clockwise():
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    for degrees in ROTATIONS:  # NumPy turns the other way
        np.testing.assert_array_equal(turned(image, degrees), np.rot90(image, -degrees // 90))


@pytest.mark.parametrize("degrees", ROTATIONS)
def test_people_are_where_they_are_however_the_camera_is_mounted(dots_model: Path, degrees: int):
    """Dots look the same from all sides, so what is found must not depend on the rotation."""
    people = np.stack([dots.figure((640 * x, 240), 300) for x in (0.26, 0.74)])
    image = dots.draw_people((480, 640), people)
    estimator = PoseEstimator(open_runtime(dots_model, "onnxruntime"))
    estimator.rotation = degrees
    poses = estimator(image)
    short, long = sorted(estimator.input_size((480, 640)))
    assert estimator.input_size((480, 640)) == (
        (short, long) if degrees in (0, 180) else (long, short)
    )
    found = poses.xy[np.argsort(poses.xy[:, 0, 0])]
    assert np.hypot(*(found - people).transpose(2, 0, 1)).max() < 1
    # The attribute may change between images.
    estimator.rotation = 0
    np.testing.assert_allclose(estimator(image).xy, poses.xy, atol=1)


def test_images_turned_by_different_angles_share_a_batch(dots_model: Path):
    people = [dots.figure((x, 240), 300)[None] for x in (150, 320, 480)]
    images = [dots.draw_people((480, 640), who) for who in people]
    estimator = PoseEstimator(open_runtime(dots_model, "onnxruntime"), size_hw=(512, 512))
    found = estimator.infer(images, [False] * 3, rotations=[90, 0, 270]).people()
    for (poses, _), who in zip(found, people):
        assert np.hypot(*(poses.xy - who).transpose(2, 0, 1)).max() < 1
    # Of these two one is upright, so that they need inputs of different sizes.
    free = PoseEstimator(open_runtime(dots_model, "onnxruntime"))
    with pytest.raises(EhrnetError, match="different sizes"):
        free.infer(images[:2], [False] * 2, rotations=[0, 90])


def hopper() -> np.ndarray:
    """A photograph of a person that a usual package ships, (H, W, 3) uint8 BGR."""
    matplotlib = pytest.importorskip("matplotlib", reason="a photograph comes with matplotlib")
    path = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    if not path.exists():
        pytest.skip("this matplotlib ships no photographs")
    return np.asarray(cv2.imread(str(path)))


@pytest.fixture(scope="module")
def h4():
    estimator = PoseEstimator.open(find_model(-4), "onnxruntime")
    yield estimator
    estimator.close()


@pytest.mark.parametrize("mounted", ROTATIONS)
def test_how_the_camera_is_mounted_is_told(h4: PoseEstimator, mounted: int):
    image = turned(hopper(), mounted)
    advice = way_up_advice(h4, [image, image], [False, False])
    needed = -mounted % 360
    assert advice.endswith(f"set rotation:={needed}") if needed else advice == ""
    h4.rotation = needed
    assert len(h4(image)) == 1
    h4.rotation = 0


def test_exchanged_colours_are_told(h4: PoseEstimator):
    image = hopper()
    assert "red and blue are exchanged" in way_up_advice(h4, [image], [True])
    assert way_up_advice(h4, [np.ascontiguousarray(image[..., ::-1])], [True]) == ""


def test_where_nobody_is_nothing_is_told(h4: PoseEstimator):
    h4.rotation = 90
    grey = np.full((480, 640, 3), 128, np.uint8)
    assert way_up_advice(h4, [grey], [False]) == ""
    assert h4.rotation == 90
    h4.rotation = 0
