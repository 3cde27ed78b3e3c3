"""A camera made of a picture, a folder of pictures, a video file or a camera that OpenCV opens.

Publishes ``image`` (bgr8) with stamp and frame, and ``camera_info`` of a nominal lens. For demos,
tests and trying the pose node without a camera driver.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ehrnet_model.errors import EhrnetError
from ehrnet_ros import arguments
from ehrnet_ros.frames import LatestFrames
from ehrnet_ros.image_msgs import to_image
from ehrnet_ros.names import check_names, declare_parameter
from ehrnet_ros.source import open_source, public
from ehrnet_ros.spin import spin

# A camera or stream that broke off is opened again after so long, then after twice as long.
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 30.0


class Parameter(NamedTuple):
    """A parameter of this node, read at start."""

    name: str
    default: Any
    description: str
    limits: Optional[Tuple[int, int]] = None


PARAMETERS = (
    Parameter(
        "source",
        "",
        "Picture, folder, video file, rtsp:// or http:// stream, or index or device of a camera.",
    ),
    Parameter(
        "rate",
        0.0,
        "[Hz] images per second; 0: a video's own, else 10; of a camera or stream at most so many, "
        "the newest each time, 0: all.",
        (0, 1000),
    ),
    Parameter(
        "loop",
        True,
        "Begin again at the end, reopen a camera or stream that breaks off; else exit 0 there.",
    ),
    Parameter(
        "wait_for_subscribers", 0, "Hold the first image until so many have subscribed to it."
    ),
    Parameter(
        "frame_id", "camera_optical_frame", "Frame of the images: x right, y down, z forward."
    ),
    Parameter(
        "reliable", True, "Publish reliably, which matches every subscriber; else best effort."
    ),
    Parameter(
        "width",
        0,
        "[px] scale images to this width and keep their aspect; 0: as they are.",
        (0, 8192),
    ),
    Parameter("camera_info", True, "Publish camera_info of a nominal lens."),
    Parameter("fov_deg", 60.0, "[degrees] horizontal field of view of that lens.", (1, 179)),
)


class PictureNode(Node):
    """The node ``camera``.

    Raises:
        EhrnetError: the source cannot be opened or a parameter is out of range.

    """

    def __init__(self, **options: Any) -> None:
        super().__init__("camera", **options)
        values = {parameter.name: self._declare(parameter) for parameter in PARAMETERS}
        check_names(self, values)
        source, rate = str(values["source"]), values["rate"]
        reliable, info = values["reliable"], values["camera_info"]
        self._loop, self._wait = values["loop"], values["wait_for_subscribers"]
        self._frame_id, self._fov_deg = values["frame_id"], values["fov_deg"]
        self._width = values["width"]
        self._source = open_source(source, self._skip)
        self._frames = self._source.frames()
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=2,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        self._images = self.create_publisher(Image, "image", qos)
        self._infos = self.create_publisher(CameraInfo, "camera_info", qos) if info else None
        self._last: Tuple[Optional[np.ndarray], Optional[Image]] = (None, None)
        self.sent = 0
        self.done = False
        self._shown, self._rate = public(source), rate
        if not self._source.endless:
            self._rate = rate or self._source.rate or 10.0
        self._newest: LatestFrames[Tuple[Optional[np.ndarray], Any]] = LatestFrames()
        self._reader = threading.Thread(target=self._read, name="source", daemon=True)
        self._closing = threading.Event()
        self._came = self.create_guard_condition(self._send_newest)

    def start(self) -> None:
        """Publishes from now on."""
        topic, send = self.resolve_topic_name("image"), self._send
        if self._source.endless:
            send = self._send_newest
            self._reader.start()
        pace = f"at {self._rate:g} Hz" if self._rate else "as they come"
        self.get_logger().info(f"Publishing images of {self._shown} on {topic} {pace}.")
        if self._rate:
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._timer = self.create_timer(1 / self._rate, send, clock=steady)

    def close(self) -> None:
        """Waits until the last image is delivered, and for who reads the source."""
        self._closing.set()
        self._newest.close()
        if self.done:
            time.sleep(0.5)
        if self._reader.is_alive():
            self._reader.join(2.0)  # a stream may be stuck

    def _declare(self, parameter: Parameter) -> Any:
        # A camera's index is an integer to ROS, a path a string.
        name, default, description, limits = parameter
        descriptor = ParameterDescriptor(
            description=description, read_only=True, dynamic_typing=name == "source"
        )
        allowed = {bool: "true or false", int: "0 or more", str: "a string"}.get(type(default), "")
        low, high = limits or (0, 2**63 - 1)
        if limits is not None:
            allowed = f"{low} to {high}"
        if type(default) is int:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        elif limits is not None:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
        return declare_parameter(self, name, default, descriptor, allowed)

    def _read(self) -> None:
        """Takes from a camera or stream whatever comes: what waits in there only gets older."""
        lost, pause_s = False, _AGAIN_S
        while True:
            for frame in self._frames:
                if self._closing.is_set():
                    return
                if lost:
                    self.get_logger().info(f"The source {self._shown} is back.")
                    lost, pause_s = False, _AGAIN_S
                self._put(frame)
            if not self._loop:
                self._put(None)
                return
            if not (lost or self._closing.is_set()):
                self.get_logger().warning(
                    f"The source {self._shown} broke off: opening it again until it is back."
                )
                lost = True
            if self._closing.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _AGAIN_AT_MOST_S)
            self._frames = self._source.frames()

    def _skip(self, file: Path, error: EhrnetError) -> None:
        self.get_logger().warning(f"Skipped: {error}")

    def _put(self, frame: Optional[np.ndarray]) -> None:
        self._newest.put("source", (frame, self.get_clock().now()))
        if not self._rate:
            self._came.trigger()

    def _send_newest(self) -> None:
        for _, (frame, came) in self._newest.take(timeout=0):
            if frame is None or not self._is_waiting():
                self._publish(frame, came)

    def _is_waiting(self) -> bool:
        if self.done or (self._wait and self._images.get_subscription_count() < self._wait):
            return True
        self._wait = 0
        return False

    def _send(self) -> None:
        if self._is_waiting():
            return
        frame = next(self._frames, None)
        if frame is None and self._loop and self.sent:
            self._frames = self._source.frames()
            frame = next(self._frames, None)
        self._publish(frame, self.get_clock().now())

    def _publish(self, frame: Optional[np.ndarray], came: Any) -> None:
        if frame is None:
            self.done = True
            self.get_logger().info(f"End of the source after {self.sent} images.")
            return
        msg = self._message(frame)
        # A new header each time: the old message may still be on its way through this process.
        msg.header = Header(frame_id=self._frame_id, stamp=came.to_msg())
        self._images.publish(msg)
        if self._infos is not None:
            self._infos.publish(nominal_camera_info(msg, self._fov_deg))
        self.sent += 1

    def _message(self, frame: np.ndarray) -> Image:
        if frame is self._last[0] and self._last[1] is not None:
            return self._last[1]  # a still picture is converted once
        picture = frame
        if self._width and frame.shape[1] != self._width:
            height = max(1, round(frame.shape[0] * self._width / frame.shape[1]))
            picture = cv2.resize(frame, (self._width, height), interpolation=cv2.INTER_AREA)
        msg = to_image(picture, Header())
        self._last = (frame, msg)
        return msg


def nominal_camera_info(image: Image, fov_deg: float) -> CameraInfo:
    """CameraInfo of a lens without distortion that sees ``fov_deg`` degrees from left to right."""
    focal = image.width / 2 / math.tan(math.radians(fov_deg) / 2)
    cx, cy = (image.width - 1) / 2, (image.height - 1) / 2
    msg = CameraInfo(header=image.header, width=image.width, height=image.height)
    msg.distortion_model = "plumb_bob"
    msg.d = [0.0] * 5
    msg.k = [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]
    msg.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    msg.p = [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return msg


def main(args: Optional[List[str]] = None) -> int:
    """Runs the node until its source ends, SIGINT or SIGTERM. 2 when it could not start."""
    code = arguments.answer(
        "picture_node",
        "Publishes a picture, a folder of pictures, a video or a camera as image and camera_info.",
        {parameter.name: parameter.default for parameter in PARAMETERS},
        "-p source:=people.jpg",
        args,
        bare="source",
    )
    return spin("camera", PictureNode, args) if code is None else code


if __name__ == "__main__":
    sys.exit(main())
