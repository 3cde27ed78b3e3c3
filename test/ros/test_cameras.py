"""Several cameras and one engine, across real processes."""

import random

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from ehrnet_msgs.msg import PoseArray, SkeletonInfo  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from ehrnet_ros.pose_msgs import from_pose_array  # noqa: E402

NAMES = ("front", "rear", "left")
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


TELLS = """
import time
from ehrnet_model.inference.estimator import PoseEstimator

def infer(self, images, rgb, *more):
    print(f"{len(images)} at once", flush=True)
    time.sleep(0.03)  # so that images wait for it
    return sound(self, images, rgb, *more)

sound, PoseEstimator.infer = PoseEstimator.infer, infer
"""


@pytest.fixture(scope="module", params=[1, 3], ids=["one by one", "in batches"])
def node(request, start, model, patched):
    """A node with three cameras that says how many images go through the engine together."""
    process = start(
        "pose_node",
        model=model,
        lazy="false",
        size="384x512",
        batch=request.param,
        cameras=str(list(NAMES)),
        remaps=[f"__node:=all{request.param}", f"left/image:=/side{request.param}/image_raw"],
        script=patched(TELLS),
    )
    process.batch = request.param
    process.wait_for_log("Ready:")
    process.name = f"all{request.param}"
    process.side = f"/side{request.param}/image_raw"
    yield process
    assert process.interrupt() == 0, process.log()
    assert "Traceback" not in process.log()


def test_headers_and_poses_are_never_mixed_up(node, peer, dots, image_of):
    """Each image shows its person at a place of its own; every answer must show that person."""
    rng = random.Random(7)
    topics = {"front": "front/image", "rear": "rear/image", "left": node.side}
    cameras = {
        name: peer.publisher(Image, topic, qos_profile_sensor_data)
        for name, topic in topics.items()
    }
    answers = {name: peer.listen(PoseArray, f"{node.name}/{name}/poses") for name in NAMES}
    infos = peer.listen(SkeletonInfo, f"{node.name}/rear/skeleton_info", LATCHED)
    for name, camera in cameras.items():
        peer.until(camera.get_subscription_count, f"the subscription to {name}")
        peer.until(lambda n=name: peer.node.count_publishers(f"{node.name}/{n}/poses"), "outputs")
    truth = {}
    for number in range(60):
        name = rng.choice(NAMES)
        height = rng.randrange(240, 340)
        place = (rng.uniform(0.35, 0.65) * 640, rng.uniform(0.4, 0.6) * 480)
        people = dots.figure(place, height)[None]
        msg = image_of(dots.draw_people((480, 640), people), frame_id=f"{name}_{number}")
        truth[msg.header.frame_id] = (name, msg.header.stamp, people)
        cameras[name].publish(msg)
        peer.spin(rng.choice([0.0, 0.0, 0.02, 0.1]))
    peer.until(lambda: all(answers.values()), "answers from every camera")
    peer.spin(0.5)
    for name, found in answers.items():
        numbers = [int(answer.header.frame_id.rpartition("_")[2]) for answer in found]
        assert numbers == sorted(set(numbers))  # in order, none twice
        for answer in found:
            of, stamp, people = truth[answer.header.frame_id]
            assert of == name and answer.header.stamp == stamp
            np.testing.assert_allclose(from_pose_array(answer).xy, people, atol=3.0)
    together = {int(line.split()[0]) for line in node.log().splitlines() if "at once" in line}
    assert (max(together) > 1) == (node.batch > 1)
    assert (infos[0].input_height, infos[0].input_width) == (384, 512)


