"""Keypoints in metres, on rendered depth of known geometry."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import depth as scenes
from benchmarks import walkers
from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.depth import DepthOptions, lift
from ehrnet_model.inference.poses import Poses

CAMERA = scenes.CAMERA
BODY = walkers.turned(walkers.body(1.7, 1.0), np.array([0.2, 3.0]), np.pi)


def board(z: float, wall: float, margin: int = 12) -> tuple[Poses, np.ndarray]:
    """Somebody as flat as a board at z before a wall: exact depth, keypoints well inside."""
    flat = BODY.copy()
    flat[:, 2] = z
    xy = walkers.project(flat)
    depth = np.full(walkers.IMAGE_HW, wall, np.float32)
    (x0, y0), (x1, y1) = xy.min(0).astype(int) - margin, xy.max(0).astype(int) + margin
    depth[max(y0, 0) : y1, max(x0, 0) : x1] = z
    shape = (1, 17)
    return Poses.build(xy[None], np.full(shape, 0.9), np.full(shape, 1.0), np.ones(1)), depth


def test_a_board_before_a_wall_to_the_tenth_of_a_millimetre():
    poses, depth = board(2.5, 4.0)
    xyz = lift(poses, depth, CAMERA, DepthOptions())[0]
    inside = (poses.xy[0] >= 0).all(1) & (poses.xy[0] < np.array([640, 480])).all(1)
    assert inside.sum() >= 13
    expected = scenes.rays_of(poses.xy[0].astype(float)) * 2.5
    np.testing.assert_allclose(xyz[inside], expected[inside], atol=1e-4)
    assert np.isnan(xyz[poses.xy[0, :, 1] > 480 + 20]).all()


def test_units_by_type_and_any_byte_order():
    poses, metres = board(2.5, 4.0)
    expected = lift(poses, metres, CAMERA, DepthOptions())
    millimetres = np.round(metres * 1000).astype(np.uint16)
    for image in (
        millimetres,
        millimetres.astype(">u2"),
        metres.astype(">f4"),
        np.pad(metres, ((0, 0), (0, 9)))[:, :-9],
    ):
        np.testing.assert_allclose(lift(poses, image, CAMERA, DepthOptions()), expected, atol=1e-4)


@pytest.mark.parametrize("hole", [0.0, np.nan, np.inf, -1.0, 0.01, 99.0])
def test_holes_are_no_depth(hole):
    poses, depth = board(2.5, 4.0)
    assert np.isnan(lift(poses, np.full_like(depth, hole), CAMERA, DepthOptions())).all()
    # A hole around the nose only: more than its surroundings, less than the body.
    x, y = np.rint(poses.xy[0, 9]).astype(int)
    depth[y - 20 : y + 21, x - 20 : x + 21] = hole
    xyz = lift(poses, depth, CAMERA, DepthOptions())[0]
    assert np.isnan(xyz[9]).all() and np.isfinite(xyz[[5, 6, 11, 12]]).all()
    depth[y + 1 : y + 11, x - 6 : x + 6] = 2.5  # a part of its surroundings is enough
    assert abs(lift(poses, depth, CAMERA, DepthOptions())[0, 9, 2] - 2.5) < 1e-4


@pytest.mark.parametrize("behind", [0.2, 0.35, 3.0])
def test_on_the_edge_it_is_the_person_not_the_wall(behind):
    """Keypoints exactly on the outline, pixels that float between person and wall along it."""
    poses, depth = board(2.5, 2.5 + behind)
    xy = poses.xy.copy()
    at = np.isclose(depth, 2.5)
    columns = np.flatnonzero(at.any(0))
    for joint in (7, 9):  # onto the edge, and a pixel beyond it
        xy[0, joint, 0] = columns[-1 if joint == 7 else 0] + (0 if joint == 7 else -1)
    for x in (columns[0] - 1, columns[-1] + 1):
        rows = np.flatnonzero(at.any(1))
        depth[rows, x] = 2.5 + behind * np.linspace(0.1, 0.9, len(rows))
    poses = Poses.build(xy, poses.score, poses.std, poses.person_score)
    z = lift(poses, depth, CAMERA, DepthOptions())[0, [7, 9], 2]
    np.testing.assert_allclose(z, 2.5, atol=0.05)


def test_what_stands_before_a_person_is_not_the_person():
    poses, depth = board(2.5, 4.0)
    hips = np.rint(poses.xy[0, 11]).astype(int)
    depth[hips[1] - 15 : hips[1] + 15] = 1.6
    xyz = lift(poses, depth, CAMERA, DepthOptions())[0]
    assert np.isnan(xyz[[11, 12]]).all()
    np.testing.assert_allclose(xyz[[0, 5, 6], 2], 2.5, atol=1e-3)


def test_an_arm_stretched_towards_the_camera_is_followed():
    points = BODY.copy()
    points[7] = points[5] + (0.0, 0.05, -0.27)
    points[9] = points[7] + (0.02, 0.05, -0.24)
    exact = scenes.render([points], 5.0, table=False)
    xy = walkers.project(points)[None]
    shape = (1, 17)
    poses = Poses.build(xy, np.full(shape, 0.9), np.full(shape, 1.0), np.ones(1))
    z = lift(poses, exact.astype(np.float32), CAMERA, DepthOptions())[0, :, 2]
    truth = scenes.body_depth(points, scenes.rays_of(xy[0]))
    # The sleeve at the elbow runs along the ray: a pixel is centimetres there.
    np.testing.assert_allclose(z[[7, 9]], truth[[7, 9]], atol=0.1)
    assert z[9] < z[6] - 0.35


@pytest.mark.parametrize(
    "name, found, median_mm, wrong",
    [
        ("clean, wall far behind", 98, 4, 1),
        ("noise, holes, flying pixels", 97, 12, 4),
        ("the same, wall 0.3 m behind", 95, 20, 8),
        ("the same, a board before them", 93, 20, 8),
        ("the same, two people overlap", 85, 25, 10),
    ],
)
def test_rendered_bodies(name, found, median_mm, wrong):
    """The figures of benchmarks/depth.py with room to spare; never worse than a pixel's depth."""
    ours, plain = scenes.compare(name, images=5)
    assert ours["found %"] >= found and ours["median mm"] <= median_mm and ours["wrong %"] <= wrong
    if "clean" not in name:
        assert ours["found %"] > plain["found %"] and ours["median mm"] < plain["median mm"]


