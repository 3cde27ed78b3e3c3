"""The live view, seen by a client that knows WebSockets and Protocol Buffers but no Foxglove."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import time

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
pytest.importorskip("foxglove", reason="needs foxglove-sdk (pip install foxglove-sdk)")
client = pytest.importorskip("websockets.sync.client", reason="needs websockets")
pytest.importorskip("google.protobuf", reason="needs protobuf")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from ehrnet_msgs.msg import PoseArray  # noqa: E402
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from ehrnet_model.skeleton import COCO_17  # noqa: E402

HW = (384, 512)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Viewer:
    """Opens the server and subscribes to channels, as the published protocol has it."""

    def __init__(self, connection):
        self.socket = connection
        self.info, self.channels, self.messages = {}, {}, []

    def read(self):
        """Takes in what has arrived."""
        while True:
            try:
                data = self.socket.recv(timeout=0.01)
            except TimeoutError:
                return
            if isinstance(data, bytes):
                opcode, subscription, time_ns = struct.unpack_from("<BIQ", data)
                assert opcode == 1
                self.messages.append((subscription, time_ns, data[13:]))
                continue
            said = json.loads(data)
            if said["op"] == "serverInfo":
                self.info = said
            if said["op"] == "advertise":
                self.channels.update({channel["topic"]: channel for channel in said["channels"]})

    def subscribe(self, **topics):
        subscriptions = [
            {"id": int(number[1:]), "channelId": self.channels[topic]["id"]}
            for number, topic in topics.items()
        ]
        self.socket.send(json.dumps({"op": "subscribe", "subscriptions": subscriptions}))

    def decode(self, topic, data):
        """A message by the definition that the server sent for its channel."""
        channel = self.channels[topic]
        if channel["encoding"] == "json":
            return json.loads(data)
        assert (channel["encoding"], channel["schemaEncoding"]) == ("protobuf", "protobuf")
        files = descriptor_pb2.FileDescriptorSet()
        files.ParseFromString(base64.b64decode(channel["schema"]))
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        kind = pool.FindMessageTypeByName(channel["schemaName"])
        return message_factory.GetMessageClass(kind).FromString(data)


@pytest.fixture
def look_on():
    """Opens viewers, which are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda port: Viewer(
            stack.enter_context(
                client.connect(
                    f"ws://localhost:{port}", subprotocols=["foxglove.sdk.v1"], proxy=None
                )
            )
        )


def test_a_viewer_gets_image_skeletons_and_latency_and_nobody_else_costs(
    dots, model, start, peer, image_of, look_on
):
    port = free_port()
    node = start("pose_node", model=model, size="384x512", live_view_port=port)
    node.wait_for_log(f"ws://localhost:{port}")
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, "image")
    viewer = look_on(port)
    names = {name: f"/pose/{name}" for name in ("image", "skeletons", "latency")}
    peer.until(lambda: set(names.values()) <= set(viewer.channels), "channels", each=viewer.read)
    assert viewer.info["name"] == "/pose"
    schemas = [viewer.channels[topic]["schemaName"] for topic in names.values()]
    assert schemas == ["foxglove.CompressedImage", "foxglove.ImageAnnotations", "ehrnet.Latency"]
    # Connected, but looking at nothing: the node does not even subscribe to images.
    peer.spin(1.0)
    assert camera.get_subscription_count() == 0

    person = dots.figure((200, 190), 250)
    person[1] = np.nan  # the left eye
    picture = dots.draw_people(HW, person[None])
    msg = image_of(picture)
    stamp_ns = msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
    viewer.subscribe(_7=names["skeletons"], _8=names["latency"])
    peer.until(camera.get_subscription_count, "a subscription because somebody looks")

    def answers(*numbers):
        def found():
            viewer.read()
            mine = {m[0]: m[2] for m in viewer.messages if m[1] == stamp_ns}
            return mine if mine.keys() >= set(numbers) else None

        return peer.until(found, f"messages {numbers}", each=lambda: camera.publish(msg))

    got = answers(7, 8)
    latency = viewer.decode(names["latency"], got[8])
    assert latency["people"] == 1 and latency["engine_ms"] > 0 and latency["age_ms"] > 0
    annotations = viewer.decode(names["skeletons"], got[7])
    assert annotations.timestamp.seconds == msg.header.stamp.sec
    bones, keypoints = annotations.points
    assert bones.type == bones.LINE_LIST and keypoints.type == keypoints.POINTS
    present = [index for index in range(17) if index != 1]
    # Foxglove's origin is the corner of the first pixel, ours its centre.
    shown = np.array([(point.x - 0.5, point.y - 0.5) for point in keypoints.points])
    np.testing.assert_allclose(shown, person[present], atol=1)
    edges = [edge for edge in COCO_17.edges if 1 not in edge]
    ends = np.array([(point.x - 0.5, point.y - 0.5) for point in bones.points]).reshape(-1, 2, 2)
    np.testing.assert_allclose(ends, person[np.array(edges)], atol=1)
    assert keypoints.outline_color.a == 1
    assert not [m for m in viewer.messages if m[0] not in (7, 8)]

    viewer.subscribe(_9=names["image"])
    image = viewer.decode(names["image"], answers(9)[9])
    assert (image.format, image.frame_id) == ("jpeg", msg.header.frame_id)
    seen = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(seen.astype(int) - picture).mean() < 2

    viewer.socket.close()
    end = time.monotonic() + 20
    while camera.get_subscription_count() and time.monotonic() < end:
        peer.spin(0.1)
    assert camera.get_subscription_count() == 0, "still subscribed though nobody looks"
    assert node.interrupt() == 0
    assert "Traceback" not in node.log()


