"""People looked at again: where from, by which engine, and what comes of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import dots
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peaks import output

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.anatomy import SPANS
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.person_score import TERMS_AGAIN
from ehrnet_model.inference.poses import Expected, Poses
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.inference.second_look import (
    MOST_AT_ONCE,
    SecondLook,
    Window,
    batch_of,
    candidates,
    merge,
    open_closer,
    views_of,
    windows_for,
)
from ehrnet_model.skeleton import COCO_17

# The network of dots sees nothing in windows as small as a person's needs to be.
TWICE = DecodeOptions(second_look=8, second_look_size=256)
# The measures of a person come first, then these of the looks.
TERMS_AGAIN_FIRST = 8


@pytest.fixture(scope="module")
def runtime(dots_model: Path) -> Runtime:
    return open_runtime(dots_model, "onnxruntime")


class Recorder:
    """An engine that remembers what it was given; ``blind`` to windows, it sees nobody there."""

    def __init__(self, inner: Runtime, blind: bool = False) -> None:
        self.inner, self.info, self.name = inner, inner.info, inner.name
        self.size_hw = inner.size_hw
        self.blind = blind
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.shapes.append(images.shape)
        peaks = self.inner(images)
        if self.blind and images.shape[1] == images.shape[2]:
            peaks = np.zeros_like(peaks)
        return peaks

    def close(self) -> None:
        self.inner.close()


def crowd(heights: list[float], image_hw: tuple[int, int] = (480, 640)) -> np.ndarray:
    """(P, 17, 2) people side by side."""
    places = (np.arange(len(heights)) + 0.5) / len(heights) * image_hw[1]
    return np.stack(
        [dots.figure((float(x), image_hw[0] / 2), h) for x, h in zip(places, heights, strict=True)]
    )


def errors(poses: Poses, people: np.ndarray) -> np.ndarray:
    assert len(poses) == len(people)
    return np.hypot(*(poses.xy[np.argsort(poses.xy[:, 0, 0])] - people).transpose(2, 0, 1))


boxes = st.tuples(*[st.floats(-40, 280)] * 2, *[st.floats(0, 250)] * 2)


@given(boxes, st.integers(40, 250), st.integers(40, 250), st.floats(1, 2), st.booleans())
def test_a_window_is_where_it_says(
    box: tuple[float, ...], height: int, width: int, room: float, mirrored: bool
) -> None:
    x, y, w, h = box
    bbox = np.array([x, y, x + w, y + h])
    window = Window.around(bbox, (height, width), 128, room, mirrored)
    # Each pixel of this picture tells where it is; interpolated, it still does.
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(width), np.arange(height)[:, None]
    picture[..., 2] = 255
    out = np.full((128, 128, 3), 77, np.uint8)
    window.apply(picture, out)
    rows, columns = np.nonzero(out[..., 2] == 255)
    assert len(rows)
    told = window.undo(np.stack([columns, rows], -1).astype(np.float32))
    told = np.clip(told, 0, [width - 1, height - 1])
    # Half a pixel of rounding; and at the edge, where there is one neighbour only, half a pixel.
    slack = 1.01 + 0.5 / window.scale
    assert np.abs(told - out[rows, columns, :2]).max() < slack
    assert (out[out[..., 2] == 0] == 0).all()
    inner = out[:, (out[..., 2] == 255).all(0), 0].astype(int)
    assert (np.diff(inner[64]) * (-1 if mirrored else 1) >= 0).all()


class TwoHanded(Recorder):
    """An engine that tells left from right as networks do: by who faces the camera.

    The dots tell by their colours, also in a mirror. Where somebody's left shoulder, so called, is
    on the left of the picture, the picture is mirrored, and left and right are called otherwise.

    Args:
        inner: the engine of dots.
        change: of the peaks (J, 30, 15) of one window, given also whether it is mirrored.
    """

    def __init__(
        self, inner: Runtime, change: Callable[[np.ndarray, bool], None] = lambda peaks, m: None
    ) -> None:
        super().__init__(inner)
        self.change = change

    def __call__(self, images: np.ndarray) -> np.ndarray:
        peaks = super().__call__(images).copy()
        for number, (image, one) in enumerate(zip(images, peaks, strict=True)):
            right = one[6, one[6, :, 0] > 0.2, 1:3]
            apart = right - one[5, 0, 1:3]
            mirrored = bool(len(right)) and apart[np.hypot(*apart.T).argmin(), 0] > 0
            if mirrored:
                peaks[number] = one[list(COCO_17.flip)]
            if image.shape[0] == image.shape[1]:
                self.change(peaks[number], mirrored)
        return peaks


@pytest.mark.parametrize("views", [1, 2, 3, 6])
def test_several_views_of_somebody_agree(runtime: Runtime, views: int) -> None:
    people = crowd([260, 190, 200])
    image = dots.draw_people((480, 640), people)
    engine = TwoHanded(runtime)
    options = dataclasses.replace(TWICE, second_look_views=views)
    inferred = PoseEstimator(engine, options).infer([image], [False])
    assert inferred.second_looks == [3]
    assert sum(shape[0] for shape in engine.shapes[1:]) == 3 * views
    assert max(shape[0] for shape in engine.shapes) <= MOST_AT_ONCE
    poses = inferred.people()[0][0]
    assert errors(poses, people).max() < 1
    assert (poses.score > 0.5).all() and (poses.std > 0).all()
    assert batch_of(options) == MOST_AT_ONCE
    assert batch_of(dataclasses.replace(options, second_look=1)) == views


def test_views_err_less_together(runtime: Runtime) -> None:
    people = crowd([260, 190, 200])
    image = dots.draw_people((480, 640), people)

    def error(views: int) -> float:
        rng = np.random.default_rng(5)

        def shake(peaks: np.ndarray, mirrored: bool) -> None:
            peaks[:, :1, 1:3] += rng.normal(0, 3, (17, 1, 2))

        options = dataclasses.replace(TWICE, second_look_views=views)
        poses = PoseEstimator(TwoHanded(runtime, shake), options)(image)
        return float(errors(poses, people).mean())

    one, two, six = error(1), error(2), error(6)
    # Independent errors: the root of the number of views, about.
    assert two < 0.85 * one and six < 0.6 * one


def test_what_one_view_of_two_shows_counts_half(runtime: Runtime) -> None:
    people = crowd([300])
    image = dots.draw_people((480, 640), people)
    options = dataclasses.replace(TWICE, second_look_views=2)
    whole = PoseEstimator(TwoHanded(runtime), options)(image)

    def one_legged(peaks: np.ndarray, mirrored: bool) -> None:
        if mirrored:  # the mirror's right ankle is the left one
            peaks[16] = 0

    poses = PoseEstimator(TwoHanded(runtime, one_legged), options)(image)
    assert errors(poses, people).max() < 1
    ratio = poses.score[0] / whole.score[0]
    assert ratio[15] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(np.delete(ratio, 15), 1, atol=1e-5)

    def elsewhere(peaks: np.ndarray, mirrored: bool) -> None:
        if mirrored:
            peaks[16, 0, 1:3] -= 60
            peaks[16, :, 0] *= 0.8  # not as sure, so not believed

    poses = PoseEstimator(TwoHanded(runtime, elsewhere), options)(image)
    assert errors(poses, people).max() < 1
    assert poses.score[0, 15] == pytest.approx(0.5 * whole.score[0, 15], rel=0.04)

    def nobody(peaks: np.ndarray, mirrored: bool) -> None:
        if mirrored:
            peaks[:] = 0

    poses = PoseEstimator(TwoHanded(runtime, nobody), options)(image)
    assert errors(poses, people).max() < 1
    assert poses.person_score[0] == pytest.approx(0.5 * whole.person_score[0], rel=0.04)


def test_a_keypoints_width_is_that_of_the_view_that_is_believed(runtime: Runtime) -> None:
    people = crowd([300])
    image = dots.draw_people((480, 640), people)
    options = dataclasses.replace(TWICE, second_look_views=2)
    seen = PoseEstimator(TwoHanded(runtime), options).infer([image], [False]).looks[0]
    assert isinstance(seen, SecondLook)
    # The left wrist, which the mirror shows as a right one.
    for view, wrist, off, sure, width in ((0, 9, 60, 0.8, 3.0), (1, 10, 0, 1.0, 2.0)):
        score, x, y, tag = (float(value) for value in seen.peaks[view, wrist, 0, :4])
        x -= off * seen.windows[view].scale
        seen.peaks[view, wrist] = output((wrist, x, y, sure * score, tag), width=width)[wrist]
    poses = merge(seen, options, COCO_17)
    assert errors(poses, people).max() < 1
    # 2 cells of two input pixels.
    assert poses.std[0, 9] == pytest.approx(2 * 2 / seen.windows[1].scale, rel=1e-4)


def by(**measures: float) -> tuple[float, ...]:
    """Coefficients of a score after second looks that follows these alone."""
    names = ("before", "agreement")
    out = np.zeros(TERMS_AGAIN)
    for name, value in measures.items():
        out[TERMS_AGAIN_FIRST + names.index(name)] = value
    return tuple(out.tolist())


def test_the_score_after_second_looks_knows_how_views_agree(runtime: Runtime) -> None:
    people = crowd([300])
    image = dots.draw_people((480, 640), people)
    options = dataclasses.replace(TWICE, second_look_views=2)
    seen = PoseEstimator(TwoHanded(runtime), options).infer([image], [False]).looks[0]
    assert isinstance(seen, SecondLook)
    x0, y0, x1, y1 = merge(seen, options, COCO_17).bbox[0]
    offset = 8.0  # pixels of the picture between the views

    def measured(change: Callable[[np.ndarray], None]) -> tuple[float, float]:
        peaks = seen.peaks.copy()
        change(peaks[1])
        found = candidates(dataclasses.replace(seen, peaks=peaks), options, COCO_17)
        scored = dataclasses.replace(options, second_score=by(agreement=1.0), person_threshold=0)
        again = merge(dataclasses.replace(seen, peaks=peaks), scored, COCO_17)
        odds = np.exp(found.agreement[0])
        assert again.person_score == pytest.approx([odds / (1 + odds)], rel=1e-5)
        return float(found.agreement[0]), float(found.before[0])

    def shift(peaks: np.ndarray) -> None:
        peaks[..., 1] += offset * seen.windows[1].scale

    def hide(peaks: np.ndarray) -> None:
        peaks[:] = 0

    agreed, before = measured(lambda _: None)
    assert agreed > 0.999 and before == pytest.approx(seen.first.person_score[0])
    # The mean lies half way: COCO's similarity of a keypoint to one 4 pixels away.
    variance = (2 * np.array(COCO_17.sigmas)) ** 2 * (x1 - x0) * (y1 - y0)
    expected = np.exp(-((offset / 2) ** 2) / 2 / variance).mean()
    assert measured(shift)[0] == pytest.approx(expected, abs=1e-4) and expected < 0.99
    assert measured(hide)[0] == pytest.approx(0.5, abs=1e-6)  # one of two, the same as itself
    one = dataclasses.replace(options, second_look_views=1)
    (found,) = candidates(
        dataclasses.replace(seen, windows=seen.windows[:1], peaks=seen.peaks[:1], views=1),
        one,
        COCO_17,
    ).agreement
    assert found == 1


def test_the_score_after_second_looks_orders_and_drops_people(runtime: Runtime) -> None:
    people = crowd([300, 250, 280])
    image = dots.draw_people((480, 640), people)
    options = dataclasses.replace(TWICE, second_look=2)
    estimator = PoseEstimator(runtime, options)
    seen = estimator.infer([image], [False]).looks[0]
    assert isinstance(seen, SecondLook)
    weak = dataclasses.replace(seen.first, person_score=np.array([0.9, 0.6, 0.8], np.float32))
    # By what it was before; who was not looked at again has that, too.
    scored = dataclasses.replace(options, second_score=by(before=3.0))
    found = merge(dataclasses.replace(seen, first=weak), scored, COCO_17)
    assert found.person_score == pytest.approx(1 / (1 + np.exp(-3 * np.array([0.9, 0.8, 0.6]))))
    strict = dataclasses.replace(scored, person_threshold=0.9)
    assert len(merge(dataclasses.replace(seen, first=weak), strict, COCO_17)) == 2
    # Its size is that in the first look's input.
    half = dataclasses.replace(seen, scale=0.5 * seen.scale)
    rows = [
        candidates(look, options, COCO_17).terms(look.scale, SPANS[COCO_17.name])
        for look in (seen, half)
    ]
    size = 5  # of the measures, counted from 1
    sides = (seen.first.bbox[2, 2:] - seen.first.bbox[2, :2]).max()
    assert rows[0][0, size] == pytest.approx(np.log((sides * seen.scale + 1) / 64))
    assert rows[1][0, size] == pytest.approx(np.log((sides * seen.scale / 2 + 1) / 64))


@given(st.integers(0, 500), st.integers(0, 300), st.integers(20, 140), st.integers(20, 140))
def test_a_person_inside_the_picture_is_inside_the_window(x: int, y: int, w: int, h: int) -> None:
    window = Window.around(np.array([x, y, x + w, y + h]), (480, 640), 128)
    corner = np.array(window.corner_xy)
    part = np.array(window.box.image_hw[::-1])
    assert (corner <= [x, y]).all() and (corner + part >= [min(x + w, 640), min(y + h, 480)]).all()
    # Half of the window and more is the person; where the picture ends, the window does.
    assert max(part) <= 1.46 * max(w, h) + 2
    assert (corner >= 0).all() and (corner + part <= [640, 480]).all()


def test_small_people_are_placed_more_exactly(runtime: Runtime) -> None:
    people = crowd([260, 190, 200])
    image = dots.draw_people((480, 640), people)
    once = PoseEstimator(runtime)(image)
    twice = PoseEstimator(runtime, TWICE)(image)
    assert errors(twice, people).max() < 1
    assert errors(twice, people)[1:].mean() < errors(once, people)[1:].mean()
    assert (twice.std[twice.score > 0] > 0).all() and (twice.id == -1).all()


@pytest.mark.parametrize("rgb", [False, True])
def test_colours_come_in_either_order(runtime: Runtime, rgb: bool) -> None:
    people = crowd([300, 250])
    image = dots.draw_people((480, 640), people)
    given = np.ascontiguousarray(image[..., ::-1]) if rgb else image
    assert errors(PoseEstimator(runtime, TWICE)(given, rgb=rgb), people).max() < 1


def test_the_best_are_looked_at_and_no_more_than_allowed(runtime: Runtime) -> None:
    people = crowd([140] * 5)
    image = dots.draw_people((480, 640), people)
    for limit, windows in ((0, 0), (2, 2), (5, 5), (30, 5)):
        recorder = Recorder(runtime)
        options = dataclasses.replace(TWICE, second_look=limit)
        inferred = PoseEstimator(recorder, options).infer([image], [False])
        assert inferred.second_looks == [windows]
        assert recorder.shapes[1:] == [(windows, 256, 256, 3)] * (windows > 0)
        assert errors(inferred.people()[0][0], people).max() < 1
    recorder = Recorder(runtime)
    options = dataclasses.replace(TWICE, second_look_threshold=1.0)
    assert len(PoseEstimator(recorder, options)(image)) == 5 and len(recorder.shapes) == 1


class Nearsighted(Recorder):
    """An engine that sees nobody in whole images but for the coarse look at them."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        peaks = super().__call__(images)
        return peaks if images.shape[1] == images.shape[2] else np.zeros_like(peaks)


