"""Left and right: a loss that tells a person's limbs apart, and maps that differ more.

Left and right keypoints look alike where they are; which is which follows from the rest of the
body. A network whose maps of both are the same has no gradient to learn it from: what would tell
them apart moves the loss only where the two maps differ already. So the features themselves are
asked, at many places, through fixed random weights that are not the same for both sides.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import distributed
from torch.nn import functional as F

from ehrnet_model.errors import EhrnetError
from ehrnet_model.skeleton import COCO_17

_LEFT_LIMBS = ((5, 7), (7, 9), (5, 11), (11, 13), (13, 15))
_POINTS = 8
# Left and right nearer than this many cells are not told apart.
_APART = 3.0
_GAIN = 4.0

LEFT = {"elbows": 7, "wrists": 9, "hips": 11, "knees": 13, "ankles": 15}
"""Left keypoint of each pair whose maps can be told apart more; the right one comes next."""


# Constants are brought to a device once: every copy of ordinary memory waits for it.


@functools.cache
def _probe(channels: int, device: torch.device) -> torch.Tensor:
    """(channels,) of norm 1 and sum 0, always the same."""
    weights = torch.randn(channels, generator=torch.Generator().manual_seed(0))
    weights -= weights.mean()
    return (weights / weights.norm()).to(device)


@functools.cache
def _limbs(device: torch.device) -> torch.Tensor:
    """(limbs, 2) left keypoints."""
    return torch.tensor(_LEFT_LIMBS, device=device)


@functools.cache
def _signs(device: torch.device) -> torch.Tensor:
    """(2, 1, 1, 1), one for the left side, minus one for the right."""
    return torch.tensor([1.0, -1.0], device=device).view(2, 1, 1, 1)


def side_loss(
    features: torch.Tensor,
    index: torch.Tensor,
    person: torch.Tensor,
    people: int,
    shared: bool = True,
) -> torch.Tensor:
    """Binary cross-entropy of the side at points along the limbs and the sides of the torso.

    Args:
        features: (N, C, H, W), what the low-resolution head reads.
        index: (M,) flat places in maps (N, J, H, W), one a keypoint.
        person: (M,) whose they are, 0 .. P-1.
        people: P.
        shared: where several processes learn, all of them are here with windows of their own.

    Returns:
        a scalar, the mean over limbs with both ends; limbs count less where the other side's lies
        within 3 cells, nothing where it is the same. About log 2 when nothing is known.
    """
    height, width = features.shape[2:]
    joints, device = COCO_17.num_keypoints, features.device
    if people == 0:
        _everywhere(features.new_zeros((), dtype=torch.float32), shared)  # others wait for it
        return features.new_zeros((), dtype=torch.float32)
    probe = _probe(features.shape[1], device)
    scores = _GAIN * torch.einsum("nchw,c->nhw", features.float(), probe)
    plane, cell = index // (height * width), index % (height * width)
    image, joint = plane // joints, plane % joints
    place = torch.full((people, joints, 2), float("nan"), device=device)
    place[person, joint] = torch.stack([cell % width, cell // width], 1).float()
    whose = torch.zeros(people, dtype=torch.long, device=device)
    whose[person] = image
    step = torch.linspace(0, 1, _POINTS, device=device)[:, None]
    ends = _limbs(device)
    # (2 sides, P, limbs, points, 2); a left keypoint's number plus one is the right one's.
    lines = torch.stack(
        [
            place[:, None, ends[:, 0] + side].transpose(1, 2) * (1 - step)
            + place[:, None, ends[:, 1] + side].transpose(1, 2) * step
            for side in (0, 1)
        ]
    )
    there = ~lines.isnan().any(-1)
    apart = (lines[0] - lines[1]).norm(dim=-1)
    weight = there * torch.where(apart.isnan(), 1.0, (apart / _APART).clamp(max=1))
    cells = lines.nan_to_num().round().long()
    asked = scores[whose[:, None, None], cells[..., 1], cells[..., 0]]
    total = (F.softplus(-_signs(device) * asked) * weight).sum()
    return total / _everywhere(weight.sum(), shared).clamp(min=1)


def _everywhere(count: torch.Tensor, shared: bool) -> torch.Tensor:
    """The mean over all processes: theirs together weigh each limb as one process would."""
    if not (shared and distributed.is_available() and distributed.is_initialized()):
        return count
    count = count.detach().float().clone()
    distributed.all_reduce(count)
    return count / distributed.get_world_size()


def check_pairs(gains: Mapping[str, float]) -> None:
    """Raises EhrnetError for a pair that does not exist and for a gain that is none."""
    for name, gain in gains.items():
        if name not in LEFT:
            raise EhrnetError(f"there is no pair '{name}'; known: {', '.join(LEFT)}.")
        if not 0 < gain < 1000:
            raise EhrnetError(f"the gain of {name} cannot be {gain:g}: give one above 0, as 3.")


def widen(
    weights: Mapping[str, torch.Tensor], gains: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Weights of an ``EfficientHRNet`` whose left and right maps differ more, by pair.

    A network that is not sure of a side puts nearly the same peak into both maps, as the squared
    error asks; the little by which they differ still says which side is likelier. With a gain of 3
    the difference of the two maps is three times as large at both resolutions, their mean the same.

    Args:
        weights: by key.
        gains: above 0, by name of the pair.

    Raises:
        EhrnetError: see ``check_pairs``.
    """
    check_pairs(gains)
    out = dict(weights)
    for name, gain in gains.items():
        pair = [LEFT[name], LEFT[name] + 1]
        for key in ("head_low.weight", "head_low.bias", "head_high.weight", "head_high.bias"):
            out[key] = _spread(out[key], pair, gain)
        # It reads the prediction at a quarter of the size and shall see what it saw.
        key = "enlarge.conv.weight"
        features = out["head_low.weight"].shape[1]
        out[key] = _spread(out[key], [features + k for k in pair], 1 / gain)
    return out


def _spread(values: torch.Tensor, pair: list[int], gain: float) -> torch.Tensor:
    """A copy with the two rows farther from their mean."""
    values = values.clone()
    mean = values[pair].mean(0)
    values[pair] = mean + gain * (values[pair] - mean)
    return values
