"""Grouping and what follows, against answers by hand and a slow obvious grouping."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peaks import output

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.anatomy import SPANS
from ehrnet_model.inference.decode import (
    DecodeOptions,
    Peaks,
    assign,
    decode,
    group_all,
    oks_nms,
    refine,
)
from ehrnet_model.inference.legs import part_legs
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.person_score import TERMS
from ehrnet_model.inference.reference import find_peaks
from ehrnet_model.skeleton import COCO_17

SAME = Letterbox.fit((384, 512), (384, 512))
# Keypoints are handed to people in this order: head and torso first.
ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
EVERYBODY = DecodeOptions(person_threshold=0.0, min_keypoints=1, max_people=1000, nms_oks=1.0)


def group(peaks, options, spans=None, threshold=None):
    """The people of one look."""
    threshold = options.keypoint_threshold if threshold is None else threshold
    return group_all([peaks], options, spans, [threshold])[0]


def crowd(
    people: int, seed: int = 0, spacing: float = 2.0, spread: float = 0.1, missing: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Engine output of people far apart, and who is whose peak: (people, 17) index or -1."""
    rng = np.random.default_rng(seed)
    tags = spacing * np.arange(people)[:, None] + rng.uniform(-spread, spread, (people, 17))
    scores = rng.uniform(0.2, 1, (people, 17))
    scores[rng.random((people, 17)) < missing] = 0
    out = np.zeros((17, max(30, people), 15), np.float32)
    whose = np.full((people, 17), -1)
    for k in range(17):
        for place, person in enumerate(np.argsort(-scores[:, k])[: (scores[:, k] > 0).sum()]):
            x, y = 40 + 70 * (person % 7), 40 + 60 * (person // 7)
            xy = (x, y) + rng.uniform(-20, 20, 2)
            patch = np.full(9, scores[person, k] / 2)
            patch[4] = scores[person, k]
            out[k, place] = [scores[person, k], *xy, tags[person, k], *(xy / 2).round(), *patch]
            whose[person, k] = place
    return out, whose


def as_set(chosen: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in row) for row in chosen}


# ---------------------------------------------------------------------------- grouping


@pytest.mark.parametrize("people", [0, 1, 5, 15, 20, 30, 36])
def test_as_many_groups_as_people(people: int) -> None:
    # The published rule finds up to 286 groups for 36 people (forced matches, 30-group limit).
    for seed in range(8):
        out, whose = crowd(people, seed)
        chosen = group(Peaks.from_output(out), EVERYBODY)
        assert as_set(chosen) == as_set(whose[(whose >= 0).any(1)])
        # As an engine gives them: the best 30 of each keypoint, but still everybody.
        chosen = group(Peaks.from_output(out[:, :30]), EVERYBODY)
        whose = np.where(whose < 30, whose, -1)
        assert len(chosen) == people and as_set(chosen) == as_set(whose)


def slow_group(peaks: Peaks, options: DecodeOptions) -> set[tuple[int, ...]]:
    """Keypoint after keypoint, every possible matching tried; people are lists of peaks."""
    people: list[dict[int, int]] = []
    gate = options.tag_threshold
    for k in ORDER:
        found = [i for i, s in enumerate(peaks.score[k]) if s >= options.keypoint_threshold]
        means = [np.mean([peaks.tag[j, i] for j, i in p.items()], dtype=float) for p in people]
        best, matching = 0.0, [-1] * len(found)
        for picks in itertools.product(range(-1, len(people)), repeat=len(found)):
            used = [p for p in picks if p >= 0]
            if len(set(used)) < len(used):
                continue
            total, allowed = 0.0, True
            for i, p in zip(found, picks):
                if p >= 0:
                    distance = abs(float(peaks.tag[k, i]) - means[p])
                    allowed &= distance < gate
                    total += gate - distance
                    total += 1e-3 * (float(peaks.score[k, i]) + gate**2 - distance**2)
            if allowed and total > best + 1e-9:
                best, matching = total, list(picks)
        for i, p in zip(found, matching):
            if p >= 0:
                people[p][k] = i
            else:
                people.append({k: i})
    return {tuple(p.get(k, -1) for k in range(17)) for p in people}


@pytest.mark.parametrize("seed", range(60))
def test_grouping_equals_the_slow_obvious_one(seed: int) -> None:
    # Tags closer than the gate: nearly every pair is in question.
    rng = np.random.default_rng(seed)
    spacing = rng.choice([0.3, 0.6, 0.9, 1.4])
    out, _ = crowd(int(rng.integers(2, 4)), seed, spacing, spread=0.5, missing=0.6)
    peaks = Peaks.from_output(out)
    assert as_set(group(peaks, EVERYBODY)) == slow_group(peaks, EVERYBODY)


