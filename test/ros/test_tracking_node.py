"""Ids over real DDS: the tracking node, and tracking in the pose node, real processes all."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from builtin_interfaces.msg import Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from ehrnet_msgs.msg import PoseArray, SkeletonInfo  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

from benchmarks import walkers  # noqa: E402
from ehrnet_model.inference.poses import Poses  # noqa: E402
from ehrnet_model.inference.tracker import PoseTracker  # noqa: E402
from ehrnet_model.skeleton import COCO_17  # noqa: E402
from ehrnet_ros.pose_msgs import from_pose_array, to_pose_array  # noqa: E402


@pytest.fixture(scope="module")
def node(start):
    process = start("tracking_node", lazy="false")
    yield process
    assert process.interrupt() == 0, process.log()
    assert "Traceback" not in process.log()


@pytest.fixture
def ask(peer, node):
    """Sends a message to the tracking node, as a rule once; the answer.

    A tracker that gets an image twice counts it twice.
    """
    publisher = peer.publisher(PoseArray, "poses", qos_profile_sensor_data)
    answers = peer.listen(PoseArray, "tracking/poses")
    peer.until(publisher.get_subscription_count, "the node's subscription")
    peer.until(lambda: peer.node.count_publishers("tracking/poses"), "the node's publisher")

    def ask(msg, every=5.0):
        def answer():
            return [a for a in answers if a.header == msg.header]

        return peer.until(answer, "an answer", each=lambda: publisher.publish(msg), every=every)[0]

    # Both ways are open afterwards; a tracker of its own.
    ask(message(Poses.empty(), 0.0, "nobody"), every=0.1)
    ask.publisher, ask.answers = publisher, answers
    return ask


def message(poses, seconds, frame_id="front_optical_frame"):
    nanoseconds = round((1000 + seconds) * 1e9)
    stamp = Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
    return to_pose_array(poses, Header(stamp=stamp, frame_id=frame_id), walkers.IMAGE_HW)


def test_poses_in_the_same_people_with_ids_out(ask, peer):
    """What the library says in this process, header and size untouched."""
    tracker = PoseTracker()
    seen = set()
    markers = peer.listen(MarkerArray, "tracking/markers")
    for frame in walkers.crossing(10.0, seed=60)[:25]:
        msg = message(frame.found, frame.stamp_s)
        answer = ask(msg)
        assert answer.header == msg.header and (answer.width, answer.height) == (640, 480)
        assert answer.latency_ms > 0
        found = from_pose_array(answer)
        expected = tracker.update(
            from_pose_array(msg), msg.header.stamp.sec + msg.header.stamp.nanosec / 1e9
        ).best_first()
        assert found.id.tolist() == expected.id.tolist()
        np.testing.assert_allclose(found.xy, expected.xy, atol=0.02)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-5)
        seen |= set(found.id.tolist())
    assert seen == {-1, 0, 1, 2, 3}
    labels = {m.text for array in markers for m in array.markers if m.text}
    assert labels <= {"0", "1", "2", "3"} and len(labels) >= 2


def test_cameras_do_not_mix_and_share_one_row_of_numbers(ask):
    given = {"left_eye": set(), "right_eye": set()}
    for frame in walkers.crossing(10.0, seed=61)[5:20]:
        for camera, numbers in given.items():
            people = ask(message(frame.found, 100 + frame.stamp_s, camera)).skeletons
            numbers |= {person.id for person in people} - {-1}
    assert [len(numbers) for numbers in given.values()] == [4, 4]
    assert not given["left_eye"] & given["right_eye"]


def test_markers_of_several_cameras_do_not_clear_each_other(ask, peer):
    """As RViz would show them, which forgets by DELETEALL, DELETE and the markers' lifetime."""
    markers = peer.listen(MarkerArray, "tracking/markers")
    peer.until(lambda: peer.node.count_publishers("tracking/markers"), "the publisher")
    shown = {}
    for number, frame in enumerate(walkers.crossing(10.0, seed=62)[5:15]):
        for camera in ("left_eye", "right_eye"):
            people = frame.found if number < 9 or camera == "right_eye" else Poses.empty()
            count = len(markers)
            ask(message(people, 200 + frame.stamp_s, camera))
            peer.until(lambda c=count: len(markers) > c, "markers")
            for marker in markers[-1].markers:
                key = marker.ns, marker.id
                if marker.action == Marker.DELETEALL:
                    shown.clear()
                elif marker.action == Marker.DELETE:
                    del shown[key]
                else:
                    assert key not in shown or shown[key] == marker.header.frame_id
                    shown[key] = marker.header.frame_id
        if number == 5:
            assert set(shown.values()) == {"left_eye", "right_eye"}
    assert set(shown.values()) == {"right_eye"}  # nobody is left where the other looks


