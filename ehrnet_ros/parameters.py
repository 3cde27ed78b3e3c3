"""The node's parameters: declared once, with default, description, range and when they change.

The table of docs/parameters.md, config/pose.yaml's test and the descriptions that
`ros2 param describe` shows all come from here.
"""

from __future__ import annotations

import array
import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.decode import DecodeOptions, typed_options
from ehrnet_model.inference.opening import RUNTIMES
from ehrnet_model.inference.rotation import ROTATIONS
from ehrnet_model.inference.sizes import parse_size
from ehrnet_model.inference.tracker import TrackOptions
from ehrnet_ros.names import as_yaml, cannot_be, check_names, declare_parameter, no_such

ANY_TIME = "any time"
UNCONFIGURED = "while unconfigured"
AT_START = "at start"


def _parameter(
    default: Any,
    description: str,
    low: Optional[float] = None,
    high: Optional[float] = None,
    choices: Tuple[Any, ...] = (),
    changes: str = UNCONFIGURED,
    by_model: bool = False,
    each: bool = False,
) -> Any:
    metadata = {
        "description": description,
        "low": low,
        "high": high,
        "choices": choices,
        "changes": changes,
        "by_model": by_model,
        "each": each,  # or a list, one for each camera
    }
    return dataclasses.field(default=default, metadata=metadata)


def _decode_option(name: str, changes: str = ANY_TIME) -> Any:
    """A field of DecodeOptions as a parameter; -1 stands for what is stored with the weights."""
    option = next(field for field in dataclasses.fields(DecodeOptions) if field.name == name)
    low, high = option.metadata["range"]
    meanings = "1: yes, 0: no, -1" if isinstance(option.default, bool) else "-1"
    text = f"{option.metadata['description']} {meanings}: as stored with the model."
    default = -1.0 if isinstance(option.default, float) else -1
    return _parameter(default, text, low, high, changes=changes, by_model=True)


def _track_option(name: str) -> Any:
    """A field of TrackOptions as a parameter."""
    option = next(field for field in dataclasses.fields(TrackOptions) if field.name == name)
    low, high = option.metadata["range"]
    if isinstance(option.default, bool):
        low = high = None
    return _parameter(option.default, option.metadata["description"], low, high, changes=ANY_TIME)


