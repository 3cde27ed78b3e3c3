"""Millimetres by which keypoints in space are off, on rendered depth of known geometry.

    python -m benchmarks.depth [--json FILE] [--page docs/depth.md] [--images 10]

Bodies of capsules stand before a wall and are rendered as a depth camera sees them: noise that
grows with the square of the distance, holes at random and along edges, pixels that float between
body and wall. The truth is where the ray of a keypoint meets its own body. Beside ours the plain
way: the depth of the keypoint's pixel.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import walkers
from benchmarks.report import machine, print_table, summary, write_json, write_page
from ehrnet_model.inference.depth import DepthOptions, lift
from ehrnet_model.inference.poses import Poses

CAMERA = np.array(
    [
        [walkers.FOCAL_PX, 0, walkers.CENTRE_PX[0]],
        [0, walkers.FOCAL_PX, walkers.CENTRE_PX[1]],
        [0, 0, 1],
    ]
)
HIT_MM = 100.0  # farther off counts as the wrong surface


@dataclass(frozen=True)
class Scene:
    """Depth as a sensor gives it, and the truth.

    Attributes:
        depth: (H, W) float32 metres, 0 in holes.
        poses: as a detector finds them.
        xyz: (P, 17, 3) where the detector's rays meet the people's own bodies; NaN where the true
            keypoint is hidden by something else or its ray misses the body.
    """

    depth: np.ndarray
    poses: Poses
    xyz: np.ndarray


def capsule(rays: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """(M,) depth z at which rays (M, 3) from the origin enter a capsule; infinity where none."""
    way = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    axis = b - a
    length, along, before = axis @ axis, way @ axis, -a @ axis
    with np.errstate(invalid="ignore", divide="ignore"):
        p = length - along**2
        q = length * (way @ -a) - before * along
        root = np.sqrt(q**2 - p * (length * (a @ a) - before**2 - radius**2 * length))
        t = (-q - root) / p
        place = before + t * along
        side = np.where((place > 0) & (place < length), t, np.inf)
        distance = np.fmin(side, np.inf)
        for centre in (a, b):
            middle = way @ centre
            end = middle - np.sqrt(middle**2 - (centre @ centre - radius**2))
            distance = np.fmin(distance, end)
    return np.asarray(np.where(distance > 0, distance * way[:, 2], np.inf))


def rays_of(xy: np.ndarray) -> np.ndarray:
    """(M, 3) directions with z = 1 through (M, 2) pixels."""
    flat = (xy - (CAMERA[0, 2], CAMERA[1, 2])) / (CAMERA[0, 0], CAMERA[1, 1])
    return np.concatenate([flat, np.ones((len(xy), 1))], 1)


def body_depth(points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(M,) depth at which rays meet the flesh around (17, 3) keypoints."""
    depth = np.full(len(rays), np.inf)
    for a, b, radius in walkers.LIMBS:
        depth = np.minimum(depth, capsule(rays, points[a], points[b], radius))
    return depth


def render(bodies: list[np.ndarray], wall_m: float, table: bool) -> np.ndarray:
    """(H, W) metres, exact: bodies, a wall, the floor, and a table top's edge on request."""
    height, width = walkers.IMAGE_HW
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = rays_of(np.stack([x.ravel(), y.ravel()], 1).astype(float))
    floor = np.where(
        rays[:, 1] > 1e-6, walkers.CAMERA_HEIGHT_M / np.maximum(rays[:, 1], 1e-6), np.inf
    )
    depth = np.minimum(floor, wall_m)
    for points in bodies:
        xy = walkers.project(points)
        reach = walkers.FOCAL_PX * 0.2 / points[:, 2].min()
        (x0, y0), (x1, y1) = np.floor(xy.min(0) - reach), np.ceil(xy.max(0) + reach)
        near = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
        index = np.flatnonzero(near.ravel())
        depth[index] = np.minimum(depth[index], body_depth(points, rays[index]))
    if table:  # a board across the picture half a metre before the nearest body, hip high
        z = min(points[:, 2].min() for points in bodies) - 0.5
        top, bottom = (walkers.FOCAL_PX * h / z + CAMERA[1, 2] for h in (0.50, 0.56))
        board = (y.ravel() >= top) & (y.ravel() <= bottom)
        depth[board] = np.minimum(depth[board], z)
    return depth.reshape(height, width)


def sensed(exact: np.ndarray, rng: np.random.Generator, holes: float, noise: float) -> np.ndarray:
    """What a sensor makes of it: float32 metres with 0 in holes."""
    depth = exact.astype(np.float32)
    low, high = cv2.erode(depth, np.ones((5, 5))), cv2.dilate(depth, np.ones((5, 5)))
    edge = high - low > 0.15
    if holes:
        flying = edge & (rng.random(depth.shape) < 0.3)
        share = rng.random(depth.shape).astype(np.float32)
        depth = np.where(flying, low + share * (high - low), depth)
        # Behind an edge, to its left, the second eye of a stereo camera sees nothing.
        shadow = (
            exact - cv2.erode(exact.astype(np.float32), np.ones((1, 13)), anchor=(0, 0))
        ) > 0.15
        lost = shadow & (rng.random(depth.shape) < 0.8)
        blobs = cv2.GaussianBlur(rng.normal(0, 1, depth.shape).astype(np.float32), (0, 0), 3)
        lost |= blobs > np.quantile(blobs, 1 - holes)
        depth = np.where(lost, 0, depth)
    noisy = depth + rng.normal(0, 1, depth.shape) * noise * depth**2
    return np.asarray(np.where(depth > 0, np.round(noisy, 3), 0), np.float32)


