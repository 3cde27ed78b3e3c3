"""Fitting the person score: against SciPy, and on a scene in which only the skeleton tells."""

from __future__ import annotations

import dataclasses

import dots
import numpy as np
import pytest
from scipy.optimize import minimize

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import KeypointTruth
from ehrnet_model.evaluation.rescore import (
    cross_check,
    fit_keypoint_score,
    fit_person_score,
    fit_second_score,
    logistic,
)
from ehrnet_model.evaluation.seen import Seen
from ehrnet_model.inference.decode import DecodeOptions, Peaks
from ehrnet_model.inference.keypoint_score import TERMS_KEYPOINT
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.skeleton import COCO_17


def test_the_logistic_fit_is_that_of_a_general_minimiser():
    rng = np.random.default_rng(3)
    rows = np.c_[np.ones(400), rng.normal(size=(400, 4))]
    wanted = np.clip(1 / (1 + np.exp(-rows @ [0.3, 1, -2, 0.5, 0])) + rng.normal(0, 0.1, 400), 0, 1)

    def cost(c):
        logit = rows @ c
        return (np.logaddexp(0, logit) - wanted * logit).sum() + 2.0 / 2 * (c**2).sum()

    expected = minimize(cost, np.zeros(5), tol=1e-12).x
    assert logistic(rows, wanted, 2.0) == pytest.approx(expected, abs=1e-4)


def scene(number, rng, jumbled=True):
    """One person, and one whose limbs are anybody's, if ``jumbled``; who is first is chance.

    The peaks of both are alike.

    Returns:
        what a network would say, and the true person's keypoints in the picture (2x the input).
    """
    out = np.zeros((17, 30, 15), np.float32)
    dy, dx = np.mgrid[-1:2, -1:2]
    bell = np.exp(-(dx**2 + dy**2) / 8).ravel()
    height = rng.uniform(60, 120)
    true = dots.figure((80, 100), height)
    false = dots.figure((230, 100), height)[rng.permutation(17) if jumbled else slice(None)]
    for place, (tag, xy) in enumerate(sorted([(0, true), (9, false)], key=lambda _: rng.random())):
        for j in range(17):
            score = rng.uniform(0.5, 1)
            out[j, place] = [score, *xy[j], tag, *np.round((xy[j] - 0.5) / 2), *(score * bell)]
    box = Letterbox.fit((400, 640), (200, 320))
    return Seen(number, Peaks.from_output(out), box), box.undo(true)


def labelled(number, xy):
    """The annotation of somebody whose keypoints (17, 2) are all labelled."""
    low, high = xy.min(0), xy.max(0)
    return {
        "image_id": number,
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float((high - low).prod()) * 0.6,
        "keypoints": [float(c) for x, y in xy for c in (x, y, 2)],
    }


def scenes(count):
    """What a network would say of so many scenes, and the annotations of their true people."""
    rng = np.random.default_rng(0)
    seen, people = [], []
    for number in range(1, count + 1):
        image, xy = scene(number, rng)
        people.append(labelled(number, xy))
        seen.append(image)
    return seen, people


def truth_of(people):
    images = [{"id": person["image_id"]} for person in people]
    return KeypointTruth({"images": images, "annotations": people})


def test_a_fitted_score_tells_people_from_jumbles():
    seen, people = scenes(300)
    truth, unseen = truth_of(people), truth_of(people[200:])
    start = DecodeOptions()
    fitted = dataclasses.replace(start, person_score=fit_person_score(seen[:200], truth, start))

    def ap(options):
        results = [r for s in seen[200:] for r in s.people(options).to_coco(s.image_id)]
        return unseen.average_precision(results)["AP"]

    assert ap(start) < 0.7  # whose peaks are higher is chance
    assert ap(fitted) > 0.99
    # It is the similarity that is to be expected: near 1 for the one, near 0 for the other.
    scores = np.concatenate([s.people(fitted).person_score for s in seen[200:]])
    assert len(scores) >= 100
    pairs = [s.people(dataclasses.replace(fitted, person_threshold=0)) for s in seen[200:]]
    assert np.mean([p.person_score[0] for p in pairs]) > 0.9
    assert np.mean([p.person_score[1] for p in pairs]) < 0.1
    with pytest.raises(EhrnetError, match="give images in which 200"):
        fit_person_score(seen[:20], truth, start)
    with pytest.raises(EhrnetError, match="fitted to 0 found people"):
        fit_person_score([], truth, start)


