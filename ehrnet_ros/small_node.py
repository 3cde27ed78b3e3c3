"""What the nodes share that turn messages into messages at once: options, input, a main.

Options are dataclasses as of ehrnet_model/inference/options.py; each field becomes a parameter that
may change at any time. Input is subscribed to only while somebody listens, and when it does not
come the log and /diagnostics say so, with the line to type.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.options import check_options, option
from ehrnet_ros import arguments
from ehrnet_ros.health import (
    OK,
    STALE,
    WARN,
    Diagnostics,
    Repeated,
    kept_for_late_ones,
    likeliest,
    name_of,
    nothing_arrives,
    publishers_on,
    topics_with,
)
from ehrnet_ros.names import check_names, declare_parameter
from ehrnet_ros.spin import spin

T = TypeVar("T")
SILENT_S = 2.0  # without a message for so long, say what is missing
_REPEAT_S = 30.0
_REFUSED_S = 3.0  # for so long after a message was dropped, the status is about that


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """What every small node has."""

    lazy: bool = option(True, 0, 1, "Subscribe only while somebody subscribes to the results.")

    def __post_init__(self) -> None:
        check_options(self)


class Input(NamedTuple):
    """A subscription: its topic before remapping, the type, who gets the messages, how many wait.

    Attributes:
        needed: whether nothing happens without it.
        once: one message may be all there is; the publisher may keep it for whoever comes late.
        like: words that such a topic is likely to have in its name, for a hint.

    """

    topic: str
    kind: Any
    callback: Callable[[Any], None]
    depth: int
    needed: bool
    once: bool = False
    like: Tuple[str, ...] = ()

    @property
    def type_name(self) -> str:
        """Such as ``sensor_msgs/msg/Image``."""
        return f"{self.kind.__module__.split('.')[0]}/msg/{self.kind.__name__}"


class SmallNode(Node):
    """A node with options, lazy inputs and outputs.

    Args:
        options: of rclpy's Node.

    Raises:
        EhrnetError: a parameter it was started with is misspelt, out of range or of another type.

    Attributes:
        called: name of the node, and with _node behind it of its command.
        kinds: dataclasses of options beside CommonOptions.
        what: it does, in a sentence.
        example: of what follows --ros-args.

    """

    kinds: Tuple[Type[Any], ...] = ()
    called = what = example = ""
    done = False  # only a signal ends it

    def __init__(self, **options: Any) -> None:
        super().__init__(self.called, **options)
        self._values = _declare(self, (CommonOptions, *self.kinds))
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._subscriptions_now: List[Any] = []
        self._heard: Dict[str, float] = {}
        self._complaint = Repeated(_REPEAT_S)
        self._refused = Repeated(_REPEAT_S, numbers=False)
        self._received: Dict[str, int] = {}
        self._published, self._before = 0, (0, time.monotonic())
        self._dropped, self._dropped_at = 0, -math.inf
        self._missing = self._last_error = ""
        self._diagnostics = Diagnostics(self, f"{self.get_fully_qualified_name()}: poses")
        # Wall time, so that a bag that stands still does not stop the watch.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._watch = self.create_timer(0.25, self._on_watch, clock=steady)
        self._tick = self.create_timer(1.0, self._on_tick, clock=steady)

    def inputs(self) -> List[Input]:
        """What to subscribe to."""
        raise NotImplementedError

    def outputs(self) -> List[Any]:
        """The publishers for which somebody may listen."""
        raise NotImplementedError

    def forget(self) -> None:
        """Called when the input was given up because nobody listens."""

    def hear_beside_poses(self, topic: str, kind: Any, heard: Callable[[Any], None]) -> None:
        """Subscribes to what is latched in the namespace of the poses that come in."""
        beside = f"{self.resolve_topic_name('poses').rpartition('/')[0]}/{topic}"
        own = [publisher.topic_name for publisher in self.publishers]
        if beside not in own:  # else it would hear itself for ever
            self.create_subscription(kind, beside, heard, latched_qos())

    def options(self, kind: Type[T]) -> T:
        """The options of one kind, as they are now."""
        return self._values[kind]

    def values(self) -> Dict[str, str]:
        """What else /diagnostics says of this node, beside its counts."""
        return {}

    def count_published(self) -> None:
        """To be called for each result that goes out."""
        self._published += 1

    def refuse(self, why: str, count: int = 1) -> None:
        """Says that messages were dropped; the same again only after half a minute."""
        self._dropped, self._dropped_at = self._dropped + count, time.monotonic()
        self._last_error = why
        if self._refused.should_say(why):
            self.get_logger().warning(f"Message dropped: {why}")

    def start(self) -> None:
        """Says what comes in, what goes out and what it waits for."""
        inputs = ", ".join(self.resolve_topic_name(item.topic) for item in self.inputs())
        outputs = ", ".join(publisher.topic_name for publisher in self.outputs())
        lazy = " as soon as somebody subscribes there" * self.options(CommonOptions).lazy
        self.get_logger().info(f"Takes {inputs} and publishes {outputs}{lazy}.")

    def close(self) -> None:
        """Nothing to give back."""

    def stamp_s(self, header: Any) -> float:
        """Seconds of a header's stamp, those of the node's clock where it has none."""
        nanoseconds = header.stamp.sec * 10**9 + header.stamp.nanosec
        return (nanoseconds or self.get_clock().now().nanoseconds) / 1e9

    def age_ms(self, header: Any) -> float:
        """Milliseconds since a header's stamp; NaN where it has none or the clock is behind it."""
        nanoseconds = header.stamp.sec * 10**9 + header.stamp.nanosec
        age = self.get_clock().now().nanoseconds - nanoseconds
        return age / 1e6 if nanoseconds and age >= 0 else math.nan

    def _on_set_parameters(self, changes: List[Any]) -> SetParametersResult:
        given = {parameter.name: parameter.value for parameter in changes}
        try:
            self._values = {
                kind: dataclasses.replace(
                    values, **{k: v for k, v in given.items() if k in _fields(kind)}
                )
                for kind, values in self._values.items()
            }
        except EhrnetError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_watch(self) -> None:
        listeners = sum(publisher.get_subscription_count() for publisher in self.outputs())
        wanted = listeners > 0 or not self.options(CommonOptions).lazy
        if wanted and not self._subscriptions_now:
            now, had = time.monotonic(), self._heard
            self._heard = {
                item.topic: math.inf if item.once and had.get(item.topic) == math.inf else now
                for item in self.inputs()
            }
            self._subscriptions_now = [self._subscribe(item) for item in self.inputs()]
        elif not wanted and self._subscriptions_now:
            for subscription in self._subscriptions_now:
                self.destroy_subscription(subscription)
            self._subscriptions_now = []
            self.forget()
        silent = []
        for place, item in enumerate(self.inputs() if self._subscriptions_now else ()):
            if time.monotonic() - self._heard[item.topic] <= SILENT_S:
                continue
            if item.once and self._is_kept(item) != _keeps(self._subscriptions_now[place]):
                self.destroy_subscription(self._subscriptions_now[place])
                self._subscriptions_now[place] = self._subscribe(item)
            if item.needed:
                silent.append(item)
        self._missing = ""
        if silent:  # of several that which nobody sends, since the others may wait for it
            self._complain(min(silent, key=lambda item: len(self._senders(item))))

    def _on_tick(self) -> None:
        """Publishes how it goes."""
        (before, since), now = self._before, time.monotonic()
        self._before = self._published, now
        values = {
            **{f"received on {topic}": str(count) for topic, count in self._received.items()},
            "messages dropped": str(self._dropped),
            "poses published": str(self._published),
            "rate out [Hz]": f"{(self._published - before) / max(now - since, 1e-3):.1f}",
            **self.values(),
            "last error": self._last_error,
        }
        level, text = self._status(now)
        self._diagnostics.publish(level, text, "", values)

    def _status(self, now: float) -> Tuple[bytes, str]:
        if not self._subscriptions_now:
            return OK, "Idle: nobody subscribes to any result."
        if self._missing:
            return STALE if self._published else WARN, self._missing
        if now - self._dropped_at < _REFUSED_S:
            return WARN, f"Messages are dropped: {self._last_error}"
        return OK, "Publishing poses." if self._published else "Waiting for poses."

    def _subscribe(self, item: Input) -> Any:
        qos = latched_qos() if item.once and self._is_kept(item) else sensor_qos(item.depth)
        return self.create_subscription(item.kind, item.topic, self._heard_by(item), qos)

    def _is_kept(self, item: Input) -> bool:
        """Whether publishers keep their last message for whoever comes late, all of them."""
        return kept_for_late_ones(self, self.resolve_topic_name(item.topic))

    def _heard_by(self, item: Input) -> Callable[[Any], None]:
        topic = self.resolve_topic_name(item.topic)
        self._received.setdefault(topic, 0)

        def heard(msg: Any) -> None:
            self._received[topic] += 1
            self._heard[item.topic] = math.inf if item.once else time.monotonic()
            item.callback(msg)

        return heard

    def _complain(self, item: Input) -> None:
        topic, senders = self.resolve_topic_name(item.topic), self._senders(item)
        kinds = sorted({info.topic_type for info in publishers_on(self, topic)})
        text = f"Waiting for {item.type_name} on {topic}: "
        if senders:
            text += nothing_arrives(topic, ", ".join(senders), "messages")
        else:
            there = f"what is published there is {', '.join(kinds)}."
            text += there if kinds else "nobody publishes there."
            text += self._elsewhere(item)
        self._missing = text
        if self._complaint.should_say(text):
            self.get_logger().warning(text)

    def _senders(self, item: Input) -> List[str]:
        """The nodes that publish what is waited for."""
        there = publishers_on(self, self.resolve_topic_name(item.topic))
        return [name_of(info) for info in there if info.topic_type == item.type_name]

    def _elsewhere(self, item: Input) -> str:
        """Where such messages are, instead, and the line to type."""
        own = {publisher.topic_name for publisher in self.outputs()}
        others = [other for other in topics_with(self, item.type_name) if other not in own]
        if not others:
            return ""
        near = [self.resolve_topic_name(one.topic) for one in self.inputs()]
        meant = likeliest(others, near, like=item.like)
        fits = not item.like or any(word in meant[0] for word in item.like)
        line = f"--ros-args -r {item.topic}:={meant[0] if fits else 'TOPIC'}"
        where = f" Such messages are on {', '.join(others)}: start with `{line}`"
        return where + ("." if fits else ", if one of them is meant.")