def test_whom_the_first_look_misses_the_coarse_one_finds(runtime: Runtime) -> None:
    people = crowd([330, 300])
    image = dots.draw_people((480, 640), people)
    engine = Nearsighted(runtime)
    assert len(PoseEstimator(engine, TWICE)(image)) == 0
    assert engine.shapes == [(1, 384, 512, 3)]
    coarse = dataclasses.replace(TWICE, coarse_look=True)
    assert errors(PoseEstimator(engine, coarse)(image), people).max() < 1
    assert engine.shapes[1:] == [(1, 384, 512, 3), (1, 256, 256, 3), (2, 256, 256, 3)]
    once = dataclasses.replace(coarse, second_look=0)
    assert len(PoseEstimator(engine, once)(image)) == 0, "it belongs to second looks"


def test_whom_both_looks_find_is_one(runtime: Runtime) -> None:
    people = crowd([330, 300])
    image = dots.draw_people((480, 640), people)
    engine = Recorder(runtime)
    options = dataclasses.replace(TWICE, coarse_look=True)
    assert errors(PoseEstimator(engine, options)(image), people).max() < 1
    assert [shape[0] for shape in engine.shapes] == [1, 1, 2]
    few = dataclasses.replace(options, max_people=1)
    assert len(PoseEstimator(engine, few)(image)) == 1


