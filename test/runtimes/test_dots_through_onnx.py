"""A drawn picture through the exported graph: keypoints where they were drawn, tags by person."""

from __future__ import annotations

from pathlib import Path

import dots
import numpy as np
import pytest

from ehrnet_model.inference.runtime import model_info, open_runtime


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


def test_metadata_says_what_the_model_is(dots_model: Path) -> None:
    info = model_info(dots_model)
    assert (info.variant, info.phi, info.skeleton.name) == ("H-4", -4, "coco-17")
    assert info.coordinates == "pixel-centre"
    assert len(info.weights_sha256) == 64
    assert info.version
