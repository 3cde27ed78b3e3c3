"""The demo: a camera made of a video, the pose node, and a listener, as real ROS processes.

`./demo` runs this with the Python of .venv, once everything is installed there. It prints people,
rate and latency and writes the video and a picture with the skeletons drawn in.
"""

from __future__ import annotations

import ctrl_c  # noqa: F401  first

# isort: split
import argparse
import collections
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import demo_arguments
import demo_video
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.draw import draw_poses
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import ModelInfo, model_info
from ehrnet_ros.recording import VideoFile, make_folder, write_picture
from ehrnet_ros.source import Source, open_source, public

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0  # for the network to load and the processes to find each other
SILENT_S = 3.0  # without poses for so long after the last image: no more are coming
STILL_IMAGES = 50  # how often a single picture is sent, so that there is a rate to speak of
STILL_RATE = 10.0
FOLDER_RATE = 1.0  # pictures of a folder a second, in the video
LISTENERS = 2  # to images, the pose node and we: nobody misses the beginning
KEPT_IMAGES = 60  # images that wait for their poses, newest; older ones count as without


class Process:
    """One node as a process of its own; what it says goes to a file."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-m", f"ehrnet_ros.{name}", "--ros-args", *arguments]
        with open(self.log, "wb") as log:
            # A session of its own: Ctrl-C reaches only us, and we end the others in order.
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.popen.poll() is None

    def go_on(self, answered: int) -> bool:
        """Whether a camera has more to show; it goes on by itself. Raises when it failed."""
        if not self.running and self.popen.returncode:
            raise self.failed()
        return self.running

    @property
    def errors(self) -> list[str]:
        """Lines of its log that tell of one."""
        return [line for line in self._lines() if "[ERROR]" in line or "[FATAL]" in line]

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").strip().splitlines()

    def failed(self) -> EhrnetError:
        """What to say when it ended or stays silent: its last error, else its last line."""
        code = self.popen.poll()
        if code is not None and code < 0 and not self.errors:  # it said nothing of that
            return EhrnetError(f"The process {self.name} was ended by {_signal(-code)}.")
        said = (self.errors or self._lines() or ["it said nothing"])[-1]
        state = "does not get ready" if code is None else f"ended with {code}"
        return EhrnetError(f"The process {self.name} {state}: {said.split(']: ')[-1]}")

    def stop(self) -> None:
        """Asks it to end as Ctrl-C does; kills it when it does not."""
        if self.running:
            self.popen.send_signal(signal.SIGINT)
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Album:
    """A camera for a folder: each picture when the poses of the one before have come."""

    def __init__(self, node: Any, pictures: Iterator[np.ndarray]) -> None:
        from sensor_msgs.msg import Image

        self._node = node
        self._images = node.create_publisher(Image, "image", 1)
        self._pictures = pictures
        self._sent = 0

    def go_on(self, answered: int) -> bool:
        """Publishes the next picture if it is its turn; False once the last one is answered."""
        from std_msgs.msg import Header

        from ehrnet_ros.image_msgs import to_image

        if answered < self._sent or self._images.get_subscription_count() < LISTENERS:
            return True
        picture = next(self._pictures, None)
        if picture is not None:
            stamp = self._node.get_clock().now().to_msg()
            self._images.publish(to_image(picture, Header(stamp=stamp)))
            self._sent += 1
        return picture is not None


class Listener:
    """Joins images and poses by the stamp of their header, and draws in a thread of its own.

    An image is drawn with the poses computed from it. One that the node left out, because a newer
    one was there, is drawn with the poses before it and counted.
    """

    def __init__(self, video: VideoFile) -> None:
        self.poses_seen = 0
        self.images_seen = 0
        self.without = 0
        self.infos: list[Any] = []
        self.shown_from = 0.0
        self.people: list[int] = []
        self.latencies_ms: list[float] = []
        self.arrivals: list[float] = []
        self.best: tuple[tuple[bool, float], np.ndarray | None] = ((False, 0.0), None)
        self.error: Exception | None = None
        self._video = video
        self._items: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self._waiting: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._early: dict[int, Poses] = {}  # poses that overtook their image
        self._last = Poses.empty()
        self._thread = threading.Thread(target=self._run, name="draw")
        self._thread.start()

    def on_info(self, msg: Any) -> None:
        """Takes what the poses mean; called by the executor."""
        self.infos.append(msg)
        self.shown_from = msg.min_keypoint_score

    def on_image(self, msg: Any) -> None:
        """Takes an image; called by the executor."""
        self.images_seen += 1
        self._items.put(("image", msg))

    def on_poses(self, msg: Any) -> None:
        """Takes the poses of one image; called by the executor."""
        self.poses_seen += 1
        self.arrivals.append(time.monotonic())
        self.latencies_ms.append(msg.latency_ms)
        self.people.append(len(msg.skeletons))
        self._items.put(("poses", msg))

    def finish(self) -> None:
        """Draws what is left and ends the thread; raises what went wrong there."""
        self._items.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while True:
                item = self._items.get()
                if item is None:
                    break
                self._take(*item)
            while self._waiting:
                self._draw(None)
        except Exception as error:  # handed to finish(); the queue is only emptied from here on
            self.error = error

    def _take(self, kind: str, msg: Any) -> None:
        from ehrnet_ros.image_msgs import to_picture
        from ehrnet_ros.pose_msgs import from_pose_array

        stamp = msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
        if kind == "image":
            self._waiting[stamp] = to_picture(msg).bgr()
            if stamp in self._early:
                self._pass(stamp, self._early.pop(stamp))
            elif len(self._waiting) > KEPT_IMAGES:
                self._draw(None)
        elif stamp in self._waiting:
            self._pass(stamp, from_pose_array(msg))
        else:
            self._early[stamp] = from_pose_array(msg)

    def _pass(self, stamp: int, poses: Poses) -> None:
        """Draws everything up to the image of these poses."""
        while next(iter(self._waiting)) != stamp:
            self._draw(None)
        self._draw(poses)

    def _draw(self, poses: Poses | None) -> None:
        _, picture = self._waiting.popitem(last=False)
        if poses is None:
            self.without += 1
        else:
            self._last = poses.above(self.shown_from)
        drawn = draw_poses(picture, self._last)
        self._video.write(drawn)
        if poses is not None:
            # How many more keypoints are right than wrong, about; any people are better than none.
            scores = self._last.score[self._last.score > 0]
            worth = len(poses) > 0, float((2 * scores - 1).sum())
            if self.best[1] is None or worth > self.best[0]:
                self.best = worth, drawn


def environment(logs: Path) -> dict[str, str]:
    """Variables of every process: a ROS domain of its own on this machine, large shared memory."""
    profile = str(ROOT / "config" / "fastdds_shm.xml")
    return {
        "AMENT_PREFIX_PATH": os.pathsep.join(
            filter(None, [sys.prefix, os.environ.get("AMENT_PREFIX_PATH")])
        ),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOCALHOST_ONLY": "0",
        "ROS_LOG_DIR": str(logs),
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }


def play(
    args: argparse.Namespace, source: Source, video: VideoFile, logs: Path, caught: list[int]
) -> Listener:
    """Runs camera and pose node until the source has ended; gives what was heard.

    Ctrl-C and SIGTERM go to ``caught`` from here on. What was heard until then is given all the
    same; before there was anything to hear it raises KeyboardInterrupt.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: caught.append(number))
    import rclpy
    from ehrnet_msgs.msg import PoseArray, SkeletonInfo
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image

    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("listener")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    listener = Listener(video)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(SkeletonInfo, "pose/skeleton_info", listener.on_info, latched)
    node.create_subscription(PoseArray, "pose/poses", listener.on_poses, 100)
    node.create_subscription(Image, "image", listener.on_image, 10)

    pictures = source.rate == 0 and not source.endless
    folder = pictures and Path(args.source).is_dir()
    still = pictures and not folder
    camera: Album | Process | None = Album(node, source.frames()) if folder else None
    camera_arguments = _parameters(
        source=args.source,
        rate=STILL_RATE if still else 0.0,
        loop=still,
        wait_for_subscribers=LISTENERS,
        camera_info=False,
    )
    pose_arguments = _parameters(
        phi=args.phi,
        model=args.model,
        runtime=args.runtime,
        size=args.size,
        input_qos="reliable" if folder else "sensor_data",
        # Only for colours that stay with people.
        tracking=not pictures,
        track_smoothing=False,
    )
    processes: list[Process] = []

    def until(done: Any, seconds: float, process: Process) -> None:
        end = time.monotonic() + seconds
        while not done():
            executor.spin_once(timeout_sec=0.1)
            if caught:
                raise KeyboardInterrupt
            # A pose node that cannot load its network waits for its manager; here is none.
            if not process.running or process.errors or time.monotonic() > end:
                raise process.failed()

    try:
        pose = Process("pose_node", pose_arguments, logs)
        processes.append(pose)
        # Ready means: the network computes, and the node takes images because we listen.
        until(
            lambda: listener.infos and node.count_subscribers("image") >= LISTENERS, START_S, pose
        )
        info = listener.infos[-1]
        _say(f"pose node ready: {info.model}, phi {info.phi}, {info.runtime}")
        if camera is None:
            camera = Process("picture_node", camera_arguments, logs)
            processes.append(camera)
        _say(f"playing {public(args.source)} (Ctrl-C ends it)")
        last, told, seen = time.monotonic(), time.monotonic(), 0
        while not caught:
            executor.spin_once(timeout_sec=0.1)
            now = time.monotonic()
            if listener.images_seen + listener.poses_seen > seen:
                seen, last = listener.images_seen + listener.poses_seen, now
            if not pose.running:
                raise pose.failed()
            if still and listener.poses_seen >= STILL_IMAGES:
                break
            if not camera.go_on(min(listener.images_seen, listener.poses_seen)):
                if listener.poses_seen >= listener.images_seen or now - last > SILENT_S:
                    break
            elif now - last > START_S:
                raise pose.failed()
            if now - told > 2 and listener.people:
                told = now
                _say(f"image {listener.images_seen}: {_people(listener.people[-1])}")
    finally:
        for process in reversed(processes):
            process.stop()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        listener.finish()
    return listener