@pytest.mark.parametrize("spacing", [0.5, 2.0])
def test_order_of_the_peaks_does_not_matter(spacing: float) -> None:
    out, _ = crowd(12, 3, spacing)
    rng = np.random.default_rng(0)
    shuffled, origin = out.copy(), np.zeros((17, 30), int)
    for k in range(17):
        origin[k] = rng.permutation(30)
        shuffled[k] = out[k, origin[k]]
    plain = group(Peaks.from_output(out), EVERYBODY)
    mixed = group(Peaks.from_output(shuffled), EVERYBODY)
    back = np.where(mixed >= 0, origin[np.arange(17), np.maximum(mixed, 0)], -1)
    assert as_set(plain) == as_set(back)


@pytest.mark.parametrize("spacing", [0.5, 2.0])
def test_a_person_with_far_tags_changes_nobody_else(spacing: float) -> None:
    for seed in range(5):
        out, _ = crowd(8, seed, spacing, spread=0.2)
        before = group(Peaks.from_output(out), EVERYBODY)
        more = out.copy()
        place = (out[..., 0] > 0).sum(1)
        for k in range(0, 17, 2):  # its early keypoints partly missing: the published rule's trap
            more[k, place[k]] = [0.15, 300, 300, -40, 150, 150, *np.zeros(9)]
        after = as_set(group(Peaks.from_output(more), EVERYBODY))
        assert as_set(before) <= after and len(after) == len(before) + 1


def test_displaced_matches_do_not_break_correct_groups() -> None:
    # Shoulder of A missing, C new. Forced to match everything, shifting everybody by one person
    # costs as much as the right answer.
    tags = [0.0, 2.0, 4.0]
    noses = [(0, 50.0 + 100 * i, 50.0, 0.9, tags[i]) for i in (0, 1)]
    shoulders = [(5, 50.0 + 100 * i, 100.0, 0.8, tags[i]) for i in (1, 2)]
    chosen = group(Peaks.from_output(output(*noses, *shoulders)), EVERYBODY)
    have = {tuple(np.flatnonzero(row >= 0)) for row in chosen}
    assert len(chosen) == 3 and have == {(0,), (0, 5), (5,)}


def test_equal_tags_do_not_overwrite_a_person() -> None:
    # Two people with the very same tag: the second nose stays a person of its own.
    peaks = [(0, 50.0, 50.0, 0.9, 1.0), (0, 250.0, 50.0, 0.8, 1.0), (5, 60.0, 90.0, 0.9, 1.0)]
    chosen = group(Peaks.from_output(output(*peaks)), EVERYBODY)
    assert len(chosen) == 2 and (chosen >= 0).sum() == 3


def test_true_distances_count_not_rounded_ones() -> None:
    # Both hips are within the gate of both people; rounded to integers all distances are 0.
    peaks = [(0, 50.0, 50.0, 0.9, 0.0), (0, 250.0, 50.0, 0.9, 0.4)]
    hips = [(11, 250.0, 200.0, 0.9, 0.35), (11, 50.0, 200.0, 0.5, 0.05)]
    poses = decode(
        Peaks.from_output(output(*peaks, *hips)),
        dataclasses.replace(EVERYBODY, refine=False),
        COCO_17,
        SAME,
    )
    assert len(poses) == 2
    np.testing.assert_array_equal(poses.xy[:, 0, 0], poses.xy[:, 11, 0])


def test_tags_beyond_two_people_do_not_cross() -> None:
    # 0.1 + 0.3 one way round, 0.2 + 0.2 the other: equal sums, the order decides.
    noses = [(0, 50.0, 50.0, 0.9, 0.0), (0, 250.0, 50.0, 0.9, 0.1)]
    for first, second in ((0.9, 0.5), (0.5, 0.9)):
        hips = [(11, 50.0, 200.0, first, 0.2), (11, 250.0, 200.0, second, 0.3)]
        chosen = Peaks.from_output(output(*noses, *hips))
        assert (np.diff(chosen.xy[0, :2, 0]) > 0).all()
        people = decode(chosen, EVERYBODY, COCO_17, SAME)
        np.testing.assert_array_equal(people.xy[:, 0, 0], people.xy[:, 11, 0])


# ---------------------------------------------------------------------------- assignment


@pytest.mark.parametrize("seed", range(300))
def test_assignment_is_the_best_there_is(seed: int) -> None:
    scipy = pytest.importorskip("scipy.optimize", reason="the independent assignment is SciPy's")
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 31, 2)
    spread = rng.choice([0.2, 2, 10])
    tag, mean = spread * rng.normal(size=rows), spread * rng.normal(size=columns)
    if seed % 3 == 0:
        tag, mean = tag.round(1), mean.round(1)  # ties
    score, gate = rng.random(rows), rng.choice([0.3, 1.0])
    distance = np.abs(tag[:, None] - mean)
    worth = gate - distance + 1e-3 * (gate**2 - distance**2 + score[:, None])
    worth[distance >= gate] = 0
    owner = assign(tag, mean, score, gate)
    paired = owner >= 0
    assert len(set(owner[paired])) == paired.sum()
    assert (distance[np.flatnonzero(paired), owner[paired]] < gate).all()
    r, c = scipy.linear_sum_assignment(worth, maximize=True)
    got = worth[np.flatnonzero(paired), owner[paired]].sum()
    assert got == pytest.approx(worth[r, c].sum(), abs=1e-9)


