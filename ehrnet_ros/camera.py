"""One camera of the pose node: what it is fed by, what is published for it, what was counted."""

from __future__ import annotations

import collections
import math
import statistics
import threading
import time
from typing import Any, Callable, Collection, Deque, Iterator, Optional, Sequence, Tuple

from ehrnet_msgs.msg import PoseArray, SkeletonInfo
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Float32MultiArray, MultiArrayDimension
from visualization_msgs.msg import MarkerArray

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.draw import draw_poses
from ehrnet_model.inference.poses import Expected, Poses, Timings
from ehrnet_model.inference.tracker import PoseTracker
from ehrnet_model.skeleton import SkeletonInfo as Skeleton
from ehrnet_ros import health
from ehrnet_ros.image_msgs import Picture, to_image
from ehrnet_ros.live import CameraView, LiveView
from ehrnet_ros.other_msgs import OtherOutputs
from ehrnet_ros.parameters import Settings, track_options
from ehrnet_ros.pose_msgs import Lens, MarkerLifetime, to_markers, to_pose_array

# Without an image for so long, and for so many times the usual pause, say what is missing.
SILENT_S = 2.0
_PAUSES = 3.0
LATENCY = "letterbox, engine, decode, since arrival, since stamp [ms]"  # data of ~/latency
_REPEAT_S = 30.0  # say the same thing again only after so long


