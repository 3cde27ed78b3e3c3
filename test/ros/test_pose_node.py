"""The pose node as a process of its own, over real DDS: image in, PoseArray out."""

import array
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from ehrnet_msgs.msg import PoseArray, SkeletonInfo  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

from ehrnet_model.skeleton import COCO_17  # noqa: E402
from ehrnet_ros.pose_msgs import from_pose_array  # noqa: E402
from ehrnet_ros.small_node import latched_qos  # noqa: E402

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

HUMBLE = Path(__file__).parents[1] / "support" / "humble_lifecycle.py"


@pytest.fixture(scope="module")
def node(start, model):
    """One node for most tests: active, on the dots model, always subscribed."""
    # Without cameras by name it has one.
    process = start("pose_node", model=model, lazy="false", size="384x512", cameras="[]")
    process.wait_for_log("Ready:")
    yield process
    assert process.interrupt() == 0, process.log()
    assert "Traceback" not in process.log()


@pytest.fixture
def camera(peer, node):
    """A publisher of images that the node has found."""
    publisher = peer.publisher(Image, "image", qos_profile_sensor_data)
    peer.until(publisher.get_subscription_count, "the node's subscription")
    return publisher


@pytest.fixture
def ask(peer, camera):
    """Sends one image until its answer arrives; the answer."""
    answers = peer.listen(PoseArray, "pose/poses")
    peer.until(lambda: peer.node.count_publishers("pose/poses"), "the node's publisher")

    def ask(msg):
        def answer():
            return [a for a in answers if a.header == msg.header]

        return peer.until(answer, "an answer", each=lambda: camera.publish(msg))[0]

    ask.answers = answers
    return ask


def two_people(dots, height, width):
    return np.stack(
        [
            dots.figure((width * 0.3, height * 0.5), height * 0.7),
            dots.figure((width * 0.7, height * 0.5), height * 0.7),
        ]
    )


def assert_found(answer, people, tolerance):
    """Every person of the truth once, every keypoint at its place."""
    poses = from_pose_array(answer)
    assert len(poses) == len(people)
    for truth in people:
        nearest = np.nanmean(np.abs(poses.xy - truth), (1, 2)).argmin()
        found = poses.xy[nearest]
        missing = np.isnan(truth).any(1)
        assert np.isnan(found[missing]).all()
        assert (poses.score[nearest][missing] == 0).all()
        np.testing.assert_allclose(found[~missing], truth[~missing], atol=tolerance)
        assert (poses.score[nearest][~missing] > 0.1).all()


def test_skeleton_info_is_there_for_whoever_comes_late(peer, node):
    infos = peer.listen(SkeletonInfo, "pose/skeleton_info", LATCHED)
    peer.until(lambda: infos, "skeleton_info")
    info = infos[0]
    assert info.names == list(COCO_17.names) and info.skeleton == "coco-17"
    edges = np.array(info.edges).reshape(-1, 2)
    assert [tuple(edge) for edge in edges] == list(COCO_17.edges)
    np.testing.assert_allclose(info.sigmas, COCO_17.sigmas)
    assert info.model == "H-4 dots (preview)" and info.phi == -4
    assert info.runtime.startswith("onnxruntime")
    assert (info.input_height, info.input_width) == (384, 512)
    assert 0 <= info.min_keypoint_score <= 1


@pytest.mark.parametrize("height, width", [(480, 640), (389, 517)])
def test_image_in_keypoints_out(dots, ask, image_of, height, width):
    people = two_people(dots, height, width)
    people[1, [0, 9]] = np.nan  # a nose and a wrist that are not there
    msg = image_of(dots.draw_people((height, width), people))
    answer = ask(msg)
    assert answer.header == msg.header  # stamp and frame, untouched
    assert (answer.width, answer.height) == (width, height)
    assert 0 < answer.latency_ms < 30_000
    assert_found(answer, people, 1.0)
    for skeleton in answer.skeletons:
        assert skeleton.id == -1 and len(skeleton.keypoints) == 17
        xy = np.array([(k.x, k.y) for k in skeleton.keypoints])
        np.testing.assert_allclose(skeleton.bbox, [*np.nanmin(xy, 0), *np.nanmax(xy, 0)], atol=1e-3)