def test_assignment_with_nobody() -> None:
    none = np.zeros(0)
    assert assign(np.zeros(3), none, np.ones(3), 1.0).tolist() == [-1, -1, -1]
    assert assign(none, np.zeros(2), none, 1.0).tolist() == []
    assert assign(np.zeros(2), np.ones(2), np.ones(2), 1.0).tolist() == [-1, -1]


def test_tags_that_tell_nothing_give_people_all_the_same() -> None:
    # A network at the start of its training: every place taken, everybody's tag alike.
    rng = np.random.default_rng(0)
    out = rng.random((17, 30, 15)).astype(np.float32)
    out[..., 0] = 0.1 + 0.2 * out[..., 0]
    out[..., 3] *= 0.01
    chosen = group(Peaks.from_output(out), EVERYBODY)
    assert chosen.shape == (30, 17) and (chosen >= 0).all()


# ---------------------------------------------------------------------------- peaks


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("channel", [0, 3, 9])
def test_values_that_are_not_finite_are_an_error(value: float, channel: int) -> None:
    out = output((0, 9, 9, 0.9, 0))
    out[3, 4, channel] = value
    with pytest.raises(EhrnetError, match="not finite"):
        Peaks.from_output(out)


def test_output_of_another_shape_is_an_error() -> None:
    with pytest.raises(EhrnetError, match="shape"):
        Peaks.from_output(np.zeros((17, 30, 4), np.float32))


def test_a_plateau_is_one_peak() -> None:
    low, high = np.zeros((34, 24, 32)), np.zeros((17, 48, 64))
    high[0, 10, 10:13] = high[0, 11, 12] = 1.6
    high[0, 30, 40] = 1.6  # as high, elsewhere
    out = find_peaks(low, high)
    assert (out[0, :, 0] > 0.7).sum() == 5
    peaks = Peaks.from_output(out)
    assert (peaks.score[0] > 0.7).sum() == 2
    assert (out[0, :5, 0] > 0.7).all()  # the engine's own array is left alone


def test_std_is_the_width_of_the_gaussian() -> None:
    peaks = [(k, 100.0 + 5 * k, 100.0, 0.8, 0.0) for k in range(5)]
    half = Letterbox.fit((768, 1024), (384, 512))
    poses = decode(Peaks.from_output(output(*peaks, width=1.7)), EVERYBODY, COCO_17, half)
    # 1.7 cells, of two input pixels, of two image pixels.
    np.testing.assert_allclose(poses.std[0, :5], 1.7 * 2 * 2, rtol=1e-4)
    assert np.isnan(poses.std[0, 5:]).all()


# ---------------------------------------------------------------------------- people


def test_what_is_seen_in_the_border_is_not_found() -> None:
    """A picture of 640x360 lies in rows 48 to 335 of an input of 512x384."""
    box = Letterbox.fit((360, 640), (384, 512))
    assert box.offset_xy == (0, 48) and box.inner_hw == (288, 512)
    heights = {0: 30.0, 5: 47.5, 6: 48.0, 11: 335.0, 12: 335.5, 13: 358.0}
    peaks = [(k, 100.0 + k, y, 0.8, 0.0) for k, y in heights.items()]
    poses = decode(Peaks.from_output(output(*peaks)), EVERYBODY, COCO_17, box)
    # An input pixel is 1.25 of the picture: y becomes (y - 47.5) * 1.25 - .5.
    want = np.full(17, np.nan)
    want[[5, 6, 11, 12]] = 0.0, 0.125, 358.875, 359.0
    np.testing.assert_allclose(poses.xy[0, :, 1], want, atol=1e-3)
    assert np.flatnonzero(poses.score[0]).tolist() == [5, 6, 11, 12]
    assert poses.person_score[0] == pytest.approx(6 * 0.8 / 17)
    beyond = [(k, 100.0 + k, 343.0 + k, 0.8, 0.0) for k in range(5)]
    assert len(decode(Peaks.from_output(output(*beyond)), EVERYBODY, COCO_17, box)) == 0


def test_a_person_by_hand() -> None:
    peaks = [(0, 100.0, 50.0, 0.9, 1.0), (5, 120.0, 80.0, 0.6, 1.1), (6, 80.0, 80.0, 0.3, 0.9)]
    poses = decode(Peaks.from_output(output(*peaks)), DecodeOptions(), COCO_17, SAME)
    assert len(poses) == 1
    np.testing.assert_allclose(poses.xy[0, [0, 5, 6]], [[100, 50], [120, 80], [80, 80]])
    assert poses.person_score[0] == pytest.approx(1.8 / 17)
    np.testing.assert_allclose(poses.bbox[0], [80, 50, 120, 80])
    absent = np.delete(np.arange(17), [0, 5, 6])
    assert np.isnan(poses.xy[0, absent]).all() and (poses.score[0, absent] == 0).all()