def sensor_qos(depth: int) -> QoSProfile:
    """Best effort, which matches every publisher."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def _keeps(subscription: Any) -> bool:
    return bool(subscription.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL)


def latched_qos() -> QoSProfile:
    """Reliable, and the last message for whoever comes late."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def _fields(kind: Type[Any]) -> Dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _all_fields(kinds: Tuple[Type[Any], ...]) -> Dict[str, dataclasses.Field]:
    return {name: field for kind in kinds for name, field in _fields(kind).items()}


def _declare(node: Node, kinds: Tuple[Type[Any], ...]) -> Dict[Type[Any], Any]:
    """Declares a parameter for every field; the options with the values of the start."""
    fields = _all_fields(kinds)
    for name, field in fields.items():
        low, high = field.metadata["range"]
        allowed = "true or false" if isinstance(field.default, bool) else f"{low:g} to {high:g}"
        declare_parameter(node, name, field.default, _descriptor(field), allowed)
    check_names(node, fields)
    return {
        kind: kind(**{name: node.get_parameter(name).value for name in _fields(kind)})
        for kind in kinds
    }


def _descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(name=field.name, description=field.metadata["description"])
    low, high = field.metadata["range"]
    if isinstance(field.default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
        ]
    elif not isinstance(field.default, bool):
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor


def run(kind: Type[SmallNode], args: Optional[List[str]] = None) -> int:
    """Runs a node until SIGINT or SIGTERM. 0 then; 2 when it could not start."""
    fields = _all_fields((CommonOptions, *kind.kinds))
    defaults = {key: field.default for key, field in fields.items()}
    code = arguments.answer(f"{kind.called}_node", kind.what, defaults, kind.example, args)
    return spin(kind.called, kind, args) if code is None else code
