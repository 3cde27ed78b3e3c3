"""Squared error of heatmaps, pull and push of tags (paper section 3.3), and a loss of places.

Factors are those of the optimised sum, see ``LossOptions``: the mean squared error of maps that are
nearly all zero has gradients below Adam's epsilon, so everything is scaled by 1000.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.training.batches import Batch
from ehrnet_model.training.limits import check_numbers
from ehrnet_model.training.sides import side_loss

# Logarithm of what ``place_loss`` gives cells outside: nothing beside the others' even in millions,
# but no less, since below -87 a CPU's exponential takes a slow path (1.7 times the loss).
_NOWHERE = -60.0


@dataclass(frozen=True)
class LossOptions:
    """Weights of the loss.

    Attributes:
        scale: factor of everything.
        low, high: factors of the heatmap losses at a quarter and at half the input size.
        peak_weight: squared errors count 1 + peak_weight * target.
        tag: factor of pull + push.
        place: factor of ``place_loss`` at half the input size.
        sharpness: see there.
        sides: factor of ``sides.side_loss``.
    """

    scale: float = 1000.0
    low: float = 1.0
    high: float = 2.0
    peak_weight: float = 3.0
    tag: float = 2e-2
    place: float = 10.0
    sharpness: float = 10.0
    sides: float = 0.02

    def __post_init__(self) -> None:
        factors = ("scale", "low", "high", "peak_weight", "tag", "place", "sides")
        check_numbers(self, {"above 0": ("sharpness",), "of 0 or more": factors})


def heatmap_loss(
    predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, peak_weight: float = 0.0
) -> torch.Tensor:
    """Mean over all cells of (predicted - target)^2 where mask is 1, masked cells counting as 0.

    All tensors (N, J, H, W), or a mask that broadcasts. Returns a scalar.
    """
    error = (predicted.float() - target) ** 2 * mask
    if peak_weight:
        error = error * (1 + peak_weight * target)
    return error.mean()


def place_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    index: torch.Tensor,
    person: torch.Tensor,
    people: int,
    sharpness: float,
) -> torch.Tensor:
    """Where in a person's surroundings a keypoint is, whatever the height of the map there.

    A labelled keypoint's map times ``sharpness`` becomes a distribution (softmax) over the cells in
    the box of its person's keypoints and around it, a quarter of the box and 4 cells to each side.
    The divergence (Kullback-Leibler) of the predicted one from the target's is summed over
    keypoints and divided by the number of all cells, so that a person counts as in
    ``heatmap_loss``. It is zero for the maps for which the squared error is.

    Args:
        predicted: (N, J, H, W).
        target: the same.
        mask: the same, 1 where the loss counts.
        index: (M,) flat places in maps (N, J, H / 2, W / 2), one a keypoint.
        person: (M,) whose they are, 0 .. P-1.
        people: P.
        sharpness: of the distributions; 10 makes a keypoint's peak three times narrower.

    Returns:
        a scalar.
    """
    if people == 0:
        return predicted.new_zeros((), dtype=torch.float32)
    joints, (height, width) = predicted.shape[1], predicted.shape[2:]
    half = width // 2
    plane, cell = index // (height // 2 * half), index % (height // 2 * half)
    rows = _around(2 * (cell // half), person, people, height)
    columns = _around(2 * (cell % half), person, people, width)
    inside = rows[:, :, None] & columns[:, None]

    def maps(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1, height, width)[plane]

    outside = ~(inside & (maps(mask) > 0))

    def logs(tensor: torch.Tensor) -> torch.Tensor:
        values = (sharpness * maps(tensor).float()).masked_fill(outside, _NOWHERE)
        return values.flatten(1).log_softmax(1)

    truth = logs(target)
    divergence = (truth.exp() * (truth - logs(predicted))).sum()
    return divergence / (predicted.shape[0] * joints * height * width)


def _around(place: torch.Tensor, person: torch.Tensor, people: int, size: int) -> torch.Tensor:
    """(M, size) bool: the cells on one axis around all places (M,) of the same person."""
    place = place.float()
    low = torch.full((people,), float(size), device=place.device)
    low = low.scatter_reduce(0, person, place, "amin")
    high = torch.zeros(people, device=place.device).scatter_reduce(0, person, place, "amax")
    room = (high - low) / 4 + 4
    cells = torch.arange(size, device=place.device)
    return ((cells >= (low - room)[:, None]) & (cells <= (high + room)[:, None]))[person]


def tag_loss(
    tags: torch.Tensor, index: torch.Tensor, person: torch.Tensor, image_of_person: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pull and push, each a mean over the images of the batch.

    Pull: mean over people of the mean squared distance of a person's tags from their mean. Push:
    half the mean over ordered pairs of people of exp(-(difference of means)^2), 0 with fewer than
    two people.

    Args:
        tags: (N, J, H, W).
        index: (M,) flat positions in the whole of ``tags``.
        person: (M,) number of the person each position belongs to, 0 .. P-1, each at least once.
        image_of_person: (P,) image of each person.

    Returns:
        pull, push.
    """
    images, people = tags.shape[0], len(image_of_person)
    zero = tags.new_zeros((), dtype=torch.float32)
    if people == 0:
        return zero, zero
    values = tags.float().reshape(-1)[index]
    count = torch.zeros(people, device=tags.device).index_add(0, person, torch.ones_like(values))
    means = torch.zeros(people, device=tags.device).index_add(0, person, values) / count
    spread = torch.zeros(people, device=tags.device).index_add(
        0, person, (values - means[person]) ** 2
    )
    # Not bincount: it asks the device for the highest number and waits.
    one = torch.ones(people, device=tags.device)
    per_image = torch.zeros(images, device=tags.device).index_add(0, image_of_person, one)
    crowd = per_image[image_of_person]
    pull = (spread / count / crowd).sum() / images
    same = image_of_person[:, None] == image_of_person[None]
    same = same & ~torch.eye(people, dtype=torch.bool, device=tags.device)
    pairs = (crowd * (crowd - 1)).clamp(min=1)
    push = torch.exp(-((means[:, None] - means[None]) ** 2)) * same / pairs[:, None]
    return pull, 0.5 * push.sum() / images