def test_best_people_first_and_no_more_than_asked() -> None:
    out, _ = crowd(20, 1)
    everybody = decode(Peaks.from_output(out), EVERYBODY, COCO_17, SAME)
    assert (np.diff(everybody.person_score) <= 0).all()
    few = decode(
        Peaks.from_output(out), dataclasses.replace(EVERYBODY, max_people=4), COCO_17, SAME
    )
    np.testing.assert_array_equal(few.xy, everybody.xy[:4])


def test_thresholds() -> None:
    peaks = [(k, 50.0 + 4 * k, 60.0, 0.2, 0.0) for k in range(4)]
    peaks += [(k, 300.0 + 4 * k, 60.0, 0.9, 9.0) for k in range(2)]

    def count(**options: float) -> int:
        chosen = DecodeOptions(**{"person_threshold": 0.0, **options})  # type: ignore[arg-type]
        return len(decode(Peaks.from_output(output(*peaks)), chosen, COCO_17, SAME))

    assert count() == 1
    assert count(min_keypoints=1) == 2
    assert count(min_keypoints=5) == 0
    assert count(keypoint_threshold=0.3) == 0
    assert count(person_threshold=0.06) == 0
    assert count(keypoint_threshold=0.3, min_keypoints=2) == 1


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("fitted", [False, True])
def test_levels_keep_the_best_view_of_everybody(seed: int, fitted: bool) -> None:
    """Against a slow obvious way: all people of all thresholds, best first, in sets of peaks."""
    rng = np.random.default_rng(seed)
    out, _ = crowd(5, seed, spacing=0.4, spread=0.4, missing=0.3)
    coefficients = tuple(rng.normal(0, 0.3, TERMS)) if fitted else ()
    one = dataclasses.replace(
        EVERYBODY, keypoint_threshold=0.2, min_keypoints=3, reach=1.8, person_score=coefficients
    )
    peaks = Peaks.from_output(out)
    views = []
    for threshold in (0.2, 0.3, 0.4, 0.5):
        level = dataclasses.replace(one, keypoint_threshold=threshold)
        poses = decode(peaks, level, COCO_17, SAME)
        views += [
            (-float(poses.person_score[p]), {(j, *xy) for j, xy in enumerate(poses.xy[p].tolist())})
            for p in range(len(poses))
        ]
    taken: set[tuple[float, ...]] = set()
    want = []
    for value, places in sorted(views, key=lambda view: view[0]):
        mine = {place for place in places if place[1] == place[1]}
        if len(mine & taken) <= 0.3 * len(mine):
            taken |= mine
            want.append((-value, mine))
    assert len(want) < len(views)  # or there is nothing to see here
    found = decode(peaks, dataclasses.replace(one, levels=4), COCO_17, SAME)
    assert len(found) == len(want)
    for p, (value, mine) in enumerate(want):
        places = {(j, *xy) for j, xy in enumerate(found.xy[p].tolist()) if xy[0] == xy[0]}
        assert places == mine and found.person_score[p] == pytest.approx(value)