def test_a_score_is_checked_on_images_that_it_was_not_fitted_to():
    seen, people = scenes(300)
    measured = cross_check(seen, truth_of(people), DecodeOptions(), 4)
    assert measured["AP_mean_score"] < 0.7
    assert measured["AP_best_order"] >= measured["AP_fitted_score"] > 0.99
    # Of 110 images with two found people each, a part of two is too few to fit to.
    fit_person_score(seen[:110], truth_of(people[:110]), DecodeOptions())
    with pytest.raises(EhrnetError, match="give images in which 200"):
        cross_check(seen[:110], truth_of(people[:110]), DecodeOptions(), 2)


@pytest.mark.parametrize("where", ["in a box without keypoints", "outside, partly labelled"])
def test_who_may_be_somebody_without_labels_teaches_nothing(where):
    rng = np.random.default_rng(1)
    seen, people, images = [], [], []
    for number in range(1, 301):
        image, xy = scene(number, rng)
        seen.append(image)
        images.append({"id": number, "all_people_labelled": where.startswith("in")})
        people.append({"image_id": number, "bbox": [0, 0, 640, 400], "keypoints": [0] * 51})
        if where.startswith("out"):  # somebody, in a corner where nobody is found
            people[-1].update(bbox=[0, 0, 9, 9], keypoints=[float(c) for c in (4, 4, 2) * 17])
    truth = KeypointTruth({"images": images, "annotations": people})
    with pytest.raises(EhrnetError, match="fitted to 0 found people"):
        fit_person_score(seen, truth, DecodeOptions())