@dataclass(frozen=True)
class Settings:
    """Values of all parameters of the pose node at one moment."""

    phi: int = _parameter(
        -4,
        "Which network of the family: 0 is the largest and best, -4 the smallest and fastest.",
        low=-4,
        high=0,
    )
    model: str = _parameter(
        "", "Path of a model file to use instead of the one found by phi; empty: by phi."
    )
    runtime: str = _parameter(
        "auto",
        "What computes. A runtime named here is never replaced by another; auto logs its choice.",
        choices=RUNTIMES,
    )
    cameras: Tuple[str, ...] = _parameter(
        ("",),
        "Names of several cameras that share the engine: front takes front/image and publishes "
        '~/front/poses. [""]: one camera, image and ~/poses.',
    )
    batch: int = _parameter(
        1,
        "At most so many cameras' images go through the engine at once. 1 on a CPU; more may pay "
        "on a GPU whose engine was built for it.",
        low=1,
        high=64,
    )
    threads: int = _parameter(
        0, "CPU threads of the runtime; 0: two, or one on a single core.", low=0, high=256
    )
    size: str = _parameter(
        "auto",
        "Network input: auto (the engine's own, else what fits the images), square, an aspect such "
        "as 4:3 or 16:9, or HEIGHTxWIDTH in multiples of 32.",
    )
    rotation: Union[int, Tuple[int, ...]] = _parameter(
        0,
        "[degrees] how far images have to be turned clockwise for people to stand upright; for "
        "cameras mounted sideways or upside down. [0, 180]: of each camera. What is published "
        "stays in the camera's own pixels.",
        choices=ROTATIONS,
        changes=ANY_TIME,
        each=True,
    )
    autostart: bool = _parameter(
        True, "Configure and activate without being asked from outside.", changes=AT_START
    )
    transport: str = _parameter(
        "raw",
        "raw subscribes to image, compressed to image/compressed.",
        choices=("raw", "compressed"),
    )
    input_qos: str = _parameter(
        "sensor_data",
        "Reliability asked of the camera: sensor_data (best effort, matches every camera) or "
        "reliable (does not match a best-effort camera).",
        choices=("sensor_data", "reliable"),
    )
    lazy: bool = _parameter(
        True,
        "Subscribe to images only while somebody listens to what is made of them: to any output "
        "but skeleton_info, or the live view.",
    )
    detections: bool = _parameter(
        False, "Also publish vision_msgs/Detection2DArray on ~/detections: a box per person."
    )
    bodies: bool = _parameter(
        False,
        "Also publish hri_msgs (REP-155): a Skeleton2D per person on humans/bodies/ID/skeleton2d "
        "and their ids on humans/bodies/tracked.",
    )
    live_view_port: int = _parameter(
        0,
        "Port on this machine where Foxglove can look on (ws://localhost:PORT): image, skeletons, "
        "latency. 0: none.",
        low=0,
        high=65535,
    )
    keypoint_threshold: float = _decode_option("keypoint_threshold")
    person_threshold: float = _decode_option("person_threshold")
    tag_threshold: float = _decode_option("tag_threshold")
    reach: float = _decode_option("reach")
    refine_threshold: float = _decode_option("refine_threshold")
    nms_oks: float = _decode_option("nms_oks")
    levels: int = _decode_option("levels")
    max_people: int = _decode_option("max_people")
    min_keypoints: int = _decode_option("min_keypoints")
    min_keypoint_score: float = _decode_option("min_keypoint_score")
    refine: int = _decode_option("refine")
    legs: int = _decode_option("legs")
    second_look: int = _decode_option("second_look", UNCONFIGURED)
    second_look_threshold: float = _decode_option("second_look_threshold")
    second_look_size: int = _decode_option("second_look_size", UNCONFIGURED)
    second_look_views: int = _decode_option("second_look_views", UNCONFIGURED)
    coarse_look: int = _decode_option("coarse_look")
    shared: float = _decode_option("shared")
    tracking: bool = _parameter(
        False, "Give people ids that last from image to image.", changes=ANY_TIME
    )
    track_second_look: bool = _parameter(
        True,
        "Second looks go to where tracked people should be, too, and see them in other views in "
        "each image. false: people are looked for as without tracking.",
        changes=ANY_TIME,
    )
    track_first_look: int = _parameter(
        2,
        "While people are tracked and images are less than 0.3 s apart, one of so many in a row is "
        "looked at as a whole, the others where people should be: faster, but newcomers are found "
        "so much later. 1: each.",
        low=1,
        high=100,
        changes=ANY_TIME,
    )
    track_oks: float = _track_option("track_oks")
    track_lost_s: float = _track_option("track_lost_s")
    track_birth_score: float = _track_option("track_birth_score")
    track_birth_images: int = _track_option("track_birth_images")
    track_smoothing: bool = _track_option("track_smoothing")
    track_cutoff_hz: float = _track_option("track_cutoff_hz")
    track_speed_gain: float = _track_option("track_speed_gain")
    marker_depth: float = _parameter(
        1.0,
        "[m] distance from the camera of the plane on which RViz shows the skeletons.",
        low=0.01,
        high=1000.0,
        changes=ANY_TIME,
    )
    marker_line_width: float = _parameter(
        0.01, "[m] width of the bones in RViz.", low=0.0001, high=10.0, changes=ANY_TIME
    )
    nominal_fov_deg: float = _parameter(
        60.0,
        "[degrees] horizontal field of view assumed for the markers while there is no CameraInfo.",
        low=1.0,
        high=179.0,
        changes=ANY_TIME,
    )