def test_a_view_without_a_stray_keypoint_wins() -> None:
    """A weak peak far away has the tag of somebody: the score tells, so both are looked at."""
    upright = [(k, 100.0 + 6 * (k % 2), 40.0 + 8 * (k // 2), 0.8, 0.0) for k in range(16)]
    peaks = Peaks.from_output(output(*upright, (16, 480.0, 30.0, 0.3, 0.0)))
    spread_counts_against = tuple(-4.0 if i == 6 else 0.0 for i in range(TERMS))
    options = dataclasses.replace(
        EVERYBODY, keypoint_threshold=0.2, refine=False, person_score=spread_counts_against
    )
    with_stray = decode(peaks, options, COCO_17, SAME)
    assert len(with_stray) == 1 and with_stray.score[0, 16] > 0
    without = decode(peaks, dataclasses.replace(options, levels=3), COCO_17, SAME)
    assert len(without) == 1 and without.score[0, 16] == 0
    assert without.person_score[0] > with_stray.person_score[0]


def test_nobody_is_an_answer() -> None:
    poses = decode(Peaks.from_output(np.zeros((17, 30, 15), np.float32)), EVERYBODY, COCO_17, SAME)
    assert len(poses) == 0 and poses.xy.shape == (0, 17, 2)


def test_unused_places_are_never_people_even_at_threshold_zero() -> None:
    options = dataclasses.replace(EVERYBODY, keypoint_threshold=0.0, refine_threshold=0.0)
    poses = decode(Peaks.from_output(output((0, 9, 9, 0.9, 0))), options, COCO_17, SAME)
    assert (poses.score > 0).sum() == 1


# ---------------------------------------------------------------------------- refine

TORSO = [
    (5, 120.0, 100.0, 0.9, 0.0),
    (6, 80.0, 100.0, 0.9, 0.0),
    (11, 115.0, 200.0, 0.9, 0.0),
    (12, 85.0, 200.0, 0.9, 0.0),
]


@pytest.mark.parametrize(
    ("weak", "filled"),
    [
        ((9, 125.0, 150.0, 0.07, 0.3), True),
        ((9, 129.0, 224.0, 0.07, 0.3), True),  # just inside 1.5 times the box
        ((9, 131.0, 150.0, 0.07, 0.3), False),  # just outside
        ((9, 400.0, 300.0, 0.09, 0.0), False),  # far away
        ((9, 125.0, 150.0, 0.07, 1.2), False),  # somebody else's tag
        ((9, 125.0, 150.0, 0.04, 0.0), False),  # too weak
    ],
)
def test_refine_fills_only_near_fitting_and_strong_enough(
    weak: tuple[int, float, float, float, float], filled: bool
) -> None:
    peaks = Peaks.from_output(output(*TORSO, weak))
    poses = decode(peaks, DecodeOptions(), COCO_17, SAME)
    assert len(poses) == 1
    assert bool(poses.score[0, 9] > 0) == filled
    # The score that ranks people is that of what was found, not of what was filled in.
    assert poses.person_score[0] == pytest.approx(3.6 / 17)
    without = decode(peaks, DecodeOptions(refine=False), COCO_17, SAME)
    assert without.score[0, 9] == 0


def test_refine_gives_a_peak_once_to_the_better_person() -> None:
    better = [(k, x, y, 0.9, 0.0) for k, x, y, _, _ in TORSO]
    lesser = [(k, x + 5, y + 5, 0.5, 0.9) for k, x, y, _, _ in TORSO]
    out = output(*better, *lesser, (9, 110.0, 150.0, 0.07, 0.45))
    options = DecodeOptions(nms_oks=1.0, tag_threshold=0.6)
    poses = decode(Peaks.from_output(out), options, COCO_17, SAME)
    assert len(poses) == 2
    assert poses.score[0, 9] > 0 and poses.score[1, 9] == 0


@pytest.mark.parametrize(("tag", "taken"), [(0.9, 90.0), (0.0, 110.0)])
def test_refine_takes_the_better_peak_of_those_whose_tags_fit_alike(tag, taken) -> None:
    wrists = [(9, 110.0, 150.0, 0.07, tag), (9, 90.0, 150.0, 0.06, 0.0)]
    poses = decode(Peaks.from_output(output(*TORSO, *wrists)), DecodeOptions(), COCO_17, SAME)
    assert poses.xy[0, 9, 0] == taken


def test_refine_keeps_what_was_there() -> None:
    out, _ = crowd(10, 5, spacing=0.7)
    peaks = Peaks.from_output(out)
    before = group(peaks, EVERYBODY)
    after = refine(peaks, before, EVERYBODY)
    assert (after[before >= 0] == before[before >= 0]).all()
    for k in range(17):
        owned = after[after[:, k] >= 0, k]
        assert len(set(owned)) == len(owned)


# ---------------------------------------------------------------------------- legs
# Seen from the front: the left is at the right of the picture.
FRONT = [
    (5, 120.0, 80.0, 0.9, 0.0),
    (6, 80.0, 80.0, 0.9, 0.1),
    (11, 112.0, 150.0, 0.9, 0.0),
    (12, 88.0, 150.0, 0.9, 0.1),
]
BACK = [(k, 200 - x, y, score, tag) for k, x, y, score, tag in FRONT]
# Both maps have both feet, and the same one is the higher in both.
FEET = [(k, 90.0, 250.0, 0.8, 0.05) for k in (15, 16)]
FEET += [(k, 111.0, 250.0, 0.7, 0.4) for k in (15, 16)]


def feet(*peaks: tuple[int, float, float, float, float], **options: float) -> list[float]:
    """Where along the picture the best person's left and right ankle are."""
    chosen = DecodeOptions(**{"legs": True, "nms_oks": 1.0, **options})  # type: ignore[arg-type]
    poses = decode(Peaks.from_output(output(*peaks)), chosen, COCO_17, SAME)
    return poses.xy[0, [15, 16], 0].tolist()


@pytest.mark.parametrize(("torso", "parted"), [(FRONT, [111, 90]), (BACK, [90, 111])])
def test_two_feet_in_one_place_are_parted_as_the_torso_has_left_and_right(torso, parted) -> None:
    assert feet(*torso, *FEET) == parted
    assert feet(*torso, *FEET, legs=False) == [90, 90]


@pytest.mark.parametrize(
    "peaks",
    [
        [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.8, 0)],  # one place is all there is
        [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.8, 0), (15, 111, 250, 0.5, 0)],  # too weak
        [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.8, 0), (15, 105, 250, 0.7, 0)],  # too near
        [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.8, 0), (15, 111, 250, 0.7, 4)],  # another's tag
        [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.8, 0), (15, 300, 250, 0.7, 0)],  # far away
        [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.8, 0), (16, 111, 250, 0.7, 0)],  # wrong order
    ],
)
def test_feet_stay_where_nothing_better_offers_itself(peaks) -> None:
    assert feet(*FRONT, *peaks) == [90, 90]


def test_feet_that_stand_apart_are_left_alone_crossed_or_not() -> None:
    crossed = [(15, 90.0, 250.0, 0.8, 0.05), (16, 111.0, 250.0, 0.8, 0.05)]
    others = [(15, 111.0, 250.0, 0.75, 0.4), (16, 90.0, 250.0, 0.75, 0.4)]
    assert feet(*FRONT, *crossed, *others) == [90, 111]