def test_a_port_that_is_taken_is_named_and_costs_the_view_alone(start, model, peer, image_of):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        node = start("pose_node", model=model, live_view_port=port, extra=["-r", "__node:=second"])
        said = node.wait_for_log("Ready:")
    assert f"cannot listen on port {port}" in said and "live_view_port" in said
    camera = peer.publisher(Image, "image", 10)
    answers = peer.listen(PoseArray, "second/poses")
    heard = peer.listen(DiagnosticArray, "/diagnostics")

    ramp = np.linspace(20, 90, HW[1])[None, :, None]  # one grey would be taken for a covered lens
    msg = image_of(np.broadcast_to(ramp, (*HW, 3)).astype(np.uint8))

    def told():
        camera.publish(msg)
        own = [s for m in heard for s in m.status if s.name.startswith("/second")]
        return answers and [s for s in own if "No live view: The live view cannot" in s.message]

    assert peer.until(told, "poses and a warning")[-1].level == DiagnosticStatus.WARN
    assert node.interrupt() == 0


def test_a_viewer_that_sleeps_does_not_keep_the_node_alive(
    dots, model, start, peer, image_of, look_on
):
    """Its connection is open, and nothing is read any more: a laptop whose lid was closed."""
    port = free_port()
    node = start("pose_node", model=model, live_view_port=port, remaps=["__node:=watched"])
    node.wait_for_log("Ready:")
    viewer = look_on(port)
    peer.until(lambda: "/watched/image" in viewer.channels, "channels", each=viewer.read)
    number = viewer.channels["/watched/image"]["id"]
    asleep = socket.socket()
    asleep.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asleep.connect(("127.0.0.1", port))
    hello = (
        "GET / HTTP/1.1", f"Host: localhost:{port}", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: " + base64.b64encode(bytes(16)).decode(), "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: foxglove.sdk.v1",
    )  # fmt: skip
    asleep.sendall("\r\n".join([*hello, "", ""]).encode())
    assert b"101" in asleep.recv(64)
    asked = {"op": "subscribe", "subscriptions": [{"id": 1, "channelId": number}]}
    text = json.dumps(asked).encode()
    assert len(text) < 126  # one length byte; the mask of zeros leaves the text as it is
    asleep.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)

    camera = peer.publisher(Image, "image")
    peer.until(camera.get_subscription_count, "a subscription because somebody looks")
    noise = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8)
    answers = peer.listen(PoseArray, "watched/poses")
    # A megabyte and more each: more than the system keeps for a connection, and the backlog.
    peer.until(
        lambda: len(answers) >= 30, "30 images", each=lambda: camera.publish(image_of(noise))
    )
    assert node.interrupt() == 0 and "Traceback" not in node.log()
    asleep.close()
