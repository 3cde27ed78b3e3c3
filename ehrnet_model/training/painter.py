"""Windows made on the device, a batch at once, from pictures that lie in its memory.

The CPU gathers what a batch of plans needs (a few megabytes: matrices, colour tables, moved labels,
regions without loss, tag places); the device warps, recolours and draws targets and masks. It does
what ``windows`` does, within a grey level or two; nothing here waits for the device.

Shapes: N windows of R pixels, S scenes, P people, J keypoints. Maps are made with the channels
last, as the network lays out its outputs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.batches import MEAN, STD, Batch, Small
from ehrnet_model.training.labels import POSITIVE, WEAK
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.plans import SMALLEST, WindowPlan, halve, reduced_part, reduction
from ehrnet_model.training.targets import (
    PEAK_REACH,
    POSITIVE_DISC,
    SIGMA,
    WEAK_DISC,
    disc,
    nearest_cells,
)
from ehrnet_model.training.windows import move

_JOINTS = COCO_17.num_keypoints
_FAR = 30000


class Directory:
    """Where every picture of some packs, and every halving of it, lies among all pixels.

    Attributes:
        first: per pack, (images,) int64: number of each picture's full-size level.
        start: (levels,) int64, pixel with which each level begins.
        height, width: (levels,) int64.
        pixels: how many there are.
    """

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.first: list[np.ndarray] = []
        heights: list[int] = []
        widths: list[int] = []
        for pack in packs:
            first = []
            for record in pack.records:
                first.append(len(heights))
                h, w = record["height"], record["width"]
                heights.append(h)
                widths.append(w)
                while min(h, w) > SMALLEST:
                    h, w = h // 2, w // 2
                    heights.append(h)
                    widths.append(w)
            self.first.append(np.array(first, np.int64))
        self.height, self.width = np.array(heights, np.int64), np.array(widths, np.int64)
        ends = np.cumsum(self.height * self.width)
        self.pixels = int(ends[-1]) if len(ends) else 0
        self.start = ends - self.height * self.width


@dataclass(frozen=True)
class PlanBatch(Small):
    """Everything about a batch of windows but the pixels.

    Attributes:
        size: R.
        source: (S,) int64, level of the directory that a scene is cut from.
        inverse: (S, 2, 3) float32, from pixels of the scene to those of the level.
        limits: (S, 4) int64, left, top, right and bottom of the part of the level that is used.
        border: (S, 3) uint8.
        table: (S, 256, 3) uint8.
        grey: (S,) bool.
        tiles: (N, 2, 2) int64, scene that each quarter of a window shows.
        origin: (N, 2, 2, 2) float32, x and y in the scene of each quarter's first pixel.
        area: (S, 6) int64: window; left, top, width, height in pixels of the window; first column
            of the scene that is shown.
        silent: (S, J) bool, keypoints that the picture says nothing about.
        unbounded: (S,) bool, whether the picture has loss everywhere.
        low_plane, high_plane: (N, R/4, R/4) and (N, R/2, R/2) uint8, see ``targets.loss_plane``.
        low_cells, high_cells: (P, J, 2) float64, places in the maps of what is shown of the scene.
        state: (P, J) int8.
        scene: (P,) int64.
        tag_index, tag_person, image_of_person: as in ``Batch``.
    """

    size: int
    source: torch.Tensor
    inverse: torch.Tensor
    limits: torch.Tensor
    border: torch.Tensor
    table: torch.Tensor
    grey: torch.Tensor
    tiles: torch.Tensor
    origin: torch.Tensor
    area: torch.Tensor
    silent: torch.Tensor
    unbounded: torch.Tensor
    low_plane: torch.Tensor
    high_plane: torch.Tensor
    low_cells: torch.Tensor
    high_cells: torch.Tensor
    state: torch.Tensor
    scene: torch.Tensor
    tag_index: torch.Tensor
    tag_person: torch.Tensor
    image_of_person: torch.Tensor


def gather(plans: Sequence[WindowPlan], packs: Sequence[Pack], directory: Directory) -> PlanBatch:
    """What the device must know to draw these plans, all of one size."""
    size = plans[0].size
    half = size // 2
    parts = [(n, part) for n, plan in enumerate(plans) for part in plan.scenes]
    scenes = len(parts)
    source = np.empty(scenes, np.int64)
    inverse = np.empty((scenes, 2, 3), np.float32)
    limits = np.empty((scenes, 4), np.int64)
    tiles = np.empty((len(plans), 2, 2), np.int64)
    origin = np.empty((len(plans), 2, 2, 2), np.float32)
    area = np.empty((scenes, 6), np.int64)
    silent = np.zeros((scenes, _JOINTS), bool)
    unbounded = np.ones(scenes, bool)
    planes = {s: np.ones((len(plans), size // s, size // s), np.uint8) for s in (4, 2)}
    cells: dict[int, list[np.ndarray]] = {s: [np.empty((0, _JOINTS, 2))] for s in (4, 2)}
    states, owner = [np.empty((0, _JOINTS))], []
    for s, (n, part) in enumerate(parts):
        labels = packs[part.pack].labels[part.image]
        if part.part is not None:
            labels = labels.within(part.part)
        record = packs[part.pack].records[part.image]
        size_hw = (record["height"], record["width"])
        level, matrix = reduction(part.matrix, *size_hw)
        source[s] = directory.first[part.pack][part.image] + level
        level_hw = (int(directory.height[source[s]]), int(directory.width[source[s]]))
        limits[s] = reduced_part(part.part, size_hw, level_hw)
        back = np.linalg.inv(matrix[:, :2])
        inverse[s] = np.column_stack([back, -back @ matrix[:, 2]])
        (first, wide), (left, top) = part.columns, part.place
        area[s] = n, left, top, wide, part.size, first
        for row in range(top // half, (top + part.size) // half):
            for column in range(left // half, (left + wide) // half):
                tiles[n, row, column] = s
                origin[n, row, column] = first + column * half - left, row * half - top
        marks = move(labels, size_hw, part.matrix, part.mirror, part.published).from_column(first)
        silent[s, marks.unlabelled_channels] = True
        for stride, places in cells.items():
            places.append(marks.places(stride))
        states.append(marks.keypoints[..., 2])
        owner += [s] * len(marks.keypoints)
        if len(marks.ignore) or marks.keep is not None or marks.published:
            unbounded[s] = False
            for stride, plane in planes.items():
                h, w, x, y = (v // stride for v in (part.size, wide, left, top))
                plane[n, y : y + h, x : x + w] = marks.plane(stride, (h, w))
    low, high = (np.concatenate(cells[stride]) for stride in (4, 2))
    state = np.concatenate(states).round().astype(np.int8)
    scene = np.array(owner, np.int64)
    tags = place_tags(low, state == POSITIVE, area, scene, size)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    return PlanBatch(
        size,
        tensor(source),
        tensor(inverse),
        tensor(limits),
        tensor(np.array([part.border for _, part in parts], np.uint8)),
        tensor(np.stack([part.table for _, part in parts])),
        tensor(np.array([part.grey for _, part in parts])),
        tensor(tiles),
        tensor(origin),
        tensor(area),
        tensor(silent),
        tensor(unbounded),
        tensor(planes[4]),
        tensor(planes[2]),
        tensor(low),
        tensor(high),
        tensor(state),
        tensor(scene),
        *map(tensor, tags),
    )


def place_tags(
    low: np.ndarray, present: np.ndarray, area: np.ndarray, scene: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat places in the low maps of all windows, and whose they are; as ``targets.tag_places``.

    Args:
        low: (P, J, 2) cells of what is shown of the scene.
        present: (P, J) bool.
        area: (S, 6) of each scene.
        scene: (P,) of each person.
        size: of the windows.

    Returns:
        ``tag_index``, ``tag_person`` and ``image_of_person``, see ``Batch``.
    """
    side, where = size // 4, area[scene]
    cells = nearest_cells(low)
    room = where[:, None, 3:5] // 4
    inside = present & (cells >= 0).all(-1) & (cells < room).all(-1)
    person, joint = np.nonzero(inside)
    place = cells[person, joint] + where[person, 1:3] // 4
    flat = ((where[person, 0] * _JOINTS + joint) * side + place[:, 1]) * side + place[:, 0]
    names, numbers = np.unique(person, return_inverse=True)
    return flat, numbers.astype(np.int64), where[names, 0]


