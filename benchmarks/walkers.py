"""People who walk before a camera, and what a detector makes of them: truth for trackers.

Bodies of 17 keypoints walk through a room in metres (x right, y down, z forward, the floor at
``CAMERA_HEIGHT_M``) and are seen through a pinhole. Nearer bodies and pillars hide what is behind
them; the detector adds noise, misses keypoints and people, guesses some hidden keypoints, and now
and then sees somebody who is not there. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ehrnet_model.inference.poses import Poses

IMAGE_HW = (480, 640)
FOCAL_PX = 520.0
CENTRE_PX = ((IMAGE_HW[1] - 1) / 2, (IMAGE_HW[0] - 1) / 2)
CAMERA_HEIGHT_M = 1.3
_STEP_M = 1.4  # two steps
# What hides: pairs of keypoints with the radius of the flesh between them in metres.
LIMBS = (
    (5, 7, 0.045), (7, 9, 0.035), (6, 8, 0.045), (8, 10, 0.035),
    (11, 13, 0.075), (13, 15, 0.05), (12, 14, 0.075), (14, 16, 0.05),
    (5, 11, 0.13), (6, 12, 0.13), (5, 12, 0.13), (6, 11, 0.13), (5, 6, 0.10), (11, 12, 0.12),
    (3, 4, 0.11), (0, 0, 0.12),
)  # fmt: skip
VISIBLE_SHARE = 0.3  # of the keypoints, from which on somebody counts as being in the image


@dataclass(frozen=True)
class Frame:
    """One image.

    Attributes:
        stamp_s: when it was taken.
        people: (N,) identities of those who can be seen.
        xy: (N, 17, 2) their true keypoints in pixels.
        boxes: (N, 4) x0 y0 x1 y1 around those that can be seen.
        found: what the detector says, best first.
        truth: (P,) identity of each of these, -1 where there is nobody.
    """

    stamp_s: float
    people: np.ndarray
    xy: np.ndarray
    boxes: np.ndarray
    found: Poses
    truth: np.ndarray


def body(height_m: float, phase: float) -> np.ndarray:
    """(17, 3) keypoints of somebody walking towards +z, the feet's floor at y = 0, y down."""
    h = height_m
    swing = np.sin(phase) * np.array([1, -1])  # left and right
    hip = np.stack([np.array([-0.09, 0.09]) * h * 0.6, np.full(2, -0.53 * h), np.zeros(2)], 1)
    thigh = 0.45 * swing
    knee = hip + 0.245 * h * np.stack([np.zeros(2), np.cos(thigh), np.sin(thigh)], 1)
    bend = thigh - 0.7 * np.maximum(0, np.cos(phase) * np.array([1, -1])) - 0.1
    ankle = knee + 0.246 * h * np.stack([np.zeros(2), np.cos(bend), np.sin(bend)], 1)
    shoulder = np.stack([np.array([-0.125, 0.125]) * h, np.full(2, -0.82 * h), np.zeros(2)], 1)
    upper = -0.5 * swing
    elbow = shoulder + 0.17 * h * np.stack([np.zeros(2), np.cos(upper), np.sin(upper)], 1)
    lower = upper + 0.4
    wrist = elbow + 0.15 * h * np.stack([np.zeros(2), np.cos(lower), np.sin(lower)], 1)
    face = h * np.array(
        [
            (0, -0.90, 0.07),
            (-0.018, -0.925, 0.06),
            (0.018, -0.925, 0.06),
            (-0.045, -0.915, 0.0),
            (0.045, -0.915, 0.0),
        ]
    )
    # Facing +z is facing away from the camera, the left side to the left.
    points = np.concatenate([face, *(np.stack(pair) for pair in
        (shoulder, elbow, wrist, hip, knee, ankle))])  # fmt: skip
    points[:, 1] += 0.015 * h * np.cos(2 * phase)
    return points


def turned(points: np.ndarray, place: np.ndarray, heading: float) -> np.ndarray:
    """Points of a body put on the floor at (x, z), walking towards ``heading`` (0: away)."""
    cos, sin = np.cos(heading), np.sin(heading)
    x, y, z = points.T
    return np.stack(
        [place[0] + cos * x + sin * z, CAMERA_HEIGHT_M + y, place[1] - sin * x + cos * z], 1
    )


