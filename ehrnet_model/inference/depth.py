"""Keypoints and an aligned depth image to positions in metres.

What a keypoint's pixel shows is often not the person: wrists lie on edges, where depth jumps to the
wall or floats between; sensors leave holes around bodies; a table or somebody else stands before.
So a keypoint's depth comes from the samples around it and from its person: first the depth of the
body, then joint after joint outwards, each no farther in depth from its neighbour than bones allow.
Among the surfaces left it is the nearest one that is more than stray pixels, and of that surface
the samples nearest to the keypoint.

Shapes: P people, J = 17 keypoints in the order of COCO, N keypoints at once, S samples each.
Metres in the optical frame: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, NamedTuple, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.options import check_options, option
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17

_MM = 1e-3
_NO_DEPTH = 1e-6  # 0 marks a hole
# Half the side of the square around a keypoint that is looked at, in metres on the body and at
# least in pixels; samples along a side.
_REACH_M, _REACH_PX, _SIDE = 0.06, 2.0, 7
# Samples of one surface lie in a slice of this depth; of noisy far ones in this share of it.
_SLICE_M, _SLICE_SHARE = 0.05, 0.02
# A surface has this share of all samples, counted more in the middle, this one of the samples of
# the largest surface, and at least so many.
_LEAST_OF_ALL, _LEAST_OF_BEST, _LEAST_SAMPLES = 0.08, 0.8, 3
# The depth is a median over so many samples of the surface.
_AVERAGED = 9
# The body: a slice so deep that it holds a torso from any side.
_BODY_SLICE_M = 0.4
_BODY_SHARE = 0.5
# Where somebody else's flesh is, as a share of the size in pixels from a line of the skeleton, it
# may be that one who is seen: such samples count less.
_FLESH, _CONTESTED = 0.1, 0.15
# Lines on which the body is looked for, with weights: across the torso, then along the limbs.
_BODY_LINES = (
    *((a, b, 3.0) for a, b in ((5, 12), (6, 11), (5, 11), (6, 12), (5, 6), (11, 12))),
    *((a, b, 1.0) for a, b in COCO_17.edges if (a, b) not in ((5, 11), (6, 12), (5, 6), (11, 12))),
)
_ALONG = np.linspace(0.1, 0.9, 7)
# From the body outwards: joints, whose depth is near that of which joints (none: the body), metres.
_STEPS: Tuple[Tuple[Tuple[int, ...], Tuple[Tuple[int, ...], ...], float], ...] = (
    ((5, 6, 11, 12), ((), (), (), ()), 0.5),
    ((0, 1, 2, 3, 4), ((5, 6),) * 5, 0.4),
    ((7, 8), ((5,), (6,)), 0.4),
    ((13, 14), ((11,), (12,)), 0.5),
    ((9, 10), ((7,), (8,)), 0.35),
    ((15, 16), ((13,), (14,)), 0.5),
)


@dataclass(frozen=True)
class DepthOptions:
    """What counts as depth. Every field may change between two images.

    Raises:
        EhrnetError: a value is not possible, or there is nothing between the two.
    """

    depth_min_m: float = option(0.1, 0.0, 100.0, "[m] nearer than this is no depth.")
    depth_max_m: float = option(15.0, 0.1, 1000.0, "[m] farther than this is no depth.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.depth_min_m >= self.depth_max_m:
            raise EhrnetError(
                f"depth_min_m = {self.depth_min_m:g} has to be less than depth_max_m = "
                f"{self.depth_max_m:g}: between them is what counts as depth."
            )


class _Image(NamedTuple):
    """A depth image as it came: metres are made of the samples only.

    Attributes:
        raw: (H, W) uint16 or float32.
        unit: metres of a raw 1.
        low: least depth that counts.
        high: greatest.
    """

    raw: np.ndarray
    unit: float
    low: float
    high: float

    def at(self, points: np.ndarray) -> np.ndarray:
        """(...,) metres at the pixels nearest to (..., 2) points; NaN in holes and outside."""
        height, width = self.raw.shape
        # Clipped before the cast: a keypoint may lie anywhere, or nowhere.
        whole = np.rint(np.nan_to_num(points, nan=-1.0).clip(-1, 1e6)).astype(np.int64)
        column, row = whole[..., 0], whole[..., 1]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        if not self.raw.size:
            return np.full(column.shape, np.nan)
        taken = self.raw[np.where(inside, row, 0), np.where(inside, column, 0)]
        metres = taken.astype(np.float64) * self.unit
        # NaN fits nowhere.
        return np.where(inside & (metres >= self.low) & (metres <= self.high), metres, np.nan)


def lift(poses: Poses, depth: np.ndarray, camera: np.ndarray, options: DepthOptions) -> np.ndarray:
    """(P, 17, 3) float32 metres in the optical frame; NaN where there is no depth of the person.

    A position is where the surface of the body faces the camera, not the middle of the joint.

    Args:
        poses: in pixels of the depth image, which has to be aligned to the picture they come from;
            both rectified.
        depth: (H, W) uint16 millimetres (16UC1) or float32 metres (32FC1) along the optical axis,
            in any byte order; 0, NaN and infinity mark holes.
        camera: (3, 3) matrix of the rectified picture: the left part of CameraInfo's P.
        options: which depths count.

    Raises:
        EhrnetError: a depth image of another type, or a camera without focal length, or people of
            another skeleton.
    """
    if poses.score.shape[1] != COCO_17.num_keypoints:
        raise EhrnetError(
            f"these people have {poses.score.shape[1]} keypoints: depth is known for the "
            f"{COCO_17.num_keypoints} of COCO."
        )
    if camera.shape != (3, 3) or not (camera[0, 0] > 0 and camera[1, 1] > 0):
        raise EhrnetError(
            f"the camera matrix {camera.tolist()} has no focal length: calibrate the camera, or "
            "use the CameraInfo of the aligned depth image."
        )
    if depth.ndim != 2 or depth.dtype.newbyteorder("=") not in (np.uint16, np.float32):
        raise EhrnetError(
            f"a depth image is (height, width) of uint16 millimetres or float32 metres, not "
            f"{depth.shape} of {depth.dtype}: give the depth image as it came from the camera."
        )
    unit = _MM if depth.dtype.kind == "u" else 1.0
    image = _Image(depth, unit, max(options.depth_min_m, _NO_DEPTH), options.depth_max_m)
    if not len(poses):
        return np.zeros((0, COCO_17.num_keypoints, 3), np.float32)
    xy = poses.xy.astype(np.float64)
    z = _depths(image, xy, float(camera[0, 0]))
    x = (xy[..., 0] - camera[0, 2]) / camera[0, 0] * z
    y = (xy[..., 1] - camera[1, 2]) / camera[1, 1] * z
    return np.stack([x, y, z], 2).astype(np.float32)


def _depths(image: _Image, xy: np.ndarray, focal: float) -> np.ndarray:
    """(P, 17) metres."""
    depth = np.full(xy.shape[:2], np.nan)
    body = _body_depth(image, xy)
    # Where each joint's depth is expected, and how far off it may be.
    anchor = np.repeat(body[:, None], xy.shape[1], 1)
    reach = np.zeros_like(anchor)
    for joints, neighbours, metres in _STEPS:
        for joint, near in zip(joints, neighbours):
            reach[:, joint] = metres
            if not near:
                continue
            ends = depth[:, near]
            known = np.isfinite(ends)
            mean = np.nansum(ends, 1) / np.maximum(known.sum(1), 1)
            some = known.any(1)
            anchor[:, joint] = np.where(some, mean, anchor[:, near[0]])
            # From a neighbour that is not known, its own reach comes on top.
            reach[:, joint] += np.where(some, 0, reach[:, near[0]])
        index = list(joints)
        flat = _surfaces(
            image,
            xy[:, index].reshape(-1, 2),
            anchor[:, index].ravel(),
            reach[:, index].ravel(),
            focal,
        )
        depth[:, index] = flat.reshape(len(xy), len(index))
    return depth


def _body_depth(image: _Image, xy: np.ndarray) -> np.ndarray:
    """(P,) depth of the nearest surface that fills enough of the body; NaN where there is none."""
    starts, ends = (list(side) for side in zip(*((a, b) for a, b, _ in _BODY_LINES)))
    weight = np.repeat([w for _, _, w in _BODY_LINES], len(_ALONG))
    a, b = xy[:, starts, None], xy[:, ends, None]
    points = a + (b - a) * _ALONG[:, None]
    # Somebody of whom no line is known still has keypoints.
    points = np.concatenate([points.reshape(len(xy), -1, 2), xy], 1)
    weight = np.concatenate([weight, np.ones(xy.shape[1])])
    value = image.at(points)
    weights = np.where(np.isfinite(value), weight, 0.0)
    for one, other in _overlapping(xy):
        weights[one] *= np.where(_on_body(points[one], xy[other]), _CONTESTED, 1.0)
    low, share = _slices(value, weights, np.full(len(xy), _BODY_SLICE_M))
    good = (share >= _BODY_SHARE * share.max(1, keepdims=True, initial=0)) & (share > 0)
    start = np.where(good, low, np.inf).min(1, initial=np.inf)
    inside = (value >= start[:, None]) & (value <= start[:, None] + _BODY_SLICE_M)
    return _median(value, inside)


def _overlapping(xy: np.ndarray) -> List[Tuple[int, int]]:
    """Ordered pairs of people whose boxes overlap."""
    low, high = np.fmin.reduce(xy, 1), np.fmax.reduce(xy, 1)
    meet = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(2)
    np.fill_diagonal(meet, False)
    return list(zip(*(index.tolist() for index in np.nonzero(meet))))


def _on_body(points: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(S,) which of (S, 2) pixels lie on the flesh of somebody with (17, 2) keypoints."""
    sides = np.fmax.reduce(xy, 0) - np.fmin.reduce(xy, 0)
    flesh = _FLESH * max(float(np.sqrt(sides.prod())), 0.4 * float(sides.max()))
    starts, ends = (list(side) for side in zip(*((a, b) for a, b, _ in _BODY_LINES)))
    a, way = xy[starts], xy[ends] - xy[starts]
    length = np.maximum((way**2).sum(1), 1e-9)
    along = (((points[:, None] - a) * way).sum(2) / length).clip(0, 1)
    square = ((points[:, None] - (a + along[..., None] * way)) ** 2).sum(2)
    return np.asarray((square < flesh**2).any(1))  # false for lines that are not known