def test_rgb8_and_padded_rows_give_the_same_poses(dots, ask, image_of):
    people = two_people(dots, 480, 640)
    picture = dots.draw_people((480, 640), people)
    assert_found(ask(image_of(picture[..., ::-1], "rgb8")), people, 1.0)
    msg = image_of(picture)
    rows = np.pad(picture.reshape(480, -1), ((0, 0), (0, 64)), constant_values=255)
    msg.step, msg.data = rows.shape[1], array.array("B", rows.tobytes())
    assert_found(ask(msg), people, 1.0)


def test_nobody_gives_an_empty_array_not_silence(ask, image_of):
    answer = ask(image_of(np.zeros((480, 640, 3), np.uint8)))
    assert len(answer.skeletons) == 0 and (answer.width, answer.height) == (640, 480)


def test_images_without_a_frame_are_answered_and_told_of_once(node, ask, image_of):
    picture = np.zeros((120, 160, 3), np.uint8)
    for _ in range(2):
        assert ask(image_of(picture, frame_id="")).header.frame_id == ""
    node.wait_for_log("Images have no frame_id: RViz and tf2 cannot place what is published")
    assert node.log().count("have no frame_id") == 1


def test_an_image_without_stamp_has_no_latency(ask, image_of):
    msg = image_of(np.zeros((480, 640, 3), np.uint8))
    msg.header.stamp.sec = msg.header.stamp.nanosec = 0
    msg.header.frame_id = "no stamp"
    assert math.isnan(ask(msg).latency_ms)


def test_bad_images_are_dropped_by_name_and_good_ones_still_answered(
    dots, peer, node, camera, ask, image_of
):
    people = two_people(dots, 480, 640)
    picture = dots.draw_people((480, 640), people)
    bad = [image_of(picture, frame_id="bad") for _ in range(5)]
    bad[0].step = 7
    bad[1].encoding = "h264"
    bad[2].width = 0
    bad[3].encoding, bad[3].step = "32FC1", 640 * 4
    bad[4].height = 481
    reasons = ["step 7", "'h264' is not known", "is empty", "is depth", "bytes of data"]
    for msg, reason in zip(bad, reasons):
        # Again and again: best effort may lose one.
        send = functools.partial(camera.publish, msg)
        peer.until(lambda: reason in node.log(), reason, each=send)  # noqa: B023
    assert_found(ask(image_of(picture)), people, 1.0)
    assert all(answer.header.frame_id != "bad" for answer in ask.answers)


def test_markers_lie_in_front_of_the_camera_and_clear_first(dots, peer, camera, ask, image_of):
    people = two_people(dots, 480, 640)
    picture = dots.draw_people((480, 640), people)
    arrays = peer.listen(MarkerArray, "pose/markers")
    # Sent once, after the node asked for what comes from now on: it has to ask anew.
    infos = peer.publisher(CameraInfo, "camera_info", latched_qos())
    infos.publish(CameraInfo(width=640, height=480, k=[500.0, 0, 300, 0, 400, 200, 0, 0, 1]))

    def markers_through_that_lens():
        for array_ in arrays:
            marker = next((m for m in array_.markers if m.ns == "joints"), None)
            if (
                marker
                and abs(marker.points[0].x) > 0
                and array_.markers[0].header.frame_id == "lens"
            ):
                expected = from_pose_array(answers()[-1])
                x = (expected.xy[..., 0] - 300) / 500
                if np.abs(x[0] - [p.x for p in marker.points]).max() < 0.01:
                    return array_
        return None

    def answers():
        return [a for a in ask.answers if a.header.frame_id == "lens"]

    def send():
        camera.publish(image_of(picture, frame_id="lens"))

    found = peer.until(markers_through_that_lens, "markers", each=send)
    first, *rest = found.markers
    assert first.action == Marker.DELETEALL
    assert {marker.ns for marker in rest} == {"bones", "joints"} and len(rest) == 4
    for marker in rest:
        assert marker.header == first.header and marker.pose.orientation.w == 1
        assert marker.color.a > 0 and marker.lifetime.nanosec > 0
        assert all(point.z == 1.0 for point in marker.points)
    bones = [marker for marker in rest if marker.ns == "bones"]
    assert all(len(marker.points) == 2 * len(COCO_17.edges) for marker in bones)


