"""PoseNode: camera images in, skeletons out. A lifecycle node; no pixel arithmetic.

Two threads. The executor's runs callbacks, services, timers and diagnostics and never waits for the
network. A worker owns the engine from creation to release and turns the newest image into messages.

States: *configure* checks parameters and model file and has the worker load the engine; *activate*
subscribes as soon as the engine is ready; *deactivate* unsubscribes, the engine stays; *cleanup*
releases it. An engine that cannot be loaded takes the node back to unconfigured, with the reason in
the log and in the diagnostics.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np
import rclpy
from ehrnet_msgs.msg import PoseArray, SkeletonInfo
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from visualization_msgs.msg import MarkerArray

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.draw import draw_poses
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import ModelInfo, model_info, open_runtime
from ehrnet_model.inference.sizes import size_advice
from ehrnet_ros import health, parameters
from ehrnet_ros.image_msgs import (
    ImageError,
    Picture,
    to_image,
    to_picture,
    to_picture_compressed,
)
from ehrnet_ros.live import CameraView, LiveView
from ehrnet_ros.other_msgs import OtherOutputs
from ehrnet_ros.pose_msgs import Lens, to_markers, to_pose_array, to_skeleton_info
from ehrnet_ros.worker import FAILED, LOADING, READY, EngineWorker

_SILENT_S = 2.0  # without an image for so long, say what is missing
_REPEAT_S = 30.0  # say the same thing again only after so long
_MARKER_LIFETIME_S = 0.5


def _open_estimator(path: Path, settings: parameters.Settings) -> PoseEstimator:
    """Loads the engine and runs it once, so that the first image is not the slow one.

    Raises:
        EhrnetError: the engine cannot be opened, or not with these settings.
    """
    # An ONNX file tells its named sizes beforehand, an engine only once it is open.
    early = path.suffix == ".onnx"
    size_hw = parameters.input_size(settings, model_info(path).input_size) if early else None
    runtime = open_runtime(path, settings.runtime, size_hw, settings.threads or None)
    wanted = parameters.input_size(settings, runtime.info.input_size)
    if wanted and runtime.size_hw and wanted != runtime.size_hw:
        runtime.close()
        raise EhrnetError(
            f"Parameter size asks for {wanted[0]}x{wanted[1]} but the engine of {path} is for "
            f"{runtime.size_hw[0]}x{runtime.size_hw[1]}: set size to auto, or build another engine."
        )
    options = parameters.decode_options(settings, runtime.info.decode)
    estimator = PoseEstimator(runtime, options, wanted)
    estimator(np.zeros((480, 640, 3), np.uint8))
    return estimator


def _model_name(info: Optional[ModelInfo]) -> str:
    """Variant, weights and how far they can be trusted: ``H-4 ours-2026-11 (preview)``."""
    if info is None:
        return ""
    return f"{info.variant} {info.weights_name or 'unnamed'} ({info.quality})"


def _qos(depth: int, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class _Outputs:
    """The publishers of one camera, from configure to cleanup."""

    def __init__(self, node: LifecycleNode, settings: parameters.Settings) -> None:
        self._node = node
        self.other = OtherOutputs(node, "~/", settings.detections, settings.bodies)
        self._live: Optional[LiveView] = None
        self.view: Optional[CameraView] = None
        if settings.live_view_port:
            name = node.get_fully_qualified_name()
            try:
                self._live = LiveView(settings.live_view_port, name)
            except EhrnetError:
                self.other.destroy()
                raise
            self.view = self._live.add_camera(f"{name}/")
            node.get_logger().info(f"Foxglove can look on at ws://localhost:{self._live.port}.")
        self.poses = node.create_lifecycle_publisher(PoseArray, "~/poses", _qos(10))
        self.markers = node.create_lifecycle_publisher(MarkerArray, "~/markers", _qos(1))
        self.overlay = node.create_lifecycle_publisher(Image, "~/overlay", _qos(1))
        # Not a lifecycle publisher: what the skeletons mean is known before there are any.
        self.info = node.create_publisher(SkeletonInfo, "~/skeleton_info", _qos(1, latched=True))

    def listeners(self) -> int:
        """How many subscriptions there are to what is made from images."""
        publishers = (self.poses, self.markers, self.overlay)
        count = sum(publisher.get_subscription_count() for publisher in publishers)
        count += self.other.listeners()
        return count + (self.view.listeners() if self.view is not None else 0)

    def destroy(self) -> None:
        """Takes the topics away."""
        self.other.destroy()
        if self._live is not None:
            self._live.close()
        for publisher in (self.poses, self.markers, self.overlay):
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self.info)


class PoseNode(LifecycleNode):
    """The node ``pose``.

    Raises:
        EhrnetError: a parameter it was started with is unknown, out of range or contradictory.

    """

    def __init__(self, **options: Any) -> None:
        super().__init__("pose", **options)
        self._settings = parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._counters = health.Counters()
        self._diagnostics = health.Diagnostics(self, f"{self.get_fully_qualified_name()}: poses")
        self._configured = self._active = False
        self._autostarting = self._settings.autostart
        self._problem = ""  # why the last configure came to nothing
        self._model: Optional[ModelInfo] = None
        self._image_hw = (0, 0)
        self._input_hw = (0, 0)
        self._engine_name = ""
        self._outputs: Optional[_Outputs] = None
        self._worker: Optional[EngineWorker] = None
        self._retired: Optional[EngineWorker] = None
        # Held while messages go out and while that is switched off: after a transition to inactive
        # has returned, nothing more is published. Images taken before that count as stale ever
        # after: each carries the number of its subscription.
        self._publishing = threading.Lock()
        self._subscribed = 0
        self._image_subscription: Any = None
        self._info_subscription: Any = None
        self._camera_info: Optional[CameraInfo] = None
        self._lens_told = False
        self._had_images = False
        self._complaint = health.Repeated(_REPEAT_S)
        self._bad_image = health.Repeated(_REPEAT_S)
        self._bad_engine = health.Repeated(_REPEAT_S)
        self._engine_changed = self.create_guard_condition(self._on_engine_changed)
        # Wall time, so that a bag that stands still does not stop the watch.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._watch = self.create_timer(0.25, self._on_watch, clock=steady)
        self._tick = self.create_timer(1.0, self._on_tick, clock=steady)

    # Lifecycle

    def start(self) -> None:
        """Configures, and activates once the engine is ready, if ``autostart`` says so."""
        if not self._autostarting:
            return
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            self._autostarting = False
            self.get_logger().info(
                "Unconfigured: mend this and start again, or set the parameters and run "
                f"`ros2 lifecycle set {self.get_fully_qualified_name()} configure`."
            )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Checks parameters and the model file, starts loading the engine, makes the publishers."""
        settings = self._settings
        try:
            model_path = find_model(settings.phi, settings.model)
            # An ONNX file tells what it is before it is loaded; other files while they are.
            self._model = model_info(model_path) if model_path.suffix == ".onnx" else None
            self._outputs = _Outputs(self, settings)
        except EhrnetError as error:
            self._problem = str(error)
            self.get_logger().error(self._problem)
            return TransitionCallbackReturn.FAILURE
        self._problem = ""
        self._engine_name, self._input_hw, self._image_hw = "", (0, 0), (0, 0)
        self._configured = True
        self.get_logger().info(f"Loading {_model_name(self._model)} from {model_path}.")
        self._worker = EngineWorker(
            lambda: _open_estimator(model_path, settings),
            self._process,
            lambda estimator: estimator.runtime.close(),
            self._engine_changed.trigger,
            after=self._retired,
        )
        self._retired = None
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Allows subscribing; the watch does it once the engine is ready and somebody listens."""
        result = super().on_activate(state)
        self._active = True
        self._counters.waiting()
        self._complaint.reset()
        if self._worker is not None and self._worker.state == LOADING:
            self.get_logger().info("Active; images are taken as soon as the engine is ready.")
        self._on_watch()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribes; the engine stays."""
        with self._publishing:
            self._active = False
            self._unsubscribe()
            return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases the engine and the publishers."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases everything, from whatever state."""
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """An exception in a transition: back to unconfigured, from where it can be tried again."""
        self._problem = "A lifecycle transition failed; the log has the traceback."
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _release(self) -> None:
        with self._publishing:
            self._active = self._configured = False
            self._unsubscribe()
            if self._worker is not None:
                self._worker.close()
                self._retired, self._worker = self._worker, None
            if self._outputs is not None:
                self._outputs.destroy()
                self._outputs = None

    def close(self) -> None:
        """Ends the worker; call after the executor has stopped and before destroying the node."""
        self._release()
        if self._retired is not None and not self._retired.join(10.0):
            self.get_logger().error("The engine did not end within 10 s; leaving it behind.")

    def _on_engine_changed(self) -> None:
        """In the executor, after the worker said that its engine is ready or failed."""
        worker = self._worker
        if worker is None:
            return
        if worker.state == READY:
            self._on_ready(worker)
            if self._autostarting and not self._active:
                self._autostarting = False
                self.trigger_activate()
            else:
                self._on_watch()
        elif worker.state == FAILED:
            self._autostarting = False
            self.get_logger().error(worker.error)
            if worker.details:
                self.get_logger().error(worker.details)
            if self._active:
                self.trigger_deactivate()
            if self._configured:
                self.trigger_cleanup()
            self._problem = worker.error

    def _on_ready(self, worker: EngineWorker) -> None:
        estimator: PoseEstimator = worker.engine
        info = self._model = estimator.runtime.info
        self._engine_name = estimator.runtime.name
        self._input_hw = estimator.size_hw or (0, 0)
        self.get_logger().info(
            f"Ready: {_model_name(info)} on {self._engine_name}, loaded in {worker.seconds:.1f} s."
        )
        if self._settings.model and info.phi != self._settings.phi:
            self.get_logger().warning(
                f"{self._settings.model} is {info.variant}: parameter phi is "
                f"{self._settings.phi} and not used."
            )
        if info.quality == "random":
            self.get_logger().warning("The model has random weights: its poses mean nothing.")
        self._publish_skeleton_info()

    # Input

    def _wanted(self) -> bool:
        """Whether images should be subscribed to now."""
        if not self._active or self._worker is None or self._worker.state != READY:
            return False
        return not self._settings.lazy or self._listeners() > 0

    def _listeners(self) -> int:
        return self._outputs.listeners() if self._outputs is not None else 0

    def _on_watch(self) -> None:
        if self._wanted() and self._image_subscription is None:
            self._subscribe()
        elif not self._wanted() and self._image_subscription is not None:
            with self._publishing:
                self._unsubscribe()

    def _input(self) -> Tuple[Any, str, str]:
        """Type, resolved topic and type name of the images that are asked for."""
        topic = self.resolve_topic_name("image")
        if self._settings.transport == "raw":
            return Image, topic, "sensor_msgs/msg/Image"
        if not topic.endswith("/compressed"):
            topic += "/compressed"
        return CompressedImage, topic, "sensor_msgs/msg/CompressedImage"

    def _subscribe(self) -> None:
        kind, topic, _ = self._input()
        reliable = self._settings.input_qos == "reliable"
        self._counters.waiting()
        self._image_subscription = self.create_subscription(
            kind, topic, self._on_image, _qos(1, reliable)
        )
        self._info_subscription = self.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, _qos(1, reliable=False)
        )

    def _unsubscribe(self) -> None:
        for subscription in (self._image_subscription, self._info_subscription):
            if subscription is not None:
                self.destroy_subscription(subscription)
        self._image_subscription = self._info_subscription = None
        self._subscribed += 1
        if self._worker is not None:
            self._worker.frames.clear()

    def _on_image(self, msg: Any) -> None:
        silent = self._counters.received()
        if silent > _SILENT_S and self._had_images:
            self.get_logger().info(f"Images again, after {silent:.1f} s without.")
        self._had_images = True
        self._complaint.reset()
        if self._worker is not None:
            self._worker.frames.put((msg, time.monotonic(), self._subscribed))

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    # In the worker's thread

    def _process(self, estimator: PoseEstimator, item: Tuple[Any, float, int]) -> None:
        """From one image message to all messages that follow from it."""
        msg, arrived, subscribed = item
        settings = self._settings
        try:
            convert = to_picture_compressed if isinstance(msg, CompressedImage) else to_picture
            picture = convert(msg)
            image_hw = picture.array.shape[0], picture.array.shape[1]
            if image_hw != self._image_hw:
                self._on_image_size(estimator, image_hw)
            estimator.options = parameters.decode_options(settings, estimator.runtime.info.decode)
            poses, timings = estimator.estimate(picture.array, rgb=picture.order == "rgb")
            with self._publishing:
                current = self._active and subscribed == self._subscribed
                if current and self._outputs is not None:
                    age_ms = self._publish(self._outputs, poses, picture, msg.header, settings)
                    if self._outputs.view is not None:
                        skeleton = estimator.runtime.info.skeleton
                        self._outputs.view.publish(
                            poses, picture, msg.header, skeleton, timings, age_ms
                        )
                    wait_ms = (time.monotonic() - arrived) * 1e3
                    self._counters.published(len(poses), timings.engine_ms, wait_ms, age_ms)
        except ImageError as error:
            self._counters.bad(str(error))
            if self._bad_image.should_say(str(error)):
                self.get_logger().warning(f"Image dropped: {error}")
        except EhrnetError as error:
            self._on_failure(str(error))
        except Exception as error:  # an engine may raise anything; the node outlives it
            self._on_failure(f"{type(error).__name__}: {error}", traceback.format_exc())

    def _on_failure(self, text: str, details: str = "") -> None:
        self._counters.failed(text)
        if self._bad_engine.should_say(text):
            self.get_logger().error(f"No poses for this image: {text}")
            if details:
                self.get_logger().error(details)

    def _publish(
        self,
        outputs: _Outputs,
        poses: Poses,
        picture: Picture,
        header: Any,
        settings: parameters.Settings,
    ) -> float:
        """Sends what follows from one image; returns its age in milliseconds."""
        assert self._model is not None  # known before the first image
        skeleton = self._model.skeleton
        image_hw = picture.array.shape[0], picture.array.shape[1]
        array = to_pose_array(poses, header, image_hw)
        array.latency_ms = age_ms = self._age_ms(header)
        outputs.poses.publish(array)
        if outputs.markers.get_subscription_count():
            markers = to_markers(
                poses,
                header,
                self._lens(image_hw, settings),
                skeleton,
                depth=settings.marker_depth,
                line_width=settings.marker_line_width,
                lifetime=_MARKER_LIFETIME_S,
            )
            outputs.markers.publish(markers)
        if outputs.overlay.get_subscription_count():
            drawn = draw_poses(picture.bgr(), poses, skeleton)
            outputs.overlay.publish(to_image(drawn, header))
        outputs.other.publish(poses, header, image_hw, skeleton)
        return age_ms

    def _on_image_size(self, estimator: PoseEstimator, image_hw: Tuple[int, int]) -> None:
        """The camera's size is known now, or another: so is the network's, and how well it fits."""
        input_hw = estimator.input_size(image_hw)
        advice = size_advice(image_hw, input_hw, estimator.runtime.info.input_size)
        if advice:
            self.get_logger().warning(advice)
        with self._publishing:
            self._image_hw = image_hw
            if input_hw != self._input_hw:
                self._input_hw = input_hw
                self._publish_skeleton_info()

    def _age_ms(self, header: Any) -> float:
        """Age of an image now, NaN where it has no stamp."""
        stamp = header.stamp.sec * 10**9 + header.stamp.nanosec
        return (self.get_clock().now().nanoseconds - stamp) / 1e6 if stamp else math.nan

    def _lens(self, image_hw: Tuple[int, int], settings: parameters.Settings) -> Lens:
        info = self._camera_info
        lens = Lens.from_camera_info(info, image_hw) if info is not None else None
        if lens is not None:
            return lens
        if not self._lens_told:
            self._lens_told = True
            why = "is not calibrated" if info is not None else "has not arrived"
            self.get_logger().info(
                f"CameraInfo on {self.resolve_topic_name('camera_info')} {why}: markers are drawn "
                f"as through a lens of {settings.nominal_fov_deg:g} degrees (nominal_fov_deg)."
            )
        return Lens.nominal(image_hw, settings.nominal_fov_deg)

    # Parameters and diagnostics

    def _on_set_parameters(self, changes: List[Any]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in changes}
        try:
            settings = parameters.changed(self._settings, values, self._configured)
        except EhrnetError as error:
            return SetParametersResult(successful=False, reason=str(error))
        told = settings.keypoint_threshold != self._settings.keypoint_threshold
        self._settings = settings
        if told:
            self._publish_skeleton_info()
        return SetParametersResult(successful=True)

    def _publish_skeleton_info(self) -> None:
        info = self._model
        if self._outputs is None or info is None or not self._engine_name:
            return
        options = parameters.decode_options(self._settings, info.decode)
        self._outputs.info.publish(
            to_skeleton_info(
                info.skeleton,
                model=_model_name(info),
                runtime=self._engine_name,
                phi=info.phi,
                input_hw=self._input_hw,
                min_keypoint_score=options.keypoint_threshold,
                stamp=self.get_clock().now().to_msg(),
            )
        )

    def _on_tick(self) -> None:
        snapshot = self._counters.snapshot()
        level, text = self._status(snapshot)
        worker = self._worker
        values = {
            "state": "active"
            if self._active
            else "inactive"
            if self._configured
            else "unconfigured",
            "engine": worker.state if worker is not None else "none",
            "model": _model_name(self._model) if worker is not None else "",
            "runtime": self._engine_name,
            **health.values_of(snapshot, worker.frames.dropped if worker is not None else 0),
        }
        self._diagnostics.publish(level, text, values["model"], values)

    def _status(self, snapshot: health.Snapshot) -> Tuple[bytes, str]:
        """Level and sentence of the moment; complaints about the input also go to the log."""
        if not self._configured:
            if self._problem:
                return health.ERROR, f"Unconfigured: {self._problem}"
            return health.OK, "Unconfigured."
        worker = self._worker
        assert worker is not None  # made in configure
        if worker.state == LOADING:
            return health.OK, f"Loading the engine for {time.monotonic() - worker.since:.0f} s."
        if worker.state == FAILED:
            return health.ERROR, worker.error
        if not self._active:
            return health.OK, "Inactive: the engine is ready."
        if self._image_subscription is None:
            if not self.count_publishers(self._input()[1]):
                return self._silent(snapshot.silent_s)
            return health.OK, "Idle: nobody subscribes to poses, markers or overlay."
        if snapshot.silent_s > _SILENT_S:
            return self._silent(snapshot.silent_s)
        if snapshot.failed_in_a_row >= health.DEAD_AFTER:
            return health.ERROR, f"The engine fails on every image: {snapshot.last_error}"
        if snapshot.bad_now:
            return health.WARN, f"Images are refused: {snapshot.last_error}"
        if self._model is not None and self._model.quality == "random":
            return health.WARN, "Running on random weights: the poses mean nothing."
        return health.OK, "Publishing poses."

    def _silent(self, seconds: float) -> Tuple[bytes, str]:
        _, topic, type_name = self._input()
        why = health.explain_input(self, topic, type_name, self._settings.input_qos == "reliable")
        if self._complaint.should_say(why):
            self.get_logger().warning(why)
        if self._had_images:
            return health.STALE, f"Images stopped {seconds:.0f} s ago. {why}"
        return health.WARN, why


class _ToRos(logging.Handler):
    """What the libraries log, such as why a runtime was chosen, said by the node."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """One line each: rclpy holds a line of code to one severity."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def main(args: Optional[List[str]] = None) -> int:
    """Runs the node until SIGINT or SIGTERM. 0 then; 2 when it could not start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = PoseNode()
    except Exception as error:  # a params_file that is none ends here too, with ROS's own words
        rclpy.logging.get_logger("pose").fatal(f"The pose node cannot start. {error}")
        rclpy.try_shutdown()
        return 2
    library = logging.getLogger("ehrnet_model")
    library.setLevel(logging.INFO)
    library.addHandler(_ToRos(node.get_logger()))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.start()
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.close()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
