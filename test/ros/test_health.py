"""What the node says when no image comes, and what it counts."""

import math

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

import rclpy  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from ehrnet_model.inference.poses import Timings  # noqa: E402
from ehrnet_ros.health import Counters, Repeated, explain_input  # noqa: E402

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


@pytest.mark.parametrize(
    "kind, topic, asked, reliable, expected",
    [
        (None, "", RAW, False, "start the camera"),
        (Image, "/cam/image_raw", RAW, False, "pose.launch.py image:=/cam/image_raw` takes them"),
        (
            CompressedImage,
            "/cam/image_raw/compressed",
            RAW,
            False,
            "There are only compressed images, on /cam/image_raw/compressed: `ros2 launch "
            "ehrnet_ros pose.launch.py image:=/cam/image_raw transport:=compressed` takes them",
        ),
        (
            CompressedImage,
            "/cam/image_compressed",
            COMPRESSED,
            False,
            "`ros2 launch ehrnet_ros pose.launch.py image:=/cam/image_compressed "
            "transport:=compressed` takes them",
        ),
        (
            CompressedImage,
            "/cam/uncompressed",
            COMPRESSED,
            False,
            "`-r image/compressed:=/cam/uncompressed -p transport:=compressed` takes them",
        ),
        (
            Image,
            "/cam/image_raw",
            COMPRESSED,
            False,
            "There are only raw images, on /cam/image_raw: `ros2 launch ehrnet_ros "
            "pose.launch.py image:=/cam/image_raw transport:=raw` takes them",
        ),
        (String, "/wanted", RAW, False, "what is published there is std_msgs/msg/String"),
        (Image, "/wanted", RAW, False, "/peer (best effort, volatile) is there but nothing"),
        (Image, "/wanted", RAW, True, "Set the parameter input_qos to sensor_data"),
    ],
)
def test_why_no_image_comes(peer, kind, topic, asked, reliable, expected):
    if kind is not None:
        peer.publisher(kind, topic, qos_profile_sensor_data)
    said = ""

    def says():
        nonlocal said
        said = explain_input(peer.node, "/wanted", asked, reliable)
        return expected in said

    peer.until(says, expected, seconds=10)
    assert said.startswith(f"Waiting for images ({asked}) on /wanted: ")


def test_images_are_seen_where_the_own_topic_would_be_without_remapping(peer):
    import rclpy

    words = ["--ros-args", "-r", "image:=/camera/image_raw"]
    node = rclpy.create_node("remapped", cli_args=words, use_global_arguments=False)
    try:
        peer.publisher(Image, "/image", qos_profile_sensor_data)
        wanted = node.resolve_topic_name("image")
        assert wanted == "/camera/image_raw"
        peer.until(
            lambda: "image:=/image` takes them" in explain_input(node, wanted, RAW, False),
            "the image topic",
            seconds=10,
        )
    finally:
        node.destroy_node()


def test_what_a_pose_node_draws_is_not_offered_as_a_camera(peer):
    from ehrnet_msgs.msg import PoseArray

    peer.publisher(PoseArray, "/there/pose/poses")
    peer.publisher(Image, "/there/pose/overlay")
    peer.publisher(Image, "/some/image")
    said = explain_input(peer.node, "/wanted", RAW, False)
    assert "/some/image" in said and "/there/pose/overlay" not in said


def test_the_line_to_type_takes_pictures_rather_than_depth(peer):
    """The names that a RealSense camera has unless told otherwise."""
    for name in ("aligned_depth_to_color/image_raw", "color/image_raw", "infra1/image_rect_raw"):
        peer.publisher(Image, f"/camera/camera/{name}")
    line = "pose.launch.py image:=/camera/camera/color/image_raw` takes them"
    peer.until(lambda: line in explain_input(peer.node, "/image", RAW, False), line, seconds=10)


