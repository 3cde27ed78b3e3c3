"""Starts the pose node, configured and active: `ros2 launch ehrnet_ros pose.launch.py phi:=-3`.

`--show-args` lists what can be given. An argument that is left empty leaves its parameter to
params_file.

Where TensorRT computes, `ehrnet build-engine --if-missing` runs first, as a process of its own that
tells terminal and /diagnostics how far it is; the node starts when the engine is there and right.
`build_only:=true` stops then. Asked for `runtime:=tensorrt`, nothing else is started instead; with
`auto` the node starts without an engine, on what is there, and says so.

A node that crashes is started again, `restarts` times; once it ran for ten minutes they count anew.

Several cameras share one engine: `cameras:=[front,rear] image:=/{camera}/image_raw`, the rear one
upside down: `rotation:=[0,180]`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import posixpath
import shutil
import time
from pathlib import Path

from ament_index_python import has_resource
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    GroupAction,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage

CONFIG = Path(__file__).resolve().parent.parent / "config"
# A node that ran so long does not crash again and again: its restarts count anew.
STEADY_S = 600.0


def angles(text):
    """A whole number, or a list with one for each camera."""
    numbers = [int(number) for number in text.strip(" []").split(",")]
    return numbers if "," in text or "[" in text else numbers[0]


# Arguments that are parameters of the node: type, choices, description.
PARAMETERS = {
    "phi": (
        int,
        ["", "auto", "0", "-1", "-2", "-3", "-4"],
        "which network: 0 (H0, largest) to -4 (H-4, smallest), or auto: the largest that reaches "
        "target_fps on this machine by the last `ehrnet benchmark --all`",
    ),
    "model": (str, None, "path of a model file, instead of the one found by phi"),
    "runtime": (
        str,
        [
            "",
            "auto",
            "onnxruntime",
            "onnxruntime-cuda",
            "onnxruntime-tensorrt",
            "openvino",
            "tensorrt",
            "torch",
        ],
        "what computes the network",
    ),
    "size": (
        str,
        None,
        "network input: auto, square, 4:3, 16:9 or HEIGHTxWIDTH in multiples of 32",
    ),
    "rotation": (
        angles,
        None,
        "degrees by which images have to be turned clockwise for people to stand upright, for "
        "cameras mounted sideways or upside down: 0, 90, 180, 270, or a list such as [0,180], one "
        "for each camera",
    ),
    "transport": (
        str,
        ["", "raw", "compressed"],
        "raw takes the topic given by image, compressed the one with /compressed behind it",
    ),
    "input_qos": (
        str,
        ["", "sensor_data", "reliable"],
        "reliability asked of the camera; sensor_data matches every camera",
    ),
    "lazy": (bool, ["", "true", "false"], "subscribe to images only while somebody listens"),
    "tracking": (bool, ["", "true", "false"], "give people ids that last from image to image"),
    "second_look": (
        int,
        None,
        "how many people of an image are looked at again, 0 to 30; 0: an image costs the same "
        "however many are in it",
    ),
    "live_view_port": (int, None, "port on this machine where Foxglove can look on, such as 8766"),
    "detections": (bool, ["", "true", "false"], "also publish vision_msgs/Detection2DArray"),
    "bodies": (bool, ["", "true", "false"], "also publish hri_msgs, REP-155"),
    "autostart": (bool, ["", "true", "false"], "configure and activate at once"),
}


def fast_dds():
    """Variables for nodes with big images, and words where there are none to be.

    Of all processes only those that send or take images get them: each takes 64 MiB of /dev/shm.
    """
    names = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    if any(os.environ.get(name) for name in names):
        return {}, ""
    # The profile would overrule it, and this node no longer meet those that have it.
    transports = os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", "")
    if transports:
        return {}, f"FASTDDS_BUILTIN_TRANSPORTS={transports}: Fast DDS uses these transports."
    keeps = "Fast DDS keeps its own settings and may lose big images."
    distro = os.environ.get("ROS_DISTRO", "")
    # Up to Humble it is a transport that stays on this machine, and the file's would not; later
    # ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST chooses whom to look for, over any transport.
    if distro in ("foxy", "galactic", "humble") and os.environ.get("ROS_LOCALHOST_ONLY") == "1":
        return {}, f"ROS_LOCALHOST_ONLY=1: {keeps}"
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    if free < 256 * 2**20:
        docker = "In a container, start docker with --shm-size=1g."
        return {}, f"/dev/shm has less than 256 MiB free: {keeps} {docker}"
    # Fast DDS 3, from Kilted on, warns about the old name.
    old = distro in ("foxy", "galactic", "humble", "iron", "jazzy")
    return {names[1 if old else 0]: str(CONFIG / "fastdds_shm.xml")}, ""


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    chosen = {}
    if value("phi") == "auto":
        try:
            chosen = _choose(value("target_fps"), value("runtime"), value("size"))
        except ValueError as error:
            return [
                LogInfo(msg=f"phi:=auto: {error}"),
                EmitEvent(event=Shutdown(reason=str(error))),
            ]
    given = _given(value, chosen)
    cameras = [name.strip(" '\"") for name in value("cameras").strip(" []").split(",")]
    cameras = [] if cameras == [""] else cameras
    if cameras:
        given["cameras"] = cameras
    remappings = _remappings(value, cameras)
    # If not true it is left to params_file and SetParameter.
    clock = {"use_sim_time": True} if value("use_sim_time").lower() == "true" else {}
    profile, said = fast_dds()
    pose = {
        "package": "ehrnet_ros",
        "executable": "pose_node",
        "name": "pose",
        "namespace": value("namespace"),
        "parameters": [_params_file(value), {**given, **clock}],
        "remappings": remappings,
        "arguments": ["--ros-args", "--log-level", value("log_level")],
        "additional_env": {**profile, "EHRNET_ENGINES": value("engines")},
        "output": "screen",
        "emulate_tty": True,
    }
    in_scope = _scope(context)
    nodes = _restarting(pose, int(value("restarts")), 0, in_scope)
    if value("rviz") == "true":
        pushed = context.launch_configurations.get("ros_namespace", "")  # by PushRosNamespace
        prefix = posixpath.join("/", pushed, value("namespace")).rstrip("/")
        nodes.append(_rviz(value("rviz_frame"), prefix, cameras, remappings, clock))
    started = _after_engine(context, [in_scope(nodes)], chosen)
    if said:
        started.insert(0, LogInfo(msg=said))
    if chosen:
        words = ", ".join(f"{name} {text}" for name, text in chosen.items())
        started.insert(0, LogInfo(msg=f"phi:=auto chose {words}"))
    return started


def _given(value, chosen):
    """Parameters of the node that were given as arguments, or chosen for phi:=auto."""
    given = {}
    for name, (kind, _, _) in PARAMETERS.items():
        text = chosen.get(name, value(name))
        if text:
            try:
                given[name] = text == "true" if kind is bool else kind(text)
            except ValueError:
                raise RuntimeError(f"{name}:={text}: it has to be a whole number") from None
    if "threads" in chosen:
        given["threads"] = int(chosen["threads"])
    return given


def _remappings(value, cameras):
    """From the node's topics of images and CameraInfo to those that were asked for.

    Raises RuntimeError where several cameras would share one of them.
    """
    image, info = value("image"), value("camera_info")
    if not info:  # REP-104: beside the image, whatever transport brings that
        base = image[: -len("/compressed")] if image.endswith("/compressed") else image
        head, slash, _ = base.rpartition("/")
        info = head + slash + "camera_info"
    if not cameras:
        return [("image", image), ("camera_info", info)]
    found = []
    for topic, at, such in (("image", image, "image_raw"), ("camera_info", info, "camera_info")):
        if at == topic:
            continue
        if "{camera}" in at or len(cameras) == 1:
            found += [(f"{name}/{topic}", at.replace("{camera}", name)) for name in cameras]
        elif value(topic):  # else it lies beside the image and is no camera's own
            raise RuntimeError(
                f"{topic}:={at} is one topic for {len(cameras)} cameras: write {{camera}} "
                f"where it has their name, such as {topic}:=/{{camera}}/{such}"
            )
    return found


def _restarting(pose, restarts, crashes, in_scope):
    """The node of these arguments, and what starts it again when it crashes, so many times.

    crashes: how many there were, with less than STEADY_S between them.
    """
    node = Node(**pose)
    begin = time.monotonic()

    def when_ended(event, context):
        # 0: it was asked to end; 2: it cannot start like this and has said why.
        if event.returncode in (0, 2) or context.is_shutdown:
            return []
        before = 0 if time.monotonic() - begin > STEADY_S else crashes
        if before == restarts:
            return [LogInfo(msg=f"The pose node ended with {event.returncode} once too often.")]
        text = f"The pose node ended with {event.returncode}: starting it again."
        return [LogInfo(msg=text), in_scope(_restarting(pose, restarts, before + 1, in_scope))]

    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=when_ended)), node]


def _rviz(frame, prefix, cameras, remappings, clock):
    """RViz with the first camera, below the namespace prefix; words where it is not installed."""
    if not has_resource("packages", "rviz2"):
        package = f"ros-{os.environ.get('ROS_DISTRO', 'DISTRO')}-rviz2"
        return LogInfo(msg=f"No RViz, it is not installed: sudo apt install {package}")
    inner = f"{cameras[0]}/" if cameras else ""
    image = dict(remappings).get(f"{inner}image", f"{inner}image")
    return Node(
        package="rviz2",
        executable="rviz2",
        parameters=[clock] if clock else [],
        arguments=["-d", str(CONFIG / "pose.rviz"), "-f", frame],
        remappings=[
            ("/image", image if image.startswith("/") else f"{prefix}/{image}"),
            ("/pose/markers", f"{prefix}/pose/{inner}markers"),
            ("/pose/overlay", f"{prefix}/pose/{inner}overlay"),
        ],
    )


def _scope(context):
    """What groups actions so that they see launch configurations and environment as they are now.

    An event handler acts when groups around the include have ended, and another include may have
    set the same names.
    """
    # SetParameter and SetRemap append to lists in there.
    configurations = {
        name: list(value) if isinstance(value, list) else value
        for name, value in context.launch_configurations.items()
    }
    environment = dict(context.environment)

    def restore(context):
        for current, then in (
            (context.launch_configurations, configurations),
            (context.environment, environment),
        ):
            current.clear()
            current.update(then)

    return lambda actions: GroupAction([OpaqueFunction(function=restore), *actions])


def _choose(target_fps, runtime, size):
    """phi, model, runtime, size and threads of the largest network that is fast enough here.

    As strings; a CPU's threads as they were measured, whatever the parameter file says.

    It counts what 95 of 100 images reach, measured by `ehrnet benchmark`. Where nothing is fast
    enough it is the fastest. Raises ValueError, with what to do, without a measurement that fits.
    """
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    file = Path(base) / "ehrnet" / "benchmark.json"
    try:
        target = float(target_fps)
        rows = json.loads(file.read_text())["rows"]
        rows = [
            row
            for row in rows
            if row["quality"] != "random"
            and Path(row["model"]).is_file()
            and runtime in ("", "auto", row["runtime"])
            and size in ("", "auto", row["size"])
        ]
        fast = [row for row in rows if 1000 / _milliseconds(row) >= target]
        best = min(fast, key=lambda row: (-row["phi"], _milliseconds(row)), default=None)
        best = best or min(rows, key=_milliseconds, default=None)
        if best is not None:
            names = ("phi", "model", "runtime", "size", "threads")
            return {name: str(best[name]) for name in names if name in best}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"target_fps or {file} cannot be read ({error}): run `ehrnet benchmark --all`"
        ) from None
    raise ValueError(f"{file} has no row for this runtime and size: run `ehrnet benchmark --all`")


def _milliseconds(row):
    """What an image with two people in it takes, by a row of the benchmark."""
    return row["pipeline_p95_ms"] + 2 * (row.get("person_ms") or 0)


def _after_engine(context, nodes, chosen):
    """The nodes; behind the building of an engine where TensorRT is to compute."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    asked = {name: chosen.get(name, value(name)) for name in ("phi", "model", "runtime", "size")}
    filed = _from_file(_params_file(value), (*asked, "batch"))
    asked = {**filed, **{name: word for name, word in asked.items() if word}}
    runtime = asked.get("runtime", "auto")
    only = value("build_only") == "true"
    there = runtime == "auto" and importlib.util.find_spec("tensorrt") is not None
    if not (only or there or runtime == "tensorrt"):
        return nodes
    command = [
        ExecutableInPackage(package="ehrnet_ros", executable="ehrnet"),
        "build-engine",
        "--if-missing",
        "--diagnostics",
    ]
    for name in ("phi", "model", "size", "batch"):
        if asked.get(name):
            # One word: a phi such as -3 would be taken for an option.
            command.append(f"--{name}={asked[name]}")
    build = ExecuteProcess(
        cmd=command,
        additional_env={"EHRNET_ENGINES": value("engines")},
        output="screen",
        emulate_tty=True,
    )

    def when_done(event, _):
        if only:
            how = "ready" if event.returncode == 0 else "not there"
            return [EmitEvent(event=Shutdown(reason=f"build_only: the engine is {how}"))]
        if event.returncode == 0:
            return nodes
        if runtime == "tensorrt":
            reason = "there is no TensorRT engine and no other runtime was allowed"
            return [EmitEvent(event=Shutdown(reason=reason))]
        return [LogInfo(msg="No TensorRT engine: the node says what computes instead."), *nodes]

    return [RegisterEventHandler(OnProcessExit(target_action=build, on_exit=when_done)), build]