def spread(quarters: torch.Tensor, side: int) -> torch.Tensor:
    """(N, 2, 2, ...) for each quarter of a window to (N, side, side, ...)."""
    rows = quarters.repeat_interleave(side // 2, 1, output_size=side)
    return rows.repeat_interleave(side // 2, 2, output_size=side)


class Painter:
    """Pictures of some packs on a device, and what draws windows from them.

    Args:
        packs: whose pictures to hold; four bytes a pixel and a third for the halvings.
        device: where.

    Raises:
        EhrnetError: the device's memory does not hold them.
    """

    def __init__(self, packs: Sequence[Pack], device: torch.device) -> None:
        self.packs = packs
        self.device = device
        self.directory = Directory(packs)
        total = self.directory.pixels
        try:
            # Four bytes, so that one access fetches a pixel.
            pixels = np.zeros((total, 4), np.uint8)
            self._fill(pixels)
            self.pixels = torch.from_numpy(pixels.view(np.int32)[:, 0]).to(device)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise EhrnetError(
                f"{total * 4 / 2**30:.1f} GiB of pictures do not fit into the memory of "
                f"{device}: take fewer packs, pack smaller pictures (--max-side), or make windows "
                "on the CPU with --windows-on host."
            ) from None
        self.start = torch.from_numpy(self.directory.start).to(device)
        self.width = torch.from_numpy(self.directory.width).to(device)
        self.scale = 1 / (255 * torch.tensor(STD, device=device))
        self.shift = -torch.tensor(MEAN, device=device) / torch.tensor(STD, device=device)
        self.discs = {
            state: torch.from_numpy(disc(radius)).to(device)
            for state, radius in ((WEAK, WEAK_DISC), (POSITIVE, POSITIVE_DISC))
        }

    def _fill(self, pixels: np.ndarray) -> None:
        directory = self.directory

        def put(pack: Pack, image: int, level: int) -> None:
            picture = pack.picture(image)
            while True:
                start, count = directory.start[level], picture.shape[0] * picture.shape[1]
                pixels[start : start + count, :3] = picture.reshape(-1, 3)
                if min(picture.shape[:2]) <= SMALLEST:
                    return
                picture, level = halve(picture), level + 1

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for pack, first in zip(self.packs, directory.first, strict=True):
                list(pool.map(put, [pack] * len(first), range(len(first)), first.tolist()))

    def gather(self, plans: Sequence[WindowPlan]) -> PlanBatch:
        """See ``gather``; for any process that shares the packs."""
        return gather(plans, self.packs, self.directory)

    @torch.no_grad()
    def __call__(self, plans: PlanBatch) -> Batch:
        """Draws the batch. The plans' tensors lie on the device."""
        pictures = self.pictures(plans)
        images = pictures.float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
        return Batch(
            images,
            peaks(plans, 4),
            peaks(plans, 2),
            self.masks(plans, 4),
            self.masks(plans, 2),
            plans.tag_index,
            plans.tag_person,
            plans.image_of_person,
        )

    def pictures(self, plans: PlanBatch) -> torch.Tensor:
        """(N, R, R, 3) uint8 RGB."""
        n, half = len(plans.tiles), plans.size // 2
        # Quarter row, row, quarter column, column: in memory that is a picture already.
        step = torch.arange(half, device=plans.tiles.device)
        x = plans.origin[..., 0].view(n, 2, 1, 2, 1) + step
        y = plans.origin[..., 1].view(n, 2, 1, 2, 1) + step.view(half, 1, 1)
        scene = plans.tiles.view(n, 2, 1, 2, 1)
        inverse = plans.inverse[scene]
        x, y = (
            inverse[..., row, 0] * x + inverse[..., row, 1] * y + inverse[..., row, 2]
            for row in (0, 1)
        )
        column, line = x.floor(), y.floor()
        right, down = x - column, y - line
        column, line = column.long(), line.long()
        source = plans.source[scene]
        start, width = self.start[source], self.width[source]
        left, top, end, bottom = plans.limits[scene].unbind(-1)
        border = plans.border[scene].float()
        value = torch.zeros((), device=x.device)
        for dy, wy in ((0, 1 - down), (1, down)):
            for dx, wx in ((0, 1 - right), (1, right)):
                i, j = line + dy, column + dx
                there = (i >= top) & (i < bottom) & (j >= left) & (j < end)
                tap = self.pixels[torch.where(there, start + i * width + j, 0)]
                colour = tap[..., None].view(torch.uint8)[..., :3]
                value = value + (wx * wy)[..., None] * torch.where(there[..., None], colour, border)
        rgb = (value + 0.5).floor().clamp(0, 255).to(torch.int32)
        grey = (rgb[..., 0] * 9798 + rgb[..., 1] * 19235 + rgb[..., 2] * 3735 + 16384) >> 15
        rgb = torch.where(plans.grey[scene][..., None], grey[..., None], rgb)
        channel = torch.arange(3, device=rgb.device)
        table = plans.table.view(-1)[(scene[..., None] * 256 + rgb) * 3 + channel]
        return table.view(n, plans.size, plans.size, 3)

    def masks(self, plans: PlanBatch, stride: int) -> torch.Tensor:
        """(N, J, R/stride, R/stride) uint8, channels last; see ``targets.loss_mask``."""
        n, side, device = len(plans.tiles), plans.size // stride, plans.tiles.device

        plane = plans.high_plane if stride == 2 else plans.low_plane
        mask = plane[..., None] * ~spread(plans.silent[plans.tiles], side)
        # One place more: where everything that falls outside goes.
        flat = torch.cat([mask.view(-1), torch.zeros(1, dtype=torch.uint8, device=device)])
        area = plans.area[plans.scene]
        left, top, wide, tall = (area[:, k, None] // stride for k in (1, 2, 3, 4))
        cells = plans.high_cells if stride == 2 else plans.low_cells
        close = (cells[..., 0] > -20) & (cells[..., 0] < wide + 20)
        close &= (cells[..., 1] > -20) & (cells[..., 1] < tall + 20)
        centre = torch.where(close[..., None], cells, -_FAR).round().long()
        joint = torch.arange(_JOINTS, device=device)[:, None]
        for state, value in ((WEAK, 0), (POSITIVE, 1)):
            stamp = self.discs[state]
            x, y = centre[..., 0, None] + stamp[:, 0], centre[..., 1, None] + stamp[:, 1]
            fits = (plans.state == state)[..., None]
            fits = fits & (x >= 0) & (y >= 0) & (x < wide[..., None]) & (y < tall[..., None])
            row = area[:, 0, None, None] * side + y + top[..., None]
            place = (row * side + x + left[..., None]) * _JOINTS + joint
            flat[torch.where(fits, place, mask.numel())] = value
        return flat[:-1].view(n, side, side, _JOINTS).permute(0, 3, 1, 2)


def peaks(plans: PlanBatch, stride: int) -> torch.Tensor:
    """(N, J, R/stride, R/stride) float32, channels last; see ``targets.heatmaps``."""
    n, side, device = len(plans.tiles), plans.size // stride, plans.tiles.device
    area = plans.area[plans.scene]
    left, top, wide, tall = (area[:, k, None] // stride for k in (1, 2, 3, 4))
    cells = plans.high_cells if stride == 2 else plans.low_cells
    nearest = (cells + 0.5).floor()
    inside = (plans.state == POSITIVE) & (nearest >= 0).all(-1)
    inside &= (nearest[..., 0] < wide) & (nearest[..., 1] < tall)
    step = torch.arange(-PEAK_REACH, PEAK_REACH + 1, device=device)
    apart = (cells - nearest).float()[..., None] - step
    gauss = torch.exp(-(apart**2) / (2 * SIGMA**2))
    value = gauss[..., 1, :, None] * gauss[..., 0, None, :]
    centre = torch.where(inside[..., None], nearest, 0).long()
    x = centre[..., 0, None, None] + step
    y = centre[..., 1, None, None] + step[:, None]
    fits = inside[..., None, None] & (x >= 0) & (y >= 0)
    fits = fits & (x < wide[..., None, None]) & (y < tall[..., None, None])
    joint = torch.arange(_JOINTS, device=device)[:, None, None]
    row = area[:, 0, None, None, None] * side + y + top[..., None, None]
    place = (row * side + x + left[..., None, None]) * _JOINTS + joint
    count = n * side * side * _JOINTS
    flat = torch.zeros(count + 1, device=device)
    place = torch.where(fits, place, count)
    flat.scatter_reduce_(0, place.reshape(-1), value.reshape(-1), "amax")
    return flat[:-1].view(n, side, side, _JOINTS).permute(0, 3, 1, 2)