def _qos(depth: int, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def _latency(*values: float) -> Float32MultiArray:
    """Numbers that rqt_plot, PlotJuggler and Foxglove plot: `~/latency/data[0]` and so on."""
    msg = Float32MultiArray(data=values)
    size = len(values)
    msg.layout.dim = [MultiArrayDimension(label=LATENCY, size=size, stride=size)]
    return msg


class Camera:
    """A camera, from the node's start to its end.

    Args:
        node: owns all publishers and subscriptions.
        name: ``front`` makes ``front/image`` into ``~/front/poses``; empty: ``image``, ``~/poses``.
        on_image: called in the executor with this camera and each image message.
        ids: where tracked people's numbers are taken from; one for all cameras of a node.

    Attributes:
        counters: what passed through.
        upright_hw: (height, width) of the last image, turned as people stand in it; (0, 0) before
            the first.
        input_hw: (height, width) of the network input that its images go through.
        subscribed: number of the present subscription. Images taken under an older one are stale.
        bad_image, bad_engine: hold back complaints that were made a moment ago.

    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        on_image: Callable[[Camera, Any], None],
        ids: Iterator[int],
    ) -> None:
        self.name = name
        self.counters = health.Counters()
        self.upright_hw = self.input_hw = (0, 0)
        self.subscribed = 0
        self.bad_image = health.Repeated(_REPEAT_S, numbers=False)
        self.bad_engine = health.Repeated(_REPEAT_S, numbers=False)
        # As old as the camera, so that no id is given twice. The engine's thread asks it, the one
        # after that tells it.
        self._tracker = PoseTracker(ids=ids)
        self._tracking = threading.Lock()
        self._node = node
        self._on_image = on_image
        self._complaint = health.Repeated(_REPEAT_S)
        self._same_topic = health.Repeated(_REPEAT_S)
        self._frameless = health.Repeated(math.inf)
        self._had_images = False
        self._pauses: Deque[float] = collections.deque(maxlen=9)
        self._lens_told = self._nothing_told = ""
        self._lifetime = MarkerLifetime()
        self._camera_info: Optional[CameraInfo] = None
        self._publishers: Tuple[Any, ...] = ()
        self._other: Optional[OtherOutputs] = None
        self._view: Optional[CameraView] = None
        self._subscriptions: Tuple[Any, ...] = ()
        label = name or "poses"
        self._diagnostics = health.Diagnostics(node, f"{node.get_fully_qualified_name()}: {label}")

    # Outputs

    def open(self, settings: Settings, live: Optional[LiveView]) -> None:
        """Makes the publishers (configure).

        Raises:
            EhrnetError: an output was asked for whose messages are not installed.

        """
        node, inner = self._node, f"{self.name}/" if self.name else ""
        prefix = f"~/{inner}"
        self._other = OtherOutputs(
            node, prefix, settings.detections, settings.bodies, camera=self.name
        )
        if live is not None:
            self._view = live.add_camera(f"{node.get_fully_qualified_name()}/{inner}")
        self._publishers = (
            node.create_lifecycle_publisher(PoseArray, f"{prefix}poses", _qos(10)),
            node.create_lifecycle_publisher(MarkerArray, f"{prefix}markers", _qos(1)),
            node.create_lifecycle_publisher(Image, f"{prefix}overlay", _qos(1)),
            node.create_lifecycle_publisher(Float32MultiArray, f"{prefix}latency", _qos(10)),
            # Not a lifecycle publisher: what the skeletons mean is known before there are any.
            node.create_publisher(SkeletonInfo, f"{prefix}skeleton_info", _qos(1, latched=True)),
        )
        self.upright_hw = self.input_hw = (0, 0)

    def close(self) -> None:
        """Takes the topics away (cleanup)."""
        self.unsubscribe()
        if self._other is not None:
            self._other.destroy()
        self._other = self._view = None  # the live view takes its channels away itself
        *outputs, info = self._publishers or (None,)
        for publisher in outputs:
            self._node.destroy_lifecycle_publisher(publisher)
        if info is not None:
            self._node.destroy_publisher(info)
        self._publishers = ()

    def listeners(self) -> int:
        """How many subscriptions there are to what is made from images."""
        count = sum(publisher.get_subscription_count() for publisher in self._publishers[:4])
        count += self._other.listeners() if self._other is not None else 0
        return count + (self._view.listeners() if self._view is not None else 0)

    def publish_info(self, msg: SkeletonInfo) -> None:
        """Latches what the skeletons mean."""
        if self._publishers:
            self._publishers[4].publish(msg)

    def track(
        self, poses: Poses, header: Any, image_hw: Tuple[int, int], settings: Settings
    ) -> Poses:
        """The same people with ids that last, where tracking is wanted."""
        if not settings.tracking:
            return poses
        with self._tracking:
            self._tracker.options = track_options(settings)
            return self._tracker.update(poses, self._stamp_s(header), image_hw).best_first()

    def expected(
        self, header: Any, image_hw: Tuple[int, int], settings: Settings
    ) -> Optional[Expected]:
        """Who should be in an image, by those before, where second looks are to know."""
        if not (settings.tracking and settings.track_second_look):
            return None
        with self._tracking:
            return self._tracker.expected(
                self._stamp_s(header), image_hw, settings.track_first_look
            )

    def _stamp_s(self, header: Any) -> float:
        stamp = header.stamp.sec * 10**9 + header.stamp.nanosec
        return float((stamp or self._node.get_clock().now().nanoseconds) / 1e9)

    def publish(
        self,
        poses: Poses,
        picture: Picture,
        header: Any,
        skeleton: Skeleton,
        settings: Settings,
        timings: Timings,
        shown_from: float,
    ) -> float:
        """Sends what follows from one image; returns its age in milliseconds.

        Pictures show only keypoints with a score from ``shown_from`` on.
        """
        to_poses, to_rviz, to_overlay = self._publishers[:3]
        image_hw = picture.array.shape[0], picture.array.shape[1]
        array = to_pose_array(poses, header, image_hw)
        array.latency_ms = age_ms = self._age_ms(header)
        to_poses.publish(array)
        shown = poses.above(shown_from)
        if to_rviz.get_subscription_count():
            markers = to_markers(
                shown,
                header,
                self._lens(image_hw, settings),
                skeleton,
                depth=settings.marker_depth,
                line_width=settings.marker_line_width,
                lifetime=self._lifetime(header),
            )
            to_rviz.publish(markers)
        if to_overlay.get_subscription_count():
            to_overlay.publish(
                to_image(draw_poses(picture.bgr(), shown, skeleton, show_ids=True), header)
            )
        if self._other is not None:
            self._other.publish(poses, header, image_hw, skeleton, settings.tracking)
        if self._view is not None:
            self._view.publish(shown, picture, header, skeleton, timings, age_ms)
        return age_ms

    def _age_ms(self, header: Any) -> float:
        """Age of an image now; NaN without a stamp, or if the clock is behind it or not set yet."""
        stamp = header.stamp.sec * 10**9 + header.stamp.nanosec
        age = self._node.get_clock().now().nanoseconds - stamp
        return age / 1e6 if stamp and age >= 0 else math.nan

    def _lens(self, image_hw: Tuple[int, int], settings: Settings) -> Lens:
        topic = self._resolve(self._relative("camera_info"))
        try:
            if self._camera_info is not None:
                return Lens.from_camera_info(self._camera_info, image_hw)
            why = "has not arrived"
        except EhrnetError as error:
            why = f"is of no use ({error})"
        if self._lens_told != why:
            self._lens_told = why
            self._node.get_logger().info(
                f"CameraInfo on {topic} {why}: markers are drawn as through "
                f"a lens of {settings.nominal_fov_deg:g} degrees (nominal_fov_deg)."
            )
        return Lens.nominal(image_hw, settings.nominal_fov_deg)

    # Input

    def _relative(self, topic: str) -> str:
        return f"{self.name}/{topic}" if self.name else topic

    def _resolve(self, topic: str) -> str:
        return str(self._node.resolve_topic_name(topic))

    def _input(self, settings: Settings) -> Tuple[Any, str]:
        """Type and topic of the images that are asked for, as given to create_subscription.

        That remaps what it is given: a name that was remapped before would be so twice, and of two
        swapped cameras each would get its own images.
        """
        topic = self._relative("image")
        if settings.transport == "raw":
            return Image, topic
        resolved = self._resolve(topic)
        # As image_transport does it: first `image` is remapped, then `image/compressed`.
        compressed = topic if health.is_compressed(resolved) else f"{resolved}/compressed"
        return CompressedImage, compressed

    def _seen_input(self, settings: Settings) -> Tuple[str, str]:
        """Topic and type name of these images in the graph."""
        kind, topic = self._input(settings)
        return self._resolve(topic), f"sensor_msgs/msg/{kind.__name__}"

    @property
    def is_subscribed(self) -> bool:
        """Whether images arrive if there are any."""
        return bool(self._subscriptions)

    def subscribe(self, settings: Settings) -> None:
        """Asks for images and their CameraInfo."""
        kind, topic = self._input(settings)
        reliable = settings.input_qos == "reliable"
        self.counters.waiting()
        self._subscriptions = (
            self._node.create_subscription(kind, topic, self._received, _qos(1, reliable)),
            self._subscribe_to_info(),
        )

    def _subscribe_to_info(self) -> Any:
        topic = self._relative("camera_info")
        kept = health.kept_for_late_ones(self._node, self._resolve(topic))
        qos = _qos(1, reliable=kept, latched=kept)
        return self._node.create_subscription(CameraInfo, topic, self._received_info, qos)

    def _ask_for_kept_info(self) -> None:
        """Asks anew where CameraInfo came once, before this node, and is kept for late ones."""
        images, info = self._subscriptions
        asked = info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        topic = self._resolve(self._relative("camera_info"))
        if self._camera_info is None and asked != health.kept_for_late_ones(self._node, topic):
            self._node.destroy_subscription(info)
            self._subscriptions = (images, self._subscribe_to_info())

    def unsubscribe(self) -> None:
        """No more images; those that wait are stale from now on. Not beside publish()."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = ()
        self.subscribed += 1
        self.nobody()

    def nobody(self) -> None:
        """Nothing is known of the people seen last any more. Not beside publish()."""
        if self._other is not None:
            self._other.nobody()

    def begin(self) -> None:
        """The wait for an image begins now (activate)."""
        self.counters.waiting()
        self._complaint.reset()

    def _received(self, msg: Any) -> None:
        silent, after = self.counters.received(), self.silent_after_s
        of = f" of {self.name}" if self.name else ""
        if self._had_images:
            self._pauses.append(silent)
        if silent > after and self._had_images:
            self._node.get_logger().info(f"Images{of} again, after {silent:.1f} s without.")
        self._had_images = True
        self._complaint.reset()
        if not msg.header.frame_id and self._frameless.should_say("told"):
            self._node.get_logger().warning(
                f"Images{of} have no frame_id: RViz and tf2 cannot place what is published of "
                "them. Give one to the camera's driver."
            )
        self._on_image(self, msg)

    def _received_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    # Diagnostics

    @property
    def silent_after_s(self) -> float:
        """Seconds without an image after which one is missed: longer where few come by habit."""
        usual = statistics.median(self._pauses) if self._pauses else 0.0
        return max(SILENT_S, _PAUSES * usual)

    def status(
        self, snapshot: health.Snapshot, settings: Settings, others: Sequence[Camera] = ()
    ) -> Tuple[bytes, str]:
        """Level and sentence of an active camera; complaints about its input go to the log too.

        Args:
            snapshot: its counts.
            settings: of the node.
            others: cameras of the node, which want images of their own.

        """
        topic, type_name = self._seen_input(settings)
        taken = [other._seen_input(settings)[0] for other in others if other is not self]
        if topic in taken and self._same_topic.should_say(topic):
            self._node.get_logger().warning(
                f"{self.name} takes its images from {topic}, as another camera of this node does: "
                "the same people are found twice."
            )
        if not self.is_subscribed:
            silent = snapshot.silent_s > self.silent_after_s
            if silent and not health.publishes(self._node, topic, type_name):
                return self._silent(snapshot.silent_s, settings, taken)
            return health.OK, "Idle: nobody subscribes to any result."
        self._ask_for_kept_info()
        if snapshot.silent_s > self.silent_after_s:
            return self._silent(snapshot.silent_s, settings, taken)
        if snapshot.failed_in_a_row >= health.DEAD_AFTER:
            return health.ERROR, f"The engine fails on every image: {snapshot.last_error}"
        if snapshot.bad_now:
            return health.WARN, f"Images are refused: {snapshot.last_error}"
        nothing = "" if snapshot.people else snapshot.nothing_seen
        if nothing and nothing != self._nothing_told:
            self._node.get_logger().warning(nothing)
        self._nothing_told = nothing
        if nothing:
            return health.WARN, nothing
        return health.OK, "Publishing poses."

    def _silent(
        self, seconds: float, settings: Settings, taken: Collection[str]
    ) -> Tuple[bytes, str]:
        topic, type_name = self._seen_input(settings)
        why = health.explain_input(
            self._node, topic, type_name, settings.input_qos == "reliable", self.name, taken
        )
        if self._complaint.should_say(why):
            self._node.get_logger().warning(why)
        if self._had_images:
            return health.STALE, f"Images stopped {seconds:.0f} s ago. {why}"
        return health.WARN, why

    def report(self, level: bytes, text: str, model: str, values: Any) -> None:
        """Publishes the status of this camera."""
        self._diagnostics.publish(level, text, model, values)

    def done(self, people: int, timings: Timings, arrived: float, age_ms: float) -> None:
        """Counts a published answer to an image that arrived at ``arrived`` (time.monotonic())."""
        here_ms = (time.monotonic() - arrived) * 1e3
        self.counters.published(people, timings, here_ms, age_ms)
        plot = self._publishers[3]
        if plot.get_subscription_count():
            stages = (timings.letterbox_ms, timings.engine_ms, timings.decode_ms)
            plot.publish(_latency(*stages, here_ms, age_ms))
