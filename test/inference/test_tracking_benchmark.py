"""What benchmarks/tracking.py says of the trackers, in counts that a test can hold."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tracking, walkers


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
