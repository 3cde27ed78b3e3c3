"""Poses and their messages; markers; the mailbox between the threads."""

import math

import numpy as np
import pytest

pytest.importorskip("visualization_msgs.msg", reason="needs the ROS 2 message packages")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from builtin_interfaces.msg import Time  # noqa: E402
from ehrnet_msgs.msg import Keypoint, PoseArray  # noqa: E402
from sensor_msgs.msg import CameraInfo  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.inference.poses import Poses  # noqa: E402
from ehrnet_model.skeleton import COCO_17  # noqa: E402
from ehrnet_ros.pose_msgs import (  # noqa: E402
    Lens,
    MarkerLifetime,
    from_pose_array,
    to_markers,
    to_pose_array,
    to_skeleton_info,
)

HEADER = Header(stamp=Time(sec=3, nanosec=4), frame_id="camera_optical_frame")


def some_poses(people, seed=0):
    rng = np.random.default_rng(seed)
    score = rng.random((people, 17)).astype(np.float32)
    score[rng.random((people, 17)) < 0.3] = 0
    xy = rng.random((people, 17, 2)) * 600
    return Poses.build(xy, score, rng.random((people, 17)), rng.random(people))


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name != "id")
        for name in ("xy", "score", "std", "person_score", "bbox", "id")
    )


@pytest.mark.parametrize("people", [0, 1, 7])
def test_pose_array_there_and_back(people):
    poses = some_poses(people)
    msg = to_pose_array(poses, HEADER, (480, 640), 12.5)
    assert msg.header is HEADER and (msg.height, msg.width, msg.latency_ms) == (480, 640, 12.5)
    assert same(from_pose_array(msg), poses)
    for skeleton in msg.skeletons:
        assert len(skeleton.keypoints) == Keypoint.COUNT
        absent = [k for k in skeleton.keypoints if k.score == 0]
        assert all(math.isnan(k.x) and math.isnan(k.y) and math.isnan(k.std) for k in absent)


def test_pose_array_survives_the_wire():
    rclpy_serialization = pytest.importorskip("rclpy.serialization")
    poses = some_poses(5)
    raw = rclpy_serialization.serialize_message(to_pose_array(poses, HEADER, (480, 640)))
    assert same(from_pose_array(rclpy_serialization.deserialize_message(raw, PoseArray)), poses)


def test_keypoint_constants_are_the_positions_of_the_names():
    for index, name in enumerate(COCO_17.names):
        assert getattr(Keypoint, name.upper()) == index
    assert Keypoint.COUNT == len(COCO_17.names)


def test_skeleton_info_carries_the_keypoint_set():
    msg = to_skeleton_info(
        COCO_17,
        model="m",
        runtime="r",
        phi=-3,
        input_hw=(416, 576),
        min_keypoint_score=0.25,
        stamp=Time(sec=1),
    )
    assert msg.names == list(COCO_17.names) and len(msg.edges) == 2 * len(COCO_17.edges)
    assert (msg.input_height, msg.input_width, msg.phi) == (416, 576, -3)
    assert msg.header.frame_id == "" and msg.header.stamp.sec == 1


def test_lens_of_camera_info():
    info = CameraInfo(width=640, height=480, k=[500.0, 0, 319.5, 0, 510, 239.5, 0, 0, 1])
    assert Lens.from_camera_info(info, (480, 640)) == Lens(500, 510, 319.5, 239.5)
    half = Lens.from_camera_info(info, (240, 320))  # the centre stays the centre
    assert half == Lens(250, 255, 159.5, 119.5)
    info.roi.x_offset, info.roi.width, info.roi.height = 100, 320, 480
    assert Lens.from_camera_info(info, (480, 320)) == Lens(500, 510, 219.5, 239.5)
    for no_lens in (CameraInfo(width=640, height=480), CameraInfo(k=info.k)):
        with pytest.raises(EhrnetError, match="has no focal length"):
            Lens.from_camera_info(no_lens, (480, 640))


def test_a_lens_of_images_of_another_shape_is_none():
    info = CameraInfo(width=1920, height=1080, k=[1400.0, 0, 960, 0, 1400, 540, 0, 0, 1])
    with pytest.raises(EhrnetError, match="of 1920x1080 pixels and the image has 640x480"):
        Lens.from_camera_info(info, (480, 640))
    assert Lens.from_camera_info(info, (362, 640)).fx == pytest.approx(1400 / 3)  # rounded up
    info.roi.width, info.roi.height = 1440, 1080
    assert Lens.from_camera_info(info, (480, 640)).fx == pytest.approx(1400 / 2.25)


