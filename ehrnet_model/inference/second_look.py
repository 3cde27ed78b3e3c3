"""A second look: people are cut out of the image, enlarged and put through the network again.

A small network knows people of one size best, and in a whole image hardly anybody has that size.
So those whom the first look at the whole image found are looked at again, each in a square window
of the size that training used, and whoever is the same person there takes the place of the one
found first. Where keypoints lie and how good a person is then come from the second look.

Where images follow each other, people are looked at where they should be by those before, too, so
that whom the first look misses once is found all the same, and may as well be left out. Each image
is looked at in other views than the last, whose errors then differ more: the tracker takes what
most of them say.

One network does both: what a person costs is a small input more, and how many get one is bounded.
Looking twice, first coarse, is common where another network does the second look (Papandreou et al.
2017, arXiv 1701.01779). Several views of a person, mirrored and of other widths, may be averaged:
a network that is not sure errs differently in each.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.anatomy import SPANS
from ehrnet_model.inference.decode import (
    DecodeOptions,
    Grouping,
    Peaks,
    decode,
    decode_all,
    oks_nms,
)
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.person_score import expected_similarity, terms
from ehrnet_model.inference.poses import Expected, Poses
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.skeleton import SkeletonInfo

MOST_AT_ONCE = 8
"""Windows that go through the engine together; an engine of fixed batch has to take so many."""

_log = logging.getLogger(__name__)

# Views, in the order in which they are taken: the window's side in units of the longer side of the
# box around somebody's keypoints, and whether it is mirrored.
_VIEWS = ((1.45, False), (1.45, True), (1.3, True), (1.6, False), (1.3, False), (1.6, True))
# Smaller windows show a few blurred pixels.
_LEAST_PX = 16
# Keypoints of the second look may lie this many standard deviations apart from the first's.
_SLACK = 2.0
# More similar than this, one of the first and one of the coarse look are the same.
_FOUND_TWICE = 0.6
# More similar than this, whom the first look shows is somebody who was expected.
_AS_EXPECTED = 0.3
# Less similar than this to the person found first is somebody else.
_SAME = 0.1
# At least as similar as this, two views are of one person.
_DOUBLE = 0.9
# A keypoint more similar than this to another person's is the same.
_SAME_PLACE = 0.5
# A keypoint more similar than this to another view's is seen in both.
_SEEN_IN_BOTH = 0.3
# Nearer to the window's edge than this share of it, somebody may go on beyond.
_CLEAR = 0.05
# People beside the one whose window it is have not the size known best: a share of their score.
_BESIDE = 0.7


@dataclass(frozen=True)
class Window:
    """A part of an image as network input.

    Attributes:
        image_hw: (height, width) of the image in pixels.
        corner_xy: first pixel of the part, in pixels of the image.
        box: how the part lies in the network's input.
        mirrored: whether the input shows it left for right.
    """

    image_hw: Tuple[int, int]
    corner_xy: Tuple[int, int]
    box: Letterbox
    mirrored: bool = False

    @staticmethod
    def around(
        bbox: np.ndarray,
        image_hw: Tuple[int, int],
        side: int,
        room: float = _VIEWS[0][0],
        mirrored: bool = False,
    ) -> Window:
        """The square window for somebody whose keypoints lie in ``bbox``.

        Args:
            bbox: (4,) x0 y0 x1 y1 in pixels of the image.
            image_hw: (height, width) of the image; what lies outside is cut off.
            side: of the network input in pixels, a multiple of 32.
            room: side of the window, as a share of the box's longer side.
            mirrored: see there.
        """
        low, high = bbox[:2].astype(np.float64), bbox[2:].astype(np.float64)
        width = max(float((high - low).max()) * room, _LEAST_PX)
        limits = np.array(image_hw[::-1])
        corner = np.floor(np.clip((low + high - width) / 2, 0, limits - 1)).astype(int)
        end = np.ceil(np.clip((low + high + width) / 2, corner + 1, limits)).astype(int)
        part = int(end[1] - corner[1]), int(end[0] - corner[0])
        box = Letterbox.fit(part, (side, side))
        return Window(image_hw, (int(corner[0]), int(corner[1])), box, mirrored)

    @staticmethod
    def whole(image_hw: Tuple[int, int], side: int) -> Window:
        """The square window that shows all of an image."""
        return Window(image_hw, (0, 0), Letterbox.fit(image_hw, (side, side)))

    @property
    def scale(self) -> float:
        """Input pixels per image pixel."""
        return self.box.scale

    def holds(self, bbox: np.ndarray) -> np.ndarray:
        """(P,) bool: boxes (P, 4) that keep clear of the edges, but for those of the image."""
        height, width = self.box.image_hw
        margin = _CLEAR * max(height, width)
        low = np.array(self.corner_xy)
        high = low + [width, height]
        low = np.where(low > 0, low + margin, -np.inf)
        high = np.where(high < self.image_hw[::-1], high - margin, np.inf)
        return np.asarray((bbox[:, :2] >= low).all(1) & (bbox[:, 2:] <= high).all(1))

    def apply(self, image: np.ndarray, out: np.ndarray) -> None:
        """Writes the network input (S, S, 3) uint8 for an image (h, w, 3) uint8."""
        x, y = self.corner_xy
        height, width = self.box.image_hw
        self.box.apply(image[y : y + height, x : x + width], out)
        if self.mirrored:
            out[:] = out[:, ::-1].copy()

    def undo(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) positions in the input -> positions in the image, float32."""
        if self.mirrored:
            xy = xy * np.array([-1, 1], np.float32)
            xy[..., 0] += self.box.size_hw[1] - 1
        return self.box.undo(xy) + np.array(self.corner_xy, np.float32)

    def peaks(self, output: np.ndarray, skeleton: SkeletonInfo) -> Peaks:
        """What an engine (J, K, 15) saw here, left and right as in the image.

        Raises:
            EhrnetError: see ``Peaks.from_output``.
        """
        return Peaks.from_output(output[list(skeleton.flip)] if self.mirrored else output)