def standing(people: np.ndarray, score: float = 0.6) -> Poses:
    shape = people.shape[:2]
    return Poses.build(people, np.full(shape, 0.7), np.ones(shape), np.full(shape[0], score))


def test_whom_the_first_look_misses_is_found_where_he_is_expected(runtime: Runtime) -> None:
    people = crowd([330, 300])
    image = dots.draw_people((480, 640), people)
    estimator = PoseEstimator(Nearsighted(runtime), TWICE)
    assert len(estimator(image)) == 0
    beside = people + np.random.default_rng(0).normal(0, 6, people.shape)
    found = estimator(image, expected=Expected(standing(beside), 0))
    assert errors(found, people).max() < 1, "where he is, not where he was expected"
    first_only = dataclasses.replace(TWICE, second_look=0)
    estimator = PoseEstimator(Nearsighted(runtime), first_only)
    assert len(estimator(image, expected=Expected(standing(people), 0))) == 0
    estimator = PoseEstimator(Nearsighted(runtime), TWICE)
    faint = standing(people, score=TWICE.second_look_threshold / 2)
    assert len(estimator(image, expected=Expected(faint, 0))) == 0


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_expected_people_are_in_the_cameras_own_pixels(runtime: Runtime, degrees: int) -> None:
    people = crowd([330, 300])[:1]
    estimator = PoseEstimator(Nearsighted(runtime), TWICE)
    estimator.rotation = degrees
    image = dots.draw_people((480, 640), people)
    assert errors(estimator(image, expected=Expected(standing(people), 0)), people).max() < 1


