"""Batches of windows shown several times, each time moved, mirrored and coloured anew.

What a window shows is decided on the CPU, which takes longer than a large GPU takes to learn it.
So what was decided stays on the device and is drawn again, some steps later, with small changes
(data echoing: Choi et al., "Faster neural network training with data echoing", 2019). A change is
made for a whole batch at once and is a few numbers for each scene and person.

Shapes: N windows of R pixels, S scenes, P people, J keypoints. Positions in a scene are counted
from the first column that its window shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.batches import Small
from ehrnet_model.training.labels import POSITIVE
from ehrnet_model.training.painter import PlanBatch, place_tags, spread
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.training.targets import to_cells, to_pixels

APART = 8
"""Between two showings of a batch so many others are shown for the first time."""
# Changes are small: what the options ask of windows should still hold.
_TURN_DEG, _ZOOM, _SHIFT = 8.0, 0.08, 0.04


@dataclass(frozen=True)
class Change(Small):
    """What differs when the windows of a ``PlanBatch`` are shown once more.

    Attributes:
        back: (S, 2, 3) float32, from pixels of a scene as shown now to those of the first time.
        tone: (S, 5) float32: gamma, gain of red, green and blue, shift; see ``sampler.colours``.
        grey: (S,) bool, without colour.
        silent: (S, J) bool, and ``state``: (P, J) int8, as in ``PlanBatch``.
        low_cells, high_cells: (P, J, 2) float64.
        tag_index, tag_person, image_of_person: as in ``Batch``.
    """

    back: torch.Tensor
    tone: torch.Tensor
    grey: torch.Tensor
    silent: torch.Tensor
    state: torch.Tensor
    low_cells: torch.Tensor
    high_cells: torch.Tensor
    tag_index: torch.Tensor
    tag_person: torch.Tensor
    image_of_person: torch.Tensor


@dataclass(frozen=True)
class Echoes(Small):
    """A batch of plans with what changes whenever it is shown again."""

    plans: PlanBatch
    changes: tuple[Change, ...]

    def shown(self, showing: int) -> PlanBatch:
        """As it is shown for the first time (0) and the times after."""
        return again(self.plans, self.changes[showing - 1]) if showing else self.plans


def order(step: int, times: int) -> Iterator[tuple[int, int]]:
    """Which batch every step shows, and which of its ``times`` showings that is, from ``step`` on.

    Batch ``b`` is new in step ``times * b``, and shown again whenever ``APART`` more have been new.
    Where there are not so many yet, the newest is shown instead.

    Yields:
        batch, showing (0 to ``times - 1``).
    """
    while True:
        newest, showing = divmod(step, times)
        batch = newest - APART * showing
        yield (batch if batch >= 0 else newest), showing
        step += 1


def oldest(step: int, times: int) -> int:
    """The first batch that ``order`` may still name from this step on."""
    return max(0, step // times - APART * (times - 1))


def change(plans: PlanBatch, options: SampleOptions, rng: np.random.Generator) -> Change:
    """A random change: up to 8 degrees, 8 % larger or smaller and 4 % off, half of it mirrored.

    Args:
        plans: on the CPU; not of the published trainer's windows.
        options: how strong the colours are, and whether anything is turned.
        rng: decides.
    """
    area, scene = plans.area.numpy(), plans.scene.numpy()
    count = len(area)
    size = area[:, 3:5].astype(np.float64)
    mirror = rng.random(count) < 0.5
    turn = min(_TURN_DEG, options.rotation) if options.rotate > 0 else 0.0
    angle = np.deg2rad(rng.uniform(-turn, turn, count))
    zoom = np.exp(rng.uniform(-_ZOOM, _ZOOM, count))
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
    linear = linear.transpose(2, 0, 1)
    linear[mirror, 0] *= -1
    centre = (size - 1) / 2
    shift = rng.uniform(-_SHIFT, _SHIFT, (count, 2)) * size
    offset = centre + shift - np.einsum("sij,sj->si", linear, centre)
    inverse = np.linalg.inv(linear)
    back = np.concatenate([inverse, -inverse @ offset[..., None]], 2)
    flipped = mirror[scene]

    def moved(cells: torch.Tensor, stride: int) -> np.ndarray:
        xy = np.einsum("pij,pkj->pki", linear[scene], to_pixels(cells.numpy(), stride))
        return _mirrored(to_cells(xy + offset[scene][:, None], stride), flipped)

    low, high = moved(plans.low_cells, 4), moved(plans.high_cells, 2)
    state = _mirrored(plans.state.numpy(), flipped)
    silent = _mirrored(plans.silent.numpy(), mirror)
    tags = place_tags(low, state == POSITIVE, area, scene, plans.size)
    tone, grey = _tones(rng, options, count)
    parts = (back.astype(np.float32), tone, grey, silent, state, low, high, *tags)
    return Change(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


def _mirrored(values: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """(K, J, ...) with left and right keypoints changed over in those that are ``flipped`` (K,)."""
    out = values.copy()
    out[flipped] = values[flipped][:, list(COCO_17.flip)]
    return out


def _tones(
    rng: np.random.Generator, options: SampleOptions, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """What ``sampler.colours`` draws, for many scenes: (S, 5) float32, (S,) bool."""
    strength = options.colour
    gamma = np.exp(rng.uniform(-0.5, 0.5, (count, 1)) * strength)
    gain = 1 + (rng.uniform(-0.5, 0.5, (count, 1)) + rng.uniform(-0.2, 0.2, (count, 3))) * strength
    shift = rng.uniform(-0.25, 0.25, (count, 1)) * strength
    grey = rng.random(count) < options.grey
    gain[grey] = gain[grey, :1]
    return np.concatenate([gamma, gain, shift], 1).astype(np.float32), grey


def again(plans: PlanBatch, change: Change) -> PlanBatch:
    """The plans with a change, on whatever device both are; nothing here waits for it."""
    first = torch.nn.functional.pad(plans.area[:, 5:].float(), (0, 1))  # column, row 0
    linear, offset = change.back[..., :2], change.back[..., 2]
    # From pixels of the whole scene to what they were: counted from the first column in between.
    offset = offset + first - (linear @ first[..., None])[..., 0]
    to_level, start = plans.inverse[..., :2], plans.inverse[..., 2]
    start = (to_level @ offset[..., None])[..., 0] + start
    return replace(
        plans,
        inverse=torch.cat([to_level @ linear, start[..., None]], 2),
        table=_tables(change.tone),
        grey=change.grey,
        silent=change.silent,
        low_plane=_plane(plans, change.back, 4),
        high_plane=_plane(plans, change.back, 2),
        low_cells=change.low_cells,
        high_cells=change.high_cells,
        state=change.state,
        tag_index=change.tag_index,
        tag_person=change.tag_person,
        image_of_person=change.image_of_person,
    )


def _tables(tone: torch.Tensor) -> torch.Tensor:
    """(S, 256, 3) uint8 of (S, 5), see ``sampler.colours``."""
    values = torch.arange(256, device=tone.device)[:, None] / 255
    gamma, gain, shift = tone[:, None, :1], tone[:, None, 1:4], tone[:, None, 4:]
    return (((values**gamma - 0.5) * gain + 0.5 + shift).clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def _plane(plans: PlanBatch, back: torch.Tensor, stride: int) -> torch.Tensor:
    """``low_plane`` or ``high_plane`` moved, to the nearest cell.

    What comes in from beyond the edge has loss where the picture has it everywhere.
    """
    plane = plans.high_plane if stride == 2 else plans.low_plane
    side = plane.shape[1]
    scene = spread(plans.tiles, side)
    left, top, wide, tall = (plans.area[:, k][scene] // stride for k in (1, 2, 3, 4))
    step = torch.arange(side, device=plane.device)
    x, y = (_pixels(step - left, stride), _pixels(step[:, None] - top, stride))
    rows = back[scene]
    x, y = (rows[..., k, 0] * x + rows[..., k, 1] * y + rows[..., k, 2] for k in (0, 1))
    column, row = (((v - (stride - 1) / 2) / stride + 0.5).floor().long() for v in (x, y))
    inside = (column >= 0) & (row >= 0) & (column < wide) & (row < tall)
    window = torch.arange(len(plane), device=plane.device)[:, None, None]
    place = (window * side + row + top) * side + column + left
    known = plane.reshape(-1)[torch.where(inside, place, 0)]
    return torch.where(inside, known, plans.unbounded[scene].to(plane.dtype))


def _pixels(cells: torch.Tensor, stride: int) -> torch.Tensor:
    """See ``targets.to_pixels``."""
    return cells * stride + (stride - 1) / 2
