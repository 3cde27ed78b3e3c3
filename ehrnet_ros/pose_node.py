"""PoseNode: camera images in, skeletons out. A lifecycle node; no pixel arithmetic.

Two threads. The executor's runs callbacks, services, timers and diagnostics and never waits for the
network. A worker owns the engine from creation to release and turns the newest image into messages.

States: *configure* checks parameters and model file and has the worker load the engine; *activate*
subscribes as soon as the engine is ready; *deactivate* unsubscribes, the engine stays; *cleanup*
releases it. An engine that cannot be loaded takes the node back to unconfigured, with the reason in
the log and in the diagnostics.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import SetBool

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.cuda import DeviceLost
from ehrnet_model.inference.estimator import Inferred, PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.poses import Poses, Timings
from ehrnet_model.inference.rotation import turned_hw
from ehrnet_model.inference.runtime import ModelInfo, model_info
from ehrnet_model.inference.sizes import size_advice
from ehrnet_ros import arguments, health, parameters
from ehrnet_ros.camera import Camera
from ehrnet_ros.engine import model_name, open_estimator
from ehrnet_ros.image_msgs import (
    ImageError,
    Picture,
    shows_nothing,
    to_picture,
    to_picture_compressed,
)
from ehrnet_ros.live import LiveView
from ehrnet_ros.pose_msgs import to_skeleton_info
from ehrnet_ros.spin import spin
from ehrnet_ros.worker import FAILED, LOADING, READY, EngineWorker

HUNG_S = 10.0
"""An engine that takes longer for its images is said to hang; the slowest take some seconds."""
AGAIN_S = 15.0
"""After so long a node that starts by itself tries again to load what found no memory."""


@dataclass(frozen=True)
class _Taken:
    """An image on its way: the message, when it arrived, and under which subscription."""

    msg: Any
    arrived: float
    subscribed: int


@dataclass(frozen=True)
class _Seen:
    """An image that could be read."""

    camera: Camera
    taken: _Taken
    picture: Picture


_Transition = Callable[["PoseNode", LifecycleState], TransitionCallbackReturn]


def _transition(change: _Transition) -> _Transition:
    """A transition whose exceptions are told: rclpy goes on to ``on_error`` without a word."""

    @functools.wraps(change)
    def told(node: PoseNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return change(node, state)
        except Exception as error:  # whatever it is goes on to rclpy, which loses it
            node._problem = f"{change.__name__} failed: {type(error).__name__}: {error}."
            node.get_logger().error(f"{node._problem}\n{traceback.format_exc()}")
            raise

    return told


class PoseNode(LifecycleNode):
    """The node ``pose``.

    Raises:
        EhrnetError: a parameter it was started with is misspelt, out of range or contradictory.

    """

    done = False  # only a signal ends it

    def __init__(self, **options: Any) -> None:
        super().__init__("pose", **options)
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        self._settings = parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._ids = itertools.count()
        self._known_cameras: Dict[str, Camera] = {}
        self._cameras = self._make_cameras()
        self._configured = self._active = False
        self._autostarting = False  # from start() until somebody activates
        self._problem = ""  # why the last configure came to nothing
        self._again_at = math.inf  # time.monotonic() when to try it again
        self._no_live_view = ""  # why there is none though one was asked for
        self._model: Optional[ModelInfo] = None
        self._enabled = True
        self._hung = health.Repeated(HUNG_S)
        self._lost: Optional[DeviceLost] = None  # then only a new process can go on
        self._live: Optional[LiveView] = None
        self._engine_name = self._verdict = self._again = ""
        self._worker: Optional[EngineWorker] = None
        self._retired: Optional[EngineWorker] = None
        # Held while messages go out and while that is switched off: after a transition to inactive
        # has returned, nothing more is published. Images taken before that count as stale ever
        # after: each carries the number of its camera's subscription.
        self._publishing = threading.Lock()
        self._engine_changed = self.create_guard_condition(self._on_engine_changed)
        # Wall time, so that a bag that stands still does not stop the watch.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._watch = self.create_timer(0.25, self._on_watch, clock=steady)
        self._tick = self.create_timer(1.0, self._on_tick, clock=steady)
        self._switch = self.create_service(SetBool, "~/set_enabled", self._on_set_enabled)
        self._namesake = health.Repeated(60.0)

    def _make_cameras(self) -> List[Camera]:
        """One for each name; those that are there stay, and with them the ids they gave."""
        for name in self._settings.cameras:
            if name not in self._known_cameras:
                self._known_cameras[name] = Camera(self, name, self._on_image, self._ids)
        return [self._known_cameras[name] for name in self._settings.cameras]

    # Lifecycle

    def start(self) -> None:
        """Configures, and activates once the engine is ready, if ``autostart`` says so."""
        if not self._settings.autostart:
            return
        self._autostarting = True
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            self._autostarting = False
            self._say_how_to_go_on()

    def _say_how_to_go_on(self) -> None:
        self.get_logger().info(
            "Unconfigured: mend this and start again, or set the parameters and run "
            f"`ros2 lifecycle set {self.get_fully_qualified_name()} configure`."
        )

    def _on_change_state(self, request: Any, response: Any) -> Any:
        """Refuses what is not possible now; on Humble and Jazzy rclpy would let it end the node."""
        machine, asked = self._state_machine, request.transition
        now = machine.current_state[1]
        possible = {number: label for number, label, *_ in machine.available_transitions}
        try:
            response = self._change_state(request, response)
        except rclpy_implementation.RCLError:
            response.success = False
        if asked.label not in possible.values() if asked.label else asked.id not in possible:
            names = {number: label for number, label, *_ in machine.transition_graph}
            hint = " A lifecycle manager wants autostart:=false." * self._settings.autostart
            self.get_logger().error(
                f"Transition {asked.label or names.get(asked.id, asked.id)} is not possible while "
                f"{now}; possible: {', '.join(possible.values()) or 'none'}.{hint}"
            )
        return response

    @_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Checks parameters and the model file, starts loading the engine, makes the publishers."""
        self._again_at = math.inf
        settings = self._settings
        try:
            model_path = find_model(settings.phi, settings.model)
            # An ONNX file tells what it is before it is loaded; other files while they are.
            self._model = model_info(model_path) if model_path.suffix == ".onnx" else None
            self._open_cameras(settings)
        except EhrnetError as error:
            self._problem = str(error)
            self.get_logger().error(self._problem)
            return TransitionCallbackReturn.FAILURE
        self._problem = ""
        self._engine_name = self._verdict = self._again = ""
        self._configured = True
        name = f"{model_name(self._model)} from " * (self._model is not None)
        self.get_logger().info(f"Loading {name}{model_path}.")
        self._worker = EngineWorker(
            lambda: self._open(model_path, settings),
            self._process,
            lambda estimator: estimator.close(),
            self._engine_changed.trigger,
            after=self._retired,
            batch=settings.batch,
        )
        self._retired = None
        return super().on_configure(state)

    def _open_cameras(self, settings: parameters.Settings) -> None:
        """Makes all topics and the live view. Raises EhrnetError, and then leaves nothing."""
        if tuple(camera.name for camera in self._cameras) != settings.cameras:
            self._cameras = self._make_cameras()
        self._no_live_view = ""
        try:
            if settings.live_view_port:
                self._open_live_view(settings.live_view_port)
            for camera in self._cameras:
                camera.open(settings, self._live)
        except EhrnetError:
            self._close_cameras()
            raise

    def _open_live_view(self, port: int) -> None:
        """A robot's skeletons do not wait for a view of them: without one there is a warning."""
        try:
            self._live = LiveView(port, self.get_fully_qualified_name())
            self.get_logger().info(f"Foxglove can look on at ws://localhost:{self._live.port}.")
        except EhrnetError as error:
            self._no_live_view = f"No live view: {error}"
            self.get_logger().warning(self._no_live_view)

    def _close_cameras(self) -> None:
        for camera in self._cameras:
            camera.close()
        if self._live is not None:
            self._live.close()
            self._live = None

    @_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Allows subscribing; the watch does it once the engine is ready and somebody listens."""
        self._autostarting = False
        result = super().on_activate(state)
        self._active = True
        for camera in self._cameras:
            camera.begin()
        if self._worker is not None and self._worker.state == LOADING:
            self.get_logger().info("Active; images are taken as soon as the engine is ready.")
        self._on_watch()
        return result

    @_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribes; the engine stays."""
        with self._publishing:
            self._active = False
            self._unsubscribe_all()
            return super().on_deactivate(state)

    @_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases the engine and the publishers."""
        self._release()
        return super().on_cleanup(state)

    @_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases everything, from whatever state."""
        self._release()
        return super().on_shutdown(state)

    @_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: to unconfigured, from where it can be tried again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _release(self) -> None:
        self._autostarting = False
        self._again_at = math.inf
        with self._publishing:
            self._active = self._configured = False
            self._unsubscribe_all()
            if self._worker is not None:
                self._worker.close()
                self._retired, self._worker = self._worker, None
            self._close_cameras()

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
            if self._autostarting:
                self.trigger_activate()
            else:
                self._on_watch()
        elif worker.state == FAILED:
            self.get_logger().error(worker.error)
            if worker.details:
                self.get_logger().error(worker.details)
            by_itself = self._autostarting
            if self._active:
                self.trigger_deactivate()
            if self._configured:
                self.trigger_cleanup()
            self._problem = worker.error
            if by_itself and worker.short_of_memory:
                self._again_at = time.monotonic() + AGAIN_S
                self.get_logger().info(f"It is tried again in {AGAIN_S:.0f} s.")
            else:
                self._say_how_to_go_on()

    def _on_ready(self, worker: EngineWorker) -> None:
        estimator: PoseEstimator = worker.engine
        info = self._model = estimator.runtime.info
        self._engine_name = estimator.runtime.name
        built = getattr(estimator.runtime, "engine", None)  # of runtimes that build engines
        self._verdict = "" if built is None else str(built.verdict)
        many = 0 if estimator.closer is None else estimator.options.second_look
        views = estimator.options.second_look_views
        each = f", {views} views of each" if views > 1 else ""
        whole = " and, coarsely, at the whole image" if estimator.options.coarse_look else ""
        self._again = f"up to {many} people{each}{whole}" if many else ""
        for camera in self._cameras:
            camera.input_hw = estimator.size_hw or (0, 0)
        self.get_logger().info(
            f"Ready: {model_name(info)} on {self._engine_name}, loaded in {worker.seconds:.1f} s"
            f"{'; looks again at ' + self._again if self._again else ''}."
        )
        if self._settings.model and info.phi != self._settings.phi:
            self.get_logger().warning(
                f"{self._settings.model} is {info.variant}: parameter phi is "
                f"{self._settings.phi} and not used."
            )
        if info.quality == "random":
            self.get_logger().warning("The model has random weights: its poses mean nothing.")
        for camera in self._cameras:
            self._publish_skeleton_info(camera)

    # Input

    def _wanted(self, camera: Camera) -> bool:
        """Whether images of a camera should be subscribed to now."""
        if not self._active or not self._enabled:
            return False
        if self._worker is None or self._worker.state != READY:
            return False
        return not self._settings.lazy or camera.listeners() > 0

    def _on_watch(self) -> None:
        if self._lost is not None:
            raise self._lost
        for camera in self._cameras:
            wanted = self._wanted(camera)
            if wanted and not camera.is_subscribed:
                camera.subscribe(self._settings)
            elif not wanted and camera.is_subscribed:
                with self._publishing:
                    self._unsubscribe(camera)

    def _unsubscribe(self, camera: Camera) -> None:
        camera.unsubscribe()
        if self._worker is not None:
            self._worker.frames.clear(camera)

    def _unsubscribe_all(self) -> None:
        for camera in self._cameras:
            self._unsubscribe(camera)

    def _on_image(self, camera: Camera, msg: Any) -> None:
        if self._worker is not None:
            self._worker.frames.put(camera, _Taken(msg, time.monotonic(), camera.subscribed))

    def _on_set_enabled(self, request: Any, response: Any) -> Any:
        """Stops and resumes taking images, whatever the state; the engine stays."""
        self._enabled = request.data
        self._on_watch()
        response.success = True
        response.message = "Images are taken." if self._enabled else "No images are taken."
        return response

    # In the worker's threads: the engine's, and the second one for what comes after

    def _open(self, model: Path, settings: parameters.Settings) -> PoseEstimator:
        try:
            return open_estimator(model, settings)
        except DeviceLost as error:
            self._lost = error
            raise

    def _process(
        self, estimator: PoseEstimator, items: List[Tuple[Any, _Taken]]
    ) -> Optional[Callable[[], None]]:
        """Image messages of different cameras through the engine; returns what is left to do."""
        settings = self._settings
        seen = [picture for camera, taken in items for picture in self._read(camera, taken)]
        try:
            options = parameters.decode_options(settings, estimator.runtime.info.decode)
        except EhrnetError as error:
            self._on_failure(seen, str(error))
            return None
        estimator.options = options
        groups: Dict[Tuple[int, int], List[_Seen]] = {}
        for one in seen:
            rotation = parameters.rotation_of(settings, one.camera.name)
            input_hw = estimator.input_size(one.picture.array.shape[:2], rotation)
            groups.setdefault(input_hw, []).append(one)
        inferred = []
        for alike in groups.values():  # of one network input, so they go through it together
            answer = self._infer(estimator, alike, settings)
            if answer is not None:
                inferred.append((alike, answer))
        return lambda: self._finish(inferred, settings)

    def _read(self, camera: Camera, taken: _Taken) -> List[_Seen]:
        """The image of a message; none, with a complaint, where there is no image in it."""
        compressed = isinstance(taken.msg, CompressedImage)
        try:
            picture = (to_picture_compressed if compressed else to_picture)(taken.msg)
        except ImageError as error:
            why = str(error)
        except (
            Exception
        ) as error:  # OpenCV's limits; a bad message must not end the engine's thread
            why = f"The image cannot be converted: {type(error).__name__}: {error}"
        else:
            camera.counters.shown(shows_nothing(picture))
            return [_Seen(camera, taken, picture)]
        camera.counters.bad(why)
        if camera.bad_image.should_say(why):
            self.get_logger().warning(f"Image dropped: {why}")
        return []

    def _infer(
        self, estimator: PoseEstimator, seen: List[_Seen], settings: parameters.Settings
    ) -> Optional[Inferred]:
        try:
            expected = []
            rotations = [parameters.rotation_of(settings, one.camera.name) for one in seen]
            for one, rotation in zip(seen, rotations):
                image_hw = one.picture.array.shape[0], one.picture.array.shape[1]
                upright_hw = turned_hw(image_hw, rotation)
                if upright_hw != one.camera.upright_hw:
                    input_hw = estimator.input_size(image_hw, rotation)
                    self._on_image_size(one, upright_hw, input_hw, estimator)
                expected.append(one.camera.expected(one.taken.msg.header, image_hw, settings))
            return estimator.infer(
                [one.picture.array for one in seen],
                [one.picture.order == "rgb" for one in seen],
                expected,
                rotations,
            )
        except EhrnetError as error:
            self._on_failure(seen, str(error))
            if isinstance(error, DeviceLost):
                self._lost = error
        except Exception as error:  # an engine may raise anything; the node outlives it
            self._on_failure(seen, f"{type(error).__name__}: {error}", traceback.format_exc())
        return None

    def _finish(
        self, inferred: List[Tuple[List[_Seen], Inferred]], settings: parameters.Settings
    ) -> None:
        """From the engine's answers to all messages that follow from them."""
        for seen, answer in inferred:
            try:
                results = answer.people()
            except EhrnetError as error:
                self._on_failure(seen, str(error))
                continue
            except Exception as error:  # what an engine gives may be anything, too
                self._on_failure(seen, f"{type(error).__name__}: {error}", traceback.format_exc())
                continue
            for one, (poses, timings) in zip(seen, results):
                try:
                    shown_from = answer.options.min_keypoint_score
                    self._publish(one, poses, timings, settings, shown_from)
                except Exception as error:  # whatever is on the other side; the next may pass
                    text = f"{type(error).__name__}: {error}"
                    self._on_failure([one], text, traceback.format_exc())

    def _publish(
        self,
        one: _Seen,
        poses: Poses,
        timings: Timings,
        settings: parameters.Settings,
        shown_from: float,
    ) -> None:
        camera, taken = one.camera, one.taken
        image_hw = one.picture.array.shape[0], one.picture.array.shape[1]
        poses = camera.track(poses, taken.msg.header, image_hw, settings)
        with self._publishing:
            if not self._active or taken.subscribed != camera.subscribed:
                return
            assert self._model is not None  # known before the first image
            header, skeleton = taken.msg.header, self._model.skeleton
            age_ms = camera.publish(
                poses, one.picture, header, skeleton, settings, timings, shown_from
            )
            camera.done(len(poses), timings, taken.arrived, age_ms)

    def _on_failure(self, seen: List[_Seen], text: str, details: str = "") -> None:
        for one in seen:
            one.camera.counters.failed(text)
            if one.camera.bad_engine.should_say(text):
                self.get_logger().error(f"No poses for this image: {text}")
                if details:
                    self.get_logger().error(details)

    def _on_image_size(
        self,
        one: _Seen,
        upright_hw: Tuple[int, int],
        input_hw: Tuple[int, int],
        estimator: PoseEstimator,
    ) -> None:
        """The camera's size is known now, or another: so is the network's, and how well it fits."""
        advice = size_advice(upright_hw, input_hw, estimator.runtime.info.input_size)
        camera = one.camera
        if advice and camera.bad_image.should_say(advice):
            self.get_logger().warning(advice)
        with self._publishing:
            if one.taken.subscribed != camera.subscribed:
                return  # of before a cleanup; the camera knows no size yet
            camera.upright_hw = upright_hw
            if input_hw != camera.input_hw:
                camera.input_hw = input_hw
                self._publish_skeleton_info(camera)

    # Parameters and diagnostics

    def _on_set_parameters(self, changes: List[Any]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in changes}
        try:
            settings = parameters.changed(self._settings, values, self._configured)
        except EhrnetError as error:
            return SetParametersResult(successful=False, reason=str(error))
        told = settings.min_keypoint_score != self._settings.min_keypoint_score
        self._settings = settings
        if told:
            for camera in self._cameras:
                self._publish_skeleton_info(camera)
        return SetParametersResult(successful=True)

    def _publish_skeleton_info(self, camera: Camera) -> None:
        info = self._model
        if not self._configured or info is None or not self._engine_name:
            return
        options = parameters.decode_options(self._settings, info.decode)
        camera.publish_info(
            to_skeleton_info(
                info.skeleton,
                model=model_name(info),
                runtime=self._engine_name,
                phi=info.phi,
                input_hw=camera.input_hw,
                min_keypoint_score=options.min_keypoint_score,
                stamp=self.get_clock().now().to_msg(),
            )
        )

    def _on_tick(self) -> None:
        if time.monotonic() >= self._again_at:
            self.start()
        memory_mb = health.resident_mb()
        namesakes = health.explain_namesakes(self)
        if namesakes and self._namesake.should_say(namesakes):
            self.get_logger().warning(namesakes)
        for camera in self._cameras:
            snapshot = camera.counters.snapshot()
            gone = snapshot.silent_s > camera.silent_after_s or self._hung_s() > HUNG_S
            if gone or snapshot.failed_in_a_row >= health.DEAD_AFTER:
                with self._publishing:
                    camera.nobody()
            level, text = self._status(camera, snapshot)
            if namesakes and level == health.OK:
                level, text = health.WARN, namesakes
            worker = self._worker
            values = {
                "state": self._state_machine.current_state[1],
                "engine": worker.state if worker is not None else "none",
                "model": model_name(self._model) if worker is not None else "",
                "runtime": self._engine_name,
                "looked at again": self._again or "nobody",
                "engine check": self._verdict or "none: the model itself runs",
                "memory [MB]": f"{memory_mb:.1f}",
                **health.values_of(
                    snapshot, worker.frames.dropped(camera) if worker is not None else 0
                ),
            }
            camera.report(level, text, values["model"], values)

    def _hung_s(self) -> float:
        """Seconds since the engine was given what it has not answered yet."""
        given = None if self._worker is None else self._worker.given
        return 0.0 if given is None else time.monotonic() - given

    def _status(self, camera: Camera, snapshot: health.Snapshot) -> Tuple[bytes, str]:
        """Level and sentence of the moment."""
        if not self._configured:
            if self._problem:
                return health.ERROR, f"Unconfigured: {self._problem}"
            if self._state_machine.current_state[1] == "finalized":
                return health.STALE, "Shut down: start the node again."
            return health.OK, "Unconfigured."
        worker = self._worker
        assert worker is not None  # made in configure
        if worker.state == LOADING:
            if worker.waits:
                waited_s = time.monotonic() - worker.since
                text = f"Waiting for {waited_s:.0f} s for the engine before to end."
                return (health.ERROR if waited_s > HUNG_S else health.OK), text
            return health.OK, f"Loading the engine for {time.monotonic() - worker.since:.0f} s."
        if worker.state == FAILED:
            return health.ERROR, worker.error
        if not self._active:
            return health.OK, "Inactive: the engine is ready."
        if not self._enabled:
            return health.OK, "Switched off by ~/set_enabled: no images are taken."
        hung_s = self._hung_s()
        if hung_s > HUNG_S:
            text = (
                f"The engine has not answered for {hung_s:.0f} s: it hangs, or prepares itself for "
                "images of a new size. If it does not come back, start the node again."
            )
            if self._hung.should_say("hung"):
                self.get_logger().error(text)
            return health.ERROR, text
        level, text = camera.status(snapshot, self._settings, self._cameras)
        if level == health.OK and self._model is not None and self._model.quality == "random":
            return health.WARN, "Running on random weights: the poses mean nothing."
        if level == health.OK and self._no_live_view:
            return health.WARN, self._no_live_view
        return level, text


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
    """Runs the node until SIGINT or SIGTERM. 0 then; else the codes of spin()."""
    defaults = {name: field.default for name, field in parameters.FIELDS.items()}
    example = "-p phi:=-3 -r image:=/camera/image_raw"
    code = arguments.answer("pose_node", "Images in, skeletons out.", defaults, example, args)
    return spin("pose", _make, args) if code is None else code


def _make() -> PoseNode:
    node = PoseNode()
    library = logging.getLogger("ehrnet_model")
    library.setLevel(logging.INFO)
    library.addHandler(_ToRos(node.get_logger()))
    return node


if __name__ == "__main__":
    sys.exit(main())
