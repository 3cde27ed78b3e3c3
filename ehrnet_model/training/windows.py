"""Windows drawn with NumPy and OpenCV, one at a time: the reference for the way on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.labels import POSITIVE, ImageLabels
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.plans import WindowPlan, halve, reduced_part, reduction
from ehrnet_model.training.targets import heatmaps, loss_mask, loss_plane, tag_places, to_cells

_FLIP = np.array(COCO_17.flip)


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
class Marks:
    """Labels moved to a scene.

    The published trainer counts cells otherwise: without half pixels, keypoints cut down to whole
    cells, mirrored at each resolution by itself; and padding gives it no loss.

    Attributes:
        keypoints: (P, 17, 3) float64: x and y in pixels of the scene, and the state.
        ignore, keep: polygons (B, 4, 2) in pixels of the scene, see ``targets.loss_plane``.
        unlabelled_channels: keypoint indices that the picture says nothing about.
        frame: polygon (4, 2), the picture's corners.
        mirror: whether the scene is mirrored.
        published: whether targets are those of the published trainer.
    """

    keypoints: np.ndarray
    ignore: np.ndarray
    keep: np.ndarray | None
    unlabelled_channels: list[int]
    frame: np.ndarray
    mirror: bool = False
    published: bool = False

    def _cells(self, xy: np.ndarray, stride: int) -> np.ndarray:
        if not self.published:
            return to_cells(xy, stride)
        return (xy - np.array([(stride - 1) * self.mirror, 0])) / stride

    def places(self, stride: int) -> np.ndarray:
        """(P, 17, 2) float64: the keypoints in cells of a map."""
        cells = self._cells(self.keypoints[..., :2], stride)
        return np.floor(cells) if self.published else cells

    def plane(self, stride: int, size_hw: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8: where the regions leave loss on a map of this size."""
        return loss_plane(
            self._cells(self.ignore, stride),
            None if self.keep is None else self._cells(self.keep, stride),
            self._cells(self.frame, stride) if self.published else None,
            size_hw,
        )

    def from_column(self, left: int) -> Marks:
        """The same with column ``left`` as the first."""
        shift = np.array([left, 0])
        keypoints = self.keypoints.copy()
        keypoints[..., :2] -= shift
        return replace(
            self,
            keypoints=keypoints,
            ignore=self.ignore - shift,
            keep=None if self.keep is None else self.keep - shift,
            frame=self.frame - shift,
        )


@dataclass
class Scene:
    """A picture cut to a window, (H, W, 3) uint8 RGB, with the labels moved along."""

    picture: np.ndarray
    marks: Marks

    @property
    def keypoints(self) -> np.ndarray:
        """(P, 17, 3), see ``Marks``."""
        return self.marks.keypoints


def move(
    labels: ImageLabels,
    size_hw: tuple[int, int],
    matrix: np.ndarray,
    mirror: bool,
    published: bool = False,
) -> Marks:
    """Labels of a picture of this size in the pixels that a matrix takes it to."""

    def moved(xy: np.ndarray) -> np.ndarray:
        return xy @ matrix[:, :2].T + matrix[:, 2]

    def corners(boxes: np.ndarray, grow: float = 0.0) -> np.ndarray:
        room = boxes[:, 2:] * grow
        (left, top), (right, bottom) = (
            (boxes[:, :2] - room).T,
            (boxes[:, :2] + boxes[:, 2:] + room).T,
        )
        x, y = (left, right, right, left), (top, top, bottom, bottom)
        return moved(np.stack([np.stack(x, 1), np.stack(y, 1)], 2))

    keypoints = labels.keypoints.astype(np.float64).copy()
    keypoints[..., :2] = moved(keypoints[..., :2])
    channels = labels.unlabelled_channels
    if mirror:
        keypoints = keypoints[:, _FLIP]
        channels = [int(_FLIP[c]) for c in channels]
    keep = corners(labels.boxes, 0.2) if labels.only_near_people else None
    height, width = size_hw
    frame = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    return Marks(
        keypoints, corners(labels.ignore), keep, list(channels), moved(frame), mirror, published
    )


def warp(
    picture: np.ndarray,
    labels: ImageLabels,
    matrix: np.ndarray,
    size: int,
    mirror: bool,
    border: tuple[int, int, int] = (0, 0, 0),
    published: bool = False,
    part: tuple[int, int, int, int] | None = None,
) -> Scene:
    """Cuts a window out of a picture, or of a part of it, and moves its labels along."""
    import cv2

    height, width = picture.shape[:2]
    if part is not None:
        labels = labels.within(part)
    marks = move(labels, (height, width), matrix, mirror, published)
    count, reduced = reduction(matrix, height, width)
    for _ in range(count):
        picture = halve(picture)
    left, top, right, bottom = reduced_part(part, (height, width), picture.shape[:2])
    picture = picture[top:bottom, left:right]
    reduced = np.column_stack([reduced[:, :2], reduced @ [left, top, 1]])
    cut = cv2.warpAffine(
        np.ascontiguousarray(picture),
        reduced,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderValue=border,
    )
    return Scene(cut, marks)


def repaint(picture: np.ndarray, table: np.ndarray, grey: bool) -> np.ndarray:
    """Looks every value of a uint8 picture up in its colour's column, colours removed before."""
    if grey:
        import cv2

        plane = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        picture = np.repeat(plane[..., None], 3, 2)
    out = np.empty_like(picture)
    for c in range(3):
        out[..., c] = table[:, c][picture[..., c]]
    return out


def columns(scene: Scene, left: int, width: int) -> Scene:
    """The part of a scene from column ``left`` on, ``width`` columns wide."""
    return Scene(scene.picture[:, left : left + width], scene.marks.from_column(left))


def draw(plan: WindowPlan, packs: Sequence[Pack]) -> Window:
    """The window of a plan."""
    scenes = []
    for part in plan.scenes:
        pack = packs[part.pack]
        scene = warp(
            pack.picture(part.image),
            pack.labels[part.image],
            part.matrix,
            part.size,
            part.mirror,
            part.border,
            part.published,
            part.part,
        )
        scene.picture = repaint(scene.picture, part.table, part.grey)
        scenes.append(columns(scene, *part.columns))
    return render(scenes, [part.place for part in plan.scenes], plan.size)


def render(scenes: Sequence[Scene], places: Sequence[tuple[int, int]], size: int) -> Window:
    """Puts one scene, or several side by side, together and draws the targets."""
    picture = np.zeros((size, size, 3), np.uint8)
    joints = len(_FLIP)
    maps = {s: np.zeros((joints, size // s, size // s), np.float32) for s in (2, 4)}
    masks = {s: np.ones((joints, size // s, size // s), np.uint8) for s in (2, 4)}
    index_parts, person_parts, people = [], [], 0
    for scene, (left, top) in zip(scenes, places, strict=True):
        marks = scene.marks
        tall, wide = scene.picture.shape[:2]
        picture[top : top + tall, left : left + wide] = scene.picture
        states = scene.keypoints[..., 2].round().astype(int)
        for stride in (2, 4):
            h, w, x, y = tall // stride, wide // stride, left // stride, top // stride
            cells = marks.places(stride)
            area = np.s_[:, y : y + h, x : x + w]
            maps[stride][area] = heatmaps(cells, states == POSITIVE, (h, w))
            masks[stride][area] = loss_mask(
                cells, states, marks.plane(stride, (h, w)), marks.unlabelled_channels
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