def project(points: np.ndarray) -> np.ndarray:
    """(..., 2) pixels of (..., 3) metres."""
    return FOCAL_PX * points[..., :2] / points[..., 2:] + np.array(CENTRE_PX)


def _near_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    along = b - a
    share = ((points - a) @ along / max(float(along @ along), 1e-9)).clip(0, 1)
    return np.linalg.norm(points - (a + share[:, None] * along), axis=1)


def hidden_by(points: np.ndarray, xy: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(17,) bool: which keypoints are behind the flesh of another body in front."""
    seen = project(other)
    hidden = np.zeros(len(xy), bool)
    for a, b, radius in LIMBS:
        depth = (other[a, 2] + other[b, 2]) / 2
        close = _near_segment(xy, seen[a], seen[b]) < FOCAL_PX * radius / depth
        hidden |= close & (points[:, 2] > depth + radius)
    return hidden


Path = Callable[[float], tuple[float, float]]


def film(
    paths: dict[int, Path],
    seconds: float,
    rate: float,
    seed: int,
    pillars: tuple[tuple[float, float, float], ...] = (),
    noise: float = 0.03,
    missed: float = 0.05,
    ghosts: float = 0.05,
) -> list[Frame]:
    """What a camera and a detector see of people on paths.

    Args:
        paths: identity to a function from seconds to (x, z) in metres.
        seconds: how long.
        rate: images a second; stamps have a jitter of a tenth of that.
        seed: of everything that is random.
        pillars: (x, z, width) in metres of things that hide from floor to ceiling.
        noise: deviation of a keypoint as a share of the person's size (root of the box's area).
        missed: share of visible keypoints, and of people, that are not found.
        ghosts: people an image who are not there.
    """
    rng = np.random.default_rng(seed)
    heights = {who: rng.uniform(1.55, 1.95) for who in paths}
    phases = {who: rng.uniform(0, 2 * np.pi) for who in paths}
    frames = []
    for number in range(int(seconds * rate)):
        time = (number + rng.uniform(-0.1, 0.1)) / rate
        bodies: dict[int, np.ndarray] = {}
        for who, path in paths.items():
            place, ahead = np.array(path(time)), np.array(path(time + 0.05))
            way = ahead - place
            walked = np.linalg.norm(way) / 0.05  # m/s
            phase = phases[who] = phases[who] + 2 * np.pi * walked / rate / _STEP_M
            heading = np.arctan2(way[0], way[1]) if walked > 0.05 else np.pi
            bodies[who] = turned(body(heights[who], phase), place, heading)
        frames.append(_look(bodies, time, rng, pillars, noise, missed, ghosts))
    return frames


def _look(
    bodies: dict[int, np.ndarray],
    time: float,
    rng: np.random.Generator,
    pillars: tuple[tuple[float, float, float], ...],
    noise: float,
    missed: float,
    ghosts: float,
) -> Frame:
    people, true_xy, boxes, found, scores, truth = [], [], [], [], [], []
    height, width = IMAGE_HW
    for who, points in bodies.items():
        xy = project(points)
        visible = ((xy >= 0) & (xy <= (width - 1, height - 1))).all(1) & (points[:, 2] > 0.5)
        for other, others in bodies.items():
            if other != who and others[:, 2].mean() < points[:, 2].mean():
                visible &= ~hidden_by(points, xy, others)
        for x, z, wide in pillars:
            edges = FOCAL_PX * (x + np.array([-wide, wide]) / 2) / z + CENTRE_PX[0]
            visible &= ~((points[:, 2] > z) & (xy[:, 0] > edges[0]) & (xy[:, 0] < edges[1]))
        share = visible.mean()
        size = np.sqrt(np.prod(xy.max(0) - xy.min(0)))
        if share >= VISIBLE_SHARE:
            people.append(who)
            true_xy.append(xy)
            boxes.append([*xy[visible].min(0), *xy[visible].max(0)])
        draw = rng.random((3, 17))
        at = xy + rng.normal(0, noise * size, (17, 2)) * np.where(visible, 1, 2.5)[:, None]
        has = np.where(visible, draw[0] > missed, draw[0] < 0.25)
        has &= ((xy >= 0) & (xy <= (width - 1, height - 1))).all(1)
        if has.sum() >= 3 and share >= 0.2 and rng.random() > missed:
            found.append(np.where(has[:, None], at, np.nan))
            scores.append(has * np.where(visible, 0.5 + 0.4 * draw[1], 0.15 + 0.2 * draw[1]))
            truth.append(who)
    if rng.random() < ghosts:
        size = rng.uniform(60, 200)
        has = rng.random(17) < 0.4
        place = rng.uniform((0, 0), (width, height))
        found.append(np.where(has[:, None], place + rng.normal(0, size / 3, (17, 2)), np.nan))
        scores.append(has * rng.uniform(0.15, 0.5))
        truth.append(-1)
    score = np.array(scores).reshape(-1, 17)
    order = np.argsort(-score.mean(1), kind="stable")
    xy = np.array(found).reshape(-1, 17, 2)[order]
    sizes = np.sqrt(np.maximum(np.nanmax(xy, 1) - np.nanmin(xy, 1), 4).prod(1)) if len(xy) else []
    std = np.tile(noise * np.reshape(sizes, (-1, 1)), (1, 17))
    poses = Poses.build(xy, score[order], std, score[order].mean(1))
    return Frame(
        stamp_s=time,
        people=np.array(people, np.int64),
        xy=np.array(true_xy).reshape(-1, 17, 2),
        boxes=np.array(boxes).reshape(-1, 4),
        found=poses,
        truth=np.array(truth, np.int64)[order],
    )


def straight(start: tuple[float, float], end: tuple[float, float], seconds: float) -> Path:
    """From here to there and no further."""
    a, b = np.array(start), np.array(end)

    def path(time: float) -> tuple[float, float]:
        x, z = a + (b - a) * min(max(time / seconds, 0), 1)
        return float(x), float(z)

    return path


def strolling(seed: int, width: float = 2.2, near: float = 3.2, far: float = 7.0) -> Path:
    """To and fro through the whole room, forever, at a walker's pace."""
    rng = np.random.default_rng(seed)
    speed, turn, depth = rng.uniform(0.7, 1.4), rng.uniform(0, 2 * np.pi), rng.uniform(near, far)
    wander = rng.uniform(0.1, 0.3)

    def path(time: float) -> tuple[float, float]:
        angle = turn + time * speed / width
        z = np.clip(depth + 0.8 * np.sin(wander * 2 * np.pi * time + turn), near, far)
        return float(width * np.sin(angle) * z / 4.5), float(z)

    return path


