"""Poses as vision_msgs and hri_msgs, by the node over DDS, heard by a process that has only those.

The packages are built here from their definitions (test/support/foreign_msgs.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
pytest.importorskip("rosidl_generator_py", reason="needs rosidl to build vision_msgs and hri_msgs")

from sensor_msgs.msg import Image  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

HW = (384, 512)
# Says what it hears, one JSON object a line.
LISTENER = """
import json, sys, threading
import rclpy
from hri_msgs.msg import IdsList, Skeleton2D
from vision_msgs.msg import Detection2DArray

def header(msg):
    return [msg.header.frame_id, msg.header.stamp.sec, msg.header.stamp.nanosec]

def say(what, msg, **more):
    print(json.dumps({"what": what, "header": header(msg), **more}), flush=True)

def detections(msg):
    found = [
        {"class": [(r.hypothesis.class_id, r.hypothesis.score) for r in d.results], "id": d.id,
         "centre": [d.bbox.center.position.x, d.bbox.center.position.y, d.bbox.center.theta],
         "size": [d.bbox.size_x, d.bbox.size_y], "same": d.header == msg.header}
        for d in msg.detections]
    say("detections", msg, found=found)

def ids(msg):
    say("ids", msg, ids=list(msg.ids))

def skeleton(name):
    def heard(msg):
        points = {n: [msg.skeleton[i].x, msg.skeleton[i].y, msg.skeleton[i].c]
                  for n, i in NUMBERS.items()}
        say(name, msg, points=points, count=len(msg.skeleton))
    return heard

NUMBERS = {n: getattr(Skeleton2D, n) for n in sys.argv[1].split()}
rclpy.init()
node = rclpy.create_node("stranger")
node.create_subscription(Detection2DArray, "pose/detections", detections, 10)
node.create_subscription(IdsList, "/humans/bodies/tracked", ids, 10)
for name in ("body_0", "body_1"):
    node.create_subscription(Skeleton2D, f"/humans/bodies/{name}/skeleton2d", skeleton(name), 1)