def test_people_are_followed_without_looking_at_the_whole_image(runtime: Runtime) -> None:
    people = crowd([330, 300])
    image = dots.draw_people((480, 640), people)
    options = dataclasses.replace(TWICE, coarse_look=True)
    engine = Recorder(runtime)
    estimator = PoseEstimator(engine, options)
    known = Expected(standing(people + 5), whole=False)
    assert errors(estimator(image, expected=known), people).max() < 1
    assert engine.shapes == [(2, 256, 256, 3)]
    # A newcomer has to wait.
    one = Expected(standing(people[:1]), whole=False)
    assert errors(estimator(image, expected=one), people[:1]).max() < 1
    # In a batch each image as it is to be.
    engine.shapes.clear()
    inferred = estimator.infer([image, image, image], [False] * 3, [None, known, one])
    assert [len(poses) for poses, _ in inferred.people()] == [2, 2, 1]
    assert engine.shapes[0] == (1, 384, 512, 3) and engine.shapes[1] == (1, 256, 256, 3)
    assert engine.shapes[2:] == [(2, 256, 256, 3), (2, 256, 256, 3), (1, 256, 256, 3)]


@pytest.mark.parametrize(
    "change",
    [{"second_look": 1}, {"second_look": 0}, {"second_look_threshold": 0.7}],
)
def test_whole_images_are_looked_at_where_windows_do_not_show_everybody(
    runtime: Runtime, change: dict[str, float]
) -> None:
    people = crowd([330, 300])
    image = dots.draw_people((480, 640), people)
    engine = Recorder(runtime)
    estimator = PoseEstimator(engine, dataclasses.replace(TWICE, **change))
    known = Expected(standing(people, 0.6), whole=False)
    assert errors(estimator(image, expected=known), people).max() < 2
    assert engine.shapes[0] == (1, 384, 512, 3)
    pinned = PoseEstimator(Recorder(runtime), TWICE)
    pinned.closer = None  # as where no engine for windows could be opened
    assert errors(pinned(image, expected=known), people).max() < 2


