"""The type that leaves the inference room."""

from __future__ import annotations

import numpy as np
import pytest

from ehrnet_model.inference.poses import Poses


def three() -> Poses:
    rng = np.random.default_rng(0)
    xy, score = rng.uniform(0, 100, (3, 17, 2)), rng.uniform(0.1, 1, (3, 17))
    score[0, 4] = 0
    xy[1, 5, 0] = np.nan
    score[2] = 0
    return Poses.build(xy, score, np.ones((3, 17)), np.array([0.9, 0.5, 0.1]))


def test_absent_keypoints_are_blank_in_every_field() -> None:
    poses = three()
    for person, keypoint in ((0, 4), (1, 5), (2, 0)):
        assert np.isnan(poses.xy[person, keypoint]).all()
        assert poses.score[person, keypoint] == 0 and np.isnan(poses.std[person, keypoint])


def test_the_box_lies_around_the_present_keypoints() -> None:
    poses = three()
    for person in (0, 1):
        expected = [*np.nanmin(poses.xy[person], 0), *np.nanmax(poses.xy[person], 0)]
        np.testing.assert_array_equal(poses.bbox[person], expected)
    assert np.isnan(poses.bbox[2]).all()
    assert (poses.id == -1).all()


def test_people_are_chosen_like_rows() -> None:
    poses = three()
    assert len(poses) == 3 and len(poses[1:]) == 2 and len(poses[1]) == 1
    np.testing.assert_array_equal(poses[np.array([2, 0])].person_score, poses.person_score[[2, 0]])
    assert len(poses[poses.person_score > 0.2]) == 2
    assert len(Poses.empty()) == 0 and len(Poses.empty()[:5]) == 0


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = three()
    with pytest.raises(ValueError, match=r"Poses.std has shape \(3, 16\)"):
        Poses(good.xy, good.score, good.std[:, :16], good.person_score, good.bbox, good.id)


def test_coco_results() -> None:
    results = three().to_coco(42)
    assert [r["score"] for r in results] == pytest.approx([0.9, 0.5, 0.1])
    assert all(len(r["keypoints"]) == 51 and r["image_id"] == 42 for r in results)
    assert results[0]["keypoints"][12:15] == [0, 0, 0]
    assert all(np.isfinite(r["keypoints"]).all() for r in results)


def test_keypoints_outside_the_image_are_not_found() -> None:
    """In 100 x 50 pixels: within 4 % of the person, of 41.7 pixels, they are moved to the edge."""
    xy = np.array([[(-1, 50), (99.5, 20)], [(-1.7, 20), (40, 30)], [(40, 60), (200, 9)]])
    poses = Poses.build(xy, np.full((3, 2), 0.9), np.ones((3, 2)), np.array([0.9, 0.8, 0.7]))
    inside = poses.within((50, 100))
    np.testing.assert_array_equal(inside.xy[0], [(0, 49), (99, 20)])
    np.testing.assert_array_equal(inside.xy[1], [(np.nan, np.nan), (40, 30)])
    assert inside.score[1].tolist() == [0, np.float32(0.9)] and np.isnan(inside.std[1, 0])
    np.testing.assert_array_equal(inside.bbox, [(0, 20, 99, 49), (40, 30, 40, 30)])
    assert inside.person_score.tolist() == poses.person_score[:2].tolist()
    xy[1, 0, 0] = -1.6
    np.testing.assert_array_equal(
        Poses.build(xy, poses.score, poses.std, poses.person_score).within((50, 100)).xy[1],
        [(0, 20), (40, 30)],
    )
    assert len(Poses.empty().within((50, 100))) == 0


def test_scores_are_at_most_one() -> None:
    """Heatmaps are what a network was taught, roughly: peaks may be a little higher."""
    poses = Poses.build(np.ones((1, 2, 2)), [[1.07, 0.4]], np.ones((1, 2)), [1.01])
    np.testing.assert_array_equal(poses.score, np.float32([[1, 0.4]]))
    assert poses.person_score[0] == 1


def test_best_first():
    xy = np.arange(4 * 17 * 2, dtype=float).reshape(4, 17, 2)
    poses = Poses.build(xy, np.ones((4, 17)), np.ones((4, 17)), np.array([0.2, 0.9, 0.2, 0.5]))
    poses.id[:] = [3, 1, 4, 2]
    best = poses.best_first()
    assert best.id.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(best.xy, poses.xy[[1, 3, 0, 2]])
