"""How the authors decode (HigherHRNet's test procedure with their settings), flaws included.

It exists to be compared with; decode.py is what robots use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrnet_model.inference.reference import _local_maximum, _split, enlarge
from ehrnet_model.skeleton import COCO_17

# Candidates are above the one; one joins a person only where its tag is closer than the other.
_HEAT, _TAGS_APART = 0.1, 1.0
# Groups that can receive keypoints, and candidates per keypoint.
_MOST = 30
# A column of this cost is taken only where there are more candidates than people.
_NOBODY = 1e10
# Keypoints in the order in which the reference hands them to people: head, then downwards.
_ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)


@dataclass(frozen=True)
class ReferenceDecode:
    """What the published decoder makes of one image: G groups in the order it found them.

    Attributes:
        matched: (G, J, 3 + T) float32: x, y, value and T tags of the keypoints that grouping gave
            each group, whole pixels of the network input; zeros where there is none.
        refined: (G, J, 3) float32: x, y, value after adjusting and refining, input pixels.
        image_xy: (G, J, 2) float32: the same positions in pixels of the image.
        person_score: (G,) float32, mean value over all J before refining, absent ones as 0.
    """

    matched: np.ndarray
    refined: np.ndarray
    image_xy: np.ndarray
    person_score: np.ndarray


def decode_reference(
    lowres: np.ndarray,
    highres: np.ndarray,
    image_hw: tuple[int, int],
    mirrored: tuple[np.ndarray, np.ndarray] | None = None,
) -> ReferenceDecode:
    """Decodes whole maps exactly as the published evaluation does (settings of its configs).

    Kept on purpose: every candidate must be matched, on tag distances rounded to integers; only
    the first 30 groups can receive keypoints; people are known by the value of a tag; missing
    keypoints are taken from anywhere in the image. decode.py mends all of these.

    Args:
        lowres: (2 J, h, w), J heatmaps then J tag maps, at a quarter of the input size.
        highres: (J, 2 h, 2 w) heatmaps at half of it.
        image_hw: size of the image whose short side was scaled to the input's short side, around
            its centre.
        mirrored: (lowres, highres) of the mirrored image as the network gave them; then heatmaps
            are averaged and each keypoint has two tags.
    """
    heat, tag = _project(lowres, highres)
    tags = tag[..., None]
    if mirrored is not None:
        other_heat, other_tag = _project(*mirrored)
        back = list(COCO_17.flip)
        heat = (heat + other_heat[back, :, ::-1]) / np.float32(2)
        tags = np.stack([tag, other_tag[back, :, ::-1]], -1)
    matched = _group(_candidates(heat, tags))
    refined = _adjust(matched, heat)
    person_score = matched[:, :, 2].mean(1)
    _refine(refined, heat, tags)
    return ReferenceDecode(
        matched, refined, _to_image(refined[..., :2], heat.shape[1:], image_hw), person_score
    )


def _project(lowres: np.ndarray, highres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heatmaps and tags (J, H, W) at the input's size."""
    low, tags, high = _split(lowres, highres)
    return enlarge((enlarge(low) + high) / np.float32(2)), enlarge(enlarge(tags))


def _candidates(heat: np.ndarray, tags: np.ndarray) -> np.ndarray:
    """(J, 30, 3 + T): x, y, value, tags of the highest local maxima; equal neighbours stay."""
    count, _, width = heat.shape
    maxima = np.where(heat == _local_maximum(heat), heat, 0).reshape(count, -1)
    order = np.argsort(-maxima, axis=1, kind="stable")[:, :_MOST]
    y, x = np.divmod(order, width)
    each = np.arange(count)[:, None]
    parts = [x[..., None], y[..., None], maxima[each, order][..., None], tags[each, y, x]]
    return np.concatenate(parts, -1).astype(np.float32)


def _group(candidates: np.ndarray) -> np.ndarray:
    """(G, J, 3 + T): candidates handed to people, keypoint after keypoint."""
    from scipy.optimize import linear_sum_assignment

    blank = np.zeros((len(candidates), candidates.shape[2]), np.float32)
    # The first tag component's value is the key, so two people with one value are one.
    people: dict[float, np.ndarray] = {}
    members: dict[float, list[np.ndarray]] = {}
    for keypoint in _ORDER:
        found = candidates[keypoint]
        found = found[found[:, 2] > _HEAT]
        if not len(found):
            continue
        known = list(people)[:_MOST]
        row_of: dict[int, float] = {}
        if known:
            means = np.stack([np.mean(members[key], axis=0) for key in known])
            distance = np.linalg.norm(found[:, None, 3:] - means[None], axis=2)
            cost = np.full((len(found), max(len(found), len(known))), _NOBODY)
            cost[:, : len(known)] = np.round(distance) * 100 - found[:, 2:3]
            for row, column in zip(*linear_sum_assignment(cost)):
                if column < len(known) and distance[row, column] < _TAGS_APART:
                    row_of[int(row)] = known[column]
        for row, candidate in enumerate(found):
            if row in row_of:
                key = row_of[row]
                members[key].append(candidate[3:])
            else:
                key = float(candidate[3])
                people.setdefault(key, blank.copy())
                members[key] = [candidate[3:]]
            people[key][keypoint] = candidate
    return np.stack(list(people.values())) if people else np.zeros((0,) + blank.shape, np.float32)


def _quarter(heat: np.ndarray, keypoint: int, x: int, y: int) -> tuple[float, float]:
    """Position of a cell: half a pixel on, a quarter towards the higher neighbour (tie: back)."""
    plane = heat[keypoint]
    height, width = plane.shape
    right, left = plane[y, min(x + 1, width - 1)], plane[y, max(x - 1, 0)]
    below, above = plane[min(y + 1, height - 1), x], plane[max(y - 1, 0), x]
    return x + (0.75 if right > left else 0.25), y + (0.75 if below > above else 0.25)


def _adjust(matched: np.ndarray, heat: np.ndarray) -> np.ndarray:
    refined = matched[:, :, :3].copy()
    for person, keypoint in np.argwhere(matched[:, :, 2] > 0):
        x, y = matched[person, keypoint, :2].astype(int)
        refined[person, keypoint, :2] = _quarter(heat, keypoint, x, y)
    return refined


def _refine(refined: np.ndarray, heat: np.ndarray, tags: np.ndarray) -> None:
    """Fills missing keypoints, in place, with the best value less rounded tag distance."""
    width = heat.shape[2]
    for person in refined:
        present = np.flatnonzero(person[:, 2] > 0)
        x, y = person[present, :2].astype(int).T
        own = tags[present, y, x].mean(0)
        for keypoint in np.flatnonzero(person[:, 2] == 0):
            distance = np.sqrt(((tags[keypoint] - own) ** 2).sum(-1))
            best = int(np.argmax(heat[keypoint] - np.round(distance)))
            value = heat[keypoint].flat[best]
            if value > 0:
                place = _quarter(heat, int(keypoint), best % width, best // width)
                person[keypoint] = (*place, value)


def _to_image(xy: np.ndarray, input_hw: tuple[int, ...], image_hw: tuple[int, int]) -> np.ndarray:
    """Back through the reference's scaling: short sides meet, rounded centres meet."""
    short = int(np.argmin(image_hw))
    factor = image_hw[short] / input_hw[short]
    middle = np.array([input_hw[1], input_hw[0]]) / 2
    centre = np.array([int(image_hw[1] / 2 + 0.5), int(image_hw[0] / 2 + 0.5)])
    return ((xy - middle) * factor + centre).astype(np.float32)
