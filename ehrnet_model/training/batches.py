"""Windows as tensors: what a training step takes, and the reference way to make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from ehrnet_model.errors import EhrnetError
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.windows import Window

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_T = TypeVar("_T", bound="Tensors")


class Tensors:
    """A dataclass of tensors, others like it, tuples of such and plain values that moves as one."""

    def each(self: _T, change: Callable[[torch.Tensor], torch.Tensor]) -> _T:
        """The same with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return change(value)
            if isinstance(value, Tensors):
                return value.each(change)
            return tuple(map(changed, value)) if isinstance(value, tuple) else value

        return type(self)(*map(changed, values_of(self)))

    def to(self: _T, device: torch.device) -> _T:
        """On a device, copied without waiting where the memory is pinned."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: _T) -> _T:
        """In memory that a GPU copies from by itself."""
        return self.each(lambda tensor: tensor.pin_memory())

    def to_send(self: _T) -> _T:
        """Ready for another process: in shared memory.

        Raises:
            EhrnetError: there is too little of it. Where torch moves tensors there while it sends
                them, nobody hears of it, and the other process waits for ever.
        """
        try:
            return self.each(lambda tensor: tensor.share_memory_())
        except RuntimeError as error:
            raise EhrnetError(
                f"no shared memory is left for windows ({error}): give /dev/shm more "
                "(docker run --shm-size 8g), or take fewer --workers (0: none is needed)."
            ) from None


def values_of(item: Tensors) -> list[Any]:
    """The values of its fields in order."""
    return [getattr(item, field.name) for field in fields(item)]  # type: ignore[arg-type]


class Small(Tensors):
    """One that goes to another process as bytes: of shared memory containers may have 64 MB."""

    def to_send(self: _T) -> _T:
        """Ready for another process as it is."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays, which are pickled as bytes: tensors would go through shared memory.
        values = values_of(self)
        arrays = (v.numpy() if isinstance(v, torch.Tensor) else v for v in values)
        return _rebuilt, (type(self), *arrays)


def _rebuilt(kind: Callable[..., Any], *values: Any) -> Any:
    """What was pickled."""
    return kind(*(torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values))


def batch_bytes(side: int, count: int) -> int:
    """About how much memory a ``Batch`` of ``count`` windows of ``side`` pixels takes."""
    maps = 2 * COCO_17.num_keypoints * ((side // 4) ** 2 + (side // 2) ** 2)
    return 4 * count * (3 * side**2 + maps)


@dataclass(frozen=True)
class Batch(Tensors):
    """Windows as tensors. N windows of R pixels; P people of all windows together.

    Attributes:
        images: (N, 3, R, R) float32, normalised for the network.
        low, high: targets (N, J, R/4, R/4) and (N, J, R/2, R/2) float32.
        low_mask, high_mask: the same shapes, 1 where the loss counts.
        tag_index: (M,) int64, flat places in the low maps of the whole batch.
        tag_person: (M,) int64, whose they are; everybody in 0 .. P - 1 has one.
        image_of_person: (P,) int64.
    """

    images: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    low_mask: torch.Tensor
    high_mask: torch.Tensor
    tag_index: torch.Tensor
    tag_person: torch.Tensor
    image_of_person: torch.Tensor


def normalise(pictures: np.ndarray) -> torch.Tensor:
    """uint8 RGB (N, H, W, 3) to the network's float32 (N, 3, H, W), channels last in memory."""
    scale = 1 / (255 * np.array(STD, np.float32))
    shift = -np.array(MEAN, np.float32) / np.array(STD, np.float32)
    values = pictures.astype(np.float32)
    values *= scale
    values += shift
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def _channels_last(maps: np.ndarray) -> torch.Tensor:
    """(N, J, H, W) as the network lays out its outputs, float32: mixed layouts are slow."""
    return torch.from_numpy(maps).to(torch.float32).contiguous(memory_format=torch.channels_last)


def collate(windows: Sequence[Window]) -> Batch:
    """Stacks windows of one size."""
    index, person, owner, people = [], [], [], 0
    for n, window in enumerate(windows):
        names, numbers = np.unique(window.tag_person, return_inverse=True)
        index.append(window.tag_index + n * window.low.size)
        person.append(numbers + people)
        owner.append(np.full(len(names), n))
        people += len(names)
    return Batch(
        normalise(np.stack([w.picture for w in windows])),
        _channels_last(np.stack([w.low for w in windows])),
        _channels_last(np.stack([w.high for w in windows])),
        _channels_last(np.stack([w.low_mask for w in windows])),
        _channels_last(np.stack([w.high_mask for w in windows])),
        torch.from_numpy(np.concatenate(index)).long(),
        torch.from_numpy(np.concatenate(person)).long(),
        torch.from_numpy(np.concatenate(owner)).long(),
    )
