"""ehrnet doctor --image, from outside: the same answer as the node's."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from sensor_msgs.msg import Image  # noqa: E402


def ask(peer, topic, each=lambda: None):
    command = [sys.executable, "-m", "ehrnet_ros.cli", "doctor", "--json", "--image", topic]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peer.until(lambda: process.poll() is not None, "the end of doctor", seconds=60, each=each)
    findings = {f["name"]: f for f in json.loads(process.stdout.read())}
    process.stdout.close()
    return process.returncode, findings[topic]


def test_where_images_are_instead_and_what_to_type(peer):
    peer.publisher(Image, "/head/camera/image_raw")
    code, finding = ask(peer, "/camera/image")
    assert code == 1 and finding["state"] == "fault"
    assert "/camera/image: nobody publishes there" in finding["text"]
    line = "ros2 launch ehrnet_ros pose.launch.py image:=/head/camera/image_raw"
    assert f"`{line}` takes them" in finding["text"]


def test_images_that_arrive(peer, image_of):
    publisher = peer.publisher(Image, "/good/image")
    msg = image_of(np.zeros((48, 64, 3), np.uint8), frame_id="eye")
    _, finding = ask(peer, "/good/image", each=lambda: publisher.publish(msg))
    assert finding["state"] == "ok" and "64x48 bgr8, frame_id 'eye'" in finding["text"]