def test_without_a_torso_that_shows_order_the_higher_two_are_taken() -> None:
    narrow = [(k, 100.0 + (x - 100) / 50, y, score, tag) for k, x, y, score, tag in FRONT]
    weaker = [(15, 90, 250, 0.8, 0), (16, 90, 250, 0.78, 0), (16, 111, 250, 0.7, 0.4)]
    assert feet(*narrow, *weaker) == [90, 111]


@pytest.mark.parametrize("seed", range(5))
def test_parting_legs_shares_no_peak_and_changes_no_other_keypoint(seed: int) -> None:
    places = [(50.0 + 30 * i, 100.0 + 4 * i, 20.0) for i in range(4)]
    out = people_at(places, [0.0, 0.5, 1.0, 1.5])
    rng = np.random.default_rng(seed)
    for left in (13, 15):  # both maps have all legs
        out[left, 4:8] = out[left + 1, :4]
        out[left + 1, 4:8] = out[left, :4]
        out[[left, left + 1], :8, 0] = rng.uniform(0.5, 0.9, (2, 8))
    peaks = Peaks.from_output(mixed(out, seed))
    before = group(peaks, EVERYBODY)
    after = part_legs(peaks.score, peaks.xy, peaks.tag, before, 1.0)
    np.testing.assert_array_equal(after[:, :13], before[:, :13])
    np.testing.assert_array_equal(after < 0, before < 0)
    for k in range(17):
        owned = after[after[:, k] >= 0, k]
        assert len(set(owned)) == len(owned)


def test_nobody_has_no_legs() -> None:
    assert len(decode(Peaks.from_output(output()), DecodeOptions(legs=True), COCO_17, SAME)) == 0


# ---------------------------------------------------------------------------- doubles


def slow_oks(a: np.ndarray, b: np.ndarray, both: np.ndarray, area: float) -> float:
    """COCO's formula: mean of exp(-d^2 / (2 area k^2)) with k twice sigma."""
    values = [
        np.exp(-((a[k] - b[k]) ** 2).sum() / (2 * area * (2 * COCO_17.sigmas[k]) ** 2))
        for k in np.flatnonzero(both)
    ]
    return float(np.mean(values)) if values else 0.0


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.95])
def test_doubles_of_a_better_person_go(threshold: float) -> None:
    rng = np.random.default_rng(7)
    gone = 0
    some = np.array([5, 6, 11, 12])
    for number in range(40):
        people = rng.integers(2, 9)
        xy = rng.uniform(0, 200, (3, 17, 2))[rng.integers(0, 3, people)]
        xy = xy + rng.normal(0, rng.choice([2, 10, 30], (people, 1, 1)), xy.shape)
        present = rng.random((people, 17)) < 0.7
        if number % 4 == 0:  # hips and shoulders from the side: the boxes of doubles lie apart
            xy = rng.uniform(0, 0.2, (people, 17, 2)) + np.arange(17)[:, None] * (0, 12)
            xy[..., 0] += rng.uniform(0, 2, (people, 1))
            present[:] = np.isin(np.arange(17), some)
            present[np.arange(people), rng.choice((0, *some), people)] = False
        kept: list[int] = []
        for i in range(people):
            double = False
            for j in kept:
                both = present[i] & present[j]
                side = np.ptp(xy[j][present[j]], axis=0)
                enough = both.sum() >= 0.5 * present[i].sum()
                double |= enough and slow_oks(xy[i], xy[j], both, side.prod()) > threshold
            if not double:
                kept.append(i)
        for absent in (0.0, np.nan):  # whatever stands where nothing was found
            values = np.where(present[..., None], xy, absent).astype(np.float32)
            assert oks_nms(values, present, COCO_17, threshold).tolist() == kept
        gone += people - len(kept)
    assert gone > 5


def test_people_side_by_side_are_no_doubles() -> None:
    near = [(k, x + 40, y, 0.5, 5.0) for k, x, y, _, _ in TORSO]
    poses = decode(Peaks.from_output(output(*TORSO, *near)), DecodeOptions(), COCO_17, SAME)
    assert len(poses) == 2
    twin = [(k, x + 4, y, 0.5, 5.0) for k, x, y, _, _ in TORSO]
    poses = decode(Peaks.from_output(output(*TORSO, *twin)), DecodeOptions(), COCO_17, SAME)
    assert len(poses) == 1 and poses.score[0, 5] == pytest.approx(0.9)


# ---------------------------------------------------------------------------- options


def test_options_refuse_what_is_not_possible() -> None:
    with pytest.raises(EhrnetError, match="max_people = 0"):
        DecodeOptions(max_people=0)
    with pytest.raises(EhrnetError, match="keypoint_threshold"):
        DecodeOptions(keypoint_threshold=float("nan"))
    with pytest.raises(EhrnetError, match="refine"):
        DecodeOptions(refine="yes")  # type: ignore[arg-type]
    with pytest.raises(EhrnetError, match="max_people"):
        DecodeOptions(max_people=2.5)  # type: ignore[arg-type]
    with pytest.raises(EhrnetError, match="'treshold' does not exist"):
        DecodeOptions.from_dict({"treshold": 0.2})