def test_nobody_is_found_for_being_expected(runtime: Runtime) -> None:
    people = crowd([300, 250, 280, 290], (480, 1280))
    image = dots.draw_people((480, 1280), people[:3])
    for second_look, score in ((8, 0.99), (2, 0.99), (2, 0.5), (2, 0.06)):
        options = dataclasses.replace(TWICE, second_look=second_look)
        engine = Recorder(runtime)
        estimator = PoseEstimator(engine, options)
        # One too many is expected; of the windows there may be fewer than people.
        found = estimator(image, expected=Expected(standing(people, score), 0))
        assert errors(found, people[:3]).max() < 3, "small people in a whole image"
        windows = sum(shape[0] for shape in engine.shapes[1:])
        assert windows <= second_look
    # Neither do people without keypoints, or far outside, do harm.
    strange = standing(people)
    strange.xy[:2], strange.score[:2], strange.bbox[:2] = np.nan, 0, np.nan
    far = standing(people[2:] + 1e7)
    for nobody in (strange, far):
        found = PoseEstimator(runtime, TWICE)(image, expected=Expected(nobody))
        assert errors(found, people[:3]).max() < 3
    # Who is not in his window is left out, whoever it was that expected him.
    blind = PoseEstimator(Recorder(runtime, blind=True), dataclasses.replace(TWICE, second_look=2))
    assert len(blind(image, expected=Expected(standing(people[3:], 0.99), 0))) == 2


