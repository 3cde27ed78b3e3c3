"""Two slow ways on whole maps: the host's twin of the exported graph, and the published decoder.

`find_peaks` does with numpy what network/deploy.py puts into the graph, for tests and for maps
that come from elsewhere. `decode_reference` reproduces how the authors decode (HigherHRNet's test
procedure with their settings), flaws included; it exists to be compared with. Robots use decode.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import COORDINATES, MAX_PEAKS, PEAK_CHANNELS
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

_NMS_KERNEL = 5
# As in network/deploy.py: below this a heatmap value is noise.
_MIN_HEAT = 1e-3
_MIN_CURVATURE = 1e-6
# A column of this cost is taken only where there are more candidates than people.
_NOBODY = 1e10
# Keypoints in the order in which the reference hands them to people: head, then downwards.
_ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)


def find_peaks(
    lowres: np.ndarray, highres: np.ndarray, coordinates: str = "pixel-centre"
) -> np.ndarray:
    """The best 30 local maxima per keypoint of one image, as the exported graph gives them.

    Args:
        lowres: (2 J, h, w), J heatmaps then J tag maps, at a quarter of the input size.
        highres: (J, 2 h, 2 w) heatmaps at half of it.
        coordinates: convention of the weights, see ModelInfo.

    Returns:
        float32 (J, 30, 15), laid out as runtime.py says. NaN in a heatmap makes all scores of its
        keypoint NaN.

    Raises:
        EhrnetError: the maps do not fit each other, or the convention is unknown.
    """
    if coordinates not in COORDINATES:
        raise EhrnetError(
            f"coordinate convention {coordinates!r} is unknown: use one of "
            f"{', '.join(COORDINATES)}."
        )
    low, tags, high = _split(lowres, highres)
    heat = (enlarge(low) + high) * np.float32(0.5)
    count, height, width = heat.shape
    tags = enlarge(tags)
    maxima = np.where(heat == _local_maximum(heat), heat, 0)
    order = np.argsort(-maxima.reshape(count, -1), axis=1, kind="stable")[:, :MAX_PEAKS]
    cell_y, cell_x = np.divmod(order, width)
    each = np.arange(count)[:, None]

    peaks = np.zeros((count, MAX_PEAKS, PEAK_CHANNELS), np.float32)
    filled = peaks[:, : order.shape[1]]
    patch = np.stack(
        [
            heat[each, np.clip(cell_y + dy, 0, height - 1), np.clip(cell_x + dx, 0, width - 1)]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ],
        -1,
    )
    shift_x = _shift(patch[..., 3], patch[..., 4], patch[..., 5], coordinates)
    shift_y = _shift(patch[..., 1], patch[..., 4], patch[..., 7], coordinates)
    shift_x[(cell_x == 0) | (cell_x == width - 1)] = 0
    shift_y[(cell_y == 0) | (cell_y == height - 1)] = 0
    centre = COORDINATES[coordinates]
    filled[..., 0] = np.maximum(maxima[each, cell_y, cell_x], 0)
    filled[..., 1] = (cell_x + shift_x) * 2 + centre
    filled[..., 2] = (cell_y + shift_y) * 2 + centre
    filled[..., 3] = tags[each, cell_y, cell_x]
    filled[..., 4], filled[..., 5] = cell_x, cell_y
    filled[..., 6:] = patch
    peaks[np.isnan(heat).any((1, 2)), :, 0] = np.nan
    return peaks


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

    def to_poses(self) -> Poses:
        """As Poses, best first; positions keep the reference's half-pixel convention."""
        best = np.argsort(-self.person_score, kind="stable")
        unknown = np.full(self.refined.shape[:2], np.nan)
        score = self.refined[..., 2]
        return Poses.build(self.image_xy, score, unknown, self.person_score)[best]


