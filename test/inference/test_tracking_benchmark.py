"""What benchmarks/tracking.py says of the trackers, in counts that a test can hold."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import panning, tracking, walkers


@pytest.mark.parametrize("seed", [100, 70])
def test_no_more_switches_than_by_overlap_where_people_cross(seed):
    frames = walkers.crossing(seed=seed)
    ours, _ = tracking.run(tracking.ours(), frames)
    plain, _ = tracking.run(tracking.by_iou(), frames)
    for ids in (ours, plain):
        given = np.concatenate(ids)
        assert (given >= 0).sum() > 400  # both do track: they are found 520 times or so
    assert tracking.switches(frames, plain) >= 2  # or the sequence would be too easy
    assert tracking.switches(frames, ours) <= tracking.switches(frames, plain)
    assert tracking.switches(frames, ours) <= 1


def test_switches_are_counted_as_they_are():
    frames = walkers.crossing(10.0, seed=71)[:20]
    perfect = [frame.truth for frame in frames]
    assert tracking.switches(frames, perfect) == 0
    swapped = [np.where(t < 0, t, t ^ 1) if i >= 10 else t for i, t in enumerate(perfect)]
    there = [set(t[t >= 0].tolist()) for t in perfect]
    both = set.union(*there[:10]) & set.union(*there[10:])
    assert tracking.switches(frames, swapped) == len(both)


def test_overlap():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]], float)
    np.testing.assert_allclose(tracking.iou(boxes[:1], boxes), [[1, 1 / 7, 0]])


def test_scores_of_the_truth_are_the_best_there_are():
    pytest.importorskip("trackers", reason="comes with requirements/benchmarks.txt")
    frames = walkers.film(
        {0: walkers.straight((-1, 4), (1, 4), 2)}, 2.0, 10.0, 72, noise=0.0, missed=0.0, ghosts=0.0
    )
    best = tracking.scores(frames, [frame.truth for frame in frames])
    assert (best["switches"], best["MOTA"], best["IDF1"]) == (0, 1.0, 1.0)
    half = [f.truth + 5 * (i >= 10) for i, f in enumerate(frames)]
    assert tracking.scores(frames, half)["switches"] == 1


def dotted() -> tuple[np.ndarray, dict]:
    """A dark picture with a bright dot at each of four keypoints, and their annotation."""
    places = [(120, 90), (310, 200), (500, 350), (4, 240)]
    picture = np.zeros((480, 640, 3), np.uint8)
    keypoints = np.zeros((17, 3))
    for joint, (x, y) in enumerate(places):
        picture[y - 3 : y + 4, x - 3 : x + 4] = 255
        keypoints[joint] = x, y, 2
    box = [0.0, 80.0, 520.0, 280.0]
    return picture, {"keypoints": keypoints.ravel().tolist(), "area": 9000.0, "bbox": box}


def test_labels_move_with_the_camera() -> None:
    picture, person = dotted()
    left = set()
    for view in panning.film(picture, [person], 30, seed=3):
        (seen,) = view.people
        points = np.array(seen["keypoints"]).reshape(17, 3)
        for joint in range(3):
            x, y, visible = points[joint]
            assert visible == 2
            rows, columns = np.mgrid[0:480, 0:640]
            light = np.clip(view.image[..., 0].astype(float) - 60, 0, None)
            light = light * (np.hypot(columns - x, rows - y) < 12)
            centre = (light * columns).sum() / light.sum(), (light * rows).sum() / light.sum()
            assert np.hypot(centre[0] - x, centre[1] - y) < 0.7
        # The dot at the picture's edge is out of view in nearly all of the images.
        left.add(int(points[3, 2]))
        assert (points[4:] == 0).all()
        assert 1.08**2 < seen["area"] / 9000 < 1.24**2
        x, y, width, height = seen["bbox"]
        assert 0 <= x and 0 <= y and x + width <= 640 and y + height <= 480
    assert 0 in left


def test_the_film_is_the_same_each_time_and_never_twice_the_same_image() -> None:
    picture, person = dotted()
    one, two = (list(panning.film(picture, [person], 5, seed=1)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert a.stamp_s == b.stamp_s and np.array_equal(a.image, b.image) and a.people == b.people
    assert all((one[i].image != one[i + 1].image).mean() > 0.2 for i in range(4))
    other = next(panning.film(picture, [person], 5, seed=2))
    assert not np.array_equal(other.image, one[0].image)