def test_who_is_expected_and_seen_is_one_person_with_one_window(runtime: Runtime) -> None:
    people = crowd([330, 300])
    image = dots.draw_people((480, 640), people)
    engine = Recorder(runtime)
    estimator = PoseEstimator(engine, TWICE)
    near = people + (9, -7)
    looked = estimator.infer([image], [False], [Expected(standing(near), 0)]).looks[0]
    assert isinstance(looked, SecondLook) and looked.count == 2
    np.testing.assert_allclose(looked.first.xy[0, 0], near[0, 0], atol=1e-3)
    assert errors(merge(looked, TWICE, COCO_17), people).max() < 1
    # Of the two, one cannot be where he is expected: both places are looked at.
    away = people + [[(0, 0)], [(-60, 0)]]
    looked = estimator.infer([image], [False], [Expected(standing(away), 0)]).looks[0]
    assert isinstance(looked, SecondLook) and looked.count == 3
    assert errors(merge(looked, TWICE, COCO_17), people).max() < 1


@pytest.mark.parametrize("views", [1, 2, 3, 4, 6])
def test_images_that_follow_each_other_are_looked_at_in_all_views(views: int) -> None:
    options = dataclasses.replace(TWICE, second_look_views=views)
    bbox = np.array([200.0, 100, 300, 300])
    taken = [views_of(bbox, (480, 640), options, number) for number in range(12)]
    assert taken[0] == views_of(bbox, (480, 640), options)
    flat = [window for windows in taken for window in windows]
    assert all(len(windows) == views for windows in taken)
    assert flat[6:] == flat[:-6] and len({(w.corner_xy, w.mirrored) for w in flat[:6]}) == 6


def test_many_people_go_in_parts(runtime: Runtime) -> None:
    first = Poses.build(
        np.tile(crowd([100]), (MOST_AT_ONCE + 3, 1, 1)),
        np.full((MOST_AT_ONCE + 3, 17), 0.9),
        np.ones((MOST_AT_ONCE + 3, 17)),
        np.full(MOST_AT_ONCE + 3, 0.9),
    )
    from ehrnet_model.inference.second_look import look

    recorder = Recorder(runtime)
    options = dataclasses.replace(TWICE, second_look=30)
    windows = windows_for(first, (480, 640), options)
    peaks = look(np.zeros((480, 640, 3), np.uint8), False, windows, recorder)
    assert [shape[0] for shape in recorder.shapes] == [MOST_AT_ONCE, 3]
    assert len(peaks) == len(first) and look(np.zeros(0), False, [], recorder).shape[0] == 0


def test_who_is_not_seen_again_was_a_mistake(runtime: Runtime) -> None:
    people = crowd([300, 250, 280])
    image = dots.draw_people((480, 640), people)
    options = dataclasses.replace(TWICE, second_look=2)
    blind = Recorder(runtime, blind=True)
    # The third was not looked at, so nothing speaks against it.
    assert len(PoseEstimator(runtime, options)(image)) == 3
    assert len(PoseEstimator(blind, options)(image)) == 1


def test_a_neighbour_in_the_window_takes_nobodys_place(runtime: Runtime) -> None:
    close = np.stack([dots.figure((280, 240), 200), dots.figure((370, 240), 130)])
    image = dots.draw_people((480, 640), close)
    poses = PoseEstimator(runtime, TWICE)(image)
    assert errors(poses, close).max() < 1