def _params_file(value):
    """The parameter file's path. Raises RuntimeError without one: launch would go on without it."""
    path = os.path.expanduser(value("params_file"))
    if not os.path.isfile(path):
        raise RuntimeError(f"params_file:={path}: there is no such file")
    return path


def _from_file(path, names):
    """What a parameter file says about some parameters of any node, as strings."""
    import yaml  # launch itself reads parameter files with it

    found = {}
    try:
        # Nothing but strings: YAML 1.1 takes 16:9 for a number of base 60, ROS does not.
        nodes = yaml.load(Path(path).read_text(), Loader=yaml.BaseLoader) or {}  # noqa: S506
    except (OSError, yaml.YAMLError):
        return found  # the node says what is wrong with the file
    for node in nodes.values() if isinstance(nodes, dict) else ():
        parameters = (node.get("ros__parameters") if isinstance(node, dict) else None) or {}
        found.update({n: str(v) for n, v in parameters.items() if n in names and v != ""})
    return found


def generate_launch_description():
    """Arguments, the node, and RViz on request."""
    arguments = []
    for name, (_, choices, description) in PARAMETERS.items():
        more = {"choices": choices} if choices else {}
        arguments.append(
            DeclareLaunchArgument(
                name, default_value="", description=f"{description}; empty: as params_file", **more
            )
        )
    for name, default, description in (
        ("image", "image", "image topic, without /compressed; {camera} stands for a camera's name"),
        (
            "camera_info",
            "",
            "its CameraInfo, for the markers; {camera} as in image; empty: camera_info beside the "
            "image",
        ),
        ("cameras", "", "names of several cameras that share the engine, such as [front,rear]"),
        (
            "restarts",
            "3",
            "how often the node is started again after a crash; counted anew once it ran for ten "
            "minutes",
        ),
        ("namespace", "", "namespace of the node, such as front"),
        (
            "params_file",
            str(CONFIG / "pose.yaml"),
            "parameters of the node, a YAML file; a section for all nodes (/**) has to come first",
        ),
        (
            "rviz_frame",
            "camera_optical_frame",
            "fixed frame of RViz: frame_id of the images, such as camera for v4l2_camera or "
            "camera_color_optical_frame for RealSense",
        ),
        (
            "engines",
            EnvironmentVariable("EHRNET_ENGINES", default_value=""),
            "folder of TensorRT engines; empty: the user's cache",
        ),
        (
            "target_fps",
            "20",
            "images per second, with two people in each, that phi:=auto must sustain",
        ),
        ("log_level", "info", "debug, info, warn, error or fatal"),
    ):
        arguments.append(
            DeclareLaunchArgument(name, default_value=default, description=description)
        )
    either = ["true", "false"]
    for name, choices, description in (
        ("rviz", either, "show image, overlay and skeletons in RViz"),
        ("build_only", either, "build the TensorRT engine if there is none, and stop"),
        # Bring-ups hand this one on, some as Python writes it.
        (
            "use_sim_time",
            [*either, "True", "False"],
            "take the time from /clock, as of a simulation or a bag",
        ),
    ):
        arguments.append(
            DeclareLaunchArgument(
                name, default_value="false", choices=choices, description=description
            )
        )
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])
