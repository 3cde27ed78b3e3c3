"""The person score: its terms by hand, and what decoding makes of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peaks import output

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.anatomy import SPANS
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.person_score import TERMS, TERMS_AGAIN, expected_similarity, terms
from ehrnet_model.skeleton import COCO_17

SAME = Letterbox.fit((384, 512), (384, 512))
TABLE = SPANS[COCO_17.name]
MEAN, COUNT, BEST, SHARP, SIZE, SPREAD, STRETCH = range(1, 8)


def only(**coefficients):
    """Coefficients by the names above, all others 0."""
    out = np.zeros(TERMS)
    for name, value in coefficients.items():
        out[0 if name == "CONSTANT" else globals()[name]] = value
    return tuple(out.tolist())


def test_terms_of_two_keypoints_by_hand():
    """Shoulders 63 pixels apart, peaks 3 pixels wide."""
    xy = np.full((1, 17, 2), np.nan)
    xy[0, 5], xy[0, 6] = (100, 50), (163, 50)
    score, std = np.zeros((1, 17)), np.full((1, 17), np.nan)
    score[0, [5, 6]], std[0, [5, 6]] = (0.8, 0.4), 3.0
    (row,) = terms(xy, score, std, TABLE)
    # A box without height counts one square pixel.
    variance = (2 * 0.079) ** 2
    expected = {
        0: 1,
        MEAN: 1.2 / 17,
        COUNT: 2 / 17,
        BEST: 1.2 / 3,
        SHARP: 1.2 / 17 * variance / (variance + 9),
        SIZE: 0,
        SPREAD: 0,
        STRETCH: 0,
    }
    assert {k: row[k] for k in expected} == pytest.approx(expected)
    # Products follow row by row: of the first measure with all, of the second from itself on.
    assert row[8:15] == pytest.approx(row[MEAN] * row[1:8])
    assert row[15] == pytest.approx(row[COUNT] ** 2) and row[-1] == pytest.approx(row[7] ** 2)
    assert len(row) == TERMS


def test_two_measures_more_after_second_looks():
    rng = np.random.default_rng(0)
    xy, score, std = rng.uniform(0, 99, (4, 17, 2)), rng.uniform(0.1, 1, (4, 17)), np.ones((4, 17))
    before, agreement = rng.uniform(0, 1, (2, 4))
    once = terms(xy, score, std, TABLE)
    again = terms(xy, score, std, TABLE, before, agreement)
    assert again.shape == (4, TERMS_AGAIN)
    np.testing.assert_array_equal(again[:, :8], once[:, :8])
    np.testing.assert_array_equal(again[:, 8:10], np.c_[before, agreement])
    # The last products are those of the two with each other.
    np.testing.assert_array_equal(again[:, -3:].T, [before**2, before * agreement, agreement**2])
    assert terms(xy[:0], score[:0], std[:0], TABLE, before[:0], before[:0]).shape[1] == TERMS_AGAIN


def test_a_limb_too_long_shows_in_spread_and_stretch():
    """Three keypoints: two distances as typical for one size, the third three times as long."""
    score = np.zeros((2, 17))
    score[:, [5, 6, 11]] = 1
    xy = np.full((2, 17, 2), np.nan)
    shoulders, down = 50 * TABLE[5, 6], 50 * TABLE[5, 11]
    xy[:, 5] = 0
    xy[:, 6] = shoulders, 0
    across = (down**2 + shoulders**2 - (50 * TABLE[6, 11]) ** 2) / (2 * shoulders)
    hip = np.array([across, np.sqrt(down**2 - across**2)])
    xy[0, 11] = hip
    xy[1, 11] = hip * (3, 3)
    fits, strange = terms(xy, score, np.full((2, 17), 2.0), TABLE)
    assert fits[[SPREAD, STRETCH]] == pytest.approx(0, abs=1e-6)
    ratios = np.array([1, 3, np.hypot(*(hip * 3 - (shoulders, 0))) / 50 / TABLE[6, 11]])
    assert strange[SPREAD] == pytest.approx(np.std(np.log(ratios)), rel=1e-5)
    assert strange[STRETCH] == pytest.approx(np.log(ratios.max() / np.median(ratios)), rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 17), st.floats(-300, 300))
def test_where_a_person_stands_does_not_matter(seed, count, shift):
    rng = np.random.default_rng(seed)
    xy, score = rng.uniform(0, 200, (3, 17, 2)), rng.uniform(0.1, 1, (3, 17))
    std = np.where(rng.random((3, 17)) < 0.2, np.nan, rng.uniform(1, 9, (3, 17)))
    score[:, rng.permutation(17)[count:]] = 0
    here = terms(xy, score, std, TABLE)
    assert np.isfinite(here).all() and np.abs(here).max() <= 9
    assert terms(xy + shift, score, std, TABLE) == pytest.approx(here, rel=1e-6, abs=1e-6)
    value = expected_similarity(here, rng.normal(0, 100, TERMS))
    assert ((value >= 0) & (value <= 1)).all()


def person(x, score, tag, size=1.0, keypoints=(0, 5, 6, 11, 12)):
    places = {0: (0, -41), 5: (25, 0), 6: (-25, 0), 11: (17, 50), 12: (-17, 50)}
    return [(k, x + size * places[k][0], 150 + size * places[k][1], score, tag) for k in keypoints]


def test_decoding_ranks_and_drops_people_by_it():
    """The larger person has the lower peaks; the score here is how large somebody is."""
    peaks = Peaks.from_output(output(*person(100, 0.9, 0, 0.5), *person(300, 0.5, 9, 2.0)))
    by_mean = decode(peaks, DecodeOptions(person_threshold=0), COCO_17, SAME)
    assert by_mean.person_score == pytest.approx([0.9 * 5 / 17, 0.5 * 5 / 17])
    options = DecodeOptions(person_threshold=0, person_score=only(SIZE=1.0))
    by_size = decode(peaks, options, COCO_17, SAME)
    height = np.array([2.0, 0.5]) * 91
    odds = (height + 1) / 64
    assert by_size.person_score == pytest.approx(odds / (1 + odds), rel=1e-4)
    assert by_size.xy[0] == pytest.approx(by_mean.xy[1], nan_ok=True)
    assert by_size.std[0] == pytest.approx(by_mean.std[1], nan_ok=True)
    few = decode(peaks, dataclasses.replace(options, person_threshold=0.5), COCO_17, SAME)
    assert len(few) == 1 and few.person_score == by_size.person_score[:1]


def test_size_is_that_in_the_input_not_in_the_picture():
    peaks = Peaks.from_output(output(*person(100, 0.9, 0)))
    options = DecodeOptions(person_threshold=0, person_score=only(SIZE=1.0))
    large = Letterbox.fit((4 * 384, 4 * 512), (384, 512))
    here, there = (decode(peaks, options, COCO_17, box) for box in (SAME, large))
    assert there.person_score == here.person_score
    assert np.ptp(there.bbox[0, [1, 3]]) == pytest.approx(4 * np.ptp(here.bbox[0, [1, 3]]))


def test_nobody_is_nobody():
    options = DecodeOptions(person_score=only(CONSTANT=9.0))
    nothing = Peaks.from_output(np.zeros((17, 30, 15), np.float32))
    assert len(decode(nothing, options, COCO_17, SAME)) == 0
    lone = Peaks.from_output(output((0, 9, 9, 0.9, 0)))
    assert len(decode(lone, options, COCO_17, SAME)) == 0
    one = decode(lone, dataclasses.replace(options, min_keypoints=1), COCO_17, SAME)
    assert len(one) == 1 and one.person_score[0] > 0.99


@pytest.mark.parametrize("name, count", [("person_score", TERMS), ("second_score", TERMS_AGAIN)])
@pytest.mark.parametrize("value", [(1.0,) * 5, 0.5, "x" * TERMS, (float("nan"),) * TERMS])
def test_impossible_coefficients_are_refused(name, count, value):
    with pytest.raises(EhrnetError, match=f"{name} .* 0 or {count} finite numbers"):
        DecodeOptions(**{name: value})


def test_coefficients_survive_json():
    options = DecodeOptions(
        person_score=tuple(np.linspace(-1, 1, TERMS).tolist()),
        second_score=tuple(np.linspace(-1, 1, TERMS_AGAIN).tolist()),
    )
    stored = options.to_dict()
    assert isinstance(stored["person_score"], list) and isinstance(stored["second_score"], list)
    assert DecodeOptions.from_dict(stored) == options