def test_somebody_missed_is_found_beside_another_once(runtime: Runtime) -> None:
    close = np.stack([dots.figure((280, 240), 260), dots.figure((365, 330), 120)])
    image = dots.draw_people((480, 640), close)
    options = dataclasses.replace(TWICE, second_look_size=320)
    estimator = PoseEstimator(runtime, options)
    seen = estimator.infer([image], [False]).looks[0]
    assert isinstance(seen, SecondLook) and len(seen.first) == len(seen.windows) == 2
    tall = int(np.argmax(seen.first.bbox[:, 3] - seen.first.bbox[:, 1]))
    peaks = seen.peaks[tall : tall + 1]
    alone = SecondLook(seen.first[tall], 1.0, (480, 640), [seen.windows[tall]], peaks)
    found = merge(alone, options, COCO_17)
    assert errors(found, close).max() < 1
    # Seen beside somebody, it counts for less than with a window of its own.
    both = merge(seen, options, COCO_17)
    assert len(both) == 2 and found.person_score[1] < 0.8 * both.person_score.min()
    # Who is not worth a second look is not worth this, either.
    strict = dataclasses.replace(options, second_look_threshold=1.0)
    assert len(merge(alone, strict, COCO_17)) == 1


def test_whoever_may_go_on_beyond_the_window_is_left_to_others() -> None:
    window = Window.around(np.array([100, 100, 200, 200]), (480, 640), 128, room=1.55)
    x, y = window.corner_xy  # 155 pixels wide: from 72 to 228
    assert (x, y) == (72, 72) and window.box.image_hw == (156, 156)
    boxes = [(90, 90, 110, 110), (75, 90, 110, 110), (90, 90, 225, 110), (90, 60, 110, 300)]
    assert window.holds(np.array(boxes)).tolist() == [True, False, False, False]
    at_the_edge = Window.around(np.array([0, 0, 100, 100]), (480, 640), 128, room=1.55)
    assert at_the_edge.holds(np.array([(-1, 0, 80, 90), (0, 0, 126, 90)])).tolist() == [True, False]
    whole = Window.around(np.array([0, 0, 100, 100]), (100, 100), 128)
    assert whole.holds(np.array([(0, 0, 99, 99)])).tolist() == [True]


def test_two_first_finds_of_one_person_become_one(runtime: Runtime) -> None:
    person = crowd([300])
    image = dots.draw_people((480, 640), person)
    estimator = PoseEstimator(runtime, TWICE)
    seen = estimator.infer([image], [False]).looks[0]
    assert isinstance(seen, SecondLook) and len(seen.windows) == 1
    both = Poses.build(
        np.concatenate([seen.first.xy, seen.first.xy + 4]),
        *(np.repeat(v, 2, 0) for v in (seen.first.score, seen.first.std, seen.first.person_score)),
    )
    windows, peaks = [seen.windows[0]] * 2, np.repeat(seen.peaks, 2, 0)
    doubled = SecondLook(both, 1.0, (480, 640), windows, peaks)
    assert errors(merge(doubled, TWICE, COCO_17), person).max() < 1


def test_two_people_joined_and_other_views_of_one_are_nobody(runtime: Runtime) -> None:
    people = crowd([300, 250])
    image = dots.draw_people((480, 640), people)
    seen = PoseEstimator(runtime, TWICE).infer([image], [False]).looks[0]
    assert isinstance(seen, SecondLook)
    joined = np.where(np.arange(17)[:, None] < 9, people[0], people[1])
    half = np.where(np.arange(17)[:, None] < 9, people[0], np.nan)
    with_joined = seen.first
    near = people[0] + (130, 0)  # somebody else, as similar as neighbours are
    for other, count in ((joined, 2), (half, 2), (near, 3)):
        extra = Poses.build(other[None], np.full((1, 17), 0.4), np.ones((1, 17)), np.array([0.1]))
        everybody = Poses.build(
            *(
                np.concatenate([getattr(seen.first, name), getattr(extra, name)])
                for name in ("xy", "score", "std", "person_score")
            )
        )
        with_joined = everybody if other is joined else with_joined
        # The last was not looked at again.
        found = merge(dataclasses.replace(seen, first=everybody), TWICE, COCO_17)
        assert len(found) == count
    loose = dataclasses.replace(TWICE, shared=1.0)
    assert len(merge(dataclasses.replace(seen, first=with_joined), loose, COCO_17)) == 3


