"""Why nothing comes out, and how well it does when something does.

Counts what passes through the node, says what is missing at the input in one sentence with the
line to type, and publishes both on /diagnostics.
"""

from __future__ import annotations

import collections
import math
import os
import posixpath
import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Collection, Deque, Dict, List, OrderedDict, Sequence, Tuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.poses import Timings

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)

_WINDOW = 200  # latencies kept for the percentiles
_SENTENCES = 100  # remembered as said
_NUMBER = re.compile(r"\b[0-9a-f]{8}\b|\d+(\.\d+)?")
_PATIENCE_S = 10.0  # for the first image that doctor waits for; discovery is part of that
_COUNT_S = 3.0  # how long doctor counts, from the first image on
_KEPT = 5  # images that doctor looks at
_NO_PICTURES = ("depth", "disparity")  # such images have these words in their topic's name
DEAD_AFTER = 5  # failures in a row after which the engine counts as dead


@dataclass(frozen=True)
class Snapshot:
    """Counts since the start, rates since the last snapshot, percentiles of the last 200 images."""

    received: int
    published: int
    bad: int
    failed: int
    failed_in_a_row: int
    bad_now: bool
    nothing_seen: str
    rate_in: float
    rate_out: float
    letterbox_ms: Tuple[float, float]
    engine_ms: Tuple[float, float]
    decode_ms: Tuple[float, float]
    process_ms: Tuple[float, float]
    age_ms: Tuple[float, float]
    people: int
    last_error: str
    silent_s: float