def crossing(rate: float = 30.0, seed: int = 50) -> list[Frame]:
    """Four people cross in pairs, each hiding another for a moment, then all four together."""
    paths = {
        0: straight((-2.2, 4.0), (2.2, 4.0), 4.0),
        1: straight((2.6, 5.0), (-2.6, 5.0), 4.0),
        2: straight((-3.2, 6.2), (3.2, 6.4), 5.0),
        3: straight((3.0, 5.6), (-3.0, 5.8), 5.0),
    }
    return film(paths, 5.0, rate, seed)


def behind_pillars(rate: float = 30.0, seed: int = 51) -> list[Frame]:
    """Three people pass behind three pillars, unseen for half a second and more."""
    paths = {
        0: straight((-2.4, 4.5), (2.4, 4.5), 5.0),
        1: straight((2.6, 5.5), (-2.6, 5.5), 5.0),
        2: straight((-3.0, 6.0), (3.2, 6.5), 6.0),
    }
    pillars = ((-0.9, 3.0, 0.55), (0.35, 3.0, 0.5), (1.15, 3.0, 0.4))
    return film(paths, 6.0, rate, seed, pillars)


def crowd(rate: float = 30.0, seed: int = 52, people: int = 10) -> list[Frame]:
    """Ten people stroll to and fro in front of each other."""
    return film({who: strolling(100 * seed + who) for who in range(people)}, 10.0, rate, seed)


def slow_camera(seed: int = 53) -> list[Frame]:
    """Six people strolling, at five images a second."""
    return film({who: strolling(100 * seed + who) for who in range(6)}, 20.0, 5.0, seed)


# Each kind of film with its first seed; those below 100 are for choosing options and for tests.
SEQUENCES: dict[str, tuple[Callable[..., list[Frame]], int]] = {
    "crossing": (crossing, 100),
    "behind pillars": (behind_pillars, 200),
    "crowd of 10": (crowd, 300),
    "5 images/s": (slow_camera, 400),
}