def test_the_lens_is_that_of_the_rectified_picture():
    info = CameraInfo(width=640, height=480, k=[605.0, 0, 322, 0, 606, 244, 0, 0, 1])
    info.p = [560.0, 0, 318, 0, 0, 570, 246, 0, 0, 0, 1, 0]
    assert Lens.from_camera_info(info, (480, 640)) == Lens(560, 570, 318, 246)
    info.roi.x_offset, info.roi.width, info.roi.height = 100, 320, 480
    assert Lens.from_camera_info(info, (240, 160)) == Lens(280, 285, 108.75, 122.75)
    info.p[5] = math.nan
    with pytest.raises(EhrnetError, match="has no focal length"):
        Lens.from_camera_info(info, (480, 640))


def test_nominal_lens_sees_its_angle():
    lens = Lens.nominal((480, 640), 90)
    edge = np.array([-0.5, 639.5])
    np.testing.assert_allclose(np.degrees(np.arctan((edge - lens.cx) / lens.fx)), [-45, 45])


def markers_of(poses, **options):
    defaults = {"depth": 2.0, "line_width": 0.01, "lifetime": 0.5}
    lens = Lens(500, 500, 320, 240)
    return to_markers(poses, HEADER, lens, COCO_17, **{**defaults, **options}).markers


def test_markers_outlast_slow_images_and_no_pause():
    def at(seconds, frame="front"):
        header = Header(frame_id=frame)
        header.stamp.sec, nanosec = divmod(round(seconds * 1e9), 10**9)
        header.stamp.nanosec = nanosec
        return header

    lifetime = MarkerLifetime()
    assert lifetime(at(1e9)) == 0.5
    assert [lifetime(at(1e9 + s)) for s in (0.1, 1.1, 1.6)] == pytest.approx([0.5, 3.0, 1.5])
    assert lifetime(at(1e9 + 2, "rear")) == 0.5  # another camera, with a pace of its own
    assert lifetime(at(1e9 + 900)) == 5.0  # who left must not stay as long
    assert lifetime(at(5)) == 0.5  # a bag from its beginning


def test_markers_project_back_onto_the_pixels():
    poses = some_poses(4)
    first, *rest = markers_of(poses)
    assert first.action == Marker.DELETEALL
    for i in range(4):
        joints = next(m for m in rest if m.ns == "joints" and m.id == -1 - i)
        points = np.array([(p.x, p.y, p.z) for p in joints.points])
        pixels = points[:, :2] / points[:, 2:] * 500 + (320, 240)
        present = poses.score[i] > 0
        np.testing.assert_allclose(pixels, poses.xy[i][present], atol=1e-3)
        bones = next(m for m in rest if m.ns == "bones" and m.id == -1 - i)
        drawn = sum(present[a] and present[b] for a, b in COCO_17.edges)
        assert len(bones.points) == 2 * drawn


def test_doubtful_keypoints_and_what_hangs_on_them_shine_through():
    poses = some_poses(1)
    poses.score[0] = np.where(poses.score[0] > 0, 0.9, 0)
    here = np.flatnonzero(poses.score[0]).tolist()
    doubtful = here[0]
    poses.score[0, doubtful] = 0.4
    bones, joints = markers_of(poses)[1:]
    expected = [0.5 if j == doubtful else 1.0 for j in here]
    assert [c.a for c in joints.colors] == pytest.approx(expected)
    edges = [e for e in COCO_17.edges if set(e) <= set(here)]
    assert any(doubtful in e for e in edges)
    expected = [0.5 if doubtful in e else 1.0 for e in edges for _ in e]
    assert [c.a for c in bones.colors] == pytest.approx(expected)
    assert len({(c.r, c.g, c.b) for c in [*bones.colors, *joints.colors]}) == 1


def test_markers_of_nobody_only_clear():
    assert [m.action for m in markers_of(Poses.empty())] == [Marker.DELETEALL]
    unseen = Poses.build(np.zeros((1, 17, 2)), np.zeros((1, 17)), np.zeros((1, 17)), np.ones(1))
    assert len(markers_of(unseen)) == 1


def test_tracked_people_keep_their_number_and_get_a_label():
    poses = some_poses(2)
    poses.id[:] = 7, 9
    markers = markers_of(poses)[1:]
    assert {m.id for m in markers} == {7, 9}
    assert {m.text for m in markers if m.ns == "labels"} == {"7", "9"}


def test_nobody_takes_the_markers_of_another():
    poses = some_poses(4)
    poses.id[:] = 1, -1, 0, -1
    names = [(m.ns, m.id) for m in markers_of(poses)[1:]]
    assert len(set(names)) == len(names) == 4 * 2 + 2
