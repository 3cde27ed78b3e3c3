"""The keypoint score: its terms by hand, and what becomes of people's keypoints."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.decode import DecodeOptions, finished
from ehrnet_model.inference.keypoint_score import TERMS_KEYPOINT, rated, terms
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

PEAK, SHARP, PERSON, BESIDE = range(17, 21)
LEFT_ELBOW, LEFT_WRIST = 7, 9


def only(**coefficients):
    """Coefficients by the names above, of a keypoint by its number (``j7``), all others 0."""
    out = np.zeros(TERMS_KEYPOINT)
    for name, value in coefficients.items():
        out[int(name[1:]) if name.startswith("j") else globals()[name]] = value
    return tuple(out.tolist())


def logit(share):
    return math.log(share / (1 - share))


def people(rng, count=3):
    xy, score = rng.uniform(0, 300, (count, 17, 2)), rng.uniform(0.01, 1, (count, 17))
    score[rng.random((count, 17)) < 0.3] = 0
    std = np.where(rng.random((count, 17)) < 0.2, np.nan, rng.uniform(0.5, 9, (count, 17)))
    return Poses.build(xy, score, std, rng.uniform(0, 1, count))


def test_terms_of_an_elbow_by_hand():
    """Shoulder, elbow and wrist of an arm in a box of 40 x 90 pixels."""
    xy, score = np.full((1, 17, 2), np.nan), np.zeros((1, 17))
    std = np.full((1, 17), np.nan)
    for keypoint, place, height in ((5, (10, 10), 0.9), (7, (50, 60), 0.6), (9, (30, 100), 0.3)):
        xy[0, keypoint], score[0, keypoint], std[0, keypoint] = place, height, 4.0
    std[0, LEFT_WRIST] = np.nan
    rows = terms(Poses.build(xy, score, std, np.array([0.4])))[0]
    area, variance = 40 * 90, (2 * COCO_17.sigmas[LEFT_ELBOW]) ** 2
    measures = [
        logit(0.6),
        variance * area / (variance * area + 4.0**2),
        logit(0.4),
        (0.9 + 0.3) / 2,  # of shoulder and wrist, on the same bones
    ]
    row = rows[LEFT_ELBOW]
    assert row[:17].tolist() == [float(k == LEFT_ELBOW) for k in range(17)]
    assert row[17:21] == pytest.approx(measures, rel=1e-6)
    products = [measures[a] * measures[b] for a in range(4) for b in range(a, 4)]
    assert row[21:] == pytest.approx(products, rel=1e-6)
    assert len(row) == TERMS_KEYPOINT
    # A peak without curvature is as uncertain as three tenths of the person's size.
    variance = (2 * COCO_17.sigmas[LEFT_WRIST]) ** 2
    assert rows[LEFT_WRIST][SHARP] == pytest.approx(variance / (variance + 0.09), rel=1e-6)


def test_scores_are_the_probabilities_and_nothing_else_changes():
    poses = people(np.random.default_rng(5))
    after = rated(poses, only(j7=2.0, PEAK=0.5, BESIDE=-1.0), COCO_17)
    for name in ("xy", "std", "bbox", "person_score", "id"):
        np.testing.assert_array_equal(getattr(after, name), getattr(poses, name))
    np.testing.assert_array_equal(after.score > 0, poses.score > 0)
    beside = {7: (5, 9), 15: (13,)}
    for keypoint, near in beside.items():
        for before, now in zip(poses.score, after.score, strict=True):
            if before[keypoint] > 0:
                value = 2.0 * (keypoint == 7) + 0.5 * np.clip(logit(float(before[keypoint])), -3, 3)
                value -= np.mean([before[k] for k in near])
                assert now[keypoint] == pytest.approx(1 / (1 + math.exp(-value)), rel=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5), st.floats(-300, 300))
def test_neither_place_nor_size_in_the_picture_matters(seed, scale, shift):
    rng = np.random.default_rng(seed)
    here = people(rng)
    coefficients = tuple(rng.normal(0, 1, TERMS_KEYPOINT).tolist())
    there = Poses.build(here.xy * scale + shift, here.score, here.std * scale, here.person_score)
    one, two = (rated(poses, coefficients, COCO_17).score for poses in (here, there))
    # Single precision: places far from the origin lose digits, and boxes are differences of them.
    assert one == pytest.approx(two, abs=1e-3)
    assert ((one > 0) == (here.score > 0)).all() and (one <= 1).all()


def test_the_surest_doubt_leaves_a_keypoint_there():
    poses = people(np.random.default_rng(1))
    doubted = rated(poses, only(**{f"j{k}": -99.0 for k in range(17)}), COCO_17)
    assert set(np.unique(doubted.score)) == {0, np.float32(1e-3)}
    np.testing.assert_array_equal(doubted.score > 0, poses.score > 0)


def test_without_a_fit_scores_stay_heights_of_peaks():
    poses = people(np.random.default_rng(2))
    assert rated(poses, (), COCO_17) is poses
    assert rated(Poses.empty(), only(PEAK=1.0), COCO_17).score.shape == (0, 17)
    chain = SkeletonInfo("chain-3", ("a", "b", "c"), ((0, 1), (1, 2)), (0, 1, 2), (0.1,) * 3)
    three = Poses.build(np.ones((1, 3, 2)), np.full((1, 3), 0.5), np.ones((1, 3)), np.ones(1))
    assert rated(three, only(PEAK=1.0), chain) is three


def test_what_is_given_out_has_both_fits():
    """The std in the terms is that of the peak, whatever it is multiplied by at the end."""
    poses = people(np.random.default_rng(3))
    options = DecodeOptions(keypoint_score=only(SHARP=3.0), std_gain=0.5)
    given_out = finished(poses, options, COCO_17)
    np.testing.assert_array_equal(given_out.std, poses.std * np.float32(0.5))
    np.testing.assert_array_equal(
        given_out.score, rated(poses, options.keypoint_score, COCO_17).score
    )
    assert finished(poses, DecodeOptions(), COCO_17).score is poses.score


@pytest.mark.parametrize("value", [(1.0,) * 5, 0.5, (float("nan"),) * TERMS_KEYPOINT])
def test_impossible_coefficients_are_refused(value):
    with pytest.raises(EhrnetError, match=f"keypoint_score .* 0 or {TERMS_KEYPOINT} finite"):
        DecodeOptions(keypoint_score=value)


def test_coefficients_survive_json():
    options = DecodeOptions(keypoint_score=only(PEAK=0.25), min_keypoint_score=0.3)
    stored = options.to_dict()
    assert isinstance(stored["keypoint_score"], list)
    assert DecodeOptions.from_dict(stored) == options


def test_keypoints_above_a_score():
    xy = np.arange(34, dtype=float).reshape(1, 17, 2)
    score = np.linspace(0.1, 0.9, 17)[None]
    poses = Poses.build(xy, score, np.ones((1, 17)), np.array([0.7]))
    poses = dataclasses.replace(poses, id=np.array([3], np.int32))
    sure = poses.above(0.5)
    kept = poses.score[0] >= 0.5
    assert kept.sum() == 9
    np.testing.assert_array_equal(sure.score[0], np.where(kept, poses.score[0], 0))
    assert np.isnan(sure.xy[0, ~kept]).all() and (sure.xy[0, kept] == poses.xy[0, kept]).all()
    assert sure.bbox.tolist() == [[*xy[0, 8], *xy[0, 16]]]
    assert sure.id.tolist() == [3] and sure.person_score == poses.person_score
    assert poses.above(0.0) is poses and poses.above(0.05) is poses
    nobody_sure = poses.above(1.0)
    assert len(nobody_sure) == 1 and np.isnan(nobody_sure.bbox).all()
    assert len(Poses.empty().above(0.5)) == 0