def test_overlay_is_the_image_with_people_on_it(dots, peer, camera, ask, image_of):
    picture = dots.draw_people((480, 640), two_people(dots, 480, 640))
    overlays = peer.listen(Image, "pose/overlay")
    msg = image_of(picture)
    overlay = peer.until(
        lambda: [o for o in overlays if o.header == msg.header],
        "overlay",
        each=lambda: camera.publish(msg),
    )[0]
    assert (overlay.width, overlay.height, overlay.encoding) == (640, 480, "bgr8")
    drawn = np.frombuffer(overlay.data, np.uint8).reshape(480, 640, 3)
    changed = (drawn != picture).any(-1)
    assert 0.001 < changed.mean() < 0.5


def test_parameters_change_or_say_why_not(dots, peer, ask, image_of):
    people = two_people(dots, 480, 640)
    picture = dots.draw_people((480, 640), people)
    assert peer.set_parameter("pose", "max_people", 1).successful
    peer.until(lambda: len(ask(image_of(picture)).skeletons) == 1, "a single person")
    assert peer.set_parameter("pose", "max_people", 30).successful
    peer.until(lambda: len(ask(image_of(picture)).skeletons) == 2, "two people")
    assert peer.set_parameter("pose", "marker_depth", 2.5).successful
    for name, value, reason in (
        ("phi", -3, "cleanup"),
        ("phi", 5, "range"),
        ("transport", "compressed", "cleanup"),
        ("autostart", False, "only read at start"),
        ("keypoint_threshold", 1.5, "range"),
        ("max_people", "many", "type"),
        ("nonsense", 1, "declared"),
    ):
        result = peer.set_parameter("pose", name, value)
        assert not result.successful and reason in result.reason, (name, result.reason)


def test_a_camera_that_is_turned_at_run_time(dots, peer, node, ask, image_of):
    """Dots look the same from all sides, so poses stay where they are."""
    people = two_people(dots, 480, 640)
    picture = dots.draw_people((480, 640), people)
    refused = peer.set_parameter("pose", "rotation", 45)
    assert not refused.successful and "0, 90, 180 or 270" in refused.reason
    for rotation in (180, 90, 270, 0):
        assert peer.set_parameter("pose", "rotation", rotation).successful
        assert_found(ask(image_of(picture)), people, 1.0)
        # This engine is for 384x512: upright images leave much of that empty.
        assert ("size 3:4 fits better" in node.log()) == (rotation != 180)


def test_unsure_keypoints_are_published_and_not_shown(dots, peer, ask, image_of):
    """With a minimum above the middle one of the scores RViz shows the surer half of the joints."""
    picture = dots.draw_people((480, 640), two_people(dots, 480, 640)[:1])
    infos = peer.listen(SkeletonInfo, "pose/skeleton_info", LATCHED)
    markers, overlays = peer.listen(MarkerArray, "pose/markers"), peer.listen(Image, "pose/overlay")

    def shown(least):
        """The scores of the answer, how many joints are shown, how much is drawn over."""
        assert peer.set_parameter("pose", "min_keypoint_score", least).successful
        told = np.float32(least)
        peer.until(lambda: infos and infos[-1].min_keypoint_score == told, "skeleton_info")
        msg = image_of(picture)
        (scores,) = from_pose_array(ask(msg)).score
        arrays = peer.until(lambda: [m for m in markers if m.markers[0].header == msg.header], "it")
        drawn = peer.until(lambda: [o for o in overlays if o.header == msg.header], "overlay")[0]
        joints = next(m for m in arrays[0].markers if m.ns == "joints")
        changed = np.frombuffer(drawn.data, np.uint8) != picture.ravel()
        return scores, len(joints.points), changed.mean()

    scores, joints, drawn = shown(0.0)
    assert joints == 17
    middle = float(np.sort(scores)[8])
    again, surer, less_drawn = shown(middle + 1e-4)
    np.testing.assert_allclose(again, scores, atol=1e-5)
    assert surer == (scores > middle + 1e-4).sum() and 0 < surer < 9
    assert 0 < less_drawn < drawn
    assert shown(0.0)[1] == 17  # the node serves other tests, too