class TwoViews:
    """Second looks at a scene: of true people the views agree, of jumbles they do not."""

    def __init__(self, image, truth, asked):
        self.image, self.truth, self.asked = image, truth, asked

    def fresh(self):
        return TwoViews(self.image, self.truth, self.asked)

    def __call__(self, windows):
        self.asked.append(self.image.image_id)
        rng = np.random.default_rng(self.image.image_id)
        out = np.zeros((len(windows), 17, 30, 15), np.float32)
        dy, dx = np.mgrid[-1:2, -1:2]
        bell = np.exp(-(dx**2 + dy**2) / 8).ravel()
        first = self.image.people(dataclasses.replace(AGAIN, second_look=0))
        for number, window in enumerate(windows):
            somebody = first[number // 2]
            true = np.abs(somebody.xy[0] - self.truth).max() < 1
            places = somebody.xy[0] + rng.normal(0, 0.5 if true else 6, (17, 2))
            xy = (places - window.corner_xy) * window.scale
            for j in range(17):
                k = COCO_17.flip[j] if window.mirrored else j
                x = window.box.size_hw[1] - 1 - xy[j, 0] if window.mirrored else xy[j, 0]
                out[number, k, 0] = [0.7, x, xy[j, 1], 0, x // 2, xy[j, 1] // 2, *(0.7 * bell)]
        return out


AGAIN = DecodeOptions(second_look=4, second_look_views=2, second_look_threshold=0.0)


def test_a_score_after_second_looks_tells_whom_the_views_agree_on():
    """The first look finds the same skeleton twice; only views tell which one is there."""
    rng = np.random.default_rng(0)
    seen, people, asked = [], [], []
    for number in range(1, 301):
        image, xy = scene(number, rng, jumbled=False)
        seen.append(dataclasses.replace(image, closer=TwoViews(image, xy, asked)))
        people.append(labelled(number, xy))
    truth, unseen = truth_of(people), truth_of(people[200:])
    fitted = dataclasses.replace(
        AGAIN, second_score=fit_second_score(iter(seen[:200]), truth, AGAIN)
    )
    assert asked == list(range(1, 201))  # each place once

    def ap(options):
        results = [r for s in seen[200:] for r in s.people(options).to_coco(s.image_id)]
        return unseen.average_precision(results)["AP"]

    assert ap(AGAIN) < 0.8 and ap(fitted) > 0.99
    with pytest.raises(EhrnetError, match="fitted to 0 found people"):
        blind = [dataclasses.replace(s, closer=None) for s in seen]
        fit_second_score(blind, truth, AGAIN)


def chance_of(joint, peak):
    """How likely a keypoint is right in ``doubtful_scenes``: faces more than the rest."""
    odds = np.where(joint < 5, 1.5, -0.5) + 1.5 * np.log(peak / (1 - peak))
    return 1 / (1 + np.exp(-odds))


def doubtful_scenes(count, rng):
    """One person each, whose keypoints are right by ``chance_of``, else a fifth of it away.

    Returns:
        what a network would say, the annotations, and (count, 17) the chances.
    """
    seen, people, chances = [], [], []
    dy, dx = np.mgrid[-1:2, -1:2]
    bell = np.exp(-(dx**2 + dy**2) / 8).ravel()
    box = Letterbox.fit((400, 640), (200, 320))
    for number in range(1, count + 1):
        true = dots.figure((100, 100), 120)
        peaks = rng.uniform(0.2, 0.9, 17)
        chances.append(chance_of(np.arange(17), peaks))
        right = rng.random(17) < chances[-1]
        angle = rng.uniform(0, 2 * np.pi, 17)
        off = 24 * np.stack([np.cos(angle), np.sin(angle)], 1) * ~right[:, None]
        out = np.zeros((17, 30, 15), np.float32)
        for j, (place, peak) in enumerate(zip(true + off, peaks, strict=True)):
            out[j, 0] = [peak, *place, 0, *np.round((place - 0.5) / 2), *(peak * bell)]
        seen.append(Seen(number, Peaks.from_output(out), box))
        people.append(labelled(number, box.undo(true)))
    return seen, people, np.array(chances)


def test_a_fitted_keypoint_score_is_the_probability_to_be_right():
    rng = np.random.default_rng(4)
    start = DecodeOptions(person_threshold=0.5)  # those below teach, too
    seen, people, _ = doubtful_scenes(400, rng)
    coefficients = fit_keypoint_score(iter(seen), truth_of(people), start)
    assert len(coefficients) == TERMS_KEYPOINT
    options = dataclasses.replace(start, person_threshold=0.0, keypoint_score=coefficients)
    unseen, _, chances = doubtful_scenes(100, rng)
    scores = np.array([image.people(options).score[0] for image in unseen])
    assert scores.shape == chances.shape
    assert np.abs(scores - chances).mean() < 0.05
    assert np.corrcoef(scores.ravel(), chances.ravel())[0, 1] > 0.97
    with pytest.raises(EhrnetError, match="give images in which 200"):
        fit_keypoint_score(seen[:150], truth_of(people), start)


def test_where_nobody_is_every_keypoint_is_wrong():
    """In images that the truth does not list, and not where somebody may be unlabelled."""
    rng = np.random.default_rng(4)
    seen, people, chances = doubtful_scenes(400, rng)
    listed = truth_of(people[:200])
    half = fit_keypoint_score(seen, listed, DecodeOptions())
    options = DecodeOptions(person_threshold=0.0, keypoint_score=half)
    scores = np.array([image.people(options).score[0] for image in seen])
    assert scores.mean() == pytest.approx(chances.mean() / 2, abs=0.03)
    partly = [{"id": number, "all_people_labelled": False} for number in range(1, 401)]
    elsewhere = [{**person, "bbox": [0, 0, 9, 9]} for person in people]
    for person in elsewhere[200:]:
        person["keypoints"] = [4.0, 4.0, 2.0] * 17
    unjudged = KeypointTruth({"images": partly, "annotations": elsewhere})
    once = fit_keypoint_score(seen, unjudged, DecodeOptions())
    assert once == fit_keypoint_score(seen[:200], listed, DecodeOptions())