def test_two_cameras_in_one_frame_are_noticed(peer, node):
    """As two of v4l2_camera with its usual frame: each image would end the other's tracks."""
    publisher = peer.publisher(PoseArray, "poses")
    sizes = itertools.cycle([(480, 640), (240, 320)])
    times = itertools.count(1)

    def send():
        msg = message(Poses.empty(), next(times) / 10, "camera")
        msg.height, msg.width = next(sizes)
        publisher.publish(msg)

    said = "come by turns in the frame 'camera', so nobody keeps an id"
    peer.until(lambda: said in node.log(), said, each=send)
    assert node.log().count("come by turns") == 1


def test_overrides_of_qos_which_it_has_not_are_named(start):
    name = "qos_overrides./poses.subscription.reliability"
    node = start("tracking_node", namespace="overrides", **{name: "reliable"})
    node.wait_for_log(f"There is no parameter {name} in this node: not used.")
    assert node.interrupt() == 0, node.log()


def test_parameters_change_at_any_time_or_say_why_not(ask, peer):
    person = walkers.crossing(10.0, seed=62)[10].found[:1]
    assert peer.set_parameter("tracking", "track_birth_images", 1).successful
    assert ask(message(person, 300.0)).skeletons[0].id >= 0
    assert peer.set_parameter("tracking", "track_birth_images", 3).successful
    assert ask(message(person, 350.0)).skeletons[0].id == -1
    for name, value in (("track_oks", 7.0), ("track_lost_s", "long"), ("nonsense", 1)):
        assert not peer.set_parameter("tracking", name, value).successful


def test_what_the_skeletons_mean_is_latched_and_taken_over(start, peer):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node = start("tracking_node", remaps=["__node:=told", "poses:=/teller/poses"])
    infos = peer.listen(SkeletonInfo, "told/skeleton_info", latched)
    own = peer.until(lambda: infos, "skeleton_info")[0]
    assert own.skeleton == "coco-17" and own.names == list(COCO_17.names) and own.model == ""
    teller = peer.publisher(SkeletonInfo, "/teller/skeleton_info", latched)
    teller.publish(SkeletonInfo(model="H-4 x", phi=-4, names=own.names, edges=own.edges))
    peer.until(lambda: infos[-1].model == "H-4 x", "the poses' own skeleton_info")
    late = peer.listen(SkeletonInfo, "told/skeleton_info", latched)
    assert peer.until(lambda: late, "skeleton_info")[0] == infos[-1]
    assert infos[-1].phi == -4 and infos[-1].header.stamp.sec > 0
    assert node.interrupt() == 0


