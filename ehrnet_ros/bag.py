"""Recorded bags: the images of one rosbag2 in, a rosbag2 of poses and markers out. No ROS graph.

The images go through the node's own conversions and estimator, every one of them and in order, so
what comes out is what the node publishes for them, without what depends on the day: messages carry
the image's own header and time in the bag, ``latency_ms`` is NaN, and a second run writes the same
bytes. What a machine was quick or slow at is only written when asked for.

Bags are read and written by ``rosbags``: both storages (sqlite3 and mcap), with the definition of
every message inside, in pure Python without a ROS installation of one distribution.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import shutil
import sqlite3
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Literal,
    Optional,
    Tuple,
    Union,
)

from ehrnet_msgs.msg import PoseArray, SkeletonInfo
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.interfaces import (
    Nodetype,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Float32MultiArray, MultiArrayDimension
from visualization_msgs.msg import MarkerArray

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.models import find_model
from ehrnet_model.inference.poses import Timings
from ehrnet_model.inference.tracker import PoseTracker
from ehrnet_ros import parameters
from ehrnet_ros.engine import model_name, open_estimator
from ehrnet_ros.image_msgs import (
    KNOWN_ENCODINGS,
    ImageError,
    Picture,
    is_depth,
    to_picture,
    to_picture_compressed,
)
from ehrnet_ros.pose_msgs import (
    Lens,
    MarkerLifetime,
    to_markers,
    to_pose_array,
    to_skeleton_info,
)

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_SUFFIXES = {".mcap": "mcap", ".db3": "sqlite3"}
_IMAGES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
_CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_POSES = "ehrnet_msgs/msg/PoseArray"
# Of a bag's metadata: 8 is read by every distribution from Humble on, 9 only from Jazzy on.
_BAG_VERSION: Literal[8] = 8
_THREADS = 2  # decode pictures while the engine computes
_AHEAD = 8  # pictures in memory


@dataclass(frozen=True)
class Camera:
    """An image topic of a bag and where its poses go.

    Attributes:
        topic: of the images.
        count: how many there are.
        prefix: of the outputs: ``/pose/`` as the node's own, with several cameras ``/pose/front/``.
        info_topic: where its CameraInfo would be.

    """

    topic: str
    count: int
    prefix: str
    info_topic: str


@dataclass
class Result:
    """What became of the images of one camera.

    Attributes:
        camera: which.
        images: PoseArrays written.
        people: skeletons in them.
        unreadable: images for which there is none.
        reason: why not, of the first of them.

    """

    camera: Camera
    images: int = 0
    people: int = 0
    unreadable: int = 0
    reason: str = ""


@dataclass
class _State:
    """Of one camera between two images."""

    result: Result
    tracker: PoseTracker
    info: Optional[CameraInfo] = None
    input_hw: Tuple[int, int] = (0, 0)
    outputs: Dict[str, Any] = field(default_factory=dict)
    lifetime: MarkerLifetime = field(default_factory=MarkerLifetime)


class InputBag:
    """A recorded bag: a folder with metadata.yaml, or one .mcap or .db3 file; used by ``with``.

    Raises:
        EhrnetError: it is not there or cannot be read.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading():
            self._reader = Reader(path)
            self._reader.open()
        self.connections: List[Any] = self._reader.connections

    def __enter__(self) -> InputBag:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def storage(self) -> str:
        """``mcap`` or ``sqlite3``."""
        files = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
        suffixes = [suffix for file in files for suffix in file.suffixes]  # .mcap.zstd
        return next((_SUFFIXES[suffix] for suffix in suffixes if suffix in _SUFFIXES), "sqlite3")

    def messages(self, topics: Iterable[str]) -> Iterator[Tuple[Any, int, bytes]]:
        """Connection, time in nanoseconds and bytes of every message of these topics, in order."""
        wanted = set(topics)
        connections = [c for c in self.connections if c.topic in wanted and c.msgcount]
        if not connections:
            return
        with self._reading():
            yield from self._reader.messages(connections=connections)

    def first(self, topic: str) -> Optional[bytes]:
        """The first message of a topic."""
        for _, _, data in self.messages([topic]):
            return data
        return None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (EhrnetError, GeneratorExit):
            raise
        except Exception as error:  # ReaderError, apsw's, struct.error: by storage and damage
            advice = ""
            if self.path.is_dir() and not (self.path / "metadata.yaml").exists():
                advice = ": give its .mcap or .db3 file, or run `ros2 bag reindex` on the folder"
            elif self.path.exists() and self.storage == "mcap":
                advice = ": if its recording broke off, `mcap recover` saves what is there"
            raise EhrnetError(f"The bag {self.path} cannot be read ({error}){advice}.") from None


