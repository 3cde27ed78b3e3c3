"""From packs to training windows: whom to show, how large, turned and coloured how.

Sample number i of a seed is always the same sample, whatever came before it, so that a run that was
interrupted goes on exactly where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ehrnet_model.held_back import held_back
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.labels import POSITIVE, ImageLabels
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.targets import heatmaps, loss_mask, tag_places, to_cells

_FLIP = np.array(COCO_17.flip)
_FACE, _SHOULDERS, _HIPS = [0, 1, 2, 3, 4], [5, 6], [11, 12]


@dataclass(frozen=True)
class SampleOptions:
    """What the windows show.

    Attributes:
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
    """

    background: float = 0.1
    mosaic: float = 0.1
    pair: float = 0.15
    upper_body: float = 0.35
    head: float = 0.1
    fill: tuple[float, float] = (0.5, 1.0)
    group: float = 0.15
    rotation: float = 30.0
    rotate: float = 0.6
    jitter: float = 0.9
    colour: float = 0.5
    grey: float = 0.1
    max_zoom: float = 3.0


@dataclass
class Window:
    """One training window. J keypoints, R its side in pixels.

    Attributes:
        picture: (R, R, 3) uint8 RGB.
        low, high: targets (J, R/4, R/4) and (J, R/2, R/2) float32.
        low_mask, high_mask: the same shapes, uint8.
        tag_index, tag_person: (M,) flat places in the low maps, and whose they are.
    """

    picture: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_mask: np.ndarray
    high_mask: np.ndarray
    tag_index: np.ndarray
    tag_person: np.ndarray


@dataclass
class Scene:
    """A picture cut to a window, labels moved along; polygons (4, 2) in pixels of the window."""

    picture: np.ndarray
    keypoints: np.ndarray
    ignore: list[np.ndarray]
    keep: list[np.ndarray] | None
    unlabelled_channels: list[int]


@dataclass
class _Entry:
    pack: Pack
    image: int


def affine(
    centre: tuple[float, float], side: float, size: int, degrees: float = 0.0, mirror: bool = False
) -> np.ndarray:
    """2x3 matrix from picture pixels to window pixels.

    A square of ``side`` picture pixels around ``centre``, turned by ``degrees`` (clockwise on the
    screen), becomes the window of ``size`` pixels. Pixel centres at whole numbers: the centre goes
    to (size - 1) / 2.
    """
    scale, angle = size / side, np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirror:
        matrix[0] *= -1
    middle = (size - 1) / 2
    return np.column_stack([matrix, middle - matrix @ np.array(centre)])


def warp(
    picture: np.ndarray,
    labels: ImageLabels,
    matrix: np.ndarray,
    size: int,
    mirror: bool,
    border: tuple[int, int, int] = (0, 0, 0),
) -> Scene:
    """Cuts a window out of a picture and moves its labels along."""
    import cv2

    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    source, moved = picture, matrix
    while scale < 0.6 and min(source.shape[:2]) > 8:
        h, w = source.shape[0] // 2, source.shape[1] // 2
        factors = np.array([w / source.shape[1], h / source.shape[0]])
        source = cv2.resize(source, (w, h), interpolation=cv2.INTER_AREA)
        # x_small = (x + 0.5) * f - 0.5; put its inverse in front of the matrix.
        back = np.array(
            [
                [1 / factors[0], 0, 0.5 / factors[0] - 0.5],
                [0, 1 / factors[1], 0.5 / factors[1] - 0.5],
            ]
        )
        moved = moved @ np.vstack([back, [0, 0, 1]])
        scale *= 2
    cut = cv2.warpAffine(
        np.ascontiguousarray(source),
        moved,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderValue=border,
    )

    def move(xy: np.ndarray) -> np.ndarray:
        return xy @ matrix[:, :2].T + matrix[:, 2]

    def corners(boxes: np.ndarray, grow: float = 0.0) -> list[np.ndarray]:
        out = []
        for x, y, w, h in boxes:
            gx, gy = w * grow, h * grow
            square = [
                [x - gx, y - gy],
                [x + w + gx, y - gy],
                [x + w + gx, y + h + gy],
                [x - gx, y + h + gy],
            ]
            out.append(move(np.array(square)))
        return out

    keypoints = labels.keypoints.astype(np.float64).copy()
    keypoints[..., :2] = move(keypoints[..., :2])
    channels = labels.unlabelled_channels
    if mirror:
        keypoints = keypoints[:, _FLIP]
        channels = [int(_FLIP[c]) for c in channels]
    keep = corners(labels.boxes, 0.2) if labels.only_near_people else None
    return Scene(cut, keypoints, corners(labels.ignore), keep, list(channels))


def recolour(picture: np.ndarray, rng: np.random.Generator, options: SampleOptions) -> np.ndarray:
    """Brightness, contrast, gamma and balance of a uint8 picture, now and then without colour."""
    strength = options.colour
    table = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma = np.exp(rng.uniform(-0.5, 0.5) * strength)
    gain = 1 + rng.uniform(-0.5, 0.5) * strength + rng.uniform(-0.2, 0.2, 3) * strength
    shift = rng.uniform(-0.25, 0.25) * strength
    grey = rng.random() < options.grey
    if grey:
        import cv2

        plane = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        picture = np.repeat(plane[..., None], 3, 2)
        gain = np.repeat(gain[:1], 3)
    lookup = np.clip((table**gamma - 0.5) * gain + 0.5 + shift, 0, 1) * 255 + 0.5
    lookup = lookup.astype(np.uint8)
    out = np.empty_like(picture)
    for c in range(3):
        out[..., c] = lookup[:, c][picture[..., c]]
    return out


def columns(scene: Scene, left: int, width: int) -> Scene:
    """The part of a scene from column ``left`` on, ``width`` columns wide."""
    shift = np.array([left, 0])
    keypoints = scene.keypoints.copy()
    keypoints[..., :2] -= shift
    return Scene(
        scene.picture[:, left : left + width],
        keypoints,
        [polygon - shift for polygon in scene.ignore],
        None if scene.keep is None else [polygon - shift for polygon in scene.keep],
        scene.unlabelled_channels,
    )


def render(scenes: Sequence[Scene], places: Sequence[tuple[int, int]], size: int) -> Window:
    """Puts one scene, or several side by side, together and draws the targets."""
    picture = np.zeros((size, size, 3), np.uint8)
    joints = len(_FLIP)
    maps = {s: np.zeros((joints, size // s, size // s), np.float32) for s in (2, 4)}
    masks = {s: np.ones((joints, size // s, size // s), np.uint8) for s in (2, 4)}
    index_parts, person_parts, people = [], [], 0
    for scene, (left, top) in zip(scenes, places, strict=True):
        tall, wide = scene.picture.shape[:2]
        picture[top : top + tall, left : left + wide] = scene.picture
        states = scene.keypoints[..., 2].round().astype(int)
        for stride in (2, 4):
            h, w, x, y = tall // stride, wide // stride, left // stride, top // stride
            cells = to_cells(scene.keypoints[..., :2], stride)
            area = np.s_[:, y : y + h, x : x + w]
            maps[stride][area] = heatmaps(cells, states == POSITIVE, (h, w))
            masks[stride][area] = loss_mask(
                cells,
                states,
                [to_cells(p, stride) for p in scene.ignore],
                None if scene.keep is None else [to_cells(p, stride) for p in scene.keep],
                scene.unlabelled_channels,
                (h, w),
            )
            if stride == 4:
                flat, person = tag_places(cells, states == POSITIVE, (h, w))
                side = size // 4
                j, rest = np.divmod(flat, h * w)
                row, column = np.divmod(rest, w)
                index_parts.append((j * side + row + y) * side + column + x)
                person_parts.append(person + people)
        people += len(states)
    return Window(
        picture,
        maps[4],
        maps[2],
        masks[4],
        masks[2],
        np.concatenate(index_parts),
        np.concatenate(person_parts),
    )


@dataclass
class Sampler:
    """Draws windows from weighted packs.

    Attributes:
        packs: packs with the weight of each one's people.
        seed: with the number of the sample it fixes the sample.
        holdout: share of the images (by id) that is never drawn.
    """

    packs: Sequence[tuple[Pack, float]]
    seed: int = 0
    holdout: float = 0.03
    _people: list[tuple[Pack, int, int]] = field(default_factory=list, init=False)
    _empty: list[tuple[Pack, int]] = field(default_factory=list, init=False)
    _all: list[tuple[Pack, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        weights = []
        for pack, weight in self.packs:
            for i, labels in enumerate(pack.labels):
                if held_back(pack.records[i]["id"], self.holdout):
                    continue
                self._all.append((pack, i))
                if not len(labels.boxes) and not len(labels.ignore):
                    self._empty.append((pack, i))
                for p in range(len(labels.boxes)):
                    value = person_weight(labels, p) * weight
                    if value > 0:
                        self._people.append((pack, i, p))
                        weights.append(value)
        total = np.cumsum(weights)
        self._cumulative = total / total[-1] if len(total) else total

    @property
    def num_people(self) -> int:
        """How many people may be picked."""
        return len(self._people)

    @property
    def num_images(self) -> int:
        """How many images are not held back."""
        return len(self._all)

    def sample(self, number: int, size: int, options: SampleOptions) -> Window:
        """Window ``number`` with sides of ``size`` pixels (a multiple of 32)."""
        rng = np.random.default_rng([self.seed, number])
        draw, half = rng.random(), size // 2
        if draw < options.mosaic:
            scenes = [self._scene(rng, half, options) for _ in range(4)]
            places = [(0, 0), (half, 0), (0, half), (half, half)]
        elif draw < options.mosaic + options.pair:
            whole = [self._scene(rng, size, options, aspect=0.5) for _ in range(2)]
            scenes = [columns(scene, size // 4, half) for scene in whole]
            places = [(0, 0), (half, 0)]
        else:
            scenes, places = [self._scene(rng, size, options)], [(0, 0)]
        return render(scenes, places, size)

    def _scene(
        self, rng: np.random.Generator, size: int, options: SampleOptions, aspect: float = 1.0
    ) -> Scene:
        """A square scene of ``size`` pixels; what it is about lies in its middle columns.

        Args:
            rng: decides.
            size: of its sides.
            options: see there.
            aspect: width of those columns as a share of the side.
        """
        mirror = bool(rng.random() < 0.5)
        degrees = rng.uniform(-1, 1) * options.rotation if rng.random() < options.rotate else 0.0
        border = (0, 0, 0)
        if rng.random() > 0.6:
            red, green, blue = rng.integers(0, 256, 3)
            border = (int(red), int(green), int(blue))
        if rng.random() < options.background or not self._people:
            source = self._empty if self._empty and rng.random() < 0.7 else self._all
            pack, i = source[int(rng.integers(len(source)))]
            picture = pack.picture(i)
            side = min(picture.shape[:2]) * float(np.exp(rng.uniform(np.log(0.4), np.log(1.3))))
            centre = (rng.random() * picture.shape[1], rng.random() * picture.shape[0])
        else:
            number = int(np.searchsorted(self._cumulative, rng.random()))
            pack, i, person = self._people[min(number, len(self._people) - 1)]
            picture = pack.picture(i)
            x, y, w, h = self._target(rng, pack.labels[i], person, options)
            side = max(w / aspect, h) / rng.uniform(*options.fill)
            side = max(side, size / options.max_zoom)
            room = side * np.array([aspect, 1.0])
            free = np.maximum(room - np.array([w, h]), 0.1 * room) / 2 * options.jitter
            centre = np.array([x + w / 2, y + h / 2]) + rng.uniform(-1, 1, 2) * free
        matrix = affine((float(centre[0]), float(centre[1])), side, size, degrees, mirror)
        scene = warp(picture, pack.labels[i], matrix, size, mirror, border)
        scene.picture = recolour(scene.picture, rng, options)
        return scene

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


def person_weight(labels: ImageLabels, person: int) -> float:
    """How often a person is picked: large and completely seen people most."""
    visible = int((labels.keypoints[person, :, 2] == POSITIVE).sum())
    side = float(labels.boxes[person, 2:].max())
    weight = 1.0 if visible >= 8 else 0.4 if visible >= 5 else 0.0 if visible < 3 else 0.1
    if side < 80:
        weight *= max(0.0, side / 80) ** 2
    if labels.unlabelled_channels:
        weight *= 0.7
    return weight if labels.human[person] else weight * 0.8