class Predicted(NamedTuple):
    """What a network makes of N images of R pixels, as it comes, in bfloat16 perhaps.

    Attributes:
        features: (N, C, R/4, R/4), what the low-resolution head reads.
        low: (N, 2 J, R/4, R/4), J heatmaps, then J tags.
        high: (N, J, R/2, R/2) heatmaps.
    """

    features: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def predict(
    network: EfficientHRNet, images: torch.Tensor, bf16: bool, cache: bool = True
) -> Predicted:
    """Runs the network, its convolutions in bfloat16 if asked for.

    ``cache``: weights in bfloat16 may be those that autocast made for an earlier call.
    """
    device = images.device.type
    with (
        torch.autocast(device, torch.bfloat16, cache_enabled=cache)
        if bf16
        else contextlib.nullcontext()
    ):
        features = network.features(images)
        return Predicted(features, *network.heads(features))


def compute_losses(
    predicted: Predicted, batch: Batch, options: LossOptions, shared: bool = True
) -> dict[str, torch.Tensor]:
    """The weighted sum under ``loss`` and its parts.

    ``shared``: where several processes learn, all of them call this, each with a batch of its own.
    ``rel4`` and ``rel2`` are the squared errors without weights, divided by those of empty maps.
    """
    joints = batch.low.shape[1]
    features = predicted.features
    low, tags = predicted.low[:, :joints].float(), predicted.low[:, joints:]
    high = predicted.high.float()
    low_loss = heatmap_loss(low, batch.low, batch.low_mask, options.peak_weight)
    high_loss = heatmap_loss(high, batch.high, batch.high_mask, options.peak_weight)
    pull, push = tag_loss(tags, batch.tag_index, batch.tag_person, batch.image_of_person)
    total = options.low * low_loss + options.high * high_loss + options.tag * (pull + push)
    people = len(batch.image_of_person)
    if options.place:
        where = (batch.high_mask, batch.tag_index, batch.tag_person, people)
        total = total + options.place * place_loss(high, batch.high, *where, options.sharpness)
    with contextlib.nullcontext() if options.sides else torch.no_grad():  # logged in any case
        sides = side_loss(features, batch.tag_index, batch.tag_person, people, shared)
    if options.sides:
        total = total + options.sides * sides
    parts = {"loss": options.scale * total, "low": low_loss, "high": high_loss, "sides": sides}
    with torch.no_grad():
        for name, maps, target, mask in (
            ("rel4", low, batch.low, batch.low_mask),
            ("rel2", high, batch.high, batch.high_mask),
        ):
            zero = (target**2 * mask).sum().clamp(min=1e-9)
            parts[name] = (((maps.detach() - target) ** 2) * mask).sum() / zero
    parts["pull"], parts["push"] = pull, push
    return parts