class OutputBag:
    """A new bag that is there when it is whole; used by ``with``.

    Written in a hidden folder beside, which is renamed at the end or removed.

    Args:
        path: of the folder to be made; or, ending in .mcap or .db3, of a single file.
        storage: ``mcap`` or ``sqlite3``; a path of a single file has its own.

    Raises:
        EhrnetError: something of that name exists, or it cannot be written, then or later.

    """

    def __init__(self, path: Path, storage: str) -> None:
        self.path = path
        self._single = path.suffix in _SUFFIXES
        storage = _SUFFIXES.get(path.suffix, storage)
        self._folder = path.parent / f".{path.name}.{os.getpid()}"
        self._part = self._folder / (path.stem if self._single else path.name)
        self._types = _Types()
        self._storage = STORAGES[storage]
        self._writer: Any = None

    def add_topic(self, topic: str, kind: Any, latched: bool = False) -> Any:
        """Declares a topic of messages of a class; gives what ``write`` wants."""
        name = self._types.add(kind)
        with self._writing():
            return self._writer.add_connection(
                topic, name, typestore=self._types.store, offered_qos_profiles=[_qos(latched)]
            )

    def write(self, connection: Any, time_ns: int, msg: Any) -> None:
        """Adds a message."""
        data = self._types.to_bytes(msg, connection.msgtype)
        with self._writing():
            self._writer.write(connection, time_ns, data)

    def __enter__(self) -> OutputBag:
        try:
            with self._writing():
                self._folder.mkdir(parents=True)
                self._writer = Writer(
                    self._part, version=_BAG_VERSION, storage_plugin=self._storage
                )
                self._writer.open()
        except BaseException:  # an interrupt leaves nothing behind either
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is not None:
                self._writer.abort()
                return
            with self._writing():
                try:
                    self._writer.close()
                except BaseException:  # an interrupt too
                    with contextlib.suppress(Exception):
                        self._writer.abort()
                    raise
                self._publish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _publish(self) -> None:
        files = sorted(self._part.iterdir())
        for path in (*files, self._part):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if self._single:
            files = [file for file in files if file.suffix in _SUFFIXES]
        os.rename(files[0] if self._single else self._part, self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, WriterError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EhrnetError(
                f"The bag {self.path} cannot be written ({reason}): see whether the disk is full "
                "or the folder read-only; nothing was left there."
            ) from None


class _Types:
    """Definitions of messages, from where ROS installs them, and bytes that are always the same."""

    def __init__(self) -> None:
        self.store = get_typestore(Stores.EMPTY)

    def add(self, kind: Any) -> str:
        """Makes a message class known; its name, such as ``std_msgs/msg/Header``."""
        name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        self._add(name)
        return name

    def to_bytes(self, msg: Any, name: str) -> memoryview:
        """CDR of a message. ROS's own leaves whatever was in memory between the fields."""
        raw = serialize_message(msg)
        return self.store.serialize_cdr(self.store.deserialize_cdr(raw, name), name)

    def _add(self, name: str) -> None:
        if name in self.store.fielddefs:
            return
        types = get_types_from_msg(_definition(name), name)
        for _, fields in types.values():
            for _, kind in fields:
                while kind[0] in (Nodetype.ARRAY, Nodetype.SEQUENCE):
                    kind = kind[1][0]
                if kind[0] == Nodetype.NAME:
                    self._add(kind[1])
        self.store.register(types)


def _definition(name: str) -> str:
    """The text of a .msg file, as installed beside the Python package of the messages."""
    package, _, message = name.split("/")
    module = importlib.import_module(package)
    # As installed first: `colcon build --symlink-install` links each file to the build folder.
    file = Path(str(module.__file__))
    for folder in (*file.absolute().parents, *file.resolve().parents):
        path = folder / "share" / package / "msg" / f"{message}.msg"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise EhrnetError(
        f"The definition of {name} is not installed: there is no share/{package}/msg/{message}.msg "
        f"above {module.__file__}."
    )


def _qos(latched: bool) -> Qos:
    """What `ros2 bag play` offers: reliable, and kept for whoever comes late where latched."""
    forever = QosTime(2147483647, 4294967295)
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


def find_cameras(bag: InputBag, wanted: Iterable[str] = ()) -> List[Camera]:
    """The image topics of a bag that are worth looking at, and the names of their outputs.

    Args:
        bag: the recording.
        wanted: topics to take. Default: all that hold colour images, but no compressed copy of one
            and no picture on which poses were drawn already.

    Raises:
        EhrnetError: there is none, or not the one that is wanted.

    """
    topics = {c.topic: c for c in bag.connections if c.msgtype in _IMAGES and c.msgcount}
    chosen = [topic if topic.startswith("/") else f"/{topic}" for topic in dict.fromkeys(wanted)]
    found = ", ".join(sorted(topics)) or "no topic"
    for topic in chosen:
        if topic not in topics:
            raise EhrnetError(
                f"There are no images on {topic} in {bag.path}: there are on {found}."
            )
    if not chosen:
        drawn = {f"{_parent(c.topic)}/overlay" for c in bag.connections if c.msgtype == _POSES}
        chosen = [
            topic
            for topic in sorted(topics)
            if topic not in drawn
            and not (topic.endswith("/compressed") and _base(topic) in topics)
            and not _is_no_picture(bag, topics[topic])
        ]
    if not chosen:
        raise EhrnetError(
            f"There are no colour images in {bag.path}: it has images on {found}."
            if topics
            else f"There are no images in {bag.path}: record the camera's topic."
        )
    names = _names(chosen)
    return [
        Camera(
            topic,
            sum(c.msgcount for c in bag.connections if c.topic == topic),
            f"/pose/{names[topic]}/" if len(chosen) > 1 else "/pose/",
            f"{_parent(_base(topic))}/camera_info",
        )
        for topic in chosen
    ]


def _base(topic: str) -> str:
    return topic[: -len("/compressed")] if topic.endswith("/compressed") else topic


def _parent(topic: str) -> str:
    return topic.rpartition("/")[0]


def _names(topics: List[str]) -> Dict[str, str]:
    """The namespace of each topic with ``_`` for ``/``; of those that share one, the whole name.

    Names that are still the same get a number.
    """
    short = {topic: _parent(_base(topic)).strip("/").replace("/", "_") for topic in topics}
    taken = list(short.values())
    names: Dict[str, str] = {}
    for topic, name in short.items():
        if not name or taken.count(name) > 1:
            name = topic.strip("/").replace("/", "_")
        # /a/b and /a_b are still the same.
        names[topic] = next(
            free
            for free in itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
            if free not in names.values()
        )
    return names


def _is_no_picture(bag: InputBag, connection: Any) -> bool:
    """Whether a topic holds depth, optical flow or what else no picture is made of."""
    data = bag.first(connection.topic)
    if data is None:
        return False
    msg = _message(data, connection.msgtype)
    if isinstance(msg, ImageError):
        return False  # one that is broken says nothing about the others
    if is_depth(msg):
        return True
    if not isinstance(msg, Image) or msg.encoding in KNOWN_ENCODINGS:
        return False
    try:
        to_picture(msg)  # cv_bridge, where it is installed, may know it
    except ImageError:
        return True
    return False


def _message(data: bytes, msgtype: str) -> Any:
    try:
        return deserialize_message(bytes(data), _IMAGES.get(msgtype, CameraInfo))
    except Exception as error:  # by middleware: RMWError, RuntimeError, MemoryError
        return ImageError(f"The message is broken: {' '.join(str(error).split()) or error!r}.")


def _read(item: Tuple[Any, int, bytes]) -> Tuple[Any, Union[Picture, ImageError, None]]:
    """The message and, of an image, its picture, or why there is none. Runs in threads."""
    connection, _, data = item
    msg = _message(data, connection.msgtype)
    if isinstance(msg, (ImageError, CameraInfo)):
        return msg, msg if isinstance(msg, ImageError) else None
    try:
        return msg, to_picture(msg) if isinstance(msg, Image) else to_picture_compressed(msg)
    except ImageError as error:
        return msg, error


def _ahead(items: Iterator[Any], work: Callable[[Any], Any]) -> Iterator[Tuple[Any, Any]]:
    """Each item and what ``work`` makes of it, in order; some are worked on ahead of time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: Deque[Tuple[Any, Future]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > _AHEAD:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def convert_bag(
    source: Path,
    target: Path,
    settings: parameters.Settings,
    topics: Iterable[str] = (),
    storage: str = "",
    latencies: bool = False,
    progress: Callable[[int], None] = lambda total: None,
) -> List[Result]:
    """From a recording to a new bag of poses; see ``estimate_bag``.

    Args:
        source: the recording.
        target: the new bag, which does not exist.
        settings: which model, how peaks become people, how markers look.
        topics: of the images. Default: all that hold colour images.
        storage: ``mcap`` or ``sqlite3``. Default: that of the recording.
        latencies: whether to write what differs from run to run.
        progress: called after each image with the number of all images.

    Raises:
        EhrnetError: a path, topic, setting or model is not usable, or what ``estimate_bag`` raises.

    """
    if target.exists():
        raise EhrnetError(f"{target} exists already: remove it or choose another name.")
    model = find_model(settings.phi, settings.model)
    with InputBag(source) as bag:
        cameras = find_cameras(bag, topics)
        total = sum(camera.count for camera in cameras)
        estimator = open_estimator(model, settings)
        try:
            with OutputBag(target, storage or bag.storage) as output:
                return estimate_bag(
                    bag,
                    cameras,
                    estimator,
                    output,
                    settings,
                    latencies,
                    lambda: progress(total),
                )
        finally:
            estimator.close()


def estimate_bag(
    bag: InputBag,
    cameras: List[Camera],
    estimator: PoseEstimator,
    output: OutputBag,
    settings: parameters.Settings,
    latencies: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> List[Result]:
    """Runs every image of the cameras through the estimator and writes what the node would publish.

    Per camera ``poses``, ``markers`` and, latched, ``skeleton_info``; with ``latencies`` also
    ``latency`` (Float32MultiArray: milliseconds of letterbox, engine and decode).

    Args:
        bag: the recording.
        cameras: of the recording.
        estimator: an engine with its decode options.
        output: a new bag.
        settings: how markers look.
        latencies: whether to write what differs from run to run.
        progress: called after each image.

    Raises:
        EhrnetError: the recording or the new bag broke off, the engine failed, or no image of a
            camera can be read.

    """
    states = {}
    ids = itertools.count()  # of all cameras, as the node does
    for camera in cameras:
        first = bag.first(camera.info_topic)
        info = _message(first, _CAMERA_INFO) if first is not None else None
        tracker = PoseTracker(ids=ids)
        state = _State(Result(camera), tracker, info if isinstance(info, CameraInfo) else None)
        state.outputs = {
            "poses": output.add_topic(f"{camera.prefix}poses", PoseArray),
            "markers": output.add_topic(f"{camera.prefix}markers", MarkerArray),
            "info": output.add_topic(f"{camera.prefix}skeleton_info", SkeletonInfo, latched=True),
        }
        if latencies:
            topic = f"{camera.prefix}latency"
            state.outputs["latency"] = output.add_topic(topic, Float32MultiArray)
        states[camera.topic] = state
    messages = bag.messages([*states, *(camera.info_topic for camera in cameras)])
    for (connection, time_ns, _), (msg, picture) in _ahead(messages, _read):
        if connection.topic not in states:
            for state in states.values():
                if state.result.camera.info_topic == connection.topic:
                    state.info = msg if isinstance(msg, CameraInfo) else state.info
            continue
        state = states[connection.topic]
        if isinstance(picture, ImageError):
            state.result.unreadable += 1
            state.result.reason = state.result.reason or str(picture)
        else:
            _estimate(estimator, output, state, time_ns, msg, picture, settings)
        progress()
    results = [state.result for state in states.values()]
    for result in results:
        if not result.images:
            raise EhrnetError(
                f"None of the {result.unreadable} images on {result.camera.topic} can be read: "
                f"{result.reason}"
            )
    return results


def _estimate(
    estimator: PoseEstimator,
    output: OutputBag,
    state: _State,
    time_ns: int,
    msg: Any,
    picture: Picture,
    settings: parameters.Settings,
) -> None:
    """From one image to all messages that follow from it."""
    model = estimator.runtime.info
    image_hw = picture.array.shape[0], picture.array.shape[1]
    input_hw = estimator.input_size(image_hw)
    if input_hw != state.input_hw:
        state.input_hw = input_hw
        info = to_skeleton_info(
            model.skeleton,
            model=model_name(model),
            runtime=estimator.runtime.name,
            phi=model.phi,
            input_hw=input_hw,
            min_keypoint_score=estimator.options.min_keypoint_score,
            stamp=msg.header.stamp,
        )
        output.write(state.outputs["info"], time_ns, info)
    tracker, stamp = state.tracker, msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
    stamp_s = (stamp or time_ns) / 1e9
    expected = None
    if settings.tracking and settings.track_second_look:
        expected = tracker.expected(stamp_s, image_hw, settings.track_first_look)
    poses, timings = estimator.estimate(picture.array, picture.order == "rgb", expected)
    if settings.tracking:
        tracker.options = parameters.track_options(settings)
        poses = tracker.update(poses, stamp_s, image_hw).best_first()
    output.write(state.outputs["poses"], time_ns, to_pose_array(poses, msg.header, image_hw))
    markers = to_markers(
        poses.above(estimator.options.min_keypoint_score),
        msg.header,
        Lens.known_or_nominal(state.info, image_hw, settings.nominal_fov_deg),
        model.skeleton,
        depth=settings.marker_depth,
        line_width=settings.marker_line_width,
        lifetime=state.lifetime(msg.header),
    )
    output.write(state.outputs["markers"], time_ns, markers)
    if "latency" in state.outputs:
        output.write(state.outputs["latency"], time_ns, _to_latency(timings))
    state.result.images += 1
    state.result.people += len(poses)


def _to_latency(timings: Timings) -> Float32MultiArray:
    """Milliseconds of letterbox, engine and decode: numbers, so that every plot takes them."""
    msg = Float32MultiArray()
    msg.layout.dim = [MultiArrayDimension(label="letterbox, engine, decode [ms]", size=3, stride=3)]
    msg.data = [timings.letterbox_ms, timings.engine_ms, timings.decode_ms]
    return msg