rclpy.spin(node)
"""


@pytest.fixture(scope="module")
def foreign(ros_environment):
    """Processes started from here on can import vision_msgs and hri_msgs."""
    import foreign_msgs

    values = foreign_msgs.environment()
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield foreign_msgs
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


class Stranger:
    """The listener as a process."""

    def __init__(self, foreign, folder):
        self.path = folder / "heard"
        with open(self.path, "wb") as out:
            command = [sys.executable, "-c", LISTENER, foreign.POINTS]
            self.popen = subprocess.Popen(command, stdout=out)

    def said(self, what):
        assert self.popen.poll() is None
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [one for one in map(json.loads, whole.splitlines()) if one["what"] == what]

    def heard(self, what, head):
        wanted = [head.frame_id, head.stamp.sec, head.stamp.nanosec]
        return [one for one in self.said(what) if one["header"] == wanted]


@pytest.fixture
def stranger(foreign, tmp_path):
    stranger = Stranger(foreign, tmp_path)
    yield stranger
    stranger.popen.kill()
    stranger.popen.wait()


@pytest.mark.parametrize(
    "parameter, package", [("detections", "vision_msgs"), ("bodies", "hri_msgs")]
)
def test_a_package_that_is_missing_is_named(start, model, parameter, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    node = start(
        "pose_node",
        model=model,
        **{parameter: "true"},
        extra=["-r", f"__node:=without_{package}"],
    )
    said = node.wait_for_log("Unconfigured: mend this")
    assert f"Parameter {parameter} needs {package}" in said and "sudo apt install" in said
    assert node.interrupt() == 0


def test_people_for_nodes_that_know_other_messages(
    dots, model, start, peer, image_of, foreign, stranger
):
    node = start("pose_node", model=model, size="384x512", detections="true", bodies="true")
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, "image")
    # Lazy, and still subscribed: for the stranger alone, since nobody hears poses.
    peer.until(camera.get_subscription_count, "a subscription for other packages' messages")
    left = dots.figure((130, 190), 250)
    right = dots.figure((390, 200), 200)
    left[1] = np.nan  # the left eye
    right[6] = np.nan  # the right shoulder: no neck
    msg = image_of(dots.draw_people(HW, np.stack([left, right])))
    wanted = ("detections", "ids", "body_0", "body_1")

    def all_heard():
        answers = [stranger.heard(what, msg.header) for what in wanted]
        return [answer[-1] for answer in answers] if all(answers) else None

    detections, ids, *bodies = peer.until(
        all_heard, "everything", each=lambda: (camera.publish(msg), time.sleep(0.1))
    )
    assert node.interrupt() == 0
    assert "Traceback" not in node.log()

    assert ids["ids"] == ["body_0", "body_1"]
    assert len(detections["found"]) == 2
    first_is_left = detections["found"][0]["centre"][0] < 256
    people = (left, right) if first_is_left else (right, left)
    for found, person in zip(detections["found"], people):
        low, high = np.nanmin(person, 0), np.nanmax(person, 0)
        assert found["same"] and found["id"] == ""
        ((name, score),) = found["class"]
        assert name == "person" and 0 < score <= 1
        np.testing.assert_allclose(found["centre"], [*(low + high) / 2, 0], atol=1)
        np.testing.assert_allclose(found["size"], high - low, atol=1)

    from ehrnet_model.skeleton import COCO_17

    for body, person in zip(bodies, people):
        assert body["count"] == 18
        points = {name.lower(): np.array(value) for name, value in body["points"].items()}
        for index, name in enumerate(COCO_17.names):
            x, y, confidence = points.pop(name)
            if np.isnan(person[index, 0]):
                assert (x, y, confidence) == (0, 0, 0)
                continue
            assert 0 < confidence <= 1
            # In pixels: the left edge of the image is half a pixel left of the first centre.
            np.testing.assert_allclose((x * 512 - 0.5, y * 384 - 0.5), person[index], atol=1)
        ((name, (x, y, confidence)),) = points.items()
        assert name == "neck"
        neck = (person[5] + person[6]) / 2
        if np.isnan(neck[0]):
            assert (x, y, confidence) == (0, 0, 0)
        else:
            np.testing.assert_allclose((x * 512 - 0.5, y * 384 - 0.5), neck, atol=1)
            shoulders = [body["points"][f"{side}_SHOULDER"][2] for side in ("LEFT", "RIGHT")]
            assert confidence == min(shoulders)


def test_bodies_are_those_with_an_id_and_go_when_nobody_looks(
    dots, model, start, peer, image_of, foreign, stranger
):
    node = start(
        "pose_node",
        model=model,
        size="384x512",
        bodies="true",
        tracking="true",
        track_birth_images=1,
        track_lost_s=60.0,  # between two images here lies a change of parameters
        remaps=["__node:=bodies", "image:=bodies/image"],
    )
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, "bodies/image")
    peer.until(camera.get_subscription_count, "a subscription for the list of bodies")
    people = np.stack([dots.figure((130, 190), 250), dots.figure((390, 200), 200)])

    def ids(people):
        """The list that follows from an image of these."""
        msg = image_of(dots.draw_people(HW, people))
        heard = peer.until(
            lambda: stranger.heard("ids", msg.header), "ids", each=lambda: camera.publish(msg)
        )
        return heard[0]["ids"]

    def topics():
        names = (name for name, _ in peer.node.get_topic_names_and_types() if "bodies/body" in name)
        return sum(map(peer.node.count_publishers, names))

    def gone():
        return stranger.said("ids")[-1]["ids"] == [] and not topics()

    assert ids(people[1:]) == ["body_0"]
    assert peer.set_parameter("bodies", "track_birth_images", 100).successful
    assert ids(people) == ["body_0"]  # whichever comes first in the list
    assert peer.set_parameter("bodies", "track_birth_images", 1).successful
    assert sorted(ids(people)) == ["body_0", "body_1"]
    peer.until(gone, "the end of the bodies of a silent camera")

    def switch(on):
        return peer.call(SetBool, "bodies/set_enabled", SetBool.Request(data=on)).success

    for away, back in (
        (lambda: switch(False), lambda: switch(True)),
        (
            lambda: peer.change_state("bodies", "deactivate"),
            lambda: peer.change_state("bodies", "activate"),
        ),
    ):
        assert ids(people)
        peer.until(topics, "topics of bodies")
        assert away()
        peer.until(gone, "the end of the bodies")
        assert back()
        peer.until(camera.get_subscription_count, "a subscription")
    assert node.interrupt() == 0 and "Traceback" not in node.log()


CROWDS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np, rclpy
from std_msgs.msg import Header
from ehrnet_model.inference.poses import Poses
from ehrnet_model.skeleton import COCO_17
from ehrnet_ros.other_msgs import OtherOutputs

def crowds():
    for number in range(40):
        ones = np.ones((number % 2 * 8, 17))
        poses = Poses.build(ones[..., None].repeat(2, 2), ones, ones, ones[:, 0])
        outputs.publish(poses, Header(), (480, 640), COCO_17, tracking=False)

sys.setswitchinterval(1e-6)
rclpy.init()
outputs = OtherOutputs(rclpy.create_node("crowds"), "~/", detections=False, bodies=True)
with ThreadPoolExecutor() as pool:
    published = pool.submit(crowds)
    while not published.done():
        outputs.listeners()
published.result()
outputs.destroy()
"""


def test_bodies_may_come_and_go_while_listeners_are_counted(foreign):
    subprocess.run([sys.executable, "-c", CROWDS], check=True, timeout=120)