def test_unsure_keypoints_are_passed_on_and_not_shown(start, peer):
    """What is unsure the skeleton_info beside the poses says."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    remaps = ["__node:=shower", "poses:=/doubter/poses"]
    node = start("tracking_node", lazy="false", remaps=remaps)
    teller = peer.publisher(SkeletonInfo, "/doubter/skeleton_info", latched)
    teller.publish(SkeletonInfo(model="H-4 x", min_keypoint_score=0.5))
    infos = peer.listen(SkeletonInfo, "shower/skeleton_info", latched)
    peer.until(lambda: infos and infos[-1].model == "H-4 x", "the poses' own skeleton_info")
    markers = peer.listen(MarkerArray, "shower/markers")
    answers = peer.listen(PoseArray, "shower/poses")
    person = walkers.crossing(10.0, seed=63)[10].found[0]
    xy = np.where(np.isfinite(person.xy), person.xy, 5.0)
    scores = np.where(np.arange(17) < 6, 0.4, 0.6)[None]
    poses = Poses.build(xy, scores, np.ones((1, 17)), np.array([0.9]))
    publisher = peer.publisher(PoseArray, "/doubter/poses")
    msg = message(poses, 400.0)
    peer.until(lambda: markers and answers, "markers", each=lambda: publisher.publish(msg))
    joints = next(marker for marker in markers[-1].markers if marker.ns == "joints")
    assert len(joints.points) == 11
    np.testing.assert_allclose(from_pose_array(answers[-1]).score, scores, atol=1e-6)
    assert node.interrupt() == 0


def test_poses_below_its_own_name_do_not_make_it_talk_to_itself(start, peer):
    latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node = start("tracking_node", remaps=["__node:=below", "poses:=~/raw"])
    infos = peer.listen(SkeletonInfo, "below/skeleton_info", latched)
    peer.until(lambda: infos, "skeleton_info")
    peer.spin(0.5)
    assert len(infos) == 1
    assert node.interrupt() == 0


def test_broken_messages_are_dropped_by_name_and_good_ones_still_answered(ask, peer, node):
    poses = walkers.crossing(10.0, seed=63)[10].found
    bad = message(poses, 400.0, "bad")
    bad.skeletons[0].keypoints = bad.skeletons[0].keypoints[:3]
    few = message(poses, 400.1, "bad")
    for person in few.skeletons:
        person.keypoints = person.keypoints[:5]
    none = message(poses, 400.2, "bad")
    for person in none.skeletons:
        person.keypoints = []
    for msg, reason in ((bad, "dropped"), (few, " keypoints and the tracker is for 17")):
        peer.until(
            lambda: reason in node.log(),  # noqa: B023
            reason,
            each=lambda: ask.publisher.publish(msg),  # noqa: B023
        )
    ask.publisher.publish(none)  # of which it would say the same with another number
    unstamped = message(poses, -1000.0)
    assert math.isnan(ask(unstamped).latency_ms)
    assert len(ask(message(poses, 401.0)).skeletons) == len(poses)
    assert all(answer.header.frame_id != "bad" for answer in ask.answers)


def test_lazy_and_what_it_waits_for(peer, start):
    peer.publisher(PoseArray, "/elsewhere/poses")
    node = start("tracking_node", remaps=["__node:=lost", "poses:=/nothing/poses"])
    publisher = peer.publisher(PoseArray, "/nothing/poses")
    peer.until(lambda: peer.node.count_publishers("lost/poses"), "the node")
    peer.spin(0.5)
    assert publisher.get_subscription_count() == 0  # nobody listens
    peer.listen(PoseArray, "lost/poses")
    peer.until(publisher.get_subscription_count, "subscribing")
    peer.clean()
    peer.publisher(PoseArray, "/elsewhere/poses")
    peer.listen(PoseArray, "lost/poses")
    log = node.wait_for_log("Such messages are on")
    assert "Waiting for ehrnet_msgs/msg/PoseArray on /nothing/poses: nobody publishes there" in log
    assert "-r poses:=" in log
    assert node.interrupt() == 0, node.log()


def test_how_it_goes_stands_on_diagnostics(peer, start):
    start("tracking_node", remaps=["__node:=told", "poses:=/told/in"])
    publisher = peer.publisher(PoseArray, "/told/in")
    heard = peer.listen(DiagnosticArray, "/diagnostics")

    def told(level, words, **publishing):
        def found():
            own = [s for m in heard for s in m.status if s.name == "/told: poses"]
            return [s for s in own if s.level == level and words in s.message]

        heard.clear()
        status = peer.until(found, words, **publishing)[-1]
        return {pair.key: pair.value for pair in status.values}

    assert told(DiagnosticStatus.OK, "Idle")["poses published"] == "0"
    peer.listen(PoseArray, "told/poses")
    told(DiagnosticStatus.WARN, "Waiting for ehrnet_msgs/msg/PoseArray on /told/in: /peer")
    times = itertools.count(1)
    empty = {"each": lambda: publisher.publish(message(Poses.empty(), next(times) / 10))}
    told(DiagnosticStatus.OK, "Publishing poses.", **empty)
    values = told(DiagnosticStatus.OK, "Publishing poses.", **empty)
    assert float(values["rate out [Hz]"]) > 0 and values["last error"] == ""
    assert int(values["received on /told/in"]) == int(values["poses published"]) > 0
    few = message(walkers.crossing(10.0, seed=64)[10].found, 500.0)
    for person in few.skeletons:
        person.keypoints = person.keypoints[:5]
    values = told(
        DiagnosticStatus.WARN,
        "Messages are dropped: these people have 5",
        each=lambda: publisher.publish(few),
    )
    assert int(values["messages dropped"]) > 0 and "17" in values["last error"]
    told(DiagnosticStatus.STALE, "/peer is there but nothing arrives")


def test_a_topic_of_another_type_is_named(peer, start):
    peer.publisher(Image, "/pictures")
    node = start("tracking_node", lazy="false", remaps=["__node:=mistaken", "poses:=/pictures"])
    node.wait_for_log("on /pictures: what is published there is sensor_msgs/msg/Image.")
    assert node.interrupt() == 0, node.log()


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"track_oks": 5.0}, "track_oks cannot be 5.0: it has to be a number, 0.01 to 1.\n"),
        ({"track_smoothing": 3}, "track_smoothing cannot be 3: it has to be true or false.\n"),
        ({"track_lost": 1.0}, "There is no parameter track_lost (did you mean track_lost_s?).\n"),
    ],
)
def test_wrong_parameters_end_the_process_with_one_sentence(start, parameters, sentence):
    process = start("tracking_node", **parameters)
    assert process.wait() == 2, process.log()
    assert sentence in process.log() and "Traceback" not in process.log()


@pytest.mark.parametrize("module", ["tracking_node", "depth_node"])
def test_the_parameters_of_the_pose_node_do_no_harm(start, peer, module):
    file = Path(__file__).parents[2] / "config" / "pose.yaml"
    remap = f"__node:=beside_{module}"
    node = start(module, remaps=[remap], extra=["--params-file", str(file)])
    log = node.wait_for_log("in this node: not used.")
    assert "phi, model, runtime" in log and "lazy" not in log
    peer.until(lambda: peer.node.count_publishers(f"beside_{module}/poses"), "the node")
    assert node.interrupt() == 0


@pytest.fixture
def pose_node(peer, start, model, request):
    """A function that starts a pose node which tracks: process, its camera, and its answers."""

    def begin(name, **parameters):
        topic = f"/{name}/image"
        node = start(
            "pose_node",
            model=model,
            lazy="false",
            size="384x512",
            tracking="true",
            **parameters,
            remaps=[f"__node:={name}", f"image:={topic}"],
        )
        # A second attempt must not meet the node of the first: both would answer.
        request.addfinalizer(node.popen.kill)
        node.wait_for_log("Ready:")
        camera = peer.publisher(Image, topic, qos_profile_sensor_data)
        answers = peer.listen(PoseArray, f"{name}/poses")
        peer.until(camera.get_subscription_count, "the node's subscription")
        return node, camera, answers

    return begin


def test_the_pose_node_tracks_when_it_is_told_to(peer, pose_node, dots, image_of):
    """Two people walk; tracking comes on, goes off and comes on again while the node runs."""
    node, camera, answers = pose_node("tracker", track_birth_images=1)

    def ids(step):
        """Ids from left to right; the answer to a picture taken later than those before."""
        people = np.stack(
            [dots.figure((150 + 4 * step, 240), 300), dots.figure((450 + 4 * step, 240), 300)]
        )
        msg = image_of(dots.draw_people((480, 640), people[:: 1 if step % 2 else -1]))
        # However long the node was made to wait, the people walk on at their pace.
        msg.header.stamp = Time(sec=1000 + step // 10, nanosec=step % 10 * 10**8)
        answer = peer.until(
            lambda: [a for a in answers if a.header == msg.header],
            "an answer",
            each=lambda: camera.publish(msg),
            every=1.0,
        )[0]
        poses = from_pose_array(answer)
        np.testing.assert_allclose(np.sort(poses.xy[:, 0, 0]), people[:, 0, 0], atol=3)
        return poses.id[np.argsort(poses.xy[:, 0, 0])].tolist()

    first = ids(0)
    assert sorted(first) == [0, 1]
    assert [ids(step) for step in range(1, 8)] == [first] * 7
    assert peer.set_parameter("tracker", "tracking", False).successful
    assert ids(8) == [-1, -1]
    assert peer.set_parameter("tracker", "tracking", True).successful
    assert peer.set_parameter("tracker", "track_smoothing", False).successful
    assert ids(9) == first
    assert peer.change_state("tracker", "deactivate") and peer.change_state("tracker", "cleanup")
    assert peer.change_state("tracker", "configure") and peer.change_state("tracker", "activate")
    again = ids(10)
    assert min(again) >= 0 and (again == first or not set(again) & set(first))
    assert node.interrupt() == 0, node.log()
    assert "Traceback" not in node.log()


def test_tracked_people_are_looked_at_in_other_views_in_each_image(peer, pose_node, dots, image_of):
    """Places differ a little from view to view; dots in a mirror exchange left and right."""
    node, camera, answers = pose_node(
        "viewer", track_smoothing="false", second_look=1, second_look_size=256
    )
    assert "looks again at up to 1 people" in node.log()
    person = dots.figure((320, 240), 300)
    picture = dots.draw_people((480, 640), person[None])
    steps = itertools.count()

    def places(images):
        """One answer after the other to the same picture, taken a tenth of a second apart."""
        told = []
        for _ in range(images):
            msg = image_of(picture)
            step = next(steps)
            msg.header.stamp = Time(sec=1000 + step // 10, nanosec=step % 10 * 10**8)
            peer.until(
                lambda header=msg.header: [a for a in answers if a.header == header],
                "an answer",
                each=lambda msg=msg: camera.publish(msg),
                every=1.0,
            )
            (xy,) = from_pose_array(answers[-1]).xy
            either = (np.abs(xy - sides).max() for sides in (person, person[list(COCO_17.flip)]))
            assert min(either) < 1
            told.append(xy.tobytes())
        return told

    assert len(set(places(12))) >= 6
    # Who is there already is followed without a look at the whole image, which a newcomer needs.
    assert peer.set_parameter("viewer", "track_first_look", 100).successful
    places(1)
    newcomer = dots.figure((560, 240), 190)
    picture = dots.draw_people((480, 640), np.stack([person, newcomer]))
    places(4)
    assert peer.set_parameter("viewer", "track_first_look", 1).successful
    with pytest.raises(ValueError, match="too many values"):
        places(1)
    picture = dots.draw_people((480, 640), person[None])
    places(1)
    assert peer.set_parameter("viewer", "track_second_look", False).successful
    assert len(set(places(4))) == 1
    assert node.interrupt() == 0, node.log()