@dataclass(frozen=True)
class SecondLook:
    """What the network said about the people of one image when it looked again.

    Attributes:
        first: whom the first look found, and the coarse one where there was one, and who was
            expected instead; best first but for those whom nobody looks at again, which come last.
        scale: input pixels of the first look per image pixel.
        image_hw: (height, width) of the image.
        windows: of the first of them, as many as were looked at again, each one's views together.
        peaks: (W, J, 30, 15) float32, of these windows, see runtime.py.
        views: how many there are of each.
    """

    first: Poses
    scale: float
    image_hw: Tuple[int, int]
    windows: Sequence[Window]
    peaks: np.ndarray
    views: int = 1

    @property
    def count(self) -> int:
        """How many people were looked at again."""
        return len(self.windows) // self.views


def closer_hw(options: DecodeOptions) -> Optional[Tuple[int, int]]:
    """Height and width of the windows, and so of the engine for them; None: no second looks."""
    side = options.second_look_size
    return (side, side) if options.second_look else None


def batch_of(options: DecodeOptions) -> int:
    """Most windows that an engine for second looks is given at once; 0: it is given none."""
    return min(options.second_look * options.second_look_views, MOST_AT_ONCE)


def open_closer(
    model: Path,
    runtime: Runtime,
    options: DecodeOptions,
    threads: Optional[int] = None,
    insist: bool = False,
) -> Optional[Runtime]:
    """The engine for second looks.

    Args:
        model: the file that ``runtime`` was opened from.
        runtime: the engine for whole images; of free size, it serves for both.
        options: whether there are second looks, and how large their input is.
        threads: see ``open_runtime``.
        insist: raise where there is none, instead of a warning in the log.

    Returns:
        An engine, which may be ``runtime``; None for no second looks.

    Raises:
        EhrnetError: it cannot be opened.
    """
    size_hw = closer_hw(options)
    if size_hw is None:
        return None
    if runtime.size_hw is None:
        return runtime
    try:
        return open_runtime(model, runtime.name, size_hw, threads, batch_of(options))
    except EhrnetError as error:
        if insist:
            raise EhrnetError(f"Nobody can be looked at again: {error}") from None
        _log.warning("Nobody is looked at again, which costs accuracy: %s", error)
        return None


def first_options(options: DecodeOptions) -> DecodeOptions:
    """How the first look makes people: those for a second look need not be good enough yet."""
    threshold = min(options.person_threshold, options.second_look_threshold)
    return dataclasses.replace(options, person_threshold=threshold)