@pytest.mark.parametrize("size", ["auto", "384x512"])
def test_people_are_looked_at_again(dots, peer, start, model, image_of, size):
    """With one engine for both looks, and with one of a fixed size and another for windows."""
    space = f"twice_{size}"
    process = start(
        "pose_node",
        namespace=space,
        model=model,
        lazy="false",
        size=size,
        second_look=2,
        second_look_size=384,
    )
    process.wait_for_log("looks again at up to 2 people")
    camera = peer.publisher(Image, f"/{space}/image", qos_profile_sensor_data)
    peer.until(camera.get_subscription_count, "the node's subscription")
    answers = peer.listen(PoseArray, f"/{space}/pose/poses")
    people = two_people(dots, 480, 640)
    msg = image_of(dots.draw_people((480, 640), people))
    peer.until(lambda: answers, "an answer", each=lambda: camera.publish(msg))
    assert_found(answers[-1], people, 1.0)
    for parameter, value, reason in (
        ("second_look", 0, "cleanup"),
        ("second_look_size", 128, "cleanup"),
        ("second_look_views", 2, "cleanup"),
        ("second_look_threshold", 2.0, "range"),
    ):
        result = peer.set_parameter(f"/{space}/pose", parameter, value)
        assert not result.successful and reason in result.reason, (parameter, result.reason)
    assert peer.set_parameter(f"/{space}/pose", "second_look_threshold", 0.5).successful
    assert process.interrupt() == 0


def statuses(messages):
    return [s for m in messages for s in m.status if s.name == "/pose: poses"]


def test_source_stops_and_comes_back(peer, node, camera, ask, image_of):
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    ramp = np.broadcast_to(np.linspace(20, 90, 640)[None, :, None], (480, 640, 3))
    empty = image_of(ramp.astype(np.uint8))

    def level(wanted):
        return lambda: [s for s in statuses(diagnostics) if s.level == wanted]

    status = peer.until(level(DiagnosticStatus.OK), "OK", each=lambda: camera.publish(empty))[-1]
    values = {pair.key: pair.value for pair in status.values}
    assert values["state"] == "active" and values["model"] == "H-4 dots (preview)"
    assert float(values["processing p50 [ms]"]) > 0
    diagnostics.clear()
    stale = peer.until(level(DiagnosticStatus.STALE), "STALE")[0]
    assert "Images stopped" in stale.message and "/image" in stale.message
    assert "/peer (best effort" in stale.message
    diagnostics.clear()
    peer.until(level(DiagnosticStatus.OK), "OK again", each=lambda: camera.publish(empty))
    node.wait_for_log("Images again")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((480, 640, 3), 9, np.uint8), "Images are nearly black"),
        (np.full((480, 640, 3), (0, 90, 0), np.uint8), "Images are of a single colour"),
    ],
)
def test_pictures_in_which_nobody_can_be_seen_are_named(
    peer, node, camera, ask, image_of, dots, picture, words
):
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")

    def told(level, text, picture):
        diagnostics.clear()
        peer.until(
            lambda: [
                s for s in statuses(diagnostics) if s.level == level and s.message.startswith(text)
            ],
            text,
            each=lambda: camera.publish(image_of(picture)),
        )

    before = node.log().count(words)
    told(DiagnosticStatus.WARN, words, picture)
    told(DiagnosticStatus.WARN, words, picture)
    assert node.log().count(words) <= before + 1 and node.log().count(words) > 0
    told(
        DiagnosticStatus.OK, "Publishing", dots.draw_people((480, 640), two_people(dots, 480, 640))
    )


