"""PoseTracker: who is who, with people whose identity is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks import walkers
from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.tracker import PoseTracker, TrackOptions, best_pairs

RATE = 30.0
STANDING = walkers.project(walkers.turned(walkers.body(1.7, 0.5), np.array([0.0, 4.0]), np.pi))
AT_ONCE = TrackOptions(track_birth_images=1)


def people(*places: float, std: float = 2.0, score: float = 0.8) -> Poses:
    """People who stand so many pixels to the right of the middle."""
    xy = STANDING + np.reshape([(x, 0) for x in places], (-1, 1, 2))
    shape = (len(places), 17)
    return Poses.build(xy, np.full(shape, score), np.full(shape, std), np.full(shape[0], score))


def ids(tracker: PoseTracker, poses: Poses, stamp_s: float) -> list[int]:
    return tracker.update(poses, stamp_s).id.tolist()


def identities(frames: list[walkers.Frame], tracker: PoseTracker) -> dict[int, set[int]]:
    """Which ids each true person got."""
    got: dict[int, set[int]] = {}
    for frame in frames:
        for who, number in zip(frame.truth, tracker.update(frame.found, frame.stamp_s).id):
            if number >= 0 and who >= 0:
                got.setdefault(int(who), set()).add(int(number))
    return got


@given(
    arrays(
        float,
        st.tuples(st.integers(0, 7), st.integers(0, 7)),
        elements=st.sampled_from([0, 0, 0.1, 0.2, 0.3, 0.5, 0.9]),
    )
)
@settings(deadline=None)
def test_pairs_are_the_best_by_another_solver(worth):
    optimize = pytest.importorskip("scipy.optimize")
    rows, columns = best_pairs(worth)
    assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
    assert (worth[rows, columns] > 0).all()
    theirs = worth[optimize.linear_sum_assignment(worth, maximize=True)].sum()
    assert math.isclose(worth[rows, columns].sum(), theirs)


def test_pairs_of_a_crowd_are_the_best():
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        worth = rng.random((35, 30)) * (rng.random((35, 30)) < 0.3)
        theirs = worth[optimize.linear_sum_assignment(worth, maximize=True)].sum()
        assert math.isclose(worth[best_pairs(worth)].sum(), theirs)


@pytest.mark.parametrize("rate", [30.0, 12.0])
def test_people_who_cross_keep_their_numbers(rate):
    """Four people, each hidden for a moment by another; the detector's order changes all the time.

    Whoever crosses the picture only once is one number from end to end.
    """
    got = identities(walkers.crossing(rate, seed=50), PoseTracker())
    assert len(got) == 4
    assert all(len(numbers) == 1 for numbers in got.values()), got
    assert len(set.union(*got.values())) == 4


def test_people_behind_pillars_are_found_again():
    frames = walkers.behind_pillars(seed=51)
    gaps = np.diff([f.stamp_s for f in frames if 0 in f.truth])
    assert gaps.max() > 0.4  # or it would prove nothing
    got = identities(frames, PoseTracker())
    assert [len(got[who]) for who in range(3)] == [1, 1, 1]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_the_order_of_people_means_nothing(seed):
    rng = np.random.default_rng(seed)
    straight, shuffled = PoseTracker(AT_ONCE), PoseTracker(AT_ONCE)
    names: dict[int, int] = {}
    for frame in walkers.crossing(10.0, seed=52)[:25]:
        order = rng.permutation(len(frame.found))
        one = straight.update(frame.found, frame.stamp_s)
        other = shuffled.update(frame.found[order], frame.stamp_s)
        np.testing.assert_allclose(other.xy, one.xy[order], rtol=1e-5)
        for a, b in zip(one.id[order].tolist(), other.id.tolist()):
            assert names.setdefault(a, b) == b
    assert len(set(names.values())) == len(names)


def test_an_id_comes_with_the_third_image_and_from_who_scores_enough():
    tracker = PoseTracker(TrackOptions(track_birth_score=0.5))
    assert [ids(tracker, people(0), i / RATE) for i in range(4)] == [[-1], [-1], [0], [0]]
    for i in range(4, 10):  # someone faint never gets one, but goes on with it
        assert ids(tracker, people(200, score=0.4), i / RATE) == [-1]
    assert ids(tracker, people(0, score=0.4), 10 / RATE) == [0]


def test_who_walks_out_of_the_image_stays_in_it():
    """Places are carried on by how fast they move, and somebody may read pixels there."""
    left, right = STANDING[:, 0].min(), STANDING[:, 0].max()
    image_hw = (int(STANDING[:, 1].max()) + 20, int(right) + 60)
    tracker = PoseTracker(AT_ONCE)
    for i in range(int((image_hw[1] - left) / 15)):
        seen = people(15.0 * i).within(image_hw)
        tracked = tracker.update(seen, i / RATE, image_hw)
        inside = np.clip(tracked.xy, 0, np.array(image_hw[::-1]) - 1)
        np.testing.assert_array_equal(tracked.xy, inside)  # NaN where nothing is known
        assert (tracked.bbox[:, 2] <= image_hw[1] - 1).all()


def test_who_is_seen_once_is_nobody():
    tracker = PoseTracker()
    for i in range(60):
        ghost = [300.0 * (-1) ** i] if i % 6 == 0 else []
        assert ids(tracker, people(*ghost), i / RATE) in ([], [-1])


@pytest.mark.parametrize("hidden_s, same", [(0.5, True), (1.9, True), (2.2, False)])
def test_hidden_people_keep_their_number_for_so_long(hidden_s, same):
    tracker = PoseTracker(TrackOptions(track_birth_images=1, track_lost_s=2.0))
    for i in range(10):
        assert ids(tracker, people(0), i / RATE) == [0]
    for i in range(1, int(hidden_s * RATE)):
        assert ids(tracker, people(), (9 + i) / RATE) == []
    assert ids(tracker, people(0), 9 / RATE + hidden_s) == [0 if same else 1]


def test_without_any_patience_a_number_lasts_from_image_to_image():
    tracker = PoseTracker(TrackOptions(track_birth_images=1, track_lost_s=0.0))
    stamps = (0.0, 0.2, 0.4)
    assert [ids(tracker, people(0), stamp) for stamp in stamps] == [[0], [0], [0]]
    ids(tracker, people(), 0.5)
    assert ids(tracker, people(0), 0.6) == [1]
    assert ids(tracker, people(0), 1.7) == [2]  # images paused


def test_a_hidden_walker_is_expected_where_he_walks():
    """He comes out at a place where somebody else stands closer to where he vanished."""
    tracker = PoseTracker(AT_ONCE)
    for i in range(15):
        ids(tracker, people(-200 + 8 * i), i / RATE)
    for i in range(15, 30):
        ids(tracker, people(), i / RATE)
    assert ids(tracker, people(-110, -200 + 8 * 30), 1.0) == [1, 0]


def test_who_walks_is_expected_further_on():
    tracker = PoseTracker()
    for number in range(30):
        assert tracker.expected(number / RATE).number == number
        tracker.update(people(4.0 * number, -300), number / RATE)
    expected = tracker.expected(29 / RATE + 0.1).people
    assert sorted(expected.id) == [0, 1] and np.allclose(expected.person_score, 0.8)
    walker, standing = np.argsort(-expected.xy[:, 0, 0])
    # 120 pixels a second, for a tenth of a second.
    ahead = expected.xy[walker] - people(4.0 * 29).xy[0]
    np.testing.assert_allclose(ahead, np.broadcast_to((12, 0), (17, 2)), atol=0.7)
    np.testing.assert_allclose(expected.xy[standing], people(-300).xy[0], atol=1e-3)


def test_who_is_not_looked_for():
    tracker = PoseTracker()
    assert len(tracker.expected(0.0).people) == 0
    for number in range(3):
        tracker.update(people(0), number / RATE, (480, 640))
        assert tracker.expected((number + 1) / RATE).people.id == [-1 if number < 2 else 0]
    last = 2 / RATE
    assert len(tracker.expected(last + 0.9).people) == 1
    assert len(tracker.expected(last + 0.9, (480, 640)).people) == 1
    assert len(tracker.expected(last + 0.9, (640, 480)).people) == 0, "another image"
    assert len(tracker.expected(last + 1.1).people) == 0, "gone for too long"
    assert len(tracker.expected(last - 1.0).people) == 1, "a clock that jitters"
    assert len(tracker.expected(last - 9.0).people) == 0, "a clock that was set back"
    tracker.options = TrackOptions(track_lost_s=0.1)
    assert len(tracker.expected(last + 0.2).people) == 0
    with pytest.raises(EhrnetError, match="stamp of the image is nan"):
        tracker.expected(math.nan)
    tracker.reset()
    assert len(tracker.expected(last).people) == 0


def test_some_images_are_looked_at_as_a_whole():
    def whole(tracker, count, **every):
        return [tracker.expected(1.1, **every).whole for _ in range(count)]

    empty, known = PoseTracker(), PoseTracker()
    known.update(people(0), 1.0)
    assert whole(empty, 5) == [True] * 5, "somebody may come in"
    assert whole(known, 5) == [True, False, True, False, True]
    assert whole(known, 6, whole_every=3) == [False, True, False, False, True, False]
    assert whole(known, 3, whole_every=1) == [True] * 3
    assert [known.expected(1.0 + pause).whole for pause in (0.29, 0.29, 0.31, 0.31)] == [
        *(True, False),
        *(True, True),
    ]
    known.update(Poses.empty(), 1.1)
    assert whole(known, 2) == [True, False], "missed once"
    known.update(Poses.empty(), 1.2)
    assert whole(known, 3) == [True] * 3, "nobody any more"


def test_expecting_changes_no_track():
    asked, left = PoseTracker(), PoseTracker()
    for frame in walkers.crossing(10.0, seed=53)[:40]:
        for later in (0.0, 5.0, -5.0):
            asked.expected(frame.stamp_s + later, (480, 640))
        one = asked.update(frame.found, frame.stamp_s)
        other = left.update(frame.found, frame.stamp_s)
        np.testing.assert_array_equal(one.xy, other.xy)
        np.testing.assert_array_equal(one.id, other.id)


def test_numbers_are_never_given_twice():
    shared = itertools.count(5)
    front, rear = PoseTracker(AT_ONCE, ids=shared), PoseTracker(AT_ONCE, ids=shared)
    given = []
    for i in range(20):
        front.reset()
        given += ids(front, people(0, 150), float(i)) + ids(rear, people(0), 100.0 * i)
    assert len(set(given)) == len(given) == 60
    assert min(given) == 5


def test_images_of_another_size_begin_anew():
    tracker = PoseTracker(AT_ONCE)
    sizes = [None, (240, 320), (240, 320), None, (960, 1280), (960, 1280), (240, 320)]
    given = [tracker.update(people(0), float(i), size).id.tolist() for i, size in enumerate(sizes)]
    assert given == [[0], [0], [0], [0], [1], [1], [2]]


def test_clocks_that_stand_jitter_and_jump():
    tracker = PoseTracker(TrackOptions(track_birth_images=1, track_lost_s=2.0))
    stamps = [0.0, 0.0, 0.03, 0.5, 0.49, 0.51, 1.9, 1.9, 0.9, 0.93]  # back by a second at most
    assert [ids(tracker, people(0, 150), stamp) for stamp in stamps] == [[0, 1]] * len(stamps)
    assert ids(tracker, people(0), -500.0) == [2]  # a bag begins anew
    assert ids(tracker, people(0), -499.9) == [2]
    assert ids(tracker, people(0), 1e9) == [3]  # or the camera was off for years


def test_tracks_end_where_no_stamp_moves():
    tracker = PoseTracker(TrackOptions(track_birth_images=1, track_lost_s=0.5))
    ids(tracker, people(0), 0.0)
    for _ in range(600):
        ids(tracker, people(), 0.0)
    assert ids(tracker, people(0), 0.0) == [1]


@pytest.mark.parametrize("rate", [1.0, 1.5, 3.0, 10.0, RATE])
@pytest.mark.parametrize("heights", [0.35, 0.42, 0.5])
def test_whoever_joins_close_beside_somebody_gets_a_number(heights, rate):
    """However far apart the images are: both stand still, and nobody is where the other is."""
    apart = heights * float(np.ptp(STANDING[:, 1]))
    tracker = PoseTracker()
    for i in range(4):
        ids(tracker, people(0), i / rate)
    given = [ids(tracker, people(0, apart), i / rate) for i in range(4, 8)]
    assert given == [[0, -1], [0, -1], [0, 1], [0, 1]]


@pytest.mark.parametrize("rate", [1.0, 1.5, 3.0, 10.0, RATE])
def test_a_double_of_somebody_gets_no_number(rate):
    tracker = PoseTracker()
    off = 0.04 * float(np.ptp(STANDING[:, 1]))
    for i in range(4):
        ids(tracker, people(0), i / rate)
    assert [ids(tracker, people(0, off), i / rate) for i in range(4, 12)] == [[0, -1]] * 8


def noisy_standing(tracker: PoseTracker, images: int = 600, sigma: float = 3.0):
    rng = np.random.default_rng(0)
    results, measured = [], []
    for i in range(images):
        xy = STANDING[None] + rng.normal(0, sigma, (1, 17, 2))
        shape = (1, 17)
        poses = Poses.build(xy, np.full(shape, 0.8), np.full(shape, sigma), np.ones(1))
        results.append(tracker.update(poses, i / RATE))
        measured.append(poses)
    return results, measured


def test_smoothing_calms_and_its_std_is_true():
    results, _ = noisy_standing(PoseTracker(TrackOptions(track_speed_gain=0.0)))
    off = np.array([r.xy[0] - STANDING for r in results[60:]])
    assert 0.2 * 3 < off.std() < 0.5 * 3
    said = np.array([r.std[0] for r in results[60:]])
    assert math.isclose(off.std(), said.mean(), rel_tol=0.15)
    results, measured = noisy_standing(PoseTracker(TrackOptions(track_smoothing=False)), 50)
    for result, poses in zip(results, measured):
        np.testing.assert_allclose(result.xy, poses.xy, rtol=1e-6)
        np.testing.assert_allclose(result.std, poses.std, rtol=1e-6)


def test_smoothed_walkers_are_nearer_to_the_truth():
    raw, smooth = [], []
    tracker = PoseTracker()
    for frame in walkers.crossing(seed=53):
        result = tracker.update(frame.found, frame.stamp_s)
        for i, who in enumerate(frame.truth):
            true = frame.xy[frame.people == who]
            if len(true):
                raw.append(frame.found.xy[i] - true[0])
                smooth.append(result.xy[i] - true[0])
    raw_rms, smooth_rms = (np.sqrt(np.nanmean(np.square(e))) for e in (raw, smooth))
    assert smooth_rms < 0.85 * raw_rms


WRIST = 9
HAND_UP = STANDING + (np.arange(17) == WRIST)[:, None] * np.array([10.0, -80.0])


def watched(tracker, seen, rate=RATE):
    """What comes out where a wrist is seen at rest or up, with a score, image by image."""
    results = []
    for i, (up, score) in enumerate(seen):
        xy = (HAND_UP if up else STANDING)[None]
        scores = np.where(np.arange(17) == WRIST, score, 0.8)[None]
        poses = Poses.build(xy, scores, np.full((1, 17), 1.0), np.full(1, 0.6))
        results.append(tracker.update(poses, i / rate))
    return results


def test_a_doubtful_jump_of_a_keypoint_is_not_believed_and_lowers_its_score():
    seen = [(False, 0.8)] * 10 + [(True, 0.4)] + [(False, 0.8)] * 5
    results = watched(PoseTracker(AT_ONCE), seen)
    for result in results:
        np.testing.assert_allclose(result.xy[0], STANDING, atol=0.5)
    scores = [float(result.score[0, WRIST]) for result in results]
    assert math.isclose(scores[9], 0.8, rel_tol=1e-6)
    # One image of 1 / (1 - exp(-1 / 30 / 0.2)) late ones, the first ten of them.
    late = np.exp(-np.arange(10, -1, -1) / RATE / 0.2)
    assert math.isclose(scores[10], 0.8 * late[:10].sum() / late.sum(), rel_tol=1e-6)
    assert scores[10] < scores[11] < scores[15] < 0.8
    others = [np.delete(result.score[0], WRIST) for result in results]
    np.testing.assert_allclose(others, 0.8, rtol=1e-6)


@pytest.mark.parametrize(("before", "now", "images"), [(0.3, 0.9, 3), (0.8, 0.8, 8)])
def test_a_keypoint_that_stays_elsewhere_is_believed(before, now, images):
    seen = [(False, before)] * 30 + [(True, now)] * images
    result = watched(PoseTracker(AT_ONCE), seen)[-1]
    np.testing.assert_allclose(result.xy[0], HAND_UP, atol=0.5)


def test_of_two_places_that_take_turns_the_surer_one_is_given():
    seen = [(i % 2 == 0, 0.3 if i % 2 == 0 else 0.6) for i in range(60)]
    results = watched(PoseTracker(AT_ONCE), seen)[4:]
    for result in results:
        np.testing.assert_allclose(result.xy[0, WRIST], STANDING[WRIST], atol=0.5)
    # Right in half of the images with .6: a score of .3.
    assert math.isclose(np.mean([r.score[0, WRIST] for r in results]), 0.3, rel_tol=0.1)


def test_the_score_of_a_person_is_the_mean_of_late_images():
    tracker = PoseTracker(AT_ONCE)
    given = []
    for i in range(60):
        poses = people(0)
        poses = Poses.build(poses.xy, poses.score, poses.std, np.full(1, 0.3 + 0.4 * (i % 2)))
        given.append(float(tracker.update(poses, i / RATE).person_score[0]))
    assert math.isclose(np.mean(given[20:]), 0.5, abs_tol=0.01)
    assert np.ptp(given[20:]) < 0.06
    poses = PoseTracker(TrackOptions(track_smoothing=False)).update(poses, 0.0)
    assert math.isclose(poses.person_score[0], 0.7, rel_tol=1e-6)


def test_absent_keypoints_stay_absent_and_come_back_where_they_are():
    tracker = PoseTracker(AT_ONCE)
    last = np.zeros(17)
    for i in range(20):
        poses = people(4 * i)
        if 5 <= i < 12:
            poses = Poses.build(
                poses.xy, poses.score * (np.arange(17) != 9), poses.std, poses.person_score
            )
        result = tracker.update(poses, i / RATE)
        assert result.id.tolist() == [0]
        assert np.array_equal(np.isnan(result.xy), np.isnan(poses.xy))
        assert np.array_equal(result.score > 0, poses.score > 0)
        np.testing.assert_allclose(np.delete(result.score, 9, axis=1), 0.8, rtol=1e-6)
        if result.score[0, 9]:  # less sure after a gap, and surer with every image again
            assert last[9] - 1e-6 <= result.score[0, 9] <= 0.8 + 1e-6 or i == 12
        last = result.score[0]
        assert np.array_equal(np.isnan(result.std), np.isnan(poses.std))
        np.testing.assert_allclose(result.bbox, Poses.build(
            result.xy, result.score, result.std, result.person_score).bbox)  # fmt: skip
        if i > 8 and result.score[0, 9]:  # steady motion: no lag, not even after the gap
            np.testing.assert_allclose(result.xy[0, 9], poses.xy[0, 9], atol=1.5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_nonsense_does_no_harm(seed):
    rng = np.random.default_rng(seed)
    tracker = PoseTracker(TrackOptions(track_lost_s=0.3))
    stamp, newest = 0.0, -1
    for _ in range(40):
        p = int(rng.integers(0, 8))
        xy = rng.normal(300, 10 ** rng.uniform(0, 4), (p, 17, 2))
        xy[rng.random((p, 17)) < 0.4] = rng.choice([np.nan, np.inf, 0.0])
        score = rng.random((p, 17)) * (rng.random((p, 17)) < 0.7)
        std = rng.choice([np.nan, 0.0, 1.0, 1e4], (p, 17))
        stamp += rng.choice([0, 0.01, 0.1, 1, -0.1, -10])
        poses = Poses.build(xy, score, std, rng.random(p))
        result = tracker.update(poses, float(stamp))
        assert np.array_equal(np.isfinite(result.xy), np.isfinite(poses.xy))
        assert np.array_equal(result.score > 0, poses.score > 0) and (result.score <= 1).all()
        given = result.id[result.id >= 0].tolist()
        assert len(set(given)) == len(given)
        newest = max([newest, *given])
    assert newest < 40 * 8


def test_what_it_refuses():
    with pytest.raises(EhrnetError, match="track_oks = 2.0 is not possible"):
        TrackOptions(track_oks=2.0)
    with pytest.raises(EhrnetError, match="track_birth_images = 1.5"):
        TrackOptions(track_birth_images=1.5)  # type: ignore[arg-type]
    with pytest.raises(EhrnetError, match="5 keypoints and the tracker is for 17"):
        PoseTracker().update(Poses.empty(5), 0.0)
    for stamp in (math.nan, math.inf):
        with pytest.raises(EhrnetError, match="stamp of the image"):
            PoseTracker().update(Poses.empty(), stamp)