FIELDS: Dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(Settings)}
_CAMERA_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def declare(node: Any) -> Settings:
    """Declares every parameter on a node and returns the values it was started with.

    Raises:
        EhrnetError: a value that was given has the wrong type, is out of range or contradicts
            another, or a name that was given is almost one of these.

    """
    for name, field in FIELDS.items():
        default = _as_ros(field.default)
        declare_parameter(node, name, default, _descriptor(field), allowed(name))
    check_names(node, FIELDS)
    settings = Settings(**{name: _from_ros(node.get_parameter(name).value) for name in FIELDS})
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raises EhrnetError for a value that is not allowed, naming parameter, value and what is."""
    for name, field in FIELDS.items():
        value = getattr(settings, name)
        low, high = field.metadata["low"], field.metadata["high"]
        fits = not field.metadata["choices"] or value in field.metadata["choices"]
        if field.metadata["each"]:
            of_each = value if isinstance(value, tuple) else (value,) * len(settings.cameras)
            fits = len(of_each) == len(settings.cameras) and all(
                type(one) is int and one in field.metadata["choices"] for one in of_each
            )
        if low is not None:
            fits = low <= value <= high  # false for NaN
            fits |= field.metadata["by_model"] and value == -1
        if not fits:
            raise EhrnetError(cannot_be(name, as_yaml(value), field.default, allowed(name)))
    input_size(settings, 384)
    names = settings.cameras
    named = names == ("",) or all(_CAMERA_NAME.fullmatch(name) for name in names)
    if not names or not named or len(set(names)) < len(names):
        raise EhrnetError(
            f"Parameter cameras cannot be {as_yaml(names)}: it has to be a list of different names "
            'of letters, digits and underscores, such as ["front", "rear"].'
        )
    if settings.bodies and len(names) > 1:
        raise EhrnetError(
            "Parameter bodies cannot be true with several cameras: hri_msgs has one list of bodies "
            "for all; start a node per camera, each in a namespace of its own."
        )


def with_texts(pairs: Iterable[Tuple[str, str]]) -> Settings:
    """Settings by texts such as ``("phi", "-3")``, as on a command line; the rest is the default.

    Raises:
        EhrnetError: a name does not exist or a value is not allowed.

    """
    values: Dict[str, Any] = {}
    for name, text in pairs:
        if name not in FIELDS:
            raise EhrnetError(no_such(name, FIELDS))
        kind: Any = type(FIELDS[name].default)
        try:
            parse: Any = {"true": True, "false": False}.__getitem__ if kind is bool else kind
            if kind is tuple:
                values[name] = tuple(text.split(","))
            elif FIELDS[name].metadata["each"] and "," in text:
                values[name] = tuple(parse(one) for one in text.split(","))
            else:
                values[name] = parse(text)
        except (KeyError, ValueError):
            default = FIELDS[name].default
            raise EhrnetError(cannot_be(name, f"'{text}'", default, allowed(name))) from None
    settings = Settings(**values)
    check(settings)
    return settings


def decode_options(settings: Settings, stored: Mapping[str, Any]) -> DecodeOptions:
    """How peaks become people: the parameters, and where they are -1 what the model stores.

    Raises:
        EhrnetError: the model stores options that do not exist or are out of range.
    """
    names = {field.name for field in dataclasses.fields(DecodeOptions)} & set(FIELDS)
    values = ((name, getattr(settings, name)) for name in names)
    given = typed_options((name, value) for name, value in values if value != -1)
    return DecodeOptions.from_dict(stored, **given)


def rotation_of(settings: Settings, camera: str) -> int:
    """Degrees clockwise, one of ROTATIONS, by which the images of a camera are turned."""
    if isinstance(settings.rotation, tuple):
        of_each = dict(zip(settings.cameras, settings.rotation))
        return of_each.get(camera, 0)  # 0: a last image of a camera of before a cleanup
    return settings.rotation


def track_options(settings: Settings) -> TrackOptions:
    """How people become tracks."""
    names = {field.name for field in dataclasses.fields(TrackOptions)}
    return TrackOptions(**{name: getattr(settings, name) for name in names})


def input_size(settings: Settings, short_side: int) -> Optional[Tuple[int, int]]:
    """(height, width) of the network input that is asked for; None where each image decides.

    Args:
        settings: its ``size``.
        short_side: of the named sizes, in pixels: the variant's input size.

    Raises:
        EhrnetError: the text is not a size.
    """
    if settings.size == "auto":
        return None
    try:
        return parse_size(settings.size, short_side)
    except EhrnetError:
        raise EhrnetError(
            f"Parameter size cannot be '{settings.size}': it has to be auto, square, an aspect "
            "such as 4:3 or 16:9, or HEIGHTxWIDTH in multiples of 32 up to 4096."
        ) from None


def changed(settings: Settings, changes: Dict[str, Any], configured: bool) -> Settings:
    """The settings after a change at run time.

    Args:
        settings: as they are.
        changes: name and new value; names that are not ours are left alone.
        configured: whether the node holds an engine.

    Raises:
        EhrnetError: the parameter does not change now, or not to this value; says why.

    """
    ours = {name: _from_ros(value) for name, value in changes.items() if name in FIELDS}
    for name, value in ours.items():
        if value == getattr(settings, name):
            continue
        when = FIELDS[name].metadata["changes"]
        if when == AT_START:
            raise EhrnetError(f"Parameter {name} is only read at start: start the node with it.")
        if when == UNCONFIGURED and configured:
            raise EhrnetError(
                f"Parameter {name} is built into the running engine or subscription: call the "
                "lifecycle transitions deactivate and cleanup, set it, then configure and activate."
            )
    result = dataclasses.replace(settings, **ours)
    check(result)
    return result


def allowed(name: str) -> str:
    """What a parameter may be, for people: ``-4 to 0``, ``raw or compressed``, ``string``."""
    field = FIELDS[name]
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if choices:
        each = ", or a list of them, one for each camera" * field.metadata["each"]
        return ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}{each}"
    if low is not None:
        return f"{low:g} to {high:g}" + (", or -1" if field.metadata["by_model"] else "")
    if isinstance(field.default, tuple):
        return "a list of names"
    return "true or false" if isinstance(field.default, bool) else "a string"


def parameters_table() -> str:
    """All parameters as a Markdown table."""
    rows = ["| parameter | default | allowed | changes | what it does |", "|---|---|---|---|---|"]
    for name, field in FIELDS.items():
        default = "(empty)" if field.default == "" else f"`{as_yaml(field.default)}`"
        may = "see there" if name == "size" else allowed(name)
        rows.append(
            f"| `{name}` | {default} | {may} | {field.metadata['changes']} | "
            f"{field.metadata['description']} |"
        )
    return "\n".join(rows) + "\n"


def parameters_yaml() -> str:
    """The text of config/pose.yaml: every parameter with its default and description."""
    lines = ["# Parameters of the pose node with their defaults.", "/**:", "  ros__parameters:"]
    for name, field in FIELDS.items():
        note = f"{field.metadata['description']} Changes: {field.metadata['changes']}."
        lines += [f"    # {line}" for line in _wrap(note, 92)]
        lines.append(f"    {name}: {as_yaml(field.default)}")
    return "\n".join(lines) + "\n"


def _descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    metadata = field.metadata
    descriptor = ParameterDescriptor(name=field.name, description=metadata["description"])
    descriptor.additional_constraints = f"changes: {metadata['changes']}"
    descriptor.dynamic_typing = metadata["each"]  # check() looks at the type
    if metadata["choices"]:
        descriptor.additional_constraints += f"; one of {', '.join(map(str, metadata['choices']))}"
    low, high = metadata["low"], metadata["high"]
    if metadata["by_model"]:
        low = -1 if isinstance(field.default, int) else -1.0
    if low is not None and isinstance(field.default, int):
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    elif low is not None:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=low, to_value=high, step=0.0)
        ]
    return descriptor


def _as_ros(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _from_ros(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple, array.array)) else value


def _wrap(text: str, width: int) -> List[str]:
    import textwrap

    return textwrap.wrap(text, width)
