"""Who is who from image to image: PoseTracker gives the people of one camera lasting numbers.

People are matched to tracks by object keypoint similarity (OKS) with where each track is expected
to be: the body moves on with its own velocity, which fades while nobody is seen, and the longer it
was not seen, the wider the place where it may be. The pairs are those of the greatest total worth
(an exact assignment, so that the order of people means nothing). Nothing is invented: what comes
out are the people of the image that went in.

A network that is not sure of a keypoint sees it here in one image and there in the next. So a track
remembers two places of each, with how sure the network was of each of them lately, and gives the
surer one, smoothed; the score it gives is how sure all late images together make of that place.

Shapes: T tracks, P people, J keypoints. Positions in pixels, times in seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.assignment import best_pairs
from ehrnet_model.inference.options import check_options, option
from ehrnet_model.inference.poses import Expected, Poses
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

# An image takes at least this long, or tracks would never end where stamps stand still.
_TICK_S = 1e-3
# Over less time than this a displacement says nothing of a velocity.
_VELOCITY_FROM_S = 5e-3
# Time constants: of averaging velocities, and in which a velocity fades while nobody is seen.
_VELOCITY_S = 0.3
_FADING_S = 2.0
# Unforeseen motion in a second, as a share of the person's size: widens where a track may be.
_DRIFT = 0.8
# Deviation of the log of how much larger one person looks in two images in a row.
_SCALE_SPREAD = 0.2
# A keypoint unseen for longer starts anew.
_FRESH_S = 0.5
# Time constant in which what was seen of a keypoint counts less.
_MEMORY_S = 0.2
# A keypoint further from where it was is seen in another place: in deviations of how people label
# it, and for motion beside its body in the person's size a second.
_ANOTHER, _ANOTHER_SPEED = 3.0, 2.0
# Images in a row that a track without an id may miss.
_MISSES_BEFORE_ID = 1
# Who was not seen for longer is not looked for.
_LOOKED_FOR_S = 1.0
# Images further apart show too much that is new not to be looked at as a whole.
_FOLLOWED_S = 0.3
# Who was in the last image is known in the next one, however little patience is asked for.
_LEAST_PAUSE_S = 0.5
# Someone this similar to a person who has a track already is a double, not somebody new.
_DOUBLE = 0.5
# Cutoff of the keypoints' own speed, as in the One-Euro filter's publication.
_SLOPE_CUTOFF_HZ = 1.0


@dataclass(frozen=True)
class TrackOptions:
    """How people become tracks. Every field may change between two images."""

    track_oks: float = option(
        0.15, 0.01, 1.0, "A person less similar (OKS) to where a track is expected is not that one."
    )
    track_lost_s: float = option(
        2.0,
        0.0,
        60.0,
        "[s] how long someone may be unseen, or images may pause, without losing the id.",
    )
    track_birth_score: float = option(
        0.1, 0.0, 1.0, "People scoring below this go on with a track but never start one."
    )
    track_birth_images: int = option(
        3, 1, 100, "In how many images a person has to be found before there is an id."
    )
    track_smoothing: bool = option(
        True,
        0,
        1,
        "Fuse what is seen of tracked people in several images: the surer place of each keypoint, "
        "smoothed by a One-Euro filter, and scores of all late images.",
    )
    track_cutoff_hz: float = option(
        2.0, 0.01, 1000.0, "[Hz] smoothing of a keypoint at rest on its body; less is smoother."
    )
    track_speed_gain: float = option(
        8.0,
        0.0,
        1000.0,
        "[Hz] by how much a keypoint that moves one body size a second is smoothed less.",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass
class _Tracks:
    """All tracks of a camera, as arrays with one entry per track.

    Attributes:
        id: (T,) int32, -1 until it has been found often enough.
        seen: (T,) int64, images in which it was found.
        missed: (T,) int64, images in a row in which it was not.
        unseen: (T,) seconds since it was last found.
        velocity: (T, 2) of the body, when last found.
        person_score: (T,) mean of late images.
        xy: (T, J, 2) keypoints when last found, as measured; those not found then moved along
            with the body; NaN where never found.
        score: (T, J) of each keypoint when last found, 0 where never.
        age: (T, J) seconds since each keypoint was last measured.
        looks: (T, J) late images, each counting less the longer ago it was.
        place: (T, J, 2, 2) two smoothed positions of each keypoint, moved along like ``xy``.
        weight: (T, J, 2) scores with which it was seen in each, counted like ``looks``.
        variance: (T, J, 2) of these positions.
        slope: (T, J, 2) smoothed speed relative to the body.
    """

    id: np.ndarray
    seen: np.ndarray
    missed: np.ndarray
    unseen: np.ndarray
    velocity: np.ndarray
    person_score: np.ndarray
    xy: np.ndarray
    score: np.ndarray
    age: np.ndarray
    looks: np.ndarray
    place: np.ndarray
    weight: np.ndarray
    variance: np.ndarray
    slope: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def arrays(self) -> Iterator[np.ndarray]:
        """All fields in order."""
        return (getattr(self, item.name) for item in dataclasses.fields(self))

    def take(self, index: np.ndarray) -> _Tracks:
        """Copies of some."""
        return _Tracks(*(values[index] for values in self.arrays()))

    def put(self, index: np.ndarray, other: _Tracks) -> None:
        """Writes others over some."""
        for mine, theirs in zip(self.arrays(), other.arrays()):
            mine[index] = theirs

    def joined(self, other: _Tracks) -> _Tracks:
        """Both, these first."""
        pairs = zip(self.arrays(), other.arrays())
        return _Tracks(*(np.concatenate(pair) for pair in pairs))

    @staticmethod
    def begin(poses: Poses) -> _Tracks:
        """One track for each person, without id."""
        p, j = poses.score.shape
        xy = poses.xy.astype(np.float64)
        none = np.zeros((p, j))
        return _Tracks(
            id=np.full(p, -1, np.int32),
            seen=np.ones(p, np.int64),
            missed=np.zeros(p, np.int64),
            unseen=np.zeros(p),
            velocity=np.zeros((p, 2)),
            person_score=poses.person_score.astype(np.float64),
            xy=xy,
            score=poses.score.astype(np.float64),
            age=np.where(poses.score > 0, 0.0, np.inf),
            looks=np.ones((p, j)),
            place=np.stack([xy, xy], 2),
            weight=np.stack([poses.score.astype(np.float64), none], 2),
            variance=np.stack([poses.std.astype(np.float64) ** 2, none], 2),
            slope=np.zeros((p, j, 2)),
        )

    def surest(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(T, J, 2), (T, J), (T, J): the surer place of each keypoint, its score and variance."""
        which = self.weight.argmax(2)
        score = _of(self.weight, which) / np.maximum(self.looks, 1e-9)
        return _of(self.place, which), score, _of(self.variance, which)