def test_a_silent_camera_delays_nobody_and_is_named(node, peer, dots, image_of):
    rear = peer.publisher(Image, "rear/image", qos_profile_sensor_data)
    peer.until(rear.get_subscription_count, "the subscription")
    answers = peer.listen(PoseArray, f"{node.name}/rear/poses")
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    picture = dots.draw_people((480, 640), dots.figure((320, 240), 300)[None])

    def levels():
        rear.publish(image_of(picture))
        statuses = [s for m in diagnostics for s in m.status if s.name.startswith(f"/{node.name}:")]
        return {s.name.split()[-1]: s for s in statuses}

    def told():
        now = levels()
        good = "rear" in now and now["rear"].message == "Publishing poses."
        return (
            now if good and "front" in now and now["front"].level != DiagnosticStatus.OK else None
        )

    now = peer.until(told, "a complaint about front and none about rear")
    assert "/front/image" in now["front"].message
    assert answers and all(len(answer.skeletons) == 1 for answer in answers)


def test_switched_off_it_takes_no_images_and_on_again_it_does(node, peer, dots, image_of):
    rear = peer.publisher(Image, "rear/image", qos_profile_sensor_data)
    peer.until(rear.get_subscription_count, "the subscription")
    service = f"{node.name}/set_enabled"
    assert peer.call(SetBool, service, SetBool.Request(data=False)).success
    peer.until(lambda: not rear.get_subscription_count(), "the end of the subscription")
    answers = peer.listen(PoseArray, f"{node.name}/rear/poses")
    picture = dots.draw_people((480, 640), dots.figure((320, 240), 300)[None])
    for _ in range(6):
        rear.publish(image_of(picture))
        peer.spin(0.05)
    assert not answers
    assert peer.state(node.name) == "active"
    assert peer.call(SetBool, service, SetBool.Request(data=True)).success
    peer.until(lambda: answers, "poses", each=lambda: rear.publish(image_of(picture)))


def test_swapped_cameras_get_each_other_s_images(start, model, peer, dots, image_of):
    """A name that is remapped twice is the first one again."""
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        cameras=str(["front", "rear"]),
        namespace="swap",
        remaps=["front/image:=/swap/rear/image", "rear/image:=/swap/front/image"],
    )
    node.wait_for_log("Ready:")
    answers = {n: peer.listen(PoseArray, f"/swap/pose/{n}/poses") for n in ("front", "rear")}
    sides = {"front": 200, "rear": 440}
    cameras = {n: peer.publisher(Image, f"/swap/{n}/image", qos_profile_sensor_data) for n in sides}
    pictures = {
        n: image_of(dots.draw_people((480, 640), dots.figure((x, 240), 300)[None]), frame_id=n)
        for n, x in sides.items()
    }

    def shoot():
        for name, camera in cameras.items():
            camera.publish(pictures[name])

    peer.until(lambda: all(answers.values()), "poses of both", each=shoot)
    for name, other in (("front", "rear"), ("rear", "front")):
        assert {answer.header.frame_id for answer in answers[name]} == {other}
    assert node.interrupt() == 0


def test_each_camera_is_turned_by_its_own_angle(start, model, peer, dots, image_of):
    """Dots look the same from all sides; that images are turned shows in the network's input."""
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        cameras='["front", "side"]',
        rotation="[0, 90]",
        remaps=["__node:=mixed", "front/image:=mixed/one", "side/image:=mixed/two"],
    )
    node.wait_for_log("Ready:")
    cameras = {
        name: peer.publisher(Image, topic, qos_profile_sensor_data)
        for name, topic in (("front", "mixed/one"), ("side", "mixed/two"))
    }
    answers = {name: peer.listen(PoseArray, f"mixed/{name}/poses") for name in cameras}
    infos = {
        name: peer.listen(SkeletonInfo, f"mixed/{name}/skeleton_info", LATCHED) for name in cameras
    }
    people = dots.figure((200, 260), 300)[None]

    def shoot():  # again and again: one image may be lost
        for camera in cameras.values():
            camera.publish(image_of(dots.draw_people((480, 640), people)))

    def seen():
        """Each camera's people, and (height, width) of what the network was given."""
        for found in answers.values():
            found.clear()
        peer.until(lambda: all(answers.values()), "poses of both", each=shoot)
        for found in answers.values():
            np.testing.assert_allclose(from_pose_array(found[-1]).xy, people, atol=3.0)
        return {n: (i[-1].input_height, i[-1].input_width) for n, i in infos.items()}

    for camera in cameras.values():
        peer.until(camera.get_subscription_count, "the subscription")
    both = seen()
    assert both["front"][0] < both["front"][1] and both["side"] == both["front"][::-1]
    assert peer.set_parameter("mixed", "rotation", [270, 180]).successful
    peer.until(lambda: seen() == {"front": both["side"], "side": both["front"]}, "the change")
    assert peer.set_parameter("mixed", "rotation", 0).successful
    peer.until(lambda: seen() == {name: both["front"] for name in cameras}, "one for all")
    for wrong in ([0], [0, 45], [0.0, 90.0], [True, False], "0"):
        refused = peer.set_parameter("mixed", "rotation", wrong)
        assert not refused.successful and "one for each camera" in refused.reason
    assert node.interrupt() == 0