def decode_reference(
    lowres: np.ndarray,
    highres: np.ndarray,
    image_hw: Tuple[int, int],
    mirrored: Optional[Tuple[np.ndarray, np.ndarray]] = None,
    heat_threshold: float = 0.1,
    tag_threshold: float = 1.0,
    max_people: int = 30,
    skeleton: SkeletonInfo = COCO_17,
) -> ReferenceDecode:
    """Decodes whole maps exactly as the published evaluation does (settings of its configs).

    Kept on purpose: every candidate must be matched, on tag distances rounded to integers; only
    the first `max_people` groups can receive keypoints; people are known by the value of a tag;
    missing keypoints are taken from anywhere in the image. decode.py mends all of these.

    Args:
        lowres: (2 J, h, w), J heatmaps then J tag maps, at a quarter of the input size.
        highres: (J, 2 h, 2 w) heatmaps at half of it.
        image_hw: size of the image whose short side was scaled to the input's short side, around
            its centre.
        mirrored: (lowres, highres) of the mirrored image as the network gave them; then heatmaps
            are averaged and each keypoint has two tags.
        heat_threshold: candidates are above it.
        tag_threshold: a candidate joins a person only closer than this.
        max_people: groups that can receive keypoints, and candidates per keypoint.
        skeleton: J keypoints.

    Raises:
        EhrnetError: maps that do not fit each other or the skeleton, or SciPy is not installed.
    """
    if skeleton.num_keypoints != len(_ORDER):
        raise EhrnetError(
            f"the reference decodes {len(_ORDER)} keypoints in a fixed order, skeleton "
            f"{skeleton.name} has {skeleton.num_keypoints}: use the normal decoder."
        )
    heat, tag = _project(lowres, highres)
    tags = tag[..., None]
    if mirrored is not None:
        other_heat, other_tag = _project(*mirrored)
        back = list(skeleton.flip)
        heat = (heat + other_heat[back, :, ::-1]) / np.float32(2)
        tags = np.stack([tag, other_tag[back, :, ::-1]], -1)
    matched = _group(_candidates(heat, tags, max_people), heat_threshold, tag_threshold, max_people)
    refined = _adjust(matched, heat)
    person_score = matched[:, :, 2].mean(1)
    _refine(refined, heat, tags)
    return ReferenceDecode(
        matched, refined, _to_image(refined[..., :2], heat.shape[1:], image_hw), person_score
    )


def enlarge(maps: np.ndarray) -> np.ndarray:
    """(..., h, w) -> (..., 2 h, 2 w) bilinearly, half-pixel centres, borders repeated."""
    return _enlarge_last(_enlarge_last(maps).swapaxes(-1, -2)).swapaxes(-1, -2)


def _enlarge_last(maps: np.ndarray) -> np.ndarray:
    out = np.empty(maps.shape[:-1] + (2 * maps.shape[-1],), np.float32)
    own = maps * np.float32(0.75)
    near = maps * np.float32(0.25)
    out[..., 2::2] = near[..., :-1] + own[..., 1:]
    out[..., 1:-1:2] = own[..., :-1] + near[..., 1:]
    out[..., 0], out[..., -1] = maps[..., 0], maps[..., -1]
    return out