def sees_whole(expected: Optional[Expected], options: DecodeOptions) -> bool:
    """Whether an image is looked at as a whole.

    So it is where second looks alone would not see everybody who is expected.
    """
    if expected is None or expected.whole or not options.second_look:
        return True
    scores = expected.people.person_score
    few = len(scores) <= options.second_look
    return not few or bool((scores < options.second_look_threshold).any())


def look_again(
    first: Poses,
    scale: float,
    image_hw: Tuple[int, int],
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    engine: Callable[[Sequence[Window]], np.ndarray],
    grouping: Optional[Grouping] = None,
    expected: Optional[Expected] = None,
) -> SecondLook:
    """The second look at an image, with ``coarse_look`` at people too large for the first, too.

    Args:
        first: whom the first look found, as ``first_options`` make them.
        scale: input pixels of the first look per image pixel.
        image_hw: (height, width) of the image.
        options: how people are made.
        skeleton: of the model.
        engine: gives the peaks (W, J, 30, 15) of windows of the image.
        grouping: see ``decode``.
        expected: who should be in it, if anything is known of that.

    Raises:
        EhrnetError: the engine failed or gave values that are not finite.
    """
    if options.coarse_look and sees_whole(expected, options):
        whole = Window.whole(image_hw, options.second_look_size)
        peaks = whole.peaks(engine([whole])[0], skeleton)
        coarse = decode(peaks, first_options(options), skeleton, whole, grouping)
        first = _found_once(_joined([first, coarse]), skeleton)[: options.max_people]
    number = 0
    if expected is not None:
        first, number = _with_expected(first, expected.people, options, skeleton), expected.number
    windows = windows_for(first, image_hw, options, number)
    return SecondLook(first, scale, image_hw, windows, engine(windows), options.second_look_views)


def _found_once(people: Poses, skeleton: SkeletonInfo) -> Poses:
    """The better ones of those found in both looks, best first."""
    people = people[np.argsort(-people.person_score, kind="stable")]
    return people[oks_nms(people.xy, people.score > 0, skeleton, _FOUND_TWICE)]


def _with_expected(
    first: Poses, expected: Poses, options: DecodeOptions, skeleton: SkeletonInfo
) -> Poses:
    """Whom to look at again, best first, and after them the others that the first look found.

    Who is expected is looked at there, and not where the first look has the same person: what
    several images say of somebody is surer. But nobody counts as found for being expected.
    """
    worth = (expected.person_score >= options.second_look_threshold) & (expected.score > 0).any(1)
    expected = expected[worth].best_first()
    people = _joined([expected, first])
    index = oks_nms(people.xy, people.score > 0, skeleton, _AS_EXPECTED)
    chosen = people[index].best_first()
    chosen = chosen[chosen.person_score >= options.second_look_threshold][: options.second_look]
    people = _joined([chosen, first])
    index = oks_nms(people.xy, people.score > 0, skeleton, _AS_EXPECTED)
    return people[index][: options.max_people]


def windows_for(
    first: Poses, image_hw: Tuple[int, int], options: DecodeOptions, number: int = 0
) -> List[Window]:
    """Where to look again: at the best people above ``second_look_threshold``.

    ``number``: see ``views_of``.
    """
    count = int((first.person_score >= options.second_look_threshold).sum())
    boxes = first.bbox[: min(count, options.second_look)]
    return [window for bbox in boxes for window in views_of(bbox, image_hw, options, number)]


def views_of(
    bbox: np.ndarray, image_hw: Tuple[int, int], options: DecodeOptions, number: int = 0
) -> List[Window]:
    """The windows for one person, see ``Window.around``.

    Args:
        bbox: of the person, (4,).
        image_hw: (height, width) of the image.
        options: how many there are, and of what size.
        number: of the image among those that follow each other; each takes up the views where the
            one before left off.
    """
    count, side = options.second_look_views, options.second_look_size
    views = [_VIEWS[(number * count + i) % len(_VIEWS)] for i in range(count)]
    return [Window.around(bbox, image_hw, side, room, mirrored) for room, mirrored in views]