class PoseTracker:
    """Tracks the people of one camera; not for several threads at once.

    With an estimator, for each image and its stamp::

        poses = estimator(image, expected=tracker.expected(stamp_s))
        poses = tracker.update(poses, stamp_s)

    and with people from elsewhere the second line alone.

    Args:
        options: may be changed later, through the attribute.
        skeleton: the keypoint set of all poses that will come.
        ids: where numbers are taken from; trackers that share one never give a number twice.

    Attributes:
        options: how people become tracks.
    """

    def __init__(
        self,
        options: Optional[TrackOptions] = None,
        skeleton: SkeletonInfo = COCO_17,
        ids: Optional[Iterator[int]] = None,
    ) -> None:
        self.options = options if options is not None else TrackOptions()
        self._variance = (2 * np.asarray(skeleton.sigmas)) ** 2
        self._ids = ids if ids is not None else itertools.count()
        self._stamp_s: Optional[float] = None
        self._image_hw: Optional[Tuple[int, int]] = None
        self._tracks = _Tracks.begin(Poses.empty(skeleton.num_keypoints))
        self._asked = 0

    def reset(self) -> None:
        """Forgets everybody; their numbers are not given again."""
        self._stamp_s = None
        self._tracks = self._tracks.take(np.arange(0))

    def expected(
        self,
        stamp_s: float,
        image_hw: Optional[Tuple[int, int]] = None,
        whole_every: int = 2,
    ) -> Expected:
        """Who should be in the next image, those without an id yet included.

        Given to ``PoseEstimator`` with the image, it makes the second look there, too. To be asked
        once for each image; updates with those before may still be to come, as they are where an
        engine already has the next image. Tracks stay as they are.

        Args:
            stamp_s: when it was taken, by the clock of ``update``.
            image_hw: (height, width) of the image, if known. Nobody is expected in images of
                another size than before.
            whole_every: in one of so many images in a row the whole of it is looked at, so that
                newcomers are found; and in all where nobody is expected or the last update is
                longer ago than 0.3 s. 1 or more.

        Raises:
            EhrnetError: a stamp that is not finite.
        """
        _check(stamp_s)
        number, self._asked = self._asked, self._asked + 1
        tracks = self._tracks
        elapsed = 0.0 if self._stamp_s is None else stamp_s - self._stamp_s
        unseen = tracks.unseen + max(elapsed, 0.0)
        known = unseen <= min(_LOOKED_FOR_S, self.options.track_lost_s)
        known &= elapsed >= -self.options.track_lost_s
        if image_hw is not None and self._image_hw not in (None, image_hw):
            known[:] = False
        _, score, variance = tracks.surest()
        people = Poses.build(self._places(unseen), score, np.sqrt(variance), tracks.person_score)
        people.id[:] = tracks.id
        followed = known.any() and elapsed <= _FOLLOWED_S
        return Expected(people[known], number, not followed or number % whole_every == 0)

    def update(
        self, poses: Poses, stamp_s: float, image_hw: Optional[Tuple[int, int]] = None
    ) -> Poses:
        """The same people in the same order with ids, and fused if the options say so.

        A person who was not found often enough yet has id -1. If fused, ``std`` is that of the
        measurements carried through the filter, what a filter lags behind is not in it; ``score``
        is the mean of late images' scores, those counting 0 that saw the keypoint elsewhere;
        ``person_score`` is the mean of late images', so that the best may not be first.

        Args:
            poses: of the next image; any ids are ignored.
            stamp_s: when the image was taken, by any clock. A clock that goes back by more than
                ``track_lost_s`` ends all tracks; by less, no time passes.
            image_hw: (height, width) of the image, if known. Another than before ends all tracks:
                who was where means nothing any more.

        Raises:
            EhrnetError: another number of keypoints than the skeleton's, or a stamp that is not
                finite.
        """
        num_keypoints = len(self._variance)
        if poses.score.shape[1] != num_keypoints:
            raise EhrnetError(
                f"these people have {poses.score.shape[1]} keypoints and the tracker is for "
                f"{num_keypoints}: make a tracker for their skeleton."
            )
        _check(stamp_s)
        # Absent keypoints and boxes as they have to be, whoever made the poses.
        poses = Poses.build(poses.xy, poses.score, poses.std, poses.person_score)
        if image_hw is not None:
            if self._image_hw not in (None, image_hw):
                self.reset()
            self._image_hw = image_hw
        self._pass_time(stamp_s)
        tracks, options = self._tracks, self.options
        expected = self._places(tracks.unseen)
        similarity = oks(expected, self._width(), poses) * same_scale(expected, poses)
        # Of two tracks that fit alike, the one that was seen more recently.
        worth = similarity / (1 + tracks.unseen[:, None])
        found, person = best_pairs(np.where(similarity >= options.track_oks, worth, 0))
        tracks.missed += 1
        tracks.put(found, self._continued(tracks.take(found), poses[person]))
        begun = self._begun(poses, person)
        first_new = len(tracks)
        tracks = tracks.joined(_Tracks.begin(poses[begun]))
        owner = np.full(len(poses), -1, np.int64)
        owner[person] = found
        owner[begun] = np.arange(first_new, len(tracks))
        result = self._result(poses, tracks, owner)
        self._tracks = tracks.take((tracks.id >= 0) | (tracks.missed <= _MISSES_BEFORE_ID))
        return result

    def _pass_time(self, stamp_s: float) -> None:
        """Ages all tracks and ends those not seen for too long."""
        elapsed = 0.0 if self._stamp_s is None else stamp_s - self._stamp_s
        self._stamp_s = stamp_s
        if elapsed < -self.options.track_lost_s:
            elapsed = math.inf
        elapsed = max(elapsed, _TICK_S)
        tracks = self._tracks
        tracks.unseen += elapsed
        tracks.age += elapsed
        patience = np.where(
            tracks.missed > 0,
            self.options.track_lost_s,
            max(self.options.track_lost_s, _LEAST_PAUSE_S),
        )
        self._tracks = tracks.take(tracks.unseen <= patience)

    def _places(self, unseen: np.ndarray) -> np.ndarray:
        """(T, J, 2) where the keypoints should be, (T,) seconds after they were found."""
        tracks = self._tracks
        reach = _FADING_S * -np.expm1(-unseen / _FADING_S)
        return tracks.xy + (tracks.velocity * reach[:, None])[:, None]

    def _width(self) -> np.ndarray:
        """(T, J) variance in square pixels of where the keypoints may be found."""
        tracks = self._tracks
        drift = (_DRIFT * tracks.unseen) ** 2
        return size(tracks.xy)[:, None] ** 2 * (self._variance + drift[:, None])

    def _begun(self, poses: Poses, person: np.ndarray) -> np.ndarray:
        """Indices of people who start a track.

        Args:
            poses: of the image.
            person: (M,) who goes on with one.
        """
        # Of one image, so that nobody has moved: images far apart make nobody a double.
        mine = poses.xy[person].astype(np.float64)
        similarity = oks(mine, size(mine)[:, None] ** 2 * self._variance, poses)
        similarity *= same_scale(mine, poses)
        new = poses.person_score >= self.options.track_birth_score
        new &= (poses.score > 0).any(1)
        new &= ~(similarity > _DOUBLE).any(0)
        new[person] = False
        return np.flatnonzero(new)

    def _continued(self, before: _Tracks, poses: Poses) -> _Tracks:
        """M tracks after they were found as the M people."""
        present = poses.score > 0
        xy = poses.xy.astype(np.float64)
        # A median: single keypoints jump to the wrong limb, the body does not.
        shift = _median(xy - before.xy, poses.score * before.score)
        elapsed, seen = before.unseen[:, None], before.seen[:, None]
        gain = np.maximum(-np.expm1(-elapsed / _VELOCITY_S), 1 / seen) * (
            elapsed >= _VELOCITY_FROM_S
        )
        new = np.maximum(-np.expm1(-before.unseen / _MEMORY_S), 1 / (before.seen + 1))
        after = dataclasses.replace(
            before,
            seen=before.seen + 1,
            missed=np.zeros_like(before.missed),
            unseen=np.zeros_like(before.unseen),
            velocity=before.velocity + gain * (shift / elapsed - before.velocity),
            person_score=before.person_score + new * (poses.person_score - before.person_score),
            xy=np.where(present[..., None], xy, before.xy + shift[:, None]),
            score=np.where(present, poses.score, before.score),
            age=np.where(present, 0.0, before.age),
        )
        return self._fused(before, after, shift, poses)

    def _fused(self, before: _Tracks, after: _Tracks, shift: np.ndarray, poses: Poses) -> _Tracks:
        """``after`` with the places of keypoints; a measurement goes to the place it is near.

        Smoothing is the One-Euro filter (Casiez, Roussel, Vogel 2012) on what a keypoint does
        beside its body, with speed in body sizes a second, so that near and far people are smoothed
        alike. What is less sure than usual moves a place less.

        Args:
            before: M tracks before this image.
            after: the same, all else being up to date.
            shift: (M, 2) how far the bodies moved.
            poses: the M people.
        """
        options = self.options
        present = poses.score > 0
        score = poses.score.astype(np.float64)
        noise = poses.std.astype(np.float64) ** 2
        measured = poses.xy.astype(np.float64)
        side = size(after.xy)[:, None]
        fresh = before.age < _FRESH_S
        seconds = np.where(fresh, before.age, 1.0)
        kept = np.exp(-before.unseen / _MEMORY_S)[:, None] * fresh
        weight, looks = before.weight * kept[..., None], before.looks * kept
        # Between what the velocity foretold, which lags, and what was measured, which trembles.
        moved = (after.velocity * before.unseen[:, None] + shift) / 2
        place = before.place + moved[:, None, None]
        apart = np.linalg.norm(measured[:, :, None] - place, axis=3)
        apart = np.where(weight > 0, apart, np.inf)
        reach = _ANOTHER * np.sqrt(self._variance) + _ANOTHER_SPEED * seconds
        same = apart.min(2) < side * reach
        which = np.where(same, apart.argmin(2), weight.argmin(2))

        mine = np.where(same, _of(weight, which), 0.0)
        off = np.where(same[..., None], measured - _of(place, which), 0.0)
        slope = np.where(same[..., None], before.slope, 0.0)
        slope += _gain(_SLOPE_CUTOFF_HZ, seconds)[..., None] * (off / seconds[..., None] - slope)
        speed = np.linalg.norm(slope, axis=2) / side
        usual = mine / np.maximum(looks, 1e-9)
        gain = _gain(options.track_cutoff_hz + options.track_speed_gain * speed, seconds)
        gain = gain * np.sqrt(np.minimum(1, score / np.maximum(usual, 1e-9)))
        # Never slower than the mean of all that was seen there.
        gain = np.maximum(gain, score / np.maximum(score + mine, 1e-9))
        smooth = np.where(same[..., None], measured - (1 - gain[..., None]) * off, measured)
        mixed = gain**2 * noise + (1 - gain) ** 2 * _of(before.variance, which)
        variance = np.where(same & np.isfinite(mixed), mixed, noise)

        here = present[..., None] & (np.arange(2) == which[..., None])
        return dataclasses.replace(
            after,
            looks=looks + 1,
            place=np.where(here[..., None], smooth[:, :, None], place),
            weight=np.where(here, (mine + score)[..., None], weight),
            variance=np.where(here, variance[..., None], before.variance),
            slope=np.where(present[..., None], slope, before.slope),
        )

    def _result(self, poses: Poses, tracks: _Tracks, owner: np.ndarray) -> Poses:
        """The people with what their tracks know; hands out ids.

        Args:
            poses: of the image.
            tracks: all; those due get an id.
            owner: (P,) index of each person's track, -1 for none.
        """
        tracked = np.flatnonzero(owner >= 0)
        mine = owner[tracked]
        due = (tracks.id[mine] < 0) & (tracks.seen[mine] >= self.options.track_birth_images)
        for index in mine[due]:
            tracks.id[index] = next(self._ids)
        xy, score, std = poses.xy.copy(), poses.score.copy(), poses.std.copy()
        person_score = poses.person_score.copy()
        if self.options.track_smoothing:
            place, sure, variance = tracks.take(mine).surest()
            xy[tracked], std[tracked] = place, np.sqrt(variance)
            score[tracked] = np.where(score[tracked] > 0, sure, 0)
            person_score[tracked] = tracks.person_score[mine]
            if self._image_hw is not None:  # a place that is carried on may have left it
                np.clip(xy, 0, np.array(self._image_hw[::-1], np.float32) - 1, out=xy)
        result = Poses.build(xy, score, std, person_score)
        result.id[tracked] = tracks.id[mine]
        return result