def test_people_of_different_cameras_never_share_an_id(start, model, peer, dots, image_of):
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        size="384x512",
        tracking="true",
        track_birth_images="1",
        cameras='["front", "rear"]',
        remaps=["__node:=both", "front/image:=both/one", "rear/image:=both/two"],
    )
    node.wait_for_log("Ready:")
    cameras = {
        name: peer.publisher(Image, topic, qos_profile_sensor_data)
        for name, topic in (("front", "both/one"), ("rear", "both/two"))
    }
    answers = {name: peer.listen(PoseArray, f"both/{name}/poses") for name in cameras}
    picture = dots.draw_people((480, 640), dots.figure((300, 240), 300)[None])

    def ids():
        for camera in cameras.values():
            camera.publish(image_of(picture))
        return [{s.id for m in found for s in m.skeletons} - {-1} for found in answers.values()]

    peer.until(lambda: all(ids()), "ids of both")
    front, rear = ids()
    assert len(front) == len(rear) == 1 and front != rear
    assert node.interrupt() == 0


def test_a_remapped_compressed_topic_is_the_one_that_is_reported(start, model, peer):
    topic = "/cam9/image_raw/compressed"
    camera = peer.publisher(CompressedImage, topic, qos_profile_sensor_data)
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    node = start(
        "pose_node",
        model=model,
        transport="compressed",
        remaps=["__node:=packed", f"image/compressed:={topic}"],
    )
    node.wait_for_log("Ready:")

    def said():
        return [s.message for m in diagnostics for s in m.status if s.name.startswith("/packed")]

    peer.until(lambda: any("Idle" in text for text in said()), "a status")
    # Longer than it waits for an image before it complains that nobody publishes. Its log may hold
    # that from before it had found the camera, on a busy machine.
    peer.spin(3.0)
    assert said()[-1] == "Idle: nobody subscribes to any result."
    poses = peer.listen(PoseArray, "packed/poses")
    peer.until(camera.get_subscription_count, "the subscription")
    assert node.interrupt() == 0 and not poses


@pytest.mark.parametrize("names", [["front", "front"], ["a b"], ["front", ""], ["1st"]])
def test_names_that_make_no_topics_are_refused(start, names):
    node = start("pose_node", cameras=str(names), remaps=["__node:=misnamed"])
    assert node.wait() == 2
    assert "Parameter cameras cannot be" in node.log() and "Traceback" not in node.log()


def test_two_cameras_on_one_topic_are_noticed(start, model):
    """By a slip in remapping: everybody would be there twice."""
    node = start(
        "pose_node",
        model=model,
        cameras='["one", "two"]',
        remaps=["__node:=twice", "one/image:=/same", "two/image:=/same"],
    )
    said = "two takes its images from /same, as another camera of this node does"
    node.wait_for_log(said)
    assert node.interrupt() == 0, node.log()