def test_renderer_meets_a_sphere_and_a_cylinder_where_they_are():
    middle = np.array([0.0, 0.0, 3.0])
    ahead = np.array([[0.0, 0.0, 1.0]])
    assert np.isclose(scenes.capsule(ahead, middle, middle, 0.5)[0], 2.5)
    up = np.array([0.0, 1.0, 0.0])
    rays = np.array([[0.0, 0.0, 1.0], [0.0, 0.2, 1.0], [0.1, 0.0, 1.0], [0.4, 0.0, 1.0]])
    z = scenes.capsule(rays, middle - up, middle + up, 0.5)
    x = 0.1  # x = 0.1 z meets x^2 + (z - 3)^2 = 0.25
    root = (6 - np.sqrt(36 - 4 * (1 + x**2) * 8.75)) / (2 * (1 + x**2))
    np.testing.assert_allclose(z, [2.5, 2.5, root, np.inf])


def test_nobody_and_nothing():
    _, depth = board(2.5, 4.0)
    assert lift(Poses.empty(), depth, CAMERA, DepthOptions()).shape == (0, 17, 3)
    shape = (2, 17)
    unseen = Poses.build(np.zeros((*shape, 2)), np.zeros(shape), np.zeros(shape), np.ones(2))
    assert np.isnan(lift(unseen, depth, CAMERA, DepthOptions())).all()
    poses, _ = board(2.5, 4.0)
    assert np.isnan(lift(poses, np.zeros((0, 0), np.uint16), CAMERA, DepthOptions())).all()
    far = Poses.build(poses.xy * 1e12, poses.score, poses.std, poses.person_score)
    assert lift(far, depth, CAMERA, DepthOptions()).shape == (1, 17, 3)


def test_what_it_refuses():
    poses, depth = board(2.5, 4.0)
    for image in (depth.astype(np.float64), depth[..., None], depth.astype(np.int16)):
        with pytest.raises(EhrnetError, match="uint16 millimetres or float32 metres"):
            lift(poses, image, CAMERA, DepthOptions())
    with pytest.raises(EhrnetError, match="no focal length"):
        lift(poses, depth, np.zeros((3, 3)), DepthOptions())
    with pytest.raises(EhrnetError, match="5 keypoints"):
        lift(Poses.empty(5), depth, CAMERA, DepthOptions())
