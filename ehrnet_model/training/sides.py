"""A loss that tells a person's left limbs from the right ones, all along them.

Left and right keypoints look alike where they are; which is which follows from the rest of the
body. A network whose maps of both are the same has no gradient to learn it from: what would tell
them apart moves the loss only where the two maps differ already. So the features themselves are
asked, at many places, through fixed random weights that are not the same for both sides.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from ehrnet_model.skeleton import COCO_17

_LEFT_LIMBS = ((5, 7), (7, 9), (5, 11), (11, 13), (13, 15))
_POINTS = 8
# Left and right nearer than this many cells are not told apart.
_APART = 3.0
_GAIN = 4.0


@functools.cache
def _probe(channels: int) -> torch.Tensor:
    """(channels,) of norm 1 and sum 0, always the same."""
    weights = torch.randn(channels, generator=torch.Generator().manual_seed(0))
    weights -= weights.mean()
    return weights / weights.norm()


def side_loss(
    features: torch.Tensor, index: torch.Tensor, person: torch.Tensor, people: int
) -> torch.Tensor:
    """Binary cross-entropy of the side at points along the limbs and the sides of the torso.

    Args:
        features: (N, C, H, W), what the low-resolution head reads.
        index: (M,) flat places in maps (N, J, H, W), one a keypoint.
        person: (M,) whose they are, 0 .. P-1.
        people: P.

    Returns:
        a scalar, the mean over limbs with both ends; limbs count less where the other side's lies
        within 3 cells, nothing where it is the same. About log 2 when nothing is known.
    """
    height, width = features.shape[2:]
    joints, device = COCO_17.num_keypoints, features.device
    scores = _GAIN * torch.einsum(
        "nchw,c->nhw", features.float(), _probe(features.shape[1]).to(device)
    )
    if people == 0:
        return scores.sum() * 0
    plane, cell = index // (height * width), index % (height * width)
    image, joint = plane // joints, plane % joints
    place = torch.full((people, joints, 2), float("nan"), device=device)
    place[person, joint] = torch.stack([cell % width, cell // width], 1).float()
    whose = torch.zeros(people, dtype=torch.long, device=device)
    whose[person] = image
    step = torch.linspace(0, 1, _POINTS, device=device)[:, None]
    ends = torch.tensor(_LEFT_LIMBS, device=device)
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
    sign = torch.tensor([1.0, -1.0], device=device).view(2, 1, 1, 1)
    total = (F.softplus(-sign * asked) * weight).sum()
    return total / weight.sum().clamp(min=1)
