"""ehrnet doctor --image, from outside: the same answer as the node's."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

from ehrnet_ros.cli import doctor  # noqa: E402


def ask(peer, topic, each=lambda: None, about=None):
    command = [sys.executable, "-m", "ehrnet_ros.cli", "doctor", "--json", "--image", topic]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peer.until(lambda: process.poll() is not None, "the end of doctor", seconds=60, each=each)
    findings = {f["name"]: f for f in json.loads(process.stdout.read())}
    process.stdout.close()
    return process.returncode, findings[about or topic]


def test_where_images_are_instead_and_what_to_type(peer):
    peer.publisher(Image, "/head/camera/image_raw")
    code, finding = ask(peer, "/camera/image")
    assert code == 1 and finding["state"] == "fault"
    assert "/camera/image: nobody publishes there" in finding["text"]
    line = "ros2 launch ehrnet_ros pose.launch.py image:=/head/camera/image_raw"
    assert f"`{line}` takes them" in finding["text"]


def test_images_that_arrive(peer, image_of):
    publisher = peer.publisher(Image, "/good/image")
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None], (48, 1, 3))
    msg = image_of(ramp, frame_id="eye")
    _, finding = ask(peer, "/good/image", each=lambda: publisher.publish(msg))
    assert finding["state"] == "ok" and "64x48 bgr8, frame_id 'eye'" in finding["text"]
    _, finding = ask(peer, "/good/image", lambda: publisher.publish(msg), "people")
    assert finding["state"] == "ok" and finding["text"].startswith("H-4 finds 0.0 an image, by ")


def test_a_camera_that_shows_nothing_is_told(peer, image_of):
    publisher = peer.publisher(Image, "/dark/image")
    msg = image_of(np.zeros((48, 64, 3), np.uint8))
    code, finding = ask(peer, "/dark/image", lambda: publisher.publish(msg), "people")
    assert code == 1 and finding["state"] == "fault"
    assert finding["text"].startswith("Images are nearly black")


@pytest.mark.parametrize("name", ["/camera/", "/head-camera/image", "two words", "{eye}/image", ""])
def test_what_cannot_be_the_name_of_a_topic(peer, name):
    code, finding = ask(peer, name)
    assert code == 1 and finding["state"] == "fault"
    assert f"'{name}' cannot be the name of a topic (" in finding["text"]


def test_a_camera_that_is_mounted_upside_down_is_told(peer):
    cv2 = pytest.importorskip("cv2")
    matplotlib = pytest.importorskip("matplotlib", reason="a photograph comes with matplotlib")
    photograph = Path(matplotlib.__file__).parent / "mpl-data/sample_data/grace_hopper.jpg"
    if not photograph.exists():
        pytest.skip("this matplotlib ships no photographs")
    publisher = peer.publisher(CompressedImage, "/head/compressed")
    picture = cv2.rotate(cv2.imread(str(photograph)), cv2.ROTATE_180)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    msg = CompressedImage(format="jpeg", data=data)
    code, finding = ask(peer, "/head/compressed", lambda: publisher.publish(msg), "people")
    assert code == 0 and finding["state"] == "optional"
    assert finding["text"].endswith("set rotation:=180")


def test_compressed_images_are_known_by_their_type(peer):
    publisher = peer.publisher(CompressedImage, "/good/jpegs")
    msg = CompressedImage(format="jpeg")
    _, finding = ask(peer, "/good/jpegs", each=lambda: publisher.publish(msg))
    assert finding["state"] == "ok" and "the last one jpeg, frame_id ''" in finding["text"]
    code, finding = ask(peer, "/good/jpegs", lambda: publisher.publish(msg), "people")
    assert code == 1 and finding["state"] == "fault" and "empty" in finding["text"]


def test_a_camera_that_is_discovered_late_is_healthy(peer, image_of):
    publisher = peer.publisher(Image, "/late/image")
    msg = image_of(np.zeros((48, 64, 3), np.uint8))
    begins = []

    def each():
        if publisher.get_subscription_count():
            begins[:] = begins or [time.monotonic() + 4]
            if time.monotonic() > begins[0]:
                publisher.publish(msg)

    _, finding = ask(peer, "/late/image", each=each)
    assert finding["state"] == "ok" and " images in 3 s" in finding["text"]


def test_each_finding_is_printed_as_it_comes(monkeypatch, capsys):
    before = []

    def images(topic):
        before.append(capsys.readouterr().out)
        yield doctor.Finding(topic, doctor.OK, "arrive")

    monkeypatch.setattr(doctor, "PACKAGES", ())
    monkeypatch.setattr(doctor, "_images", images)
    doctor.run(argparse.Namespace(json=False, image="/image"))
    assert "python" in before[0] and "arrive" in capsys.readouterr().out