def test_lifecycle_from_outside(dots, peer, node, camera, ask, image_of, model):
    people = two_people(dots, 480, 640)
    picture = dots.draw_people((480, 640), people)
    assert peer.state("pose") == "active"
    assert peer.change_state("pose", "deactivate") and peer.state("pose") == "inactive"
    peer.until(lambda: camera.get_subscription_count() == 0, "unsubscribing")
    count = len(ask.answers)
    camera.publish(image_of(picture))
    peer.spin(0.5)
    assert len(ask.answers) == count
    assert peer.change_state("pose", "activate")
    assert_found(ask(image_of(picture)), people, 1.0)
    assert peer.change_state("pose", "deactivate") and peer.change_state("pose", "cleanup")
    assert peer.state("pose") == "unconfigured"
    # What is built into the engine changes here; activate does not wait for the engine.
    assert peer.set_parameter("pose", "size", "384x640").successful
    assert peer.change_state("pose", "configure") and peer.change_state("pose", "activate")
    assert_found(ask(image_of(picture)), people, 1.0)
    assert peer.change_state("pose", "deactivate") and peer.change_state("pose", "cleanup")
    assert peer.set_parameter("pose", "size", "384x512").successful
    assert peer.change_state("pose", "configure") and peer.change_state("pose", "activate")
    assert_found(ask(image_of(picture)), people, 1.0)


@pytest.mark.parametrize("script", [None, HUMBLE], ids=["as_here", "as_in_humble"])
def test_a_transition_that_is_not_possible_is_refused(peer, start, model, script):
    """A lifecycle manager configures what has started itself."""
    name = "managed_as_here" if script is None else "managed_as_in_humble"
    node = start("pose_node", model=model, remaps=[f"__node:={name}"], script=script)
    node.wait_for_log("Ready:")
    peer.until(lambda: peer.state(name) == "active", "active")
    assert not peer.change_state(name, "configure")
    log = node.wait_for_log("Transition configure is not possible while active; possible: deactiv")
    assert "wants autostart:=false" in log and peer.state(name) == "active"
    assert peer.change_state(name, "deactivate") and peer.state(name) == "inactive"
    assert node.interrupt() == 0 and "Traceback" not in node.log()


def test_compressed_and_lazy_in_a_namespace(dots, peer, start, model):
    node = start(
        "pose_node",
        model=model,
        transport="compressed",
        remaps=["image:=camera/image_raw"],
        namespace="front",
    )
    node.wait_for_log("Ready:")
    publisher = peer.publisher(
        CompressedImage, "/front/camera/image_raw/compressed", qos_profile_sensor_data
    )
    peer.spin(1.0)
    assert publisher.get_subscription_count() == 0  # nobody listens to poses yet
    answers = peer.listen(PoseArray, "/front/pose/poses")
    people = two_people(dots, 480, 640)
    _, jpeg = cv2.imencode(
        ".jpg", dots.draw_people((480, 640), people), [cv2.IMWRITE_JPEG_QUALITY, 95]
    )
    msg = CompressedImage(
        format="bgr8; jpeg compressed bgr8", data=array.array("B", jpeg.tobytes())
    )
    msg.header.frame_id = "jpeg"
    peer.until(lambda: answers, "poses", each=lambda: publisher.publish(msg))
    assert answers[0].header == msg.header
    assert_found(answers[0], people, 1.5)
    assert node.interrupt() == 0, node.log()


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        (
            {"phi": 5},
            "start. Parameter phi cannot be 5: it has to be a whole number, -4 to 0.\n",
        ),
        (
            {"phi": "auto"},
            'phi cannot be "auto": it has to be a whole number, -4 to 0.\n',
        ),
        ({"phii": -3}, "There is no parameter phii (did you mean phi?).\n"),
        (
            # A whole number is a number, too: only the second one is refused.
            {"keypoint_threshold": 1, "marker_depth": "far"},
            'Parameter marker_depth cannot be "far": it has to be a number, 0.01 to 1000.\n',
        ),
        (
            {"keypoint_threshold": 2},
            "threshold cannot be 2: it has to be a number, 0 to 1, or -1",
        ),
        ({"runtime": "cuda"}, 'Parameter runtime cannot be "cuda": it has to be auto'),
        ({"size": "300x300"}, "multiples of 32"),
        (
            {"rotation": 45},
            "rotation cannot be 45: it has to be a whole number, 0, 90, 180 or 270, or a list of "
            "them, one for each camera.\n",
        ),
        ({"rotation": "upright"}, 'rotation cannot be "upright": it has to be a whole number, 0'),
        ({"rotation": "false"}, "rotation cannot be false: it has to be a whole number, 0"),
        ({"rotation": "[0, 90]"}, "rotation cannot be [0, 90]: it has to be a whole number, 0"),
    ],
)
def test_wrong_parameters_end_the_process_with_one_sentence(start, parameters, sentence):
    process = start("pose_node", **parameters)
    assert process.wait() == 2, process.log()
    assert sentence in process.log() and "Traceback" not in process.log()