def _check(stamp_s: float) -> None:
    if not math.isfinite(stamp_s):
        raise EhrnetError(f"the stamp of the image is {stamp_s}: give seconds of one clock.")


def oks(expected: np.ndarray, width: np.ndarray, poses: Poses) -> np.ndarray:
    """(T, P) similarity of tracks and people in 0..1, over the keypoints both have.

    Few keypoints in common say little: the mean is reduced by their share of what the one with
    fewer has.

    Args:
        expected: (T, J, 2) pixels, NaN where unknown.
        width: (T, J) variance in square pixels.
        poses: P people.
    """
    known = np.isfinite(expected[..., 0])
    present = poses.score > 0
    square = ((expected[:, None] - poses.xy[None]) ** 2).sum(3)
    both = known[:, None] & present[None]
    likeness = np.where(both, np.exp(np.where(both, square, 0) / (-2 * width[:, None])), 0)
    fewer = np.minimum(known.sum(1)[:, None], present.sum(1)[None])
    return np.asarray(likeness.sum(2) / np.maximum(fewer, 1))


def same_scale(expected: np.ndarray, poses: Poses) -> np.ndarray:
    """(T, P) in 0..1: 1 where the keypoints that both have are spread equally far.

    Tells the near from the far where somebody walks past behind somebody else.

    Args:
        expected: (T, J, 2) pixels, NaN where unknown.
        poses: P people.
    """
    known = np.isfinite(expected[..., 0]).astype(np.float64)
    present = (poses.score > 0).astype(np.float64)
    count = np.maximum(known @ present.T, 1)

    def spread(xy: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """(N, M) variance of N people's keypoints over those that each of M others has too."""
        centre = np.nansum(xy, 1) / np.maximum(mine.sum(1), 1)[:, None]
        xy = np.nan_to_num(xy - centre[:, None])
        mean = np.einsum("njc,mj->nmc", xy, theirs)
        square = (xy**2).sum(2) @ theirs.T
        number = np.maximum(mine @ theirs.T, 1)
        return np.asarray(square / number - (mean**2).sum(2) / number**2)

    track = spread(expected, known, present)
    person = spread(poses.xy.astype(np.float64), present, known).T
    ratio = np.log(np.maximum(track, 1) / np.maximum(person, 1)) / 2
    # Of one keypoint in common there is no spread: no evidence either way.
    return np.asarray(np.where(count > 1, np.exp(-((ratio / _SCALE_SPREAD) ** 2) / 2), 1.0))


def size(xy: np.ndarray) -> np.ndarray:
    """(T,) size of people in pixels: root of the area of the box around (T, J, 2) keypoints.

    A box flatter than a person can be, as of few keypoints in a row, counts as a wider one.
    """
    known = np.isfinite(xy)
    low = np.where(known, xy, np.inf).min(1, initial=np.inf)
    high = np.where(known, xy, -np.inf).max(1, initial=-np.inf)
    sides = np.maximum(high - low, 4.0)
    area = np.maximum(sides.prod(1), (0.4 * sides.max(1)) ** 2)
    return np.asarray(np.sqrt(area))


def _of(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """(M, J, ...) of (M, J, 2, ...): of two, the one that ``which`` (M, J) says."""
    index = which.reshape(which.shape + (1,) * (values.ndim - 2))
    return np.take_along_axis(values, index, 2)[:, :, 0]


def _median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(M, 2) median of (M, J, 2) over what is finite, by weights (M, J); 0 where nothing is."""
    weights = np.where(np.isfinite(values[..., 0]), weights, 0.0)[..., None]
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, 1)
    below = np.take_along_axis(np.broadcast_to(weights, values.shape), order, 1).cumsum(1)
    half = below[:, -1:] / 2
    # Between the two in the middle where the weights on both sides are the same.
    low, high = (
        np.take_along_axis(ordered, index.argmax(1)[:, None], 1)[:, 0]
        for index in (below >= half * (1 - 1e-9), below > half * (1 + 1e-9))
    )
    return np.where(half[:, 0] > 0, (low + high) / 2, 0.0)


def _gain(cutoff_hz: object, seconds: np.ndarray) -> np.ndarray:
    """Share of a new value in a low-pass filter of that cutoff after that time."""
    return 1 / (1 + 1 / (2 * math.pi * np.asarray(cutoff_hz) * seconds))
