"""From a picture to Poses with a real engine and a network whose answer is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import dots
import numpy as np
import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import Runtime


@pytest.fixture(scope="module")
def runtime(dots_model: Path) -> Runtime:
    return open_runtime(dots_model, "onnxruntime")


def scene(image_hw: tuple[int, int] = (480, 640)) -> tuple[np.ndarray, np.ndarray]:
    """A picture of two people and their (2, 17, 2) keypoints."""
    height, width = image_hw
    size = min(0.85 * height, 0.5 * width)
    people = np.stack([dots.figure((width * x, height * 0.5), size) for x in (0.26, 0.74)])
    return dots.draw_people(image_hw, people), people


def errors(poses: Poses, people: np.ndarray) -> np.ndarray:
    assert len(poses) == len(people)
    return np.hypot(*(poses.xy[np.argsort(poses.xy[:, 0, 0])] - people).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "image_hw", [(480, 640), (1080, 1920), (800, 600), (501, 333), (400, 400), (384, 512)]
)
@pytest.mark.parametrize("size_hw", [None, (384, 512), (512, 384), (416, 416)])
def test_keypoints_within_a_pixel(
    runtime: Runtime, image_hw: tuple[int, int], size_hw: tuple[int, int] | None
) -> None:
    image, people = scene(image_hw)
    poses = PoseEstimator(runtime, size_hw=size_hw)(image)
    # One input pixel where the picture is shrunk.
    shrunk = max(1, image_hw[0] / 384, image_hw[1] / 384)
    assert errors(poses, people).max() < (1 if size_hw is None else shrunk)
    assert (poses.id == -1).all() and np.isfinite(poses.std).all()


def test_the_gain_of_deviations_changes_nothing_else(runtime: Runtime) -> None:
    image, _ = scene()
    plain = PoseEstimator(runtime)(image)
    options = DecodeOptions.from_dict(runtime.info.decode, std_gain=0.4)
    other = PoseEstimator(runtime, options)(image)
    np.testing.assert_allclose(other.std, plain.std * 0.4, rtol=1e-6)
    for name in ("xy", "score", "person_score", "bbox"):
        np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))


def test_rgb_pictures_and_any_strides(runtime: Runtime) -> None:
    image, people = scene()
    estimator = PoseEstimator(runtime)
    plain = estimator(image)
    for other, rgb in (
        (cv2.cvtColor(image, cv2.COLOR_BGR2RGB), True),
        (np.ascontiguousarray(image[..., ::-1])[..., ::-1], False),
        (np.pad(image, ((3, 3), (5, 5), (0, 0)))[3:-3, 5:-5], False),
    ):
        np.testing.assert_allclose(estimator(other, rgb).xy, plain.xy, atol=1e-3)
    assert errors(plain, people).max() < 1
    # Taken for BGR, the colours name other keypoints.
    wrong = estimator(image, rgb=True)
    assert len(wrong) != 2 or not np.allclose(wrong.xy, plain.xy, atol=5, equal_nan=True)


def test_pictures_of_changing_size_through_one_estimator(runtime: Runtime) -> None:
    estimator = PoseEstimator(runtime)
    for image_hw in [(480, 640), (640, 480), (480, 640), (700, 1280)]:
        image, people = scene(image_hw)
        assert errors(estimator(image), people).max() < 1
    assert estimator.input_size((480, 640)) == (384, 512)
    assert estimator.input_size((640, 480)) == (512, 384)
    assert estimator.input_size((720, 1280)) == (384, 704)


def test_options_may_change_between_pictures(runtime: Runtime) -> None:
    image, _ = scene()
    estimator = PoseEstimator(runtime)
    assert len(estimator(image)) == 2
    estimator.options = DecodeOptions(max_people=1)
    assert len(estimator(image)) == 1
    estimator.options = DecodeOptions(keypoint_threshold=1.0)
    assert len(estimator(image)) == 0


def test_an_empty_room_and_timings(runtime: Runtime) -> None:
    poses, timings = PoseEstimator(runtime).estimate(np.zeros((480, 640, 3), np.uint8))
    assert len(poses) == 0
    stages = timings.letterbox_ms, timings.engine_ms, timings.decode_ms
    assert all(ms > 0 for ms in stages)
    assert timings.total_ms == pytest.approx(sum(stages))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 640, 3), np.uint8),
        np.zeros((480, 640), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((480, 640, 3), np.float32),
        np.zeros(7, np.uint8),
    ],
    ids=lambda image: f"{image.shape} {image.dtype}",
)
def test_images_that_are_none(runtime: Runtime, image: np.ndarray) -> None:
    estimator = PoseEstimator(runtime)
    said = "expected an image of shape|image of 640x0 pixels cannot be fitted"
    with pytest.raises(EhrnetError, match=said):
        estimator(image)
    assert len(estimator(scene()[0])) == 2


@pytest.mark.parametrize("image", [None, "people.jpg"])
def test_what_imread_gives_for_a_wrong_path(runtime: Runtime, image: object) -> None:
    with pytest.raises(EhrnetError, match=f"got {type(image).__name__}: .* check the path"):
        PoseEstimator(runtime)(image)


class Broken:
    """An engine whose answers have one value that is not finite, as in a precision too low."""

    def __init__(self, runtime: Runtime) -> None:
        self.inner, self.info = runtime, runtime.info
        self.name, self.size_hw = "broken", runtime.size_hw
        self.works = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        peaks = self.inner(images).copy()
        if not self.works:
            peaks[0, 5, 2, 1] = np.nan
        return peaks

    def close(self) -> None:
        self.inner.close()


def test_broken_answers_are_an_error_and_the_next_picture_is_fine(runtime: Runtime) -> None:
    broken = Broken(runtime)
    estimator = PoseEstimator(broken)
    with pytest.raises(EhrnetError, match="not finite"):
        estimator(scene()[0])
    broken.works = True
    assert len(estimator(scene()[0])) == 2


def test_a_pinned_engine_decides_the_size(dots_model: Path) -> None:
    pinned = open_runtime(dots_model, "onnxruntime", size_hw=(320, 416))
    estimator = PoseEstimator(pinned)
    assert estimator.input_size((1080, 1920)) == (320, 416)
    image, people = scene()
    assert errors(estimator(image), people).max() < 1


def test_every_image_needs_its_own_rgb_and_rotation(dots_model) -> None:
    estimator = PoseEstimator.open(dots_model)
    black = np.zeros((96, 128, 3), np.uint8)
    for images, rgb in (([], []), ([black, black], [False]), ([black], [])):
        with pytest.raises(EhrnetError, match=f"{len(images)} images, {len(rgb)} values of rgb"):
            estimator.infer(images, rgb)
    with pytest.raises(EhrnetError, match="1 images, 1 values of rgb, 2 of expected and 1 of"):
        estimator.infer([black], [False], [None, None])
    with pytest.raises(EhrnetError, match="1 of expected and 2 of rotations: give one or more"):
        estimator.infer([black], [False], rotations=[0, 90])


def test_options_given_while_opening_come_before_the_stored_ones(dots_model) -> None:
    assert PoseEstimator.open(dots_model, decode={"max_people": 1}).options.max_people == 1
    with pytest.raises(EhrnetError, match="decode option 'x' does not exist"):
        PoseEstimator.open(dots_model, decode={"x": 1})