class Counters:
    """What passed through the node. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = self._published = self._bad = self._failed = self._in_a_row = 0
        self._people = 0
        self._bad_before = 0
        self._last_error = self._nothing_seen = ""
        self._timings: Deque[Timings] = collections.deque(maxlen=_WINDOW)
        self._process: Deque[float] = collections.deque(maxlen=_WINDOW)
        self._age: Deque[float] = collections.deque(maxlen=_WINDOW)
        self._last_image = self._marked = time.monotonic()
        self._before = (0, 0)

    def received(self) -> float:
        """An image arrived. Returns for how many seconds none had."""
        with self._lock:
            self._received += 1
            now = time.monotonic()
            silent, self._last_image = now - self._last_image, now
            return silent

    def published(self, people: int, timings: Timings, process_ms: float, age_ms: float) -> None:
        """A PoseArray left.

        Args:
            people: in it.
            timings: of the stages.
            process_ms: milliseconds since the image arrived here, waiting included.
            age_ms: milliseconds since the image's stamp, NaN where it has none.
        """
        with self._lock:
            self._published += 1
            self._people = people
            self._in_a_row = 0
            self._timings.append(timings)
            self._process.append(process_ms)
            if age_ms == age_ms:
                self._age.append(age_ms)

    def shown(self, nothing: str) -> None:
        """An image that is one; ``nothing`` says why nobody can be seen in it, where that is so."""
        with self._lock:
            self._nothing_seen = nothing

    def bad(self, text: str) -> None:
        """An image that is none."""
        with self._lock:
            self._bad += 1
            self._last_error = text

    def failed(self, text: str) -> None:
        """A good image on which the engine failed."""
        with self._lock:
            self._failed += 1
            self._in_a_row += 1
            self._last_error = text

    def waiting(self) -> None:
        """The wait for an image begins now."""
        with self._lock:
            self._last_image = time.monotonic()

    def snapshot(self) -> Snapshot:
        """All counts; starts a new interval for the rates."""
        with self._lock:
            now = time.monotonic()
            seconds = max(now - self._marked, 1e-3)
            counts = (self._received, self._published)
            rates = [(n - before) / seconds for n, before in zip(counts, self._before)]
            self._marked, self._before = now, counts
            bad_now, self._bad_before = self._bad > self._bad_before, self._bad
            return Snapshot(
                received=self._received,
                published=self._published,
                bad=self._bad,
                failed=self._failed,
                failed_in_a_row=self._in_a_row,
                bad_now=bad_now,
                nothing_seen=self._nothing_seen,
                rate_in=rates[0],
                rate_out=rates[1],
                letterbox_ms=_percentiles([t.letterbox_ms for t in self._timings]),
                engine_ms=_percentiles([t.engine_ms for t in self._timings]),
                decode_ms=_percentiles([t.decode_ms for t in self._timings]),
                process_ms=_percentiles(self._process),
                age_ms=_percentiles(self._age),
                people=self._people,
                last_error=self._last_error,
                silent_s=now - self._last_image,
            )


def _percentiles(values: Collection[float]) -> Tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    p50, p95 = np.percentile(list(values), (50, 95))
    return float(p50), float(p95)


def resident_mb() -> float:
    """Resident memory of this process in MB, shared memory included; NaN where /proc has none."""
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def explain_namesakes(node: Any) -> str:
    """What is wrong when other nodes have the same full name; empty when none has."""
    name = node.get_fully_qualified_name()
    own = node.get_name(), node.get_namespace()
    others = node.get_node_names_and_namespaces().count(own) - 1
    if others < 1:
        return ""
    return (
        f"{others + 1} nodes are named {name}: their topics, services and parameters get mixed up. "
        "Rename one with `--ros-args -r __node:=other`; one that was killed a moment ago is "
        "forgotten within half a minute."
    )


def publishers_on(node: Any, topic: str) -> List[Any]:
    """Who publishes on a topic, by its full name in the graph, as rclpy's TopicEndpointInfo.

    Not the method of that name of the node: it puts the node's own remapping rules on names that
    others have given, and so does not see what is on ``/image`` where ``image`` is remapped.
    """
    with node.handle:
        found = rclpy_implementation.rclpy_get_publishers_info_by_topic(node.handle, topic, False)
    return [TopicEndpointInfo(**info) for info in found]


def publishes(node: Any, topic: str, type_name: str) -> bool:
    """Whether somebody publishes messages of a type there; subscriptions do not count."""
    return any(info.topic_type == type_name for info in publishers_on(node, topic))


def kept_for_late_ones(node: Any, topic: str) -> bool:
    """Whether everybody who publishes on a topic keeps the last message for whoever comes late."""
    kept = [info.qos_profile.durability for info in publishers_on(node, topic)]
    return bool(kept) and all(one == DurabilityPolicy.TRANSIENT_LOCAL for one in kept)


def topics_with(node: Any, type_name: str) -> List[str]:
    """Topics on which somebody publishes messages of a type, but for what pose nodes draw."""
    topics = dict(node.get_topic_names_and_types())
    return [
        name
        for name in sorted(topics)
        if type_name in topics[name]
        and not (name.endswith("/overlay") and name[: -len("overlay")] + "poses" in topics)
        and publishes(node, name, type_name)
    ]


def likeliest(
    names: Sequence[str],
    near: Sequence[str],
    of: str = "",
    like: Sequence[str] = (),
    unlike: Sequence[str] = (),
) -> List[str]:
    """Those of these topics that are likeliest meant: several where nothing tells them apart.

    Args:
        names: to choose from.
        near: topics whose names have parts in common with the one meant.
        of: the camera whose topic it is.
        like: words that its name may have in it, what matters most first.
        unlike: words that it hardly has.

    """
    parts = {part for topic in near for part in topic.strip("/").split("/")}

    def fit(name: str) -> Tuple[Any, ...]:
        return (
            not any(word in name for word in unlike),
            of in name,
            len(parts & set(name.strip("/").split("/"))),
            *(word in name for word in like),
        )

    best = max(map(fit, names), default=())
    return [name for name in names if fit(name) == best]


def explain_input(
    node: Any,
    topic: str,
    type_name: str,
    reliable: bool,
    camera: str = "",
    taken: Collection[str] = (),
) -> str:
    """Why no image comes on a topic, as seen from the ROS graph, and the line to type.

    Args:
        node: asks the graph.
        topic: resolved name of the topic that is waited for.
        type_name: of its messages, such as ``sensor_msgs/msg/Image``.
        reliable: whether the subscription asks for reliable delivery.
        camera: name of the camera where there are several.
        taken: topics of the other cameras, which are not offered.

    """
    publishers = publishers_on(node, topic)
    same_type = [info for info in publishers if info.topic_type == type_name]
    waits = f"Waiting for images ({type_name}) on {topic}:"
    elsewhere = _elsewhere(node, topic, type_name, camera, taken)
    if not publishers:
        return f"{waits} nobody publishes there. {elsewhere}"
    if not same_type:
        others = ", ".join(sorted({info.topic_type for info in publishers}))
        return f"{waits} what is published there is {others}. {elsewhere}"
    who = ", ".join(f"{name_of(info)} ({_qos(info)})" for info in same_type)
    if reliable and all(
        info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for info in same_type
    ):
        return (
            f"{waits} {who} does not match the reliable delivery that is asked for. "
            "Set the parameter input_qos to sensor_data."
        )
    return f"{waits} {nothing_arrives(topic, who, 'images')}"


def nothing_arrives(topic: str, who: str, what: str) -> str:
    """What to say and to try where somebody publishes on a topic and nothing comes."""
    return (
        f"{who} is there but nothing arrives. Look with `ros2 topic hz {topic}`; if that sees "
        f"{what}, they are lost on the way: give both sides the Fast DDS profile "
        "config/fastdds_shm.xml."
    )


def look_for_images(topic: str) -> Tuple[List[Any], str]:
    """Some of the images that arrive on a topic, as a node of its own sees it.

    Args:
        topic: of Image or CompressedImage.

    Returns:
        Up to five messages, and what arrived; or none, and what to do about it.

    Raises:
        EhrnetError: no topic can have such a name.

    """
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage, Image

    kept: List[Any] = []
    count, last = 0, None

    def take(msg: Any) -> None:
        nonlocal count, last
        count, last = count + 1, msg
        if time.monotonic() >= begun + len(kept) * _COUNT_S / _KEPT and len(kept) < _KEPT:
            kept.append(msg)

    rclpy.init(args=[])
    node = rclpy.create_node("ehrnet_doctor")
    try:
        try:
            topic = node.resolve_topic_name(topic)
        except Exception as error:  # of a type that rclpy keeps to itself
            why = " ".join(str(error).split())
            raise EhrnetError(f"'{topic}' cannot be the name of a topic ({why}).") from None
        patient = time.monotonic() + _PATIENCE_S
        while not node.count_publishers(topic) and time.monotonic() < patient:
            rclpy.spin_once(node, timeout_sec=0.1)
        there = [kind for kind in (Image, CompressedImage) if publishes(node, topic, _type(kind))]
        kind = there[0] if there else CompressedImage if is_compressed(topic) else Image
        type_name = _type(kind)
        begun = time.monotonic()
        node.create_subscription(kind, topic, take, qos_profile_sensor_data)
        while last is None and time.monotonic() < patient:
            rclpy.spin_once(node, timeout_sec=0.1)
        begun = time.monotonic()
        while last is not None and time.monotonic() < begun + _COUNT_S:
            rclpy.spin_once(node, timeout_sec=0.1)
        if last is None:
            return [], explain_input(node, topic, type_name, reliable=False)
        size = f"{last.width}x{last.height} {last.encoding}" if kind is Image else last.format
        return kept, (
            f"{count} images in {_COUNT_S:g} s, the last one {size}, frame_id "
            f"'{last.header.frame_id}'"
        )
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def is_compressed(topic: str) -> bool:
    """Whether the name of a topic, such as image/compressed, says that of its images."""
    return re.search(r"(^|_)compressed(_|$)", topic.rsplit("/", 1)[-1]) is not None


def _type(kind: Any) -> str:
    return f"sensor_msgs/msg/{kind.__name__}"


def _elsewhere(node: Any, topic: str, type_name: str, camera: str, taken: Collection[str]) -> str:
    """Where images are, instead, and how to take them."""
    raw, compressed = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
    for kind in (type_name, compressed if type_name == raw else raw):
        found = [name for name in topics_with(node, kind) if name not in taken]
        if not found:
            continue
        meant = likeliest(found, [topic], camera, like=("color", "rgb"), unlike=_NO_PICTURES)
        best = meant[0]
        base = best[: -len("/compressed")] if best.endswith("/compressed") else best
        odd = kind == compressed and not is_compressed(best)
        transport = "compressed" if kind == compressed else "raw"
        line = f"ros2 launch ehrnet_ros pose.launch.py image:={base}"
        if kind != type_name or kind == compressed:
            line += f" transport:={transport}"
        if camera or odd:  # one of several, or a name that has to be given whole
            relative = posixpath.join(camera, "image/compressed" if odd else "image")
            line = f"-r {relative}:={base} -p transport:={transport}"
            if len(meant) > 1:  # another camera's images would be taken for this one's
                line = f"-r {relative}:=TOPIC -p transport:={transport}"
        where = ", ".join(found)
        there = f"Such images are on {where}"
        if kind != type_name:
            there = f"There are only {transport} images, on {where}"
        if "TOPIC" in line:
            return f"{there}: `{line}` takes those of the topic that is {camera}'s."
        if any(word in best for word in _NO_PICTURES):
            return f"{there}, none of them pictures by their names: start the camera's pictures."
        return f"{there}: `{line}` takes them."
    return (
        "No image topic is published anywhere this node can see: start the camera, or look at "
        "ROS_DOMAIN_ID if it runs."
    )


def name_of(info: Any) -> str:
    """The node of a TopicEndpointInfo."""
    return str(info.node_namespace.rstrip("/") + "/" + info.node_name)


def _qos(info: Any) -> str:
    reliability = {
        ReliabilityPolicy.RELIABLE: "reliable",
        ReliabilityPolicy.BEST_EFFORT: "best effort",
    }.get(info.qos_profile.reliability, "unknown reliability")
    durability = {
        DurabilityPolicy.TRANSIENT_LOCAL: ", transient local",
        DurabilityPolicy.VOLATILE: ", volatile",
    }.get(info.qos_profile.durability, "")
    return reliability + durability


class Diagnostics:
    """Publishes one status on /diagnostics.

    Args:
        node: owns the publisher.
        name: of the status.

    """

    def __init__(self, node: Any, name: str) -> None:
        self._node, self._name = node, name
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def publish(self, level: bytes, text: str, hardware: str, values: Dict[str, str]) -> None:
        """Publishes now: level, one sentence, the model, and pairs for people and plots."""
        status = DiagnosticStatus(level=level, name=self._name, message=text, hardware_id=hardware)
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        msg = DiagnosticArray(status=[status])
        msg.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(msg)


def values_of(snapshot: Snapshot, dropped: int) -> Dict[str, str]:
    """The key-value pairs of one status."""
    return {
        "images received": str(snapshot.received),
        "images dropped for newer ones": str(dropped),
        "images refused": str(snapshot.bad),
        "images failed": str(snapshot.failed),
        "poses published": str(snapshot.published),
        "rate in [Hz]": f"{snapshot.rate_in:.1f}",
        "rate out [Hz]": f"{snapshot.rate_out:.1f}",
        **_pair("letterbox", snapshot.letterbox_ms),
        **_pair("engine", snapshot.engine_ms),
        **_pair("decode", snapshot.decode_ms),
        **_pair("processing", snapshot.process_ms),
        **_pair("image age", snapshot.age_ms),
        "people in last image": str(snapshot.people),
        "last error": snapshot.last_error,
    }


def _pair(what: str, values: Tuple[float, float]) -> Dict[str, str]:
    return {f"{what} p50 [ms]": _number(values[0]), f"{what} p95 [ms]": _number(values[1])}


def _number(value: float) -> str:
    return f"{value:.1f}" if value == value else "unknown"


class Repeated:
    """Lets a sentence through when it is new or was last said long ago.

    Args:
        seconds: after which the same sentence may be said again.
        numbers: whether other numbers in it (hexadecimal ones of eight digits, too) make another.

    """

    def __init__(self, seconds: float, numbers: bool = True) -> None:
        self._seconds, self._numbers = seconds, numbers
        self._said: OrderedDict[str, float] = collections.OrderedDict()

    def should_say(self, text: str) -> bool:
        """Whether to say it; if so, it counts as said."""
        text = text if self._numbers else _NUMBER.sub("#", text)
        now = time.monotonic()
        if now - self._said.get(text, -math.inf) < self._seconds:
            return False
        self._said[text] = now
        self._said.move_to_end(text)
        if len(self._said) > _SENTENCES:
            self._said.popitem(last=False)
        return True

    def reset(self) -> None:
        """Every sentence is new."""
        self._said.clear()