def test_parameters_for_others_are_named_and_not_used(start, model, tmp_path):
    """A file for all nodes of a robot."""
    text = "/**:\n  ros__parameters: {use_sim_time: true, robot_name: r1, base: {frame: x}}\n"
    (tmp_path / "robot.yaml").write_text(text)
    node = start("pose_node", model=model, extra=["--params-file", str(tmp_path / "robot.yaml")])
    log = node.wait_for_log("Ready:")
    assert "There is no parameter robot_name, base.frame in this node: not used." in log
    assert node.interrupt() == 0


def test_a_params_file_that_is_none_ends_the_process_with_one_sentence(start, tmp_path):
    (tmp_path / "broken.yaml").write_text("/**:\n  ros__parameters: [1, 2")
    process = start("pose_node", extra=["--params-file", str(tmp_path / "broken.yaml")])
    assert process.wait() == 2, process.log()
    assert "broken.yaml" in process.log() and "Traceback" not in process.log()


def test_missing_and_broken_models_leave_the_node_alive_until_mended(peer, start, model, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:1000])
    node = start("pose_node", model=tmp_path / "nowhere.onnx", remaps=["__node:=mended"])
    node.wait_for_log("nowhere.onnx")
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")

    def complaint():
        return [
            s
            for m in diagnostics
            for s in m.status
            if s.name.startswith("/mended") and s.level == DiagnosticStatus.ERROR
        ]

    assert "nowhere.onnx" in peer.until(complaint, "the diagnosis")[0].message
    assert peer.state("mended") == "unconfigured"
    assert peer.set_parameter("mended", "model", str(broken)).successful
    assert not peer.change_state("mended", "configure")
    assert "broken.onnx" in node.log() and peer.state("mended") == "unconfigured"
    assert peer.set_parameter("mended", "model", str(model)).successful
    assert peer.change_state("mended", "configure") and peer.change_state("mended", "activate")
    node.wait_for_log("Ready:")
    assert peer.change_state("mended", "active_shutdown") and peer.state("mended") == "finalized"
    diagnostics.clear()
    ends = {"Shut down: start the node again."}
    peer.until(lambda: ends & {s.message for m in diagnostics for s in m.status}, "its end told")
    assert "Traceback" not in node.log()
    assert node.interrupt() == 0


RAISES_ONCE = """
def broken(*_):
    setattr(owner, name, sound)
    raise ZeroDivisionError("made for a test")

sound = getattr(owner, name)
setattr(owner, name, broken)
"""


@pytest.mark.parametrize(
    "name, what",
    [("configure", 'pose_node, "find_model"'), ("activate", 'camera.Camera, "begin"')],
)
def test_an_exception_in_a_transition_is_told_and_can_be_tried_again(
    peer, start, model, patched, name, what
):
    script = patched(f"owner, name = {what}\n{RAISES_ONCE}")
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    node = start("pose_node", model=model, remaps=[f"__node:=raises_in_{name}"], script=script)
    sentence = f"on_{name} failed: ZeroDivisionError: made for a test."
    assert "Traceback" in node.wait_for_log(sentence)

    def told():
        found = [s.message for m in diagnostics for s in m.status if f"raises_in_{name}" in s.name]
        return f"Unconfigured: {sentence}" in found

    peer.until(told, "the diagnosis")
    assert peer.state(f"raises_in_{name}") == "unconfigured"
    assert peer.change_state(f"raises_in_{name}", "configure")
    assert peer.change_state(f"raises_in_{name}", "activate")
    assert node.interrupt() == 0 and node.log().count("Traceback") == 1