def test_options_survive_the_metadata() -> None:
    options = DecodeOptions(keypoint_threshold=0.2, refine=False, tag_threshold=2)
    assert DecodeOptions.from_dict(options.to_dict()) == options
    assert DecodeOptions.from_dict({"max_people": 5}, max_people=7).max_people == 7


# A standing person, hips at 0, in units of the distance of the shoulders.
STANDING = np.array(
    [
        *[(0, -2.1), (0.1, -2.2), (-0.1, -2.2), (0.25, -2.15), (-0.25, -2.15)],
        *[(0.5, -1.5), (-0.5, -1.5), (0.8, -0.7), (-0.8, -0.7), (0.8, 0), (-0.8, 0)],
        *[(0.35, 0), (-0.35, 0), (0.4, 1.3), (-0.4, 1.3), (0.4, 2.5), (-0.4, 2.5)],
    ]
)


def people_at(places: list[tuple[float, float, float]], tags: list[float]) -> np.ndarray:
    """Engine output for standing people at (x, y, shoulder width), with these tags."""
    out = np.zeros((17, 30, 15), np.float32)
    for i, ((x, y, size), tag) in enumerate(zip(places, tags)):
        out[:, i, 0] = 0.9 - 0.1 * i
        out[:, i, 1:3] = (STANDING * size + (x, y)).astype(np.float32)
        out[:, i, 3] = tag
        out[:, i, 4:6] = np.floor(out[:, i, 1:3] / 2)
        out[:, i, 6:] = out[:, i, :1]
    return out


def mixed(out: np.ndarray, seed: int) -> np.ndarray:
    """The peaks of each keypoint in another order."""
    rng = np.random.default_rng(seed)
    return np.stack([rows[rng.permutation(len(rows))] for rows in out])


def told_apart(out: np.ndarray, options: DecodeOptions) -> bool:
    """Whether every group is one person: every peak of a person has the person's own score."""
    peaks = Peaks.from_output(out)
    chosen = group(peaks, options, SPANS["coco-17"])
    scores = np.where(chosen >= 0, peaks.score[np.arange(17), np.maximum(chosen, 0)], np.nan)
    return bool((np.nanmax(scores, 1) - np.nanmin(scores, 1) < 0.05).all() and len(chosen) < 17)


@settings(max_examples=60, deadline=None)
@given(
    size=st.floats(5, 60),
    gap=st.floats(3.5, 8),
    x=st.floats(-50, 300),
    ratio=st.floats(0.7, 1.4),
    seed=st.integers(0, 1000),
)
def test_reach_tells_people_apart_whose_tags_do_not(size, gap, x, ratio, seed) -> None:
    places = [(x, 100.0, size), (x + gap * size, 110.0, size * ratio)]
    out = mixed(people_at(places, [0.0, 0.01]), seed)
    options = dataclasses.replace(EVERYBODY, reach=1.3)
    assert told_apart(out, options)
    chosen = group(Peaks.from_output(out), options, SPANS["coco-17"])
    assert (chosen >= 0).sum() == 34 and len(chosen) == 2


def slow_group_near(peaks: Peaks, options: DecodeOptions, spans: np.ndarray) -> set:
    """``slow_group`` where places count, every possible pair looked at by itself."""
    optimize = pytest.importorskip("scipy.optimize")
    people: list[dict[int, int]] = []
    gate, reach = options.tag_threshold, options.reach

    def gap(j: int, i: int, k: int, m: int) -> float:
        one, two = peaks.xy[j, i].astype(float), peaks.xy[k, m].astype(float)
        return math.dist(one, two) / spans[j, k]

    def apart(j: int, i: int, person: dict[int, int]) -> float:
        own = list(person.items())
        size = max((gap(*a, *b) for a, b in itertools.combinations(own, 2)), default=0.0)
        if all(k < 5 for k in person):
            size *= 2
        if size == 0:
            return 0.5 * min(1, reach) / reach
        return min(gap(j, i, k, m) for k, m in own) / size / reach

    for j in ORDER:
        found = [i for i, s in enumerate(peaks.score[j]) if s >= options.keypoint_threshold]
        worth = np.zeros((len(found), len(people)))
        for (row, i), (column, person) in itertools.product(enumerate(found), enumerate(people)):
            mean = np.mean([peaks.tag[k, m] for k, m in person.items()], dtype=float)
            tags, places = abs(float(peaks.tag[j, i]) - mean), apart(j, i, person)
            if tags < gate and places < 1:
                worth[row, column] = 2 - tags / gate - places + 1e-3 * float(peaks.score[j, i])
        rows, columns = optimize.linear_sum_assignment(worth, maximize=True)
        owner = {found[r]: c for r, c in zip(rows, columns) if worth[r, c] > 0}
        for i in found:
            if i in owner:
                people[owner[i]][j] = i
            else:
                people.append({j: i})
    return {tuple(p.get(k, -1) for k in range(17)) for p in people}


