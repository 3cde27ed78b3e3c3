"""How well keypoints are placed on people held back from training, their box given.

boxOKS: each keypoint is the highest place of its heatmap inside the person's box; the measure is
the mean keypoint similarity term over all labelled keypoints. It needs no grouping and no
threshold, so it moves long before average precision does. The heatmaps are those that people are
found on: the mean of both resolutions.

Sides: of people whose two ankles (or others) are labelled well apart, the share whose maps are
higher at the own places than at the other side's; a coin has .5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ehrnet_model.held_back import held_back
from ehrnet_model.network.deploy import heat_and_tags
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.training.batches import normalise
from ehrnet_model.training.labels import POSITIVE
from ehrnet_model.training.pack import Pack
from ehrnet_model.training.plans import affine
from ehrnet_model.training.targets import to_cells, to_pixels
from ehrnet_model.training.windows import warp

_PAIRS = {"knee_sides": (13, 14), "ankle_sides": (15, 16)}
# Left and right nearer than this share of the root of the person's area are not compared.
_APART = 0.25


@dataclass(frozen=True)
class HeldBackPerson:
    """A person cut out at a fixed size. R pixels on each side."""

    picture: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    area: float


def held_back_people(
    packs: Sequence[Pack], share: float, size: int = 160, fill: float = 0.8, limit: int = 240
) -> list[HeldBackPerson]:
    """People with 8 or more labelled keypoints, 80 pixels and more, from the images held back."""
    people: list[HeldBackPerson] = []
    for pack in packs:
        for i, labels in enumerate(pack.labels):
            if not held_back(pack.records[i]["id"], share):
                continue
            for p in np.flatnonzero(labels.human):
                visible = (labels.keypoints[p, :, 2] == POSITIVE).sum()
                x, y, w, h = labels.boxes[p]
                if visible < 8 or max(w, h) < 80 or len(people) >= limit:
                    continue
                matrix = affine((x + w / 2, y + h / 2), max(w, h) / fill, size)
                scene = warp(pack.picture(i), labels, matrix, size, False)
                scale = matrix[0, 0]
                low = matrix[:, :2] @ [x, y] + matrix[:, 2]
                box = np.concatenate([low, low + scale * np.array([w, h])])
                area = float(labels.areas[p] * scale**2)
                people.append(HeldBackPerson(scene.picture, scene.keypoints[p], box, area))
    return people


@torch.no_grad()
def box_oks(
    network: torch.nn.Module, people: Sequence[HeldBackPerson], bf16: bool = True, batch: int = 16
) -> dict[str, float]:
    """BoxOKS, of all and of groups of keypoints, the share of people above 0.5, and sides.

    Computes where the network is.
    """
    network.eval()
    device = next(network.parameters()).device
    var = (2 * np.array(COCO_17.sigmas)) ** 2
    terms = np.full((len(people), 17), np.nan)
    sides: dict[str, list[bool]] = {name: [] for name in _PAIRS}
    for start in range(0, len(people), batch):
        part = people[start : start + batch]
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
    with np.errstate(invalid="ignore"):
        mean = np.nanmean(terms, axis=1)
    return {
        "box_oks": float(np.nanmean(terms)),
        "p50": float((mean > 0.5).mean()),
        "face": float(np.nanmean(terms[:, :5])),
        "arms": float(np.nanmean(terms[:, 5:11])),
        "legs": float(np.nanmean(terms[:, 11:])),
        **{name: float(np.mean(right)) if right else float("nan") for name, right in sides.items()},
    }


def _own_side(maps: np.ndarray, keypoints: np.ndarray, left: int) -> bool:
    """Whether maps (2, H, W) of a left and a right keypoint fit better so than the other way."""
    cells = np.round(to_cells(keypoints[left : left + 2, :2], 2)).astype(int)
    x, y = np.clip(cells, 0, np.array(maps.shape[:0:-1]) - 1).T
    near = [
        maps[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max((1, 2))
        for column, row in zip(x, y, strict=True)
    ]
    return bool(near[0][0] + near[1][1] > near[0][1] + near[1][0])
