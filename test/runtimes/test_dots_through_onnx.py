"""A drawn picture through the exported graph: keypoints where they were drawn, tags by person."""

from __future__ import annotations

from pathlib import Path

import cv2
import dots
import numpy as np
import pytest

from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.runtime import model_info


@pytest.mark.parametrize("size_hw", [(384, 384), (288, 384), (384, 512), (384, 704)])
def test_drawn_keypoints_are_found_with_sub_pixel_accuracy(dots_model: Path, size_hw) -> None:
    height, width = size_hw
    people = np.stack(
        [
            dots.figure((width * 0.26, height * 0.5), height * 0.55),
            dots.figure((width * 0.74 + 0.3, height * 0.5 + 0.7), height * 0.53),
        ]
    )
    image = dots.draw_people(size_hw, people)
    peaks = open_runtime(dots_model)(image[None])[0]
    for keypoint in range(17):
        found = peaks[keypoint][peaks[keypoint, :, 0] > 0.1]
        distance = np.hypot(*(found[:, None, 1:3] - people[None, :, keypoint]).transpose(2, 0, 1))
        assert (distance.min(1) < 0.3).all(), "a peak where nothing was drawn"
        assert (distance.min(0) < 0.3).all(), "a keypoint was not found"
        owner = distance.argmin(1)
        expected = np.array([dots.expected_tag(p) for p in range(2)])[owner]
        np.testing.assert_allclose(found[:, 3], expected, atol=0.1)


@pytest.mark.parametrize(
    ("image_hw", "quality", "limit_px"),
    [
        ((480, 640), None, 0.3),
        ((480, 640), 90, 1.0),
        ((720, 1280), None, 0.3),
        ((720, 1280), 90, 1.0),
        ((240, 320), None, 0.3),
        ((640, 480), None, 0.3),
    ],
)
def test_a_picture_comes_back_as_the_people_drawn(
    dots_model: Path, image_hw: tuple[int, int], quality: int | None, limit_px: float
) -> None:
    """Letterbox, engine, grouping and back: identities apart, keypoints in image pixels."""
    height, width = image_hw
    size = min(0.85 * height, 0.55 * width)
    people = np.stack(
        [dots.figure((width * x, height * 0.5 + 3.3 * x), size) for x in (0.26, 0.74)]
    )
    people[1, 9] = np.nan
    image = dots.draw_people(image_hw, people)
    if quality is not None:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    poses = PoseEstimator(open_runtime(dots_model))(image)
    assert len(poses) == 2
    found = poses.xy[np.argsort(poses.xy[:, 0, 0])]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(people))
    assert np.nanmax(np.hypot(*(found - people).transpose(2, 0, 1))) < limit_px


def test_metadata_says_what_the_model_is(dots_model: Path) -> None:
    info = model_info(dots_model)
    assert (info.variant, info.phi, info.skeleton.name) == ("H-4", -4, "coco-17")
    assert info.coordinates == "pixel-centre"
    assert len(info.weights_sha256) == 64
    assert info.version