def test_depth_alone_is_not_offered_as_pictures(peer):
    peer.publisher(Image, "/camera/depth/image_rect_raw")
    said = "/camera/depth/image_rect_raw, none of them pictures by their names"
    peer.until(lambda: said in explain_input(peer.node, "/image", RAW, False), said, seconds=10)


def test_of_several_cameras_each_is_offered_its_own(peer):
    """Another camera's would give the wrong people without a word."""
    for name in ("/front_cam/image_raw", "/rear_cam/image_raw"):
        peer.publisher(Image, name)

    def says(camera, *taken):
        return explain_input(peer.node, f"/{camera}/image", RAW, False, camera, taken)

    line = "`-r rear/image:=/rear_cam/image_raw -p transport:=raw` takes them"
    peer.until(lambda: line in says("rear"), line, seconds=10)
    assert "`-r left/image:=TOPIC -p transport:=raw` takes those of the topic that is left's" in (
        said := says("left")
    )
    assert "/front_cam/image_raw, /rear_cam/image_raw" in said
    said = says("left", "/front_cam/image_raw")
    assert "left/image:=/rear_cam/image_raw" in said and "front_cam" not in said


def test_what_somebody_only_listens_to_is_not_offered_as_a_camera(peer):
    """As when a camera's CameraInfo was asked for images: that topic seems to be of both types."""
    context = rclpy.Context()  # a participant of its own: one has one type on a topic
    rclpy.init(args=[], context=context)
    other = rclpy.create_node("writer", context=context)
    other.create_publisher(String, "/words", 1)
    peer.listen(Image, "/words")
    try:
        peer.until(lambda: peer.node.count_publishers("/words"), "the publisher")
        said = explain_input(peer.node, "/words", RAW, False)
    finally:
        other.destroy_node()
        rclpy.try_shutdown(context=context)
    assert "what is published there is std_msgs/msg/String. No image topic" in said


def test_counters():
    counters = Counters()
    assert math.isnan(counters.snapshot().age_ms[0])
    for i in range(100):
        counters.received()
        timings = Timings(0.5 * i, float(i), 0.25 * i)
        counters.published(2, timings, 2.0 * i, math.nan if i % 2 else 3.0 * i)
    counters.bad("bad")
    counters.failed("failed")
    counters.failed("failed again")
    snapshot = counters.snapshot()
    assert (snapshot.received, snapshot.published, snapshot.bad, snapshot.failed) == (
        100,
        100,
        1,
        2,
    )
    assert snapshot.failed_in_a_row == 2 and snapshot.bad_now
    assert snapshot.last_error == "failed again" and snapshot.people == 2
    assert snapshot.engine_ms == (49.5, pytest.approx(94.05))
    assert snapshot.letterbox_ms[0] == 24.75 and snapshot.decode_ms[0] == 12.375
    assert snapshot.age_ms[0] == 147.0  # of the images that had a stamp
    counters.published(0, Timings(1.0, 1.0, 1.0), 1.0, 1.0)
    again = counters.snapshot()
    assert again.failed_in_a_row == 0 and not again.bad_now and again.published == 101


def test_the_same_thing_is_not_said_twice_in_a_while():
    repeated = Repeated(60.0)
    assert repeated.should_say("a") and not repeated.should_say("a")
    assert repeated.should_say("b") and not repeated.should_say("a")
    assert all(repeated.should_say(str(number)) for number in range(100))
    assert repeated.should_say("a")  # memory has an end
    repeated.reset()
    assert repeated.should_say("a")
    broken = "{} bytes, starts with {}: {} % lost"
    for numbers in (True, False):
        strict = Repeated(60.0, numbers)
        assert strict.should_say(broken.format(1, "ffd8ffe0", 31.5))
        assert strict.should_say(broken.format(20, "ffffffff", 4)) is numbers
        assert strict.should_say("2 rows are lost")
    impatient = Repeated(0.0)
    assert impatient.should_say("a") and impatient.should_say("a")