def look(
    image: np.ndarray,
    rgb: bool,
    windows: Sequence[Window],
    engine: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Peaks (W, J, 30, 15) of windows of an image.

    Args:
        image: (h, w, 3) uint8.
        rgb: whether it is RGB and not BGR.
        windows: of one input size.
        engine: uint8 (N, S, S, 3) BGR -> float32 (N, J, 30, 15); N is up to MOST_AT_ONCE.

    Raises:
        EhrnetError: the engine failed.
    """
    if not windows:
        return np.zeros((0, 0, 0, 0), np.float32)
    inputs = np.empty((len(windows), *windows[0].box.size_hw, 3), np.uint8)
    for window, out in zip(windows, inputs):
        window.apply(image, out)
    if rgb:
        inputs = np.ascontiguousarray(inputs[..., ::-1])
    parts = range(0, len(windows), MOST_AT_ONCE)
    return np.concatenate([engine(inputs[i : i + MOST_AT_ONCE]) for i in parts])


class Candidates(NamedTuple):
    """Everybody whom the two looks found, doubles and all.

    Attributes:
        poses: P of them, in no order, scored by the mean of their views' person scores.
        before: (P,) their scores in the first look; who was found in another's window has one
            score only.
        agreement: (P,) how similar their views are, 0 to 1; 0 where nobody looked again.
    """

    poses: Poses
    before: np.ndarray
    agreement: np.ndarray

    def terms(self, scale: float, spans: np.ndarray) -> np.ndarray:
        """(P, TERMS_AGAIN), see person_score.py. ``scale``: see SecondLook."""
        poses = self.poses
        return terms(
            poses.xy * scale,
            poses.score,
            poses.std * scale,
            spans,
            self.before,
            self.agreement,
        )


def merge(
    seen: SecondLook,
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    grouping: Optional[Grouping] = None,
) -> Poses:
    """The people of an image after both looks, best first, in it; ``grouping``: see ``decode``.

    Somebody who is not to be seen again, in any view, is taken for a mistake of the first look.
    Others who are whole in somebody's first view, well enough for a second look, count as found,
    too: where they were found before, the better view of them stays.

    Raises:
        EhrnetError: the engine gave values that are not finite.
    """
    found = candidates(seen, options, skeleton, grouping)
    poses = found.poses
    xy, score, std, person_score = poses.xy, poses.score, poses.std, poses.person_score
    spans = SPANS.get(skeleton.name)
    if options.second_score and spans is not None:
        person_score = expected_similarity(found.terms(seen.scale, spans), options.second_score)
    order = np.argsort(-person_score, kind="stable")
    order = order[person_score[order] >= options.person_threshold]
    # With nms_oks 1, too: the same person from two windows is no second one.
    doubles = min(options.nms_oks, _DOUBLE)
    order = order[oks_nms(xy[order], score[order] > 0, skeleton, doubles)]
    order = order[_without_sharers(xy[order], score[order] > 0, skeleton, options.shared)]
    order = order[: options.max_people]
    people = Poses.build(xy[order], score[order], std[order], person_score[order])
    return people.within(seen.image_hw)


def candidates(
    seen: SecondLook,
    options: DecodeOptions,
    skeleton: SkeletonInfo,
    grouping: Optional[Grouping] = None,
) -> Candidates:
    """Whom ``merge`` chooses among; arguments and errors are the same."""
    everybody = dataclasses.replace(options, person_threshold=0.0, nms_oks=1.0)
    rest = seen.first[seen.count :]
    parts, before, agreement = [rest], [rest.person_score], [np.zeros(len(rest))]
    peaks = [window.peaks(output, skeleton) for window, output in zip(seen.windows, seen.peaks)]
    people = decode_all(peaks, everybody, skeleton, seen.windows, grouping)
    for number in range(seen.count):
        views = []
        for view in range(number * seen.views, (number + 1) * seen.views):
            window, found = seen.windows[view], people[view]
            same = _similarity(seen.first[number], found, skeleton)
            worth = same * found.person_score * (same >= _SAME)
            best = int(worth.argmax()) if worth.any() else None
            if best is not None:
                views.append(found[best])
            if view == number * seen.views:
                beside = found.person_score >= options.second_look_threshold
                beside &= window.holds(found.bbox)
                if best is not None:
                    beside[best] = False
                others = found[beside]
                score = _BESIDE * others.person_score
                parts.append(dataclasses.replace(others, person_score=score))
                before.append(score)
                agreement.append(np.zeros(len(others)))
        if views:
            mean, agreed = _mean(views, seen.views, skeleton)
            parts.append(mean)
            before.append(seen.first.person_score[number : number + 1])
            agreement.append(np.array([agreed]))
    return Candidates(_joined(parts), np.concatenate(before), np.concatenate(agreement))


def _joined(parts: Sequence[Poses]) -> Poses:
    """The people of all parts, one part after the other."""
    xy, score, std, person_score = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("xy", "score", "std", "person_score")
    )
    return Poses.build(xy, score, std, person_score)


def _mean(views: Sequence[Poses], count: int, skeleton: SkeletonInfo) -> Tuple[Poses, float]:
    """One person (P = 1) of views of it, each P = 1; and how similar it is to them, 0 to 1.

    A keypoint lies where most views, by their scores, have it nearly at one place: at the mean of
    those. Scores are means over all ``count`` views, 0 for those that do not have it.
    """
    if count == 1:
        return views[0], float((views[0].score > 0).mean())
    xy, score, std, person_score = (
        np.concatenate([getattr(view, name) for view in views])
        for name in ("xy", "score", "std", "person_score")
    )
    sides = np.array([view.bbox[0, 2:] - view.bbox[0, :2] for view in views])
    area = max(float(np.median(sides.prod(1))), 1.0)
    squared = ((xy[:, None] - xy) ** 2).sum(3)
    variance = (2 * np.asarray(skeleton.sigmas)) ** 2
    near = np.exp(-squared / (2 * variance * area)) > _SEEN_IN_BOTH  # (V, V, J); never where absent
    weight = near * score
    best, joint = weight.sum(1).argmax(0), np.arange(score.shape[1])
    weight = weight[best, :, joint].T
    total = weight.sum(0)
    mean = (weight[..., None] * np.nan_to_num(xy)).sum(0) / np.maximum(total, 1e-9)[:, None]
    mean[total == 0] = np.nan
    scores = total / count
    squared = ((xy - mean) ** 2).sum(2)
    agreement = np.nan_to_num(np.exp(-squared / (2 * variance * area))).sum() / squared.size
    poses = Poses.build(
        mean[None], scores[None], std[best, joint][None], person_score.sum(keepdims=True) / count
    )
    return poses, float(agreement) * len(views) / count


def _without_sharers(
    xy: np.ndarray, present: np.ndarray, skeleton: SkeletonInfo, share: float
) -> np.ndarray:
    """Indices of those of people, best first, whose keypoints mostly lie where nobody better's do.

    Within one look people share hardly any peak. In two windows the same peak is two, so another
    view of somebody, or two people joined, is told by places here.

    Args:
        xy: (P, J, 2), any values where absent.
        present: (P, J) bool.
        skeleton: gives the falloff constants.
        share: of their keypoints that may lie there.
    """
    variance = (2 * np.asarray(skeleton.sigmas)) ** 2
    low = np.where(present[..., None], xy, np.inf).min(1)
    high = np.where(present[..., None], xy, -np.inf).max(1)
    area = np.maximum((high - low).prod(1), 1)
    kept: List[int] = []
    for number in range(len(xy)):
        squared = ((xy[kept] - xy[number]) ** 2).sum(2) / (2 * variance * area[kept, None])
        taken = (np.exp(-squared) > _SAME_PLACE) & present[kept] & present[number]
        if taken.any(0).sum() <= share * present[number].sum():
            kept.append(number)
    return np.array(kept, int)


def _similarity(first: Poses, found: Poses, skeleton: SkeletonInfo) -> np.ndarray:
    """(P,) how much the people found look like the one of ``first``, 0 to 1.

    COCO's similarity of keypoints, more lenient, over those that the first look gave.
    """
    variance = (2 * _SLACK * np.asarray(skeleton.sigmas)) ** 2
    width, height = first.bbox[0, 2:] - first.bbox[0, :2]
    present = first.score[0] > 0
    squared = ((found.xy - first.xy) ** 2).sum(2) / (2 * variance * max(width * height, 1.0))
    return np.asarray(np.nan_to_num(np.exp(-squared)).sum(1) / max(present.sum(), 1))
