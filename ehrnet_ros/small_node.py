"""What the nodes share that turn messages into messages at once: options, input, a main.

Options are dataclasses as of ehrnet_model/inference/options.py; each field becomes a parameter that
may change at any time. Input is subscribed to only while somebody listens, and when it does not
come the log says so, with the line to type.
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
from ehrnet_ros.health import Repeated, publishers_on, publishes
from ehrnet_ros.names import check_names, declare_parameter
from ehrnet_ros.spin import spin

T = TypeVar("T")
SILENT_S = 2.0  # without a message for so long, say what is missing
_REPEAT_S = 30.0


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """What every small node has."""

    lazy: bool = option(True, 0, 1, "Subscribe only while somebody subscribes to the results.")

    def __post_init__(self) -> None:
        check_options(self)


class Input(NamedTuple):
    """A subscription: its topic before remapping, the type, who gets the messages, how many wait.

    ``needed``: whether nothing happens without it.
    """

    topic: str
    kind: Any
    callback: Callable[[Any], None]
    depth: int
    needed: bool


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
        self._refused = Repeated(_REPEAT_S)
        # Wall time, so that a bag that stands still does not stop the watch.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._watch = self.create_timer(0.25, self._on_watch, clock=steady)

    def inputs(self) -> List[Input]:
        """What to subscribe to."""
        raise NotImplementedError

    def outputs(self) -> List[Any]:
        """The publishers for which somebody may listen."""
        raise NotImplementedError

    def forget(self) -> None:
        """Called when the input was given up because nobody listens."""

    def options(self, kind: Type[T]) -> T:
        """The options of one kind, as they are now."""
        return self._values[kind]

    def refuse(self, why: str) -> None:
        """Says that a message was dropped; the same again only after half a minute."""
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
            self._heard = {item.topic: time.monotonic() for item in self.inputs() if item.needed}
            self._subscriptions_now = [
                self.create_subscription(
                    item.kind, item.topic, self._heard_by(item), sensor_qos(item.depth)
                )
                for item in self.inputs()
            ]
        elif not wanted and self._subscriptions_now:
            for subscription in self._subscriptions_now:
                self.destroy_subscription(subscription)
            self._subscriptions_now = []
            self.forget()
        for item in self.inputs() if self._subscriptions_now else ():
            silent = time.monotonic() - self._heard.get(item.topic, math.inf)
            topic = self.resolve_topic_name(item.topic)
            name = f"{item.kind.__module__.split('.')[0]}/msg/{item.kind.__name__}"
            if silent > SILENT_S and not publishes(self, topic, name):
                self._complain(item, topic, name)
                break

    def _heard_by(self, item: Input) -> Callable[[Any], None]:
        def heard(msg: Any) -> None:
            if item.needed:
                self._heard[item.topic] = time.monotonic()
            item.callback(msg)

        return heard

    def _complain(self, item: Input, topic: str, name: str) -> None:
        own = {publisher.topic_name for publisher in self.outputs()}
        others = sorted(
            other
            for other, kinds in self.get_topic_names_and_types()
            if name in kinds and other not in own and publishes(self, other, name)
        )
        there = {info.topic_type for info in publishers_on(self, topic)}
        what = f"what is published there is {', '.join(sorted(there))}"
        text = f"Waiting for {name} on {topic}: {what if there else 'nobody publishes there'}."
        if others:
            text += f" Such messages are on {', '.join(others)}: start with "
            text += f"`--ros-args -r {item.topic}:={others[0]}`."
        if self._complaint.should_say(text):
            self.get_logger().warning(text)


def sensor_qos(depth: int) -> QoSProfile:
    """Best effort, which matches every publisher."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT
    )


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
