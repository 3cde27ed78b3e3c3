"""Drawing: where the ink is, and that it is nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from dots import figure

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.draw import draw_poses
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17


def people(*keypoints: np.ndarray, score: float = 0.9) -> Poses:
    xy = np.stack(keypoints)
    scores = np.full(xy.shape[:2], score)
    return Poses.build(xy, scores, np.ones(xy.shape[:2]), np.full(len(xy), score))


def inked(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(2)


def test_draws_on_a_copy_around_the_keypoints_only() -> None:
    image = np.full((240, 320, 3), 90, np.uint8)
    keypoints = figure((160, 120), 180)
    drawn = draw_poses(image, people(keypoints), show_scores=False)
    assert (image == 90).all()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    ink = inked(image, drawn)
    for x, y in keypoints.round().astype(int):
        assert ink[y, x]
    rows, columns = np.nonzero(ink)
    assert np.abs(columns - 160).max() <= 0.4 * 180 + 8
    assert np.abs(rows - 120).max() <= 0.45 * 180 + 8


def test_left_and_right_have_their_own_colours() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    keypoints = figure((160, 120), 180)
    drawn = draw_poses(image, people(keypoints))
    colours = [tuple(drawn[y, x]) for x, y in keypoints.round().astype(int)]
    left = {c for c, n in zip(colours, COCO_17.names) if n.startswith("left_")}
    right = {c for c, n in zip(colours, COCO_17.names) if n.startswith("right_")}
    assert len(left) == len(right) == len({colours[0]}) == 1
    assert len(left | right | {colours[0]}) == 3


def colours(drawn: np.ndarray, keypoints: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Of the left and of the right shoulder."""
    return tuple(tuple(int(c) for c in drawn[y, x]) for x, y in keypoints[5:7].round().astype(int))


def test_everybody_has_a_colour_that_goes_with_the_id() -> None:
    image = np.zeros((240, 640, 3), np.uint8)
    one, two = figure((160, 120), 180), figure((480, 120), 180)
    poses = people(one, two)
    drawn = draw_poses(image, poses)
    assert len({*colours(drawn, one), *colours(drawn, two)}) == 4
    poses.id[:] = 11, 4
    tracked = draw_poses(image, poses)
    swapped = people(two, one)
    swapped.id[:] = 4, 11
    assert (draw_poses(image, swapped) == tracked).all()
    assert colours(tracked, one) != colours(drawn, one)


def test_left_is_lighter_than_right_and_both_than_the_outline() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    keypoints = figure((160, 120), 180)
    poses = people(keypoints)
    seen = set()
    for number in range(8):
        poses.id[:] = number
        left, right = colours(draw_poses(image, poses), keypoints)
        seen |= {left, right}
        blue_green_red = 0.114, 0.587, 0.299
        assert np.dot(left, blue_green_red) > 1.3 * np.dot(right, blue_green_red) > 60
    assert len(seen) == 16


def test_absent_keypoints_and_bones_to_them_are_not_drawn() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    keypoints = figure((160, 120), 180)
    keypoints[9] = np.nan
    ink = inked(image, draw_poses(image, people(keypoints)))
    x, y = (figure((160, 120), 180)[[7, 9]].mean(0)).round().astype(int)
    assert not ink[y - 2 : y + 3, x - 2 : x + 3].any()


def test_doubtful_keypoints_are_as_faint_as_they_are_doubtful() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    alone = np.full((17, 2), np.nan)
    alone[9] = 160, 120
    seen = [draw_poses(image, people(alone, score=s)) for s in (0.9, 0.8, 0.6, 0.4, 0.01)]
    assert (seen[0] == seen[1]).all()
    brightness = np.array([picture[120, 160].sum(dtype=int) for picture in seen[1:]])
    np.testing.assert_allclose(brightness / brightness[0], [1, 0.75, 0.5, 0.2], atol=0.01)


@pytest.mark.parametrize("offset", [(-400, 0), (1e7, -1e7), (160, 0)])
def test_people_beyond_the_border_do_no_harm(offset: tuple[float, float]) -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    poses = people(figure((160, 120), 180) + offset)
    poses.id[:] = 7
    drawn = draw_poses(image, poses, show_ids=True, show_scores=True)
    assert drawn.shape == image.shape


def test_nobody_changes_nothing_and_views_are_taken() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)[::2, ::-1]
    assert (draw_poses(image, Poses.empty()) == image).all()
    assert draw_poses(np.zeros((0, 5, 3), np.uint8), Poses.empty()).shape == (0, 5, 3)
    draw_poses(image, people(figure((40, 15), 25)))


def test_wants_bgr_uint8_and_the_right_skeleton() -> None:
    with pytest.raises(EhrnetError, match="uint8"):
        draw_poses(np.zeros((4, 4), np.uint8), Poses.empty())
    with pytest.raises(EhrnetError, match="uint8"):
        draw_poses(np.zeros((4, 4, 3), np.float32), Poses.empty())
    with pytest.raises(EhrnetError, match="14 keypoints"):
        draw_poses(np.zeros((4, 4, 3), np.uint8), Poses.empty(14))
