"""Poses and depth to metres over real DDS; which depth belongs to which poses."""

import array
import itertools
import math
import re
import time

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from builtin_interfaces.msg import Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from ehrnet_msgs.msg import PoseArray, PoseArray3D, SkeletonInfo  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

from benchmarks import depth as scenes  # noqa: E402
from benchmarks import walkers  # noqa: E402
from ehrnet_model.inference.depth import DepthOptions, lift  # noqa: E402
from ehrnet_model.inference.poses import Poses  # noqa: E402
from ehrnet_ros.image_msgs import ImageError, to_depth  # noqa: E402
from ehrnet_ros.matching import StampMatcher  # noqa: E402
from ehrnet_ros.pose_msgs import to_pose_array  # noqa: E402
from ehrnet_ros.small_node import latched_qos  # noqa: E402

FRAME = "front_optical_frame"


def header(seconds, frame_id=FRAME):
    nanoseconds = round(seconds * 1e9)
    return Header(
        stamp=Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9), frame_id=frame_id
    )


def depth_image(metres, head, encoding="32FC1", big=False, padding=0):
    order = ">" if big else "<"
    if encoding == "32FC1":
        samples = metres.astype(order + "f4")
    else:
        samples = np.round(metres * 1000).astype(order + "u2")
    rows = samples.view(np.uint8).reshape(len(metres), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    msg = Image(header=head, height=metres.shape[0], width=metres.shape[1], encoding=encoding)
    msg.is_bigendian, msg.step = int(big), rows.shape[1]
    msg.data = array.array("B", rows.tobytes())
    return msg


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1", "mono16"])
@pytest.mark.parametrize("big, padding", [(False, 0), (True, 0), (False, 6), (True, 12)])
def test_depth_of_a_message(encoding, big, padding):
    metres = np.random.default_rng(0).uniform(0, 9, (5, 7)).astype(np.float32)
    depth = to_depth(depth_image(metres, header(1.0), encoding, big, padding))
    if encoding == "32FC1":
        assert depth.dtype.kind == "f" and np.array_equal(depth, metres)
    else:
        assert depth.dtype == np.uint16
        np.testing.assert_allclose(depth / 1000, metres, atol=0.00051)


def test_what_is_no_depth():
    good = depth_image(np.ones((4, 4), np.float32), header(1.0))
    for change, words in (
        ({"encoding": "bgr8"}, "bgr8 is no depth"),
        ({"step": 15}, "step 15"),
        ({"height": 5}, "bytes of data"),
        ({"width": 0}, "is empty"),
    ):
        msg = Image(header=good.header, encoding=good.encoding, data=good.data)
        msg.height, msg.width, msg.step = good.height, good.width, good.step
        for name, value in change.items():
            setattr(msg, name, value)
        with pytest.raises(ImageError, match=words):
            to_depth(msg)


def test_pairs_by_stamp_whichever_comes_first():
    matcher = StampMatcher(slop_ns=5)
    assert matcher.first(100, "a") == []
    assert matcher.second(100, "A") == [("a", "A")]
    assert matcher.second(200, "B") == [] and matcher.second(300, "C") == []
    assert matcher.first(200, "b") == [("b", "B")]  # older depth is still there
    assert matcher.first(304, "c") == []  # a nearer one may come
    assert matcher.second(305, "D") == [("c", "D")]
    assert matcher.first(395, "d") == [] and matcher.second(410, "E") == []
    assert matcher.missed == 1  # nothing near it will ever come
    assert matcher.first(410, "e") == [("e", "E")]


def test_pairs_after_a_jump_back_and_in_bounds():
    matcher = StampMatcher(slop_ns=0, kept=3)
    for stamp in (1000, 1001, 1002, 1003):
        matcher.second(stamp, stamp)
    assert matcher.first(1000, "gone") == [] and (matcher.missed, matcher.late_ns) == (1, 1)
    assert matcher.second(10, 10) == []
    assert matcher.first(10, "x") == [("x", 10)]
    for stamp in range(11, 31):
        assert matcher.first(stamp, "waits") == []
    assert matcher.missed == 11
    assert matcher.second(30, 30) == [("waits", 30)]


@pytest.mark.parametrize(("behind", "paired"), [(9, 91), (12, 88), (29, 71), (31, 0)])
def test_pairs_where_depth_comes_late(behind, paired):
    """As of a disparity that takes longer than the poses do; as many wait as are kept."""
    matcher = StampMatcher(slop_ns=0, kept=30)
    pairs = []
    for number in range(100):
        pairs += matcher.first(1000 + 10 * number, number)
        if number >= behind:
            pairs += matcher.second(1000 + 10 * (number - behind), number - behind)
    assert pairs == [(number, number) for number in range(paired)]
    # The oldest of 31 poses is given up when the newest depth is two older still.
    assert (matcher.missed > 0, matcher.early_ns) == ((False, 0) if paired else (True, 20))


@pytest.mark.parametrize("goes_back_first", ["first", "second"])
def test_pairs_after_a_jump_back_while_somebody_waits(goes_back_first):
    matcher = StampMatcher(slop_ns=0)
    for stamp in (1000, 1001, 1002):
        matcher.second(stamp, stamp)
        assert matcher.first(stamp, stamp) == [(stamp, stamp)]
    matcher.first(1003, "waits for ever")
    for _ in range(2):  # bags begin anew more than once
        for stamp in range(10, 15):
            if goes_back_first == "first":
                assert matcher.first(stamp, stamp) == []
                assert matcher.second(stamp, stamp) == [(stamp, stamp)]
            else:
                assert matcher.second(stamp, stamp) == []
                assert matcher.first(stamp, stamp) == [(stamp, stamp)]


@pytest.fixture(scope="module")
def node(start):
    process = start("depth_node", lazy="false")
    yield process
    assert process.interrupt() == 0, process.log()
    assert "Traceback" not in process.log()


@pytest.fixture
def ask(peer, node):
    """Sends poses, depth and CameraInfo until the answer comes; the answer."""
    poses = peer.publisher(PoseArray, "poses")
    depth = peer.publisher(Image, "depth_image", qos_profile_sensor_data)
    infos = peer.publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
    answers = peer.listen(PoseArray3D, "depth/poses")
    for publisher in (poses, depth, infos):
        peer.until(publisher.get_subscription_count, "the node's subscription")
    peer.until(lambda: peer.node.count_publishers("depth/poses"), "the node's publisher")
    # K is that of the raw picture, which is another one.
    info = CameraInfo(width=640, height=480, k=[700.0, 0, 300, 0, 700, 200, 0, 0, 1])
    info.p = np.hstack([scenes.CAMERA, np.zeros((3, 1))]).ravel()

    def send(pose_msg, depth_msg):
        infos.publish(info)
        depth.publish(depth_msg)
        poses.publish(pose_msg)

    def ask(pose_msg, depth_msg):
        def answer():
            return [a for a in answers if a.header == pose_msg.header]

        return peer.until(answer, "an answer", each=lambda: send(pose_msg, depth_msg))[0]

    ask.send, ask.answers = send, answers
    return ask


def points(answer):
    return np.array([[(k.x, k.y, k.z) for k in person.keypoints] for person in answer.skeletons])


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_people_in_metres_where_they_were_rendered(ask, peer, encoding):
    made = scenes.scene(3, **scenes.SCENES["noise, holes, flying pixels"])
    made.poses.id[:] = 7
    head = header(100.0 if encoding == "32FC1" else 101.0)
    markers = peer.listen(MarkerArray, "depth/markers")
    answer = ask(
        to_pose_array(made.poses, head, walkers.IMAGE_HW), depth_image(made.depth, head, encoding)
    )
    assert answer.header == head and [person.id for person in answer.skeletons] == [7]
    assert answer.latency_ms > 0
    found = points(answer)
    expected = lift(made.poses, made.depth, scenes.CAMERA, DepthOptions())
    np.testing.assert_allclose(found, expected, atol=0.002)
    off = np.linalg.norm(found - made.xyz, axis=2)
    assert np.isfinite(off).sum() >= 12 and np.nanmedian(off) < 0.02
    scores = [[k.score for k in person.keypoints] for person in answer.skeletons]
    np.testing.assert_allclose(scores, made.poses.score)
    shown = peer.until(lambda: [m for m in markers if m.markers[0].header == head], "markers")[0]
    assert shown.markers[0].action == Marker.DELETEALL
    joints = next(m for m in shown.markers if m.ns == "joints")
    assert joints.id == 7 and len(joints.points) == np.isfinite(found).all(2).sum()
    np.testing.assert_allclose(
        [(p.x, p.y, p.z) for p in joints.points], found[np.isfinite(found).all(2)], atol=1e-6
    )


def test_unsure_keypoints_have_metres_and_are_not_shown(ask, peer):
    """What is unsure the skeleton_info beside the poses says."""
    made = scenes.scene(3, **scenes.SCENES["clean, wall far behind"])
    scores = np.where(np.arange(17) < 6, 0.4, 0.6)[None]
    poses = Poses.build(made.poses.xy, scores, made.poses.std, made.poses.person_score)
    markers = peer.listen(MarkerArray, "depth/markers")
    teller = peer.publisher(SkeletonInfo, "skeleton_info", latched_qos())
    peer.until(teller.get_subscription_count, "the node's subscription")
    seconds = itertools.count(130)

    def shown(least):
        teller.publish(SkeletonInfo(min_keypoint_score=least))

        def points_of_the_next():
            head = header(float(next(seconds)))
            answer = ask(
                to_pose_array(poses, head, walkers.IMAGE_HW), depth_image(made.depth, head)
            )
            there = np.isfinite(points(answer)[0]).all(1)
            last = peer.until(lambda: [m for m in markers if m.markers[0].header == head], "them")[
                0
            ]
            count = len(next(m for m in last.markers if m.ns == "joints").points)
            return count == (there & (poses.score[0] >= least)).sum() and (there.sum(), count)

        return peer.until(points_of_the_next, f"joints from {least} on")  # told in between

    all_of_them, sure = shown(0.5)
    assert 0 < sure < all_of_them
    assert shown(0.0) == (all_of_them, all_of_them)


def test_a_smaller_depth_image_of_the_same_view(ask):
    made = scenes.scene(4, **scenes.SCENES["clean, wall far behind"])
    head = header(110.0)
    half = made.depth[::2, ::2] * 0.5 + made.depth[1::2, 1::2] * 0.5
    answer = ask(to_pose_array(made.poses, head, walkers.IMAGE_HW), depth_image(half, head))
    full = lift(made.poses, made.depth, scenes.CAMERA, DepthOptions())
    assert np.nanmedian(np.linalg.norm(points(answer) - full, axis=2)) < 0.02


def test_nobody_and_people_without_depth_are_answered_too(ask):
    made = scenes.scene(5, **scenes.SCENES["clean, wall far behind"])
    nothing = np.zeros(walkers.IMAGE_HW, np.float32)
    head = header(120.0)
    answer = ask(to_pose_array(made.poses, head, walkers.IMAGE_HW), depth_image(nothing, head))
    assert len(answer.skeletons) == 1 and np.isnan(points(answer)).all()
    assert math.isclose(answer.skeletons[0].score, 1.0)
    head = header(121.0)
    empty = to_pose_array(Poses.empty(), head, walkers.IMAGE_HW)
    assert ask(empty, depth_image(nothing, head)).skeletons == []


def test_what_does_not_fit_is_dropped_by_name(ask, peer, node):
    made = scenes.scene(6, **scenes.SCENES["clean, wall far behind"])
    seconds = 130.0
    for change, words in (
        ({"frame_id": "depth_optical_frame"}, "in frame 'front_optical_frame' and the depth"),
        ({"rows": 240}, "640x480 pixels and the depth image 640x240"),
        ({"encoding": "bgr8"}, "bgr8 is no depth"),
        # Of all poses since it last looked, or of some: that is a matter of time.
        ({"later": 0.5}, "No depth image has the stamp|have no depth image of their stamp"),
    ):
        seconds += 1
        head = header(seconds + change.get("later", 0), change.get("frame_id", FRAME))
        depth = depth_image(made.depth[: change.get("rows", 480)], head)
        depth.encoding = change.get("encoding", "32FC1")
        poses = to_pose_array(made.poses, header(seconds), walkers.IMAGE_HW)
        peer.until(
            lambda: re.search(words, node.log()),  # noqa: B023
            words,
            each=lambda: ask.send(poses, depth),  # noqa: B023
        )
    assert not [a for a in ask.answers if a.header.stamp.sec > 130]
    head = header(140.0)
    poses = to_pose_array(made.poses, head, walkers.IMAGE_HW)
    assert len(ask(poses, depth_image(made.depth, head)).skeletons) == 1


@pytest.fixture
def fed(peer, start):
    """Starts a depth node in a namespace; it, and what publishes to it there."""
    started = []

    def feed(namespace, infos_qos=qos_profile_sensor_data, info=None):
        poses = peer.publisher(PoseArray, f"/{namespace}/poses")
        depth = peer.publisher(Image, f"/{namespace}/depth_image", qos_profile_sensor_data)
        infos = peer.publisher(CameraInfo, f"/{namespace}/camera_info", infos_qos)
        if info is not None:
            infos.publish(info)
        node = start("depth_node", lazy="false", namespace=namespace)
        started.append(node)
        peer.until(lambda: all(p.get_subscription_count() for p in (poses, depth)), "subscriptions")
        return node, poses, depth, infos

    yield feed
    for node in started:
        assert node.interrupt() == 0, node.log()


def camera_info(width=640, height=480, frame_id=""):
    info = CameraInfo(
        width=width, height=height, p=np.hstack([scenes.CAMERA, np.zeros((3, 1))]).ravel()
    )
    info.header.frame_id = frame_id
    return info


@pytest.mark.parametrize(
    "namespace, info, words",
    [
        ("shape", camera_info(1920, 1080), "is of 1920x1080 pixels and the image has 640x480"),
        ("frame", camera_info(frame_id="left"), "is of frame 'left' and the poses are in 'front_"),
    ],
)
def test_the_camera_info_of_another_camera_makes_no_metres(fed, peer, namespace, info, words):
    """Raw and rectified, colour and infrared: remapped to the wrong one, all would be off."""
    node, poses, depth, infos = fed(namespace)
    answers = peer.listen(PoseArray3D, f"/{namespace}/depth/poses")
    made = scenes.scene(6, **scenes.SCENES["clean, wall far behind"])
    times = itertools.count(1)

    def send(of=info):
        head = header(next(times))
        infos.publish(of)
        depth.publish(depth_image(made.depth, head))
        poses.publish(to_pose_array(made.poses, head, walkers.IMAGE_HW))

    peer.until(lambda: words in node.log(), words, each=send)
    assert f"the CameraInfo on /{namespace}/camera_info is of" in node.log() and not answers
    peer.until(lambda: answers, "people", each=lambda: send(camera_info(frame_id=FRAME)))


def test_camera_info_that_was_sent_once_is_asked_for(fed, peer):
    """By a driver that keeps it for whoever comes late, before this node was there."""
    from ehrnet_ros.small_node import latched_qos

    _, poses, depth, _ = fed("kept", latched_qos(), camera_info())
    answers = peer.listen(PoseArray3D, "/kept/depth/poses")
    pixel, times = np.ones((480, 640), np.float32), itertools.count(1)

    def send():
        head = header(next(times))
        depth.publish(depth_image(pixel, head))
        poses.publish(to_pose_array(Poses.empty(), head, (480, 640)))

    peer.until(lambda: answers, "an answer", each=send)


def test_poses_that_mostly_have_no_depth_are_counted(fed, peer):
    """As when the depth camera is slower than the picture's."""
    node, poses, depth, infos = fed("slow")
    pixel, times = np.ones((48, 64), np.float32), itertools.count(0)

    def send():
        number = next(times)
        head = header(1 + number * 0.1)
        if number % 5 == 0:
            infos.publish(camera_info())
            depth.publish(depth_image(pixel, head))
        poses.publish(to_pose_array(Poses.empty(), head, (48, 64)))

    said = "% of the poses have no depth image of their stamp"
    peer.until(lambda: said in node.log(), said, each=send)
    share = float(node.log().split(said)[0].split()[-1])
    assert 60 <= share <= 95
    heard = peer.listen(DiagnosticArray, "/diagnostics")

    def counted():
        own = [s for m in heard for s in m.status if s.name == "/slow/depth: poses"]
        values = [{pair.key: pair.value for pair in s.values} for s in own]
        return [v for v in values if int(v["poses without a depth image"]) > 0]

    values = peer.until(counted, "counts", each=send)[-1]
    assert int(values["poses without a depth image"]) < int(values["received on /slow/poses"])
    assert "are both of one camera?" not in node.log()


def test_a_depth_topic_on_which_nothing_comes_is_named_and_no_stamp_is_blamed(fed, peer):
    node, poses, _, infos = fed("mute")
    times = itertools.count(1)

    def send():
        infos.publish(camera_info())
        poses.publish(to_pose_array(Poses.empty(), header(next(times)), (48, 64)))

    said = "Waiting for sensor_msgs/msg/Image on /mute/depth_image: /peer is there but nothing"
    peer.until(lambda: said in node.log(), said, each=send)
    for _ in range(30):
        send()
    assert "stamp" not in node.log()


def test_the_line_to_type_takes_depth_and_its_camera_info(peer, start):
    aligned = "/cam/aligned_depth_to_color/image_raw"
    for name in ("/cam/color/image_raw", aligned, "/cam/infra/image"):
        peer.publisher(Image, name)
        peer.publisher(CameraInfo, f"{name.rpartition('/')[0]}/camera_info")
    peer.publisher(PoseArray, "/hint/poses")
    node = start("depth_node", lazy="false", namespace="hint")
    node.wait_for_log(f"start with `--ros-args -r depth_image:={aligned}`")
    assert node.interrupt() == 0, node.log()
    remaps = [f"depth_image:={aligned}"]
    node = start("depth_node", lazy="false", namespace="hint", remaps=remaps)
    line = "-r camera_info:=/cam/aligned_depth_to_color/camera_info"
    node.wait_for_log(f"start with `--ros-args {line}`")
    assert node.interrupt() == 0, node.log()


def test_stamps_that_differ_a_little(ask, peer):
    """Poses of a colour camera that runs 10 ms before the depth camera."""
    made = scenes.scene(6, **scenes.SCENES["clean, wall far behind"])
    poses = to_pose_array(made.poses, header(150.0), walkers.IMAGE_HW)
    assert len(ask(poses, depth_image(made.depth, header(150.01))).skeletons) == 1
    assert not peer.set_parameter("depth", "stamp_slop_s", -1.0).successful
    refused = peer.set_parameter("depth", "depth_min_m", 15.0)
    assert not refused.successful and "less than depth_max_m = 15" in refused.reason
    assert peer.set_parameter("depth", "depth_max_m", 0.5).successful
    poses = to_pose_array(made.poses, header(151.0), walkers.IMAGE_HW)
    assert np.isnan(points(ask(poses, depth_image(made.depth, header(151.0))))).all()
    assert peer.set_parameter("depth", "depth_max_m", 15.0).successful


def test_it_says_which_input_is_missing(peer, start):
    peer.listen(PoseArray3D, "alone/poses")
    peer.publisher(PoseArray, "/alone_in/poses")
    node = start(
        "depth_node",
        remaps=[
            "__node:=alone",
            "poses:=/alone_in/poses",
            "depth_image:=/alone_in/depth",
            "camera_info:=/alone_in/camera_info",
        ],
    )
    log = node.wait_for_log("Waiting for sensor_msgs/msg/Image on /alone_in/depth: nobody")
    assert "Takes /alone_in/poses, /alone_in/depth, /alone_in/camera_info and publishes" in log
    assert "publishes /alone/poses, /alone/markers as soon as somebody subscribes there." in log
    assert "PoseArray on /alone_in/poses" not in log
    assert node.interrupt() == 0, node.log()


def test_first_stamps_that_do_not_fit_are_not_yet_a_fault(peer, start):
    node = start("depth_node", lazy="false", namespace="early")
    poses = peer.publisher(PoseArray, "/early/poses")
    depth = peer.publisher(Image, "/early/depth_image", qos_profile_sensor_data)
    for publisher in (poses, depth):
        peer.until(publisher.get_subscription_count, "the node's subscription")
    pixel, times = np.ones((1, 1), np.float32), itertools.count(1)
    started = time.monotonic()

    def send():
        seconds = next(times)
        depth.publish(depth_image(pixel, header(seconds + 0.5)))
        poses.publish(to_pose_array(Poses.empty(), header(seconds), (1, 1)))

    peer.until(lambda: "No depth image has the stamp" in node.log(), "complaint", each=send)
    assert time.monotonic() - started > 2
    assert node.interrupt() == 0, node.log()


def test_nothing_between_the_depths_that_count_ends_the_process_with_one_sentence(start):
    process = start("depth_node", depth_min_m=3.0, depth_max_m=2.0)
    assert process.wait() == 2, process.log()
    assert "depth_min_m = 3 has to be less than depth_max_m = 2" in process.log()
    assert "Traceback" not in process.log()