def muddle(seed: int) -> Peaks:
    """A few people whose tags and places overlap, with peaks that are nobody's."""
    rng = np.random.default_rng(seed)
    places = [(*rng.uniform(40, 120, 2), rng.uniform(10, 30)) for _ in range(rng.integers(2, 6))]
    out = people_at(places, rng.uniform(0, 1.5, len(places)).tolist())
    spread = [0.2, 3, 3, 0.3]  # of score, place and tag; a few of each are left out
    out[..., :4] += rng.normal(0, spread, out[..., :4].shape) * (out[..., :1] > 0)
    out[..., 0] = np.where(rng.random(out.shape[:2]) < 0.3, 0, np.clip(out[..., 0], 0, 1))
    return Peaks.from_output(out)


# Of 6 and 13 two pairings are worth the same, and either is right.
@pytest.mark.parametrize("seed", sorted({*range(42)} - {6, 13}))
def test_grouping_by_places_equals_the_slow_obvious_one(seed: int) -> None:
    peaks, spans = muddle(seed), SPANS["coco-17"]
    options = dataclasses.replace(EVERYBODY, reach=[0.7, 1.3, 2.5][seed % 3])
    assert as_set(group(peaks, options, spans)) == slow_group_near(peaks, options, spans)


@pytest.mark.parametrize("reach", [0.0, 1.3])
def test_many_looks_at_once_are_grouped_as_each_by_itself(reach: float) -> None:
    spans, options = SPANS["coco-17"], dataclasses.replace(EVERYBODY, reach=reach)
    looks = [muddle(seed) for seed in range(8)] + [Peaks.from_output(crowd(0, 0)[0][:, :30])]
    looks = [look for look in looks for _ in range(3)]
    thresholds = [0.05, 0.3, 0.9] * 9
    # All of one length, as an engine gives them.
    most = max(look.score.shape[1] for look in looks)
    looks = [Peaks(**{n: padded(getattr(p, n), most) for n in FIELDS}) for p in looks]
    together = group_all(looks, options, spans, thresholds)
    for look, threshold, found in zip(looks, thresholds, together, strict=True):
        alone = group(look, options, spans, threshold)
        assert found.shape == alone.shape and as_set(found) == as_set(alone)
    assert group_all([], options, spans, []) == []


FIELDS = [field.name for field in dataclasses.fields(Peaks)]


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """With zeros for peaks that are not there."""
    more = [(0, 0), (0, length - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, more)


def test_without_reach_equal_tags_tell_nothing() -> None:
    out = mixed(people_at([(50, 100, 20), (150, 100, 20)], [0.0, 0.0]), 3)
    assert not told_apart(out, EVERYBODY)
    assert told_apart(out, dataclasses.replace(EVERYBODY, reach=1.3))


@pytest.mark.parametrize("reach", [0.05, 0.3, 0.5, 0.7])
def test_a_small_reach_still_joins_what_lies_as_in_a_typical_person(reach) -> None:
    out = people_at([(50, 100, 20), (52, 101, 20)], [0.0, 0.0])
    options = dataclasses.replace(EVERYBODY, reach=reach)
    chosen = group(Peaks.from_output(out), options, SPANS["coco-17"])
    assert (chosen >= 0).sum(1).max() > 1


def test_reach_breaks_up_a_group_that_tags_alone_call_one_person() -> None:
    """The face of one and the rest of another, far away: no keypoint twice, equal tags."""
    out = people_at([(50, 100, 20), (250, 100, 20)], [0.0, 0.0])
    out[5:, 0, 0] = 0
    out[:5, 1, 0] = 0
    peaks = Peaks.from_output(out)
    assert len(group(peaks, EVERYBODY, SPANS["coco-17"])) == 1
    chosen = group(peaks, dataclasses.replace(EVERYBODY, reach=1.8), SPANS["coco-17"])
    assert sorted((chosen >= 0).sum(1)) == [5, 12]


def test_reach_leaves_clear_people_alone_and_needs_a_known_skeleton() -> None:
    out = mixed(people_at([(50, 100, 20), (120, 90, 25), (230, 110, 15)], [0, 5, 10]), 1)
    peaks = Peaks.from_output(out)
    plain = as_set(group(peaks, EVERYBODY))
    options = dataclasses.replace(EVERYBODY, reach=1.8)
    assert as_set(group(peaks, options, SPANS["coco-17"])) == plain
    assert as_set(group(peaks, options, None)) == plain


def test_typical_distances_are_a_table_of_one_body() -> None:
    spans = SPANS["coco-17"]
    flip = np.array(COCO_17.flip)
    np.testing.assert_array_equal(spans, spans.T)
    np.testing.assert_allclose(spans, spans[np.ix_(flip, flip)], atol=0.011)
    assert spans[5, 6] == 1 and (spans > 0).all()
    legs = spans[11, 13] + spans[13, 15]  # along the leg is no shorter than straight
    assert legs >= spans[11, 15] and spans[15, 2] == spans.max()  # eye to ankle