def test_what_is_seen_beyond_the_images_edge_is_not_found() -> None:
    """Somebody at the left edge: in the window, black from the image's edge on, there are peaks."""
    first = Poses.build(
        np.stack([np.linspace(2, 60, 17), np.linspace(100, 200, 17)], 1)[None],
        np.full((1, 17), 0.8),
        np.ones((1, 17)),
        np.ones(1),
    )
    (window,) = windows_for(first, (480, 640), TWICE)
    assert window.corner_xy[0] == 0 and window.box.offset_xy[0] > 8, "it has a black border"
    xy = first.xy[0].copy()
    xy[0, 0], xy[1, 0] = -5.0, -0.7
    places = window.box.project(xy - np.array(window.corner_xy, np.float32))
    peaks = output(*((k, float(x), float(y), 0.8, 0.0) for k, (x, y) in enumerate(places)))
    poses = merge(SecondLook(first, 1.0, (480, 640), [window], peaks[None]), TWICE, COCO_17)
    xy[0], xy[1, 0] = np.nan, 0
    np.testing.assert_allclose(poses.xy, xy[None], atol=1e-3)
    assert (poses.score[0] > 0).tolist() == [False] + [True] * 16
    assert poses.person_score == pytest.approx(0.8)


def test_thresholds_hold_after_the_second_look(runtime: Runtime) -> None:
    people = crowd([300, 250])
    image = dots.draw_people((480, 640), people)
    scores = PoseEstimator(runtime, TWICE)(image).person_score
    assert (np.diff(scores) <= 0).all()
    over = dataclasses.replace(TWICE, person_threshold=float(scores[0]) + 1e-4)
    assert len(PoseEstimator(runtime, over)(image)) == 0
    one = dataclasses.replace(TWICE, max_people=1)
    assert len(PoseEstimator(runtime, one)(image)) == 1


def test_an_engine_of_one_size_needs_another_for_windows(dots_model: Path) -> None:
    people = crowd([300, 250])
    image = dots.draw_people((480, 640), people)
    pinned = Recorder(open_runtime(dots_model, "onnxruntime", size_hw=(384, 512)))
    assert PoseEstimator(pinned, TWICE).infer([image], [False]).second_looks == [0]
    closer = open_closer(dots_model, pinned, TWICE)
    assert closer is not None and closer.size_hw == (256, 256)
    estimator = PoseEstimator(pinned, TWICE, closer=closer)
    assert estimator.infer([image], [False]).second_looks == [2]
    assert errors(estimator(image), people).max() < 1
    estimator.close()
    for engine in (pinned, closer):
        with pytest.raises(EhrnetError, match="closed"):
            engine(np.zeros((1, *engine.size_hw, 3), np.uint8))


def test_opening_a_model_that_runs_at_one_size_brings_the_engine_for_windows(
    dots_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dots.draw_people((480, 640), crowd([300, 250]))
    # As an engine of TensorRT, which has never another size.
    pinned = functools.partial(open_runtime, size_hw=(384, 512))
    monkeypatch.setattr("ehrnet_model.inference.estimator.open_runtime", pinned)
    stored = {"second_look": 8, "second_look_size": 256}
    model = dots.with_decode(dots_model, tmp_path / "twice.onnx", **stored)
    estimator = PoseEstimator.open(model, "onnxruntime")
    assert estimator.infer([image], [False]).second_looks == [2]
    engines = estimator.runtime, estimator.closer
    estimator.close()
    for engine in engines:
        assert engine is not None and engine.size_hw is not None
        with pytest.raises(EhrnetError, match="closed"):
            engine(np.zeros((1, *engine.size_hw, 3), np.uint8))
    assert PoseEstimator.open(dots_model, "onnxruntime", "256x320").size_hw == (256, 320)


def test_where_no_engine_for_windows_is_to_be_had(
    dots_model: Path, runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_closer(dots_model, runtime, DecodeOptions()) is None
    assert open_closer(dots_model, runtime, TWICE) is runtime
    pinned = open_runtime(dots_model, "onnxruntime", size_hw=(384, 512))
    gone = tmp_path / "gone.onnx"
    assert open_closer(gone, pinned, TWICE) is None
    assert "Nobody is looked at again" in caplog.text and "gone.onnx" in caplog.text
    with pytest.raises(EhrnetError, match="Nobody can be looked at again: there is no model file"):
        open_closer(gone, pinned, TWICE, insist=True)


@pytest.mark.parametrize("side", [0, 32, 100, 1024])
def test_sizes_that_no_network_takes(side: int) -> None:
    said = f"size = {side} is not possible|size {side}x{side} is not possible"
    with pytest.raises(EhrnetError, match=said):
        DecodeOptions(second_look_size=side)