def _split(lowres: np.ndarray, highres: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 heatmaps and tags at 1/4 and heatmaps at 1/2; EhrnetError where they do not fit."""
    low, high = np.asarray(lowres, np.float32), np.asarray(highres, np.float32)
    if low.ndim != 3 or high.shape != (low.shape[0] / 2, 2 * low.shape[1], 2 * low.shape[2]):
        raise EhrnetError(
            f"maps of shapes {low.shape} and {high.shape} do not fit: for J keypoints they are "
            "(2 J, h, w) and (J, 2 h, 2 w), one image without batch axis."
        )
    return low[: len(high)], low[len(high) :], high


def _local_maximum(maps: np.ndarray) -> np.ndarray:
    """The largest value in the 5x5 cells around each cell of (J, h, w)."""
    reach = _NMS_KERNEL // 2
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        padded = np.pad(maps, pad, constant_values=-np.inf)
        size = maps.shape[axis]
        views = [np.take(padded, np.arange(size) + i, axis) for i in range(_NMS_KERNEL)]
        maps = np.maximum.reduce(views)
    return maps


def _shift(before: np.ndarray, peak: np.ndarray, after: np.ndarray, coordinates: str) -> np.ndarray:
    """Where the maximum lies between two neighbours, -0.5 .. 0.5 cells, see network/deploy.py."""
    if coordinates != "pixel-centre":
        return np.sign(after - before) * np.float32(0.25)
    before, peak, after = (
        np.log(np.maximum(v, np.float32(_MIN_HEAT))) for v in (before, peak, after)
    )
    curvature = np.maximum(2 * peak - before - after, np.float32(_MIN_CURVATURE))
    offset: np.ndarray = np.clip((after - before) / 2 / curvature, -0.5, 0.5)
    return offset


def _project(lowres: np.ndarray, highres: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Heatmaps and tags (J, H, W) at the input's size."""
    low, tags, high = _split(lowres, highres)
    return enlarge((enlarge(low) + high) / np.float32(2)), enlarge(enlarge(tags))


def _candidates(heat: np.ndarray, tags: np.ndarray, limit: int) -> np.ndarray:
    """(J, limit, 3 + T): x, y, value, tags of the highest local maxima; equal neighbours stay."""
    count, _, width = heat.shape
    maxima = np.where(heat == _local_maximum(heat), heat, 0).reshape(count, -1)
    order = np.argsort(-maxima, axis=1, kind="stable")[:, :limit]
    y, x = np.divmod(order, width)
    each = np.arange(count)[:, None]
    parts = [x[..., None], y[..., None], maxima[each, order][..., None], tags[each, y, x]]
    return np.concatenate(parts, -1).astype(np.float32)


def _group(
    candidates: np.ndarray, heat_threshold: float, tag_threshold: float, max_people: int
) -> np.ndarray:
    """(G, J, 3 + T): candidates handed to people, keypoint after keypoint."""
    solve = _assignment()
    blank = np.zeros((len(candidates), candidates.shape[2]), np.float32)
    # The first tag component's value is the key, so two people with one value are one.
    people: Dict[float, np.ndarray] = {}
    members: Dict[float, List[np.ndarray]] = {}
    for keypoint in _ORDER:
        found = candidates[keypoint]
        found = found[found[:, 2] > heat_threshold]
        if not len(found):
            continue
        known = list(people)[:max_people]
        row_of: Dict[int, float] = {}
        if known:
            means = np.stack([np.mean(members[key], axis=0) for key in known])
            distance = np.linalg.norm(found[:, None, 3:] - means[None], axis=2)
            cost = np.full((len(found), max(len(found), len(known))), _NOBODY)
            cost[:, : len(known)] = np.round(distance) * 100 - found[:, 2:3]
            for row, column in zip(*solve(cost)):
                if column < len(known) and distance[row, column] < tag_threshold:
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


def _assignment() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise EhrnetError(
            "the reference decoder needs SciPy for its assignment, which is not installed: "
            "`pip install scipy`, or use the normal decoder, which does without."
        ) from None
    return linear_sum_assignment


def _quarter(heat: np.ndarray, keypoint: int, x: int, y: int) -> Tuple[float, float]:
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


def _to_image(xy: np.ndarray, input_hw: Tuple[int, ...], image_hw: Tuple[int, int]) -> np.ndarray:
    """Back through the reference's scaling: short sides meet, rounded centres meet."""
    short = int(np.argmin(image_hw))
    factor = image_hw[short] / input_hw[short]
    middle = np.array([input_hw[1], input_hw[0]]) / 2
    centre = np.array([int(image_hw[1] / 2 + 0.5), int(image_hw[0] / 2 + 0.5)])
    return ((xy - middle) * factor + centre).astype(np.float32)