WAITS = """
import pathlib, time

def waits(*given):
    while not pathlib.Path(sys.argv[0]).with_name("go").exists():
        time.sleep(0.05)
    return opens(*given)

opens, pose_node.open_estimator = pose_node.open_estimator, waits
"""


def test_it_activates_by_itself_once_and_only_until_somebody_else_decides(
    peer, start, model, patched
):
    script = patched(WAITS)
    node = start("pose_node", model=model, remaps=["__node:=decided"], script=script)
    node.wait_for_log("Loading")
    assert peer.change_state("decided", "activate")
    assert peer.change_state("decided", "deactivate")
    script.with_name("go").touch()
    node.wait_for_log("Ready:")
    peer.spin(1.0)
    assert peer.state("decided") == "inactive"
    # In the next engine's time nobody activates it either.
    assert peer.change_state("decided", "cleanup") and peer.change_state("decided", "configure")
    peer.until(lambda: node.log().count("Ready:") == 2, "the second engine")
    peer.spin(1.0)
    assert peer.state("decided") == "inactive"
    assert peer.change_state("decided", "activate")
    assert node.interrupt() == 0 and "Traceback" not in node.log()


SLOW = """
import pathlib, time

def slow(msg):
    here = pathlib.Path(sys.argv[0])
    here.with_name("taken").touch()
    while not here.with_name("go").exists():
        time.sleep(0.02)
    return sound(msg)

sound, pose_node.to_picture = pose_node.to_picture, slow
"""


def test_an_image_of_before_a_cleanup_does_not_tell_the_next_engine_its_size(
    peer, start, model, dots, image_of, patched
):
    script = patched(SLOW)
    name = "/late_image/image"
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        remaps=["__node:=late_image", f"image:={name}"],
        script=script,
    )
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, name, qos_profile_sensor_data)
    msg = image_of(dots.draw_people((480, 640), dots.figure((320, 240), 300)[None]))
    taken = script.with_name("taken")
    peer.until(taken.exists, "the engine's thread", each=lambda: camera.publish(msg))
    assert peer.change_state("late_image", "deactivate")
    assert peer.change_state("late_image", "cleanup")
    assert peer.change_state("late_image", "configure")
    infos = peer.listen(SkeletonInfo, "late_image/skeleton_info", LATCHED)
    script.with_name("go").touch()
    peer.until(lambda: node.log().count("Ready:") == 2, "the second engine")
    assert peer.change_state("late_image", "activate")

    def knows():
        return any((info.input_height, info.input_width) != (0, 0) for info in infos)

    peer.until(knows, "the network's input size", each=lambda: camera.publish(msg))
    assert node.interrupt() == 0 and "Traceback" not in node.log()


def test_weights_that_are_not_numbers_and_other_skeletons_never_go_active(
    peer, start, model, tmp_path
):
    onnx = pytest.importorskip("onnx", reason="writing the test models needs onnx")
    graph = onnx.load(str(model))
    entry = next(p for p in graph.metadata_props if p.key == "ehrnet")
    stored = entry.value
    entry.value = stored.replace("left_ankle", "tail")
    onnx.save(graph, str(tmp_path / "tail.onnx"))
    entry.value = stored
    weights = max(
        (t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT),
        key=lambda t: np.prod(t.dims),
    )
    broken = np.full(list(weights.dims), np.nan, np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(broken, weights.name))
    onnx.save(graph, str(tmp_path / "nan.onnx"))
    for name, sentence in (("tail", "of skeleton 'coco-17'"), ("nan", "not finite")):
        node = start("pose_node", model=tmp_path / f"{name}.onnx", remaps=[f"__node:={name}"])
        node.wait_for_log(sentence)
        peer.until(lambda: peer.state(name) == "unconfigured", "unconfigured")  # noqa: B023
        assert "Traceback" not in node.log() and node.interrupt() == 0


