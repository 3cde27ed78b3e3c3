"""How well a network does on images held back from training.

The loss: of fixed windows, the same for all runs on the same packs, whatever their own windows and
weights of the losses. The difference of two networks on the same windows tells more than any other
measure here, and whether a run learns or memorises.

boxOKS: each keypoint is the highest place of its heatmap inside the box of its person, which is
given; the measure is the mean keypoint similarity term over all labelled keypoints. It needs no
grouping and no threshold, so it moves long before average precision does. The heatmaps are those
that people are found on: the mean of both resolutions.

Sides: of people whose two ankles (or others) are labelled well apart, the share whose maps are
higher at the own places than at the other side's; a coin has .5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ehrnet_model.held_back import held_back
from ehrnet_model.network.deploy import heat_and_tags
from ehrnet_model.network.efficienthrnet import EfficientHRNet
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.batches import collate, normalise
from ehrnet_model.training.labels import POSITIVE, ImageLabels
from ehrnet_model.training.losses import LossOptions, compute_losses, predict
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.plans import affine
from ehrnet_model.training.sampler import SampleOptions, Sampler
from ehrnet_model.training.targets import to_cells, to_pixels
from ehrnet_model.training.windows import warp

_PAIRS = {"knee_sides": (13, 14), "ankle_sides": (15, 16)}
# Left and right nearer than this share of the root of the person's area are not compared.
_APART = 0.25
# People are shown at this many pixels, the longer side of their box at this share of it.
_SIZE, _FILL = 160, 0.8
# So many of either kind are measured on, and so many go through the network together.
_MOST, _BATCH = 240, 16
# Windows of the loss: so many batches, pixels, what they show, and which parts are told.
_BATCHES, _SIDE = 24, 128
_SHOWN = SampleOptions(
    close=0.5, partly_seen=1.0, hardly_seen=1.0, cut=0.2, pair=0.2, rotate=0.0, colour=0.0, grey=0.0
)
PARTS = ("loss", "rel4", "rel2", "pull", "push")


@dataclass(frozen=True)
class HeldBackPerson:
    """A person cut out at a fixed size. R pixels on each side."""

    picture: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    area: float


def held_back_people(packs: Sequence[Pack], share: float) -> list[HeldBackPerson]:
    """People with 8 or more labelled keypoints, 80 pixels and more, from the images held back."""
    people: list[HeldBackPerson] = []
    for pack, image, person in _labelled(packs, share, 80):
        if _visible(pack.labels[image], person) >= 8 and len(people) < _MOST:
            people.append(_cut_out(pack, image, person))
    return people


def partly_seen_people(packs: Sequence[Pack], share: float) -> list[HeldBackPerson]:
    """People with 3 to 7 labelled keypoints, and the upper or lower half of those with more.

    Half of a person is shown as if the picture ended there. 80 pixels and more as a whole, from the
    images held back.
    """
    people: list[HeldBackPerson] = []
    for pack, image, person in _labelled(packs, share, 80):
        labels, part = pack.labels[image], None
        if _visible(labels, person) >= 8:
            record = pack.records[image]
            middle = round(float(labels.boxes[person, 1] + labels.boxes[person, 3] / 2))
            above, below = (
                (0, 0, record["width"], middle),
                (0, middle, record["width"], record["height"]),
            )
            part = below if len(people) % 2 else above
            labels = labels.within(part)
        if 3 <= _visible(labels, person) and len(people) < _MOST:
            people.append(_cut_out(pack, image, person, part))
    return people


def _labelled(packs: Sequence[Pack], share: float, least: float) -> Iterator[tuple[Pack, int, int]]:
    """Pack, image and number of everybody held back whom people labelled, of ``least`` pixels."""
    for pack in packs:
        for image, labels in enumerate(pack.labels):
            if held_back(pack.records[image]["id"], share):
                for person in np.flatnonzero(labels.human):
                    if labels.boxes[person, 2:].max() >= least:
                        yield pack, image, int(person)


def _visible(labels: ImageLabels, person: int) -> int:
    return int((labels.keypoints[person, :, 2] == POSITIVE).sum())


def _cut_out(
    pack: Pack,
    image: int,
    person: int,
    part: tuple[int, int, int, int] | None = None,
) -> HeldBackPerson:
    """A person whose box's longer side is ``_FILL`` of the window's, of ``part`` of a picture."""
    labels = pack.labels[image]
    x, y, w, h = (labels if part is None else labels.within(part)).boxes[person]
    matrix = affine((x + w / 2, y + h / 2), max(w, h) / _FILL, _SIZE)
    scene = warp(pack.picture(image), labels, matrix, _SIZE, False, part=part)
    scale = matrix[0, 0]
    low = matrix[:, :2] @ [x, y] + matrix[:, 2]
    box = np.concatenate([low, low + scale * np.array([w, h])])
    whole = labels.boxes[person, 2:].prod()
    area = float(labels.areas[person] * scale**2 * (w * h / whole))
    return HeldBackPerson(scene.picture, scene.keypoints[person], box, area)


class HeldBackWindows:
    """Fixed windows from the images held back; drawn anew each time, not kept.

    Args:
        packs: with the weight of each one's people.
        share: of the images, that is held back.
    """

    def __init__(self, packs: Sequence[tuple[Pack, float]], share: float) -> None:
        self._sampler = Sampler(
            packs, 0, share, _SHOWN.partly_seen, _SHOWN.hardly_seen, only_held_back=True
        )

    @property
    def num_people(self) -> int:
        """How many people they show; without any there are no windows."""
        return self._sampler.num_people

    @torch.no_grad()
    def losses(self, network: EfficientHRNet, bf16: bool = True) -> np.ndarray:
        """(batches, len(PARTS)) float64, the parts of the loss in each; see ``compute_losses``.

        Computes where the network is, in the mode for use, with the usual weights of the losses but
        without that of sides, whose noise would hide the others.
        """
        network.eval()
        device = next(network.parameters()).device
        options = LossOptions(sides=0.0)
        rows = []
        for start in range(0, _BATCHES * _BATCH, _BATCH):
            numbers = range(start, start + _BATCH)
            windows = [self._sampler.sample(number, _SIDE, _SHOWN) for number in numbers]
            batch = collate(windows).to(device)
            predicted = predict(network, batch.images, bf16)
            parts = compute_losses(predicted, batch, options, shared=False)
            rows.append([float(parts[name]) for name in PARTS])
        return np.array(rows)


@torch.no_grad()
def box_oks(
    network: torch.nn.Module, people: Sequence[HeldBackPerson], bf16: bool = True
) -> dict[str, float]:
    """BoxOKS, of all and of groups of keypoints, the share of people above 0.5, and sides.

    Computes where the network is.
    """
    network.eval()
    device = next(network.parameters()).device
    var = (2 * np.array(COCO_17.sigmas)) ** 2
    terms = np.full((len(people), 17), np.nan)
    sides: dict[str, list[bool]] = {name: [] for name in _PAIRS}
    for start in range(0, len(people), _BATCH):
        part = people[start : start + _BATCH]
        images = normalise(np.stack([person.picture for person in part])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            lowres, highres = network(images)
        maps = heat_and_tags(lowres, highres, COCO_17.num_keypoints)[0].cpu().numpy()
        for n, person in enumerate(part):
            h, w = maps.shape[2:]
            low = np.clip(np.floor(person.box[:2] / 2), 0, [w - 1, h - 1]).astype(int)
            high = np.clip(np.ceil(person.box[2:] / 2) + 1, low + 1, [w, h]).astype(int)
            crop = maps[n, :, low[1] : high[1], low[0] : high[0]]
            place = crop.reshape(17, -1).argmax(1)
            cells = np.stack([place % crop.shape[2] + low[0], place // crop.shape[2] + low[1]], -1)
            d2 = ((to_pixels(cells, 2) - person.keypoints[:, :2]) ** 2).sum(-1)
            good = np.exp(-d2 / (2 * var * max(person.area, 1.0)))
            labelled = person.keypoints[:, 2] == POSITIVE
            terms[start + n, labelled] = good[labelled]
            for name, (left, right) in _PAIRS.items():
                gap = np.linalg.norm(person.keypoints[left, :2] - person.keypoints[right, :2])
                if labelled[[left, right]].all() and gap >= _APART * person.area**0.5:
                    sides[name].append(_own_side(maps[n, [left, right]], person.keypoints, left))
    return {
        "box_oks": _mean(terms),
        "p50": float(np.mean([_mean(one) > 0.5 for one in terms])),
        "face": _mean(terms[:, :5]),
        "arms": _mean(terms[:, 5:11]),
        "legs": _mean(terms[:, 11:]),
        **{name: float(np.mean(right)) if right else float("nan") for name, right in sides.items()},
    }


def _mean(terms: np.ndarray) -> float:
    """Of those that are not NaN; NaN where there are none."""
    known = terms[~np.isnan(terms)]
    return float(known.mean()) if known.size else float("nan")


def _own_side(maps: np.ndarray, keypoints: np.ndarray, left: int) -> bool:
    """Whether maps (2, H, W) of a left and a right keypoint fit better so than the other way."""
    cells = np.round(to_cells(keypoints[left : left + 2, :2], 2)).astype(int)
    x, y = np.clip(cells, 0, np.array(maps.shape[:0:-1]) - 1).T
    near = [
        maps[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max((1, 2))
        for column, row in zip(x, y, strict=True)
    ]
    return bool(near[0][0] + near[1][1] > near[0][1] + near[1][0])


def told(measured: dict[str, float]) -> str:
    """A line about what ``box_oks`` measured."""
    if not measured:
        return "held back: nobody to measure on"
    parts = ", ".join(f"{name} {measured[name]:.3f}" for name in ("face", "arms", "legs"))
    share = 100 * measured["p50"]
    partly = ""
    if "partly_seen" in measured:
        partly = f"; of people partly seen {measured['partly_seen']:.3f}"
    if "loss" in measured:
        partly += f"; loss {measured['loss']:.3f}"
    sides = ", ".join(
        f"{name} {100 * measured[f'{name}_sides']:.0f} %" for name in ("knee", "ankle")
    )
    return (
        f"held back: boxOKS {measured['box_oks']:.3f} ({parts}), {share:.0f} % of people above .5, "
        f"sides right: {sides}{partly}"
    )