def _surfaces(
    image: _Image, xy: np.ndarray, anchor: np.ndarray, reach: np.ndarray, focal: float
) -> np.ndarray:
    """(N,) depth of the person's surface at each keypoint, NaN where there is none.

    Args:
        image: depth.
        xy: (N, 2) keypoints in pixels, NaN where absent.
        anchor: (N,) depth near which it lies, in metres.
        reach: (N,) how near.
        focal: pixels.
    """
    radius = np.maximum(focal * _REACH_M / anchor, _REACH_PX)
    grid = np.linspace(-1, 1, _SIDE)
    offset = np.stack(np.meshgrid(grid, grid), 2).reshape(-1, 2)
    value = image.at(xy[:, None] + offset * radius[:, None, None])
    far = (offset**2).sum(1)
    closeness = np.exp(-far)
    likely = np.abs(value - anchor[:, None]) <= reach[:, None]
    weights = np.where(likely, closeness, 0.0)
    thick = np.maximum(_SLICE_M, _SLICE_SHARE * np.nan_to_num(anchor))
    low, share = _slices(value, weights, thick)
    best = share.max(1, initial=0)
    least = np.maximum(_LEAST_OF_ALL * closeness.sum(), _LEAST_OF_BEST * best)
    start = np.where(share >= least[:, None], low, np.inf).min(1, initial=np.inf)
    # The slice begins at the nearest stray pixel in it: the surface is around its median.
    within = likely & (value >= start[:, None]) & (value <= (start + thick)[:, None])
    middle = _median(value, within)
    surface = likely & (np.abs(value - middle[:, None]) <= thick[:, None])
    order = np.argsort(np.where(surface, far, np.inf), axis=1, kind="stable")[:, :_AVERAGED]
    nearest = np.take_along_axis(value, order, 1)
    chosen = np.take_along_axis(surface, order, 1)
    result = _median(nearest, chosen)
    return np.where(within.sum(1) >= _LEAST_SAMPLES, result, np.nan)