def _parameters(**values: Any) -> list[str]:
    arguments = []
    for name, value in values.items():
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, str):
            value = "'" + value.replace("'", "''") + "'"  # YAML: else 16:9 and 1e3 are numbers
        arguments += ["-p", f"{name}:={value}"]
    return arguments


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def report(listener: Listener, info: ModelInfo) -> str:
    """The line of people, rate and latency."""
    low, high = min(listener.people), max(listener.people)
    people = _people(low) if low == high else f"{low} to {high} people"
    text = f"{people} in {listener.poses_seen} images"
    span = listener.arrivals[-1] - listener.arrivals[0]
    if span > 0:
        text += f", {(listener.poses_seen - 1) / span:.1f} images/s"
    ages = np.array(listener.latencies_ms)
    ages = ages[np.isfinite(ages)]
    if len(ages):
        p50, p95 = np.percentile(ages, (50, 95))
        text += f", from image to poses {p50:.0f} ms (p50), {p95:.0f} ms (p95)"
    if listener.without:
        text += f", {listener.without} images left out for newer ones"
    return f"{text} [{info.variant}, {info.quality} weights]"


def main() -> int:
    """Runs the demo.

    Returns:
        0 when poses came, 1 when nobody was found, 2 when it could not run, 130 after Ctrl-C.
    """
    args = demo_arguments.parse(sys.argv[1:])
    caught: list[int] = []
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Before anything starts: is there a network, and something to look at?
        path = find_model(args.phi, args.model)
        info = model_info(path)
        # The nodes are started from here, yet a relative path is the user's.
        args.model = str(path.resolve()) if args.model else ""
        if args.source is None:
            _say("making a video of several people from photographs (scikit-image, matplotlib)")
            args.source = str(demo_video.make(ROOT / "build" / "demo" / "people.mp4"))
        source = open_source(args.source, lambda _, error: _say(f"skipped: {error}"))
        out = make_folder(args.out)
        with tempfile.TemporaryDirectory(prefix="ehrnet_demo_") as folder:
            os.environ.update(environment(Path(folder)))
            rate = FOLDER_RATE if Path(args.source).is_dir() else source.rate or STILL_RATE
            with VideoFile(out / f"{source.name}_poses.mp4", rate) as video:
                listener = play(args, source, video, Path(folder), caught)
        if not listener.poses_seen:
            if caught:
                raise KeyboardInterrupt
            raise EhrnetError(f"No image of {args.source} came back with poses.")
        picture = out / f"{source.name}_poses.jpg"
        if listener.best[1] is not None:
            write_picture(picture, listener.best[1])
        lines = [report(listener, info)]
        if info.quality == "random":
            lines += ["The weights are random, for tests and timing: what is drawn means nothing."]
        lines += [str(video.path)] * bool(video.frames)
        lines += [str(picture)] * (listener.best[1] is not None)
        try:
            print("\n".join(lines), flush=True)
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if caught:
            raise KeyboardInterrupt
        return 0 if any(listener.people) else 1
    except EhrnetError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        _say("stopped.")
        return 128 + (caught or [signal.SIGINT])[0]


if __name__ == "__main__":
    cv2.setNumThreads(1)  # the network wants the cores
    sys.exit(main())