SCENES: dict[str, dict[str, Any]] = {
    "clean, wall far behind": {"wall": 7.0},
    "noise, holes, flying pixels": {"wall": 7.0, "holes": 0.2, "noise": 0.003},
    "the same, keypoints 5 px off": {"wall": 7.0, "holes": 0.2, "noise": 0.003, "off": 5.0},
    "the same, wall 0.3 m behind": {"wall": 0.3, "holes": 0.2, "noise": 0.003, "off": 5.0},
    "the same, a board before them": {
        "wall": 7.0, "holes": 0.2, "noise": 0.003, "off": 5.0, "table": True,
    },
    "the same, two people overlap": {
        "wall": 7.0, "holes": 0.2, "noise": 0.003, "off": 5.0, "second": True,
    },
}  # fmt: skip


def scene(
    seed: int,
    wall: float,
    holes: float = 0.0,
    noise: float = 0.0,
    off: float = 0.0,
    table: bool = False,
    second: bool = False,
) -> Scene:
    """Somebody at 1.8 to 4 m, turned any way; a wall below 1 m is that far behind the body."""
    rng = np.random.default_rng(seed)
    place = np.array([rng.uniform(-0.4, 0.4), rng.uniform(1.8, 4.0)])
    bodies = []
    for number in range(2 if second else 1):
        there = place + number * np.array([0.3, 0.9])
        points = walkers.body(rng.uniform(1.55, 1.9), rng.uniform(0, 2 * np.pi))
        bodies.append(walkers.turned(points, there, np.pi + rng.uniform(-1.2, 1.2)))
    if wall < 1:
        wall += float(bodies[0][:, 2].max())
    exact = render(bodies, wall, table)
    found, truth = [], []
    for points in bodies:
        xy = walkers.project(points)
        own = body_depth(points, rays_of(xy))
        inside = ((xy > 0) & (xy < (walkers.IMAGE_HW[1] - 1, walkers.IMAGE_HW[0] - 1))).all(1)
        at = np.rint(np.where(inside[:, None], xy, 0)).astype(int)
        # Hidden by something else: another surface 3 cm and more before its own.
        hidden = exact[at[:, 1], at[:, 0]] < own - 0.03
        truth.append(np.where((inside & ~hidden)[:, None], rays_of(xy) * own[:, None], np.nan))
        found.append(np.where(inside[:, None], xy + rng.normal(0, 1, xy.shape) * off, np.nan))
    xy = np.array(found)
    poses = Poses.build(
        xy, np.full(xy.shape[:2], 0.8), np.full(xy.shape[:2], 1.0), np.ones(len(xy))
    )
    return Scene(sensed(exact, rng, holes, noise), poses, np.array(truth))


def plain(poses: Poses, depth: np.ndarray) -> np.ndarray:
    """(P, 17) the depth of each keypoint's pixel, NaN in a hole or outside."""
    height, width = depth.shape
    at = np.rint(np.nan_to_num(poses.xy, nan=-1.0)).astype(int)
    inside = ((at >= 0) & (at < (width, height))).all(2)
    at = np.where(inside[..., None], at, 0)
    value = depth[at[..., 1], at[..., 0]]
    return np.where(inside & (value > 0), value, np.nan)


def errors(z: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Share of visible keypoints with depth, how far off those are, share that is wrong."""
    known = np.isfinite(truth)
    off = np.abs(z - truth)[known] * 1e3
    got = off[np.isfinite(off)]
    return {
        "found %": round(100 * len(got) / len(off), 1),
        "median mm": round(float(np.median(got)), 1),
        "mean mm": round(float(got.mean()), 1),
        "p95 mm": round(float(np.percentile(got, 95)), 1),
        "wrong %": round(100 * float((got > HIT_MM).mean()), 1),
    }


def compare(name: str, images: int) -> list[dict[str, Any]]:
    """Rows of one kind of scene, ours and the plain way."""
    ours, simple, truth, taken = [], [], [], []
    for seed in range(images):
        made = scene(seed, **SCENES[name])
        started = time.perf_counter()
        ours.append(lift(made.poses, made.depth, CAMERA, DepthOptions())[..., 2])
        taken.append((time.perf_counter() - started) * 1e3)
        simple.append(plain(made.poses, made.depth))
        truth.append(made.xyz[..., 2])
    true = np.concatenate(truth)
    return [
        {"scene": name, "way": "ours", **errors(np.concatenate(ours), true),
         "median_ms": summary(taken)["median_ms"]},
        {"scene": name, "way": "the pixel", **errors(np.concatenate(simple), true),
         "median_ms": ""},
    ]  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="of each kind of scene")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    args = parser.parse_args()
    print(f"{machine()}\n")
    rows = [row for name in SCENES for row in compare(name, args.images)]
    print_table(rows)
    write_json(args.json, "depth", rows)
    write_page(
        args.page,
        "Depth",
        f"Written by `python -m benchmarks.depth --page docs/depth.md`: {args.images} rendered "
        "images of each kind,\npeople at 1.8 to 4 m. Errors along the optical axis of keypoints "
        "that are visible; found: those\nthat got a depth; wrong: those of them more than "
        f"{HIT_MM:.0f} mm off. The picture is rectified and the depth\nimage aligned to it, as the "
        "depth node needs them: it takes the lens from P of the CameraInfo.",
        {"Millimetres": rows},
    )


if __name__ == "__main__":
    main()