def _slices(
    value: np.ndarray, weight: np.ndarray, thick: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """All slices of depth that begin at a sample: (N, S) where, and (N, S) the weight inside.

    Args:
        value: (N, S) metres.
        weight: (N, S), 0 for samples that do not count.
        thick: (N,) metres.
    """
    value = np.where(weight > 0, value, np.inf)
    order = np.argsort(value, axis=1)
    low = np.take_along_axis(value, order, 1)
    total = np.cumsum(np.take_along_axis(weight, order, 1), 1)
    counts = np.isfinite(low)
    low_0 = np.where(counts, low, 0)
    inside = counts[:, None] & (low[:, None] <= (low_0 + thick[:, None])[:, :, None])
    last = np.maximum(inside.sum(2) - 1, 0)
    before = np.concatenate([np.zeros((len(value), 1)), total[:, :-1]], 1)
    share = np.where(counts, np.take_along_axis(total, last, 1) - before, 0)
    return low, share


def _median(value: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(N,) lower median of the chosen of (N, S); NaN where none is."""
    count = chosen.sum(1)
    ordered = np.sort(np.where(chosen, value, np.inf), axis=1)
    middle = np.maximum(count - 1, 0) // 2
    return np.where(count > 0, ordered[np.arange(len(value)), middle], np.nan)
