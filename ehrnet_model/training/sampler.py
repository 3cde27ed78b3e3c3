"""From packs to plans of windows: whom to show, how large, turned and coloured how.

Sample number i of a seed is always the same sample, whatever came before it, so that a run that was
interrupted goes on exactly where it stood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.held_back import held_back
from ehrnet_model.training.labels import POSITIVE, ImageLabels
from ehrnet_model.training.limits import check_numbers
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.plans import ScenePlan, WindowPlan, affine, published_affine
from ehrnet_model.training.windows import Window, draw

# Around what second looks of 128 pixels aim at, since what the first look gave is off: pixels of
# the longer side of the box around somebody's keypoints, and how far its middle lies from the
# window's, as a share. In smaller windows the same pixels: smaller people are another matter.
_CLOSE_SIDE = 128
_CLOSE_PX = (60.0, 110.0)
_OFF_CENTRE = 0.12
# Of people who are cut off: the share that is left, and how many keypoints at least.
_SHOWN, _LEAST_SEEN = (0.2, 0.7), 3
_LEAST_PX = 16
_FACE, _SHOULDERS, _HIPS = [0, 1, 2, 3, 4], [5, 6], [11, 12]


@dataclass(frozen=True)
class SampleOptions:
    """What the windows show.

    Attributes:
        close: share of windows of up to ``close_side`` pixels with one person in the middle, of the
            size that people have in a second look (``inference/second_look.py``) of 128 pixels;
            larger in proportion in larger windows. What follows is about the others, but for
            turning, mirroring and colours.
        close_side: see there.
        partly_seen: how often people are picked of whom 5 to 7 keypoints are labelled, where those
            with more are picked once; and ``hardly_seen`` those with 3 or 4.
        cut: share of people of whom only a part is shown, as if the picture ended there.
        background: share of windows from pictures without people or anywhere in a picture.
        mosaic: share of windows made of four smaller ones.
        pair: share of windows made of two upright ones side by side, a person in each.
        upper_body: share of person windows (where the head and shoulders are seen) that zoom to the
            head and torso, and ``head`` to head and shoulders.
        fill: the person (or its upper body) takes this share of the window's side.
        group: share of person windows that take in the people around as well.
        rotation: degrees, uniform in +- this, in ``rotate`` of the windows.
        jitter: how far the person may lie off the centre, as a share of the free space.
        colour: strength of the change of colours, 0 to 1.
        grey: share of windows without colour.
        max_zoom: pictures are not enlarged more than this.
        published: windows as the published trainer cuts them, nothing of the above: whole pictures
            with people, each once per epoch, at 0.75 to 1.5 times the shorter side, up to 20 % off
            the centre, turned by up to 30 degrees, half of them mirrored.
    """

    close: float = 0.0
    close_side: int = 128
    partly_seen: float = 0.4
    hardly_seen: float = 0.1
    cut: float = 0.0
    background: float = 0.1
    mosaic: float = 0.15
    pair: float = 0.4
    upper_body: float = 0.25
    head: float = 0.05
    fill: tuple[float, float] = (0.25, 1.3)
    group: float = 0.2
    rotation: float = 30.0
    rotate: float = 0.3
    jitter: float = 0.9
    colour: float = 0.3
    grey: float = 0.05
    max_zoom: float = 3.0
    published: bool = False

    def __post_init__(self) -> None:
        check_numbers(
            self,
            {
                "above 0": ("max_zoom",),
                "of 0 or more": ("close_side", "partly_seen", "hardly_seen", "rotation"),
                "from 0 to 1": (
                    *("close", "cut", "background", "mosaic", "pair", "upper_body", "head"),
                    *("group", "rotate", "jitter", "colour", "grey"),
                ),
            },
        )
        low, high = self.fill
        if not 0 < low <= high < math.inf:
            raise EhrnetError(
                f"fill_min {low:g} with fill_max {high:g} is not possible: both are above 0, and "
                "fill_max is not the smaller one."
            )


def colours(rng: np.random.Generator, options: SampleOptions) -> tuple[np.ndarray, bool]:
    """Brightness, contrast, gamma and balance as a table, now and then without colour.

    Returns:
        (256, 3) uint8, what becomes of each colour's values, and whether colours go first.
    """
    strength = options.colour
    values = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma = np.exp(rng.uniform(-0.5, 0.5) * strength)
    gain = 1 + rng.uniform(-0.5, 0.5) * strength + rng.uniform(-0.2, 0.2, 3) * strength
    shift = rng.uniform(-0.25, 0.25) * strength
    grey = bool(rng.random() < options.grey)
    if grey:
        gain = np.repeat(gain[:1], 3)
    table = np.clip((values**gamma - 0.5) * gain + 0.5 + shift, 0, 1) * 255 + 0.5
    return table.astype(np.uint8), grey


@dataclass
class Sampler:
    """Draws windows from weighted packs.

    Attributes:
        packs: packs with the weight of each one's people.
        seed: with the number of the sample it fixes the sample.
        holdout: share of the images (by id) that is never drawn.
        partly_seen, hardly_seen: see SampleOptions.
        only_held_back: whether those images are drawn and no others.
    """

    packs: Sequence[tuple[Pack, float]]
    seed: int = 0
    holdout: float = 0.03
    partly_seen: float = SampleOptions.partly_seen
    hardly_seen: float = SampleOptions.hardly_seen
    only_held_back: bool = False
    _people: list[tuple[int, int, int]] = field(default_factory=list, init=False)
    _empty: list[tuple[int, int]] = field(default_factory=list, init=False)
    _all: list[tuple[int, int]] = field(default_factory=list, init=False)
    _peopled: list[tuple[int, int]] = field(default_factory=list, init=False)
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        weights = []
        for number, (pack, weight) in enumerate(self.packs):
            for i, labels in enumerate(pack.labels):
                if held_back(pack.records[i]["id"], self.holdout) != self.only_held_back:
                    continue
                self._all.append((number, i))
                if not len(labels.boxes) and not len(labels.ignore):
                    self._empty.append((number, i))
                else:
                    self._peopled.append((number, i))
                for p in range(len(labels.boxes)):
                    value = weight * person_weight(labels, p, self.partly_seen, self.hardly_seen)
                    if value > 0:
                        self._people.append((number, i, p))
                        weights.append(value)
        total = np.cumsum(weights)
        self._cumulative = total / total[-1] if len(total) else total

    @property
    def num_people(self) -> int:
        """How many people may be picked."""
        return len(self._people)

    @property
    def epoch(self) -> int:
        """How many images show people: an epoch of the published trainer."""
        return len(self._peopled)

    def sample(self, number: int, size: int, options: SampleOptions) -> Window:
        """Window ``number`` with sides of ``size`` pixels (a multiple of 32)."""
        return draw(self.plan(number, size, options), [pack for pack, _ in self.packs])

    def plan(self, number: int, size: int, options: SampleOptions) -> WindowPlan:
        """What window ``number`` shows."""
        rng = np.random.default_rng([self.seed, number])
        if options.published:
            return WindowPlan(size, (self._published(rng, number, size),))
        may_be_close = options.close > 0 and size <= options.close_side
        close = may_be_close and rng.random() < options.close
        kind, half = rng.random(), size // 2
        if close:
            scenes, places = [self._scene(rng, size, options, close=True)], [(0, 0)]
        elif kind < options.mosaic:
            scenes = [self._scene(rng, half, options) for _ in range(4)]
            places = [(0, 0), (half, 0), (0, half), (half, half)]
        elif kind < options.mosaic + options.pair:
            whole = [self._scene(rng, size, options, aspect=0.5) for _ in range(2)]
            scenes = [replace(scene, columns=(size // 4, half)) for scene in whole]
            places = [(0, 0), (half, 0)]
        else:
            scenes, places = [self._scene(rng, size, options)], [(0, 0)]
        return WindowPlan(
            size,
            tuple(replace(s, place=place) for s, place in zip(scenes, places, strict=True)),
        )

    def _scene(
        self,
        rng: np.random.Generator,
        size: int,
        options: SampleOptions,
        aspect: float = 1.0,
        close: bool = False,
    ) -> ScenePlan:
        """A square scene of ``size`` pixels; what it is about lies in its middle columns.

        Args:
            rng: decides.
            size: of its sides.
            options: see there.
            aspect: width of those columns as a share of the side.
            close: whether it shows one person as in a second look.
        """
        mirror = bool(rng.random() < 0.5)
        degrees = rng.uniform(-1, 1) * options.rotation if rng.random() < options.rotate else 0.0
        border, part = (0, 0, 0), None
        if rng.random() > 0.6:
            red, green, blue = rng.integers(0, 256, 3)
            border = (int(red), int(green), int(blue))
        if not self._people or (not close and rng.random() < options.background):
            source = self._empty if self._empty and rng.random() < 0.7 else self._all
            pack, i = source[int(rng.integers(len(source)))]
            record = self.packs[pack][0].records[i]
            height, width = record["height"], record["width"]
            side = min(height, width) * float(np.exp(rng.uniform(np.log(0.4), np.log(1.3))))
            centre = (rng.random() * width, rng.random() * height)
        else:
            number = int(np.searchsorted(self._cumulative, rng.random()))
            pack, i, person = self._people[min(number, len(self._people) - 1)]
            labels = self.packs[pack][0].labels[i]
            if options.cut > 0 and rng.random() < options.cut:
                record = self.packs[pack][0].records[i]
                part = _cut(rng, labels, person, (record["height"], record["width"]))
                labels = labels if part is None else labels.within(part)
            if close:
                x, y, w, h = _keypoints_box(labels, person)
                fill = rng.uniform(*_CLOSE_PX) / min(size, _CLOSE_SIDE)
            else:
                x, y, w, h = self._target(rng, labels, person, options)
                fill = rng.uniform(*options.fill)
            side = max(max(w / aspect, h) / fill, size / options.max_zoom)
            room = side * np.array([aspect, 1.0])
            free = np.maximum(room - np.array([w, h]), 0.1 * room) / 2 * options.jitter
            if close:
                free = np.full(2, _OFF_CENTRE * max(w, h))
            centre = np.array([x + w / 2, y + h / 2]) + rng.uniform(-1, 1, 2) * free
        matrix = affine((float(centre[0]), float(centre[1])), side, size, degrees, mirror)
        table, grey = colours(rng, options)
        return ScenePlan(pack, i, matrix, size, mirror, border, table, grey, (0, size), part=part)

    def _published(self, rng: np.random.Generator, number: int, size: int) -> ScenePlan:
        epoch, place = divmod(number, len(self._peopled))
        order = self._order
        if order is None or order[0] != epoch:
            shuffled = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self._peopled))
            order = self._order = epoch, shuffled
        pack, i = self._peopled[order[1][place]]
        record = self.packs[pack][0].records[i]
        size_hw = (record["height"], record["width"])
        scale = rng.uniform(0.75, 1.5)
        reach = int(0.2 * min(size_hw) * scale)
        right, down = rng.integers(-reach, reach + 1, 2).tolist()
        degrees, mirror = rng.uniform(-30, 30), bool(rng.random() < 0.5)
        matrix = published_affine(size_hw, scale, degrees, (right, down), size, mirror)
        same = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
        return ScenePlan(
            pack, i, matrix, size, mirror, (0, 0, 0), same, False, (0, size), published=True
        )

    @staticmethod
    def _target(
        rng: np.random.Generator, labels: ImageLabels, person: int, options: SampleOptions
    ) -> tuple[float, float, float, float]:
        """The box that the window is built around: a person, its upper part, or a group."""
        keypoints = labels.keypoints[person]
        present = keypoints[:, 2] == POSITIVE
        draw = rng.random()
        head = keypoints[_FACE][present[_FACE], :2]
        shoulders = keypoints[_SHOULDERS][present[_SHOULDERS], :2]
        if len(head) >= 2 and len(shoulders) and draw < options.upper_body + options.head:
            parts = [head, shoulders]
            if draw < options.upper_body:
                parts.append(keypoints[_HIPS][present[_HIPS], :2])
            points = np.concatenate(parts)
            low, high = points.min(0), points.max(0)
            reach = float(np.linalg.norm(head.mean(0) - shoulders.mean(0)))
            low = low - np.array([0.4, 0.7]) * reach
            high = high + np.array([0.4, 0.3]) * reach
            return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
        box = labels.boxes[person]
        if len(labels.boxes) > 1 and rng.random() < options.group:
            centre = labels.boxes[:, :2] + labels.boxes[:, 2:] / 2
            distance = np.abs(centre - (box[:2] + box[2:] / 2)).max(1) / max(box[2:].max(), 1)
            near = np.argsort(distance)[: int(rng.integers(2, 5))]
            near = near[distance[near] < 2.5]
            low = labels.boxes[near, :2].min(0)
            high = (labels.boxes[near, :2] + labels.boxes[near, 2:]).max(0)
            box = np.concatenate([low, high - low])
        return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _cut(
    rng: np.random.Generator, labels: ImageLabels, person: int, size_hw: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """A part of a picture that ends within a person, see ``ScenePlan.part``.

    Most often the lower part is missing, as of those who stand near a camera, then the upper one.

    Returns:
        None where too little of the person would be left to tell that it is one.
    """
    height, width = size_hw
    x, y, w, h = labels.boxes[person].tolist()
    left, top, right, bottom = 0, 0, width, height
    side, share = rng.random(), rng.uniform(*_SHOWN)
    if side < 0.45:
        bottom = round(y + share * h)
    elif side < 0.7:
        top = round(y + h - share * h)
    elif side < 0.85:
        right = round(x + share * w)
    else:
        left = round(x + w - share * w)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, width), min(bottom, height)
    if min(right - left, bottom - top) < _LEAST_PX:
        return None
    part = left, top, right, bottom
    seen = labels.within(part).keypoints[person, :, 2] == POSITIVE
    return part if seen.sum() >= _LEAST_SEEN else None


def _keypoints_box(labels: ImageLabels, person: int) -> tuple[float, float, float, float]:
    """x, y, width and height of the box around a person's labelled keypoints, in pixels."""
    keypoints = labels.keypoints[person]
    points = keypoints[keypoints[:, 2] == POSITIVE, :2]
    low, size = points.min(0), np.maximum(np.ptp(points, axis=0), 1.0)
    return float(low[0]), float(low[1]), float(size[0]), float(size[1])


def person_weight(
    labels: ImageLabels, person: int, partly_seen: float, hardly_seen: float
) -> float:
    """How often a person is picked: large ones most, and by how much of them is labelled."""
    visible = int((labels.keypoints[person, :, 2] == POSITIVE).sum())
    side = float(labels.boxes[person, 2:].max())
    weight = 1.0 if visible >= 8 else partly_seen if visible >= 5 else hardly_seen * (visible >= 3)
    if side < 80:
        weight *= max(0.0, side / 80) ** 2
    if labels.unlabelled_channels:
        weight *= 0.7
    return weight if labels.human[person] else weight * 0.8