@pytest.mark.parametrize(
    "phi, command", [(-1, "ehrnet export"), (-2, "ehrnet get-weights --phi -2")]
)
def test_a_phi_without_weights_is_told_what_to_do_and_never_answers(peer, start, phi, command):
    """In a home without models: H-1 has no weights in the package, H-2 has published ones."""
    node = start("pose_node", phi=phi, remaps=["__node:=empty"])
    log = node.wait_for_log("Unconfigured")
    assert f"no weights for phi {phi}" in log and f"`{command}" in log
    assert peer.state("empty") == "unconfigured"
    assert "empty/poses" not in dict(peer.node.get_topic_names_and_types())
    assert node.interrupt() == 0


def test_a_file_that_is_no_model_is_named_once(start):
    node = start("pose_node", model=__file__, remaps=["__node:=no_model"])
    assert f"Loading {__file__}." in node.wait_for_log("Loading")
    assert node.interrupt() == 0


def test_an_engine_that_does_not_open_takes_the_node_back(peer, start, model):
    node = start("pose_node", model=model, runtime="tensorrt", remaps=["__node:=backward"])
    log = node.wait_for_log("ERROR")
    assert "TensorRT" in log or "tensorrt" in log
    peer.until(lambda: peer.state("backward") == "unconfigured", "unconfigured")
    node.wait_for_log("Unconfigured: mend this and start again")
    assert node.interrupt() == 0


def test_interrupt_while_the_engine_loads(start, model):
    node = start("pose_node", model=model)
    node.wait_for_log("Loading")
    assert node.interrupt() == 0, node.log()
    assert "Traceback" not in node.log()


def test_it_says_what_it_waits_for_and_what_to_type(peer, start, model):
    peer.publisher(Image, "/head/camera/image_raw")
    node = start("pose_node", model=model, lazy="false", remaps=["__node:=lost", "image:=/nothing"])
    # The other camera may be discovered after the first complaint: a changed one is said at once.
    log = node.wait_for_log("takes them")
    assert "/nothing: nobody publishes there" in log
    assert "`ros2 launch ehrnet_ros pose.launch.py image:=/head/camera/image_raw` takes them" in log
    assert node.interrupt() == 0


def test_it_waits_a_while_before_it_says_that_nobody_publishes(start, model):
    """A camera that runs is not discovered at once."""
    node = start("pose_node", model=model, remaps=["__node:=patient", "image:=/not/there"])
    log = node.wait_for_log("nobody publishes there")
    ready, complaint = (
        float(re.search(rf"\[([\d.]+)\] \[patient\]: {text}", log)[1])
        for text in ("Ready", "Waiting for images")
    )
    assert complaint - ready > 1.9
    assert node.interrupt() == 0


def test_incompatible_qos_is_named(peer, start, model):
    peer.publisher(Image, "/best_effort/image", qos_profile_sensor_data)
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        input_qos="reliable",
        remaps=["__node:=strict", "image:=/best_effort/image"],
    )
    log = node.wait_for_log("input_qos")
    assert "/peer (best effort" in log
    assert node.interrupt() == 0


def test_picture_node_feeds_the_pose_node(dots, peer, start, model, tmp_path):
    people = two_people(dots, 480, 640)
    cv2.imwrite(str(tmp_path / "people.png"), dots.draw_people((480, 640), people))
    node = start("pose_node", model=model, namespace="fed")
    answers = peer.listen(PoseArray, "/fed/pose/poses")
    camera = start(
        "picture_node", source=tmp_path / "people.png", rate=20.0, namespace="fed", frame_id="made"
    )
    peer.until(lambda: len(answers) >= 3, "poses")
    assert answers[0].header.frame_id == "made"
    assert_found(answers[0], people, 1.0)
    assert camera.interrupt() == 0 and node.interrupt() == 0
