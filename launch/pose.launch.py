"""Starts the pose node, configured and active: `ros2 launch ehrnet_ros pose.launch.py phi:=-3`.

`--show-args` lists what can be given. An argument that is left empty leaves its parameter to
params_file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

CONFIG = Path(__file__).resolve().parent.parent / "config"

# Arguments that are parameters of the node: type, choices, description.
PARAMETERS = {
    "phi": (
        int,
        ["", "0", "-1", "-2", "-3", "-4"],
        "which network: 0 (H0, largest) to -4 (H-4, smallest)",
    ),
    "model": (str, None, "path of a model file, instead of the one found by phi"),
    "runtime": (
        str,
        ["", "auto", "onnxruntime", "openvino", "tensorrt", "torch"],
        "what computes the network",
    ),
    "size": (
        str,
        None,
        "network input: auto, square, 4:3, 16:9 or HEIGHTxWIDTH in multiples of 32",
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
    "lazy": (str, ["", "true", "false"], "subscribe to images only while somebody listens"),
    "tracking": (str, ["", "true", "false"], "give people ids that last from image to image"),
    "autostart": (str, ["", "true", "false"], "configure and activate at once"),
}
BOOLEANS = ("lazy", "tracking", "autostart")


def _profile():
    """Fast DDS settings for big images, unless the user has some or /dev/shm is too small."""
    names = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    if any(os.environ.get(name) for name in names):
        return []
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    if free < 256 * 2**20:
        return [
            LogInfo(
                msg="/dev/shm has less than 256 MiB free: Fast DDS keeps its own settings and may "
                "lose big images. In a container, start docker with --shm-size=1g."
            )
        ]
    # Fast DDS 3, from Kilted on, warns about the old name.
    old = os.environ.get("ROS_DISTRO", "") in ("foxy", "galactic", "humble", "iron", "jazzy")
    return [SetEnvironmentVariable(names[1 if old else 0], str(CONFIG / "fastdds_shm.xml"))]


def _nodes(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    given = {}
    for name, (kind, _, _) in PARAMETERS.items():
        if value(name):
            kind = bool if name in BOOLEANS else kind
            given[name] = ParameterValue(LaunchConfiguration(name), value_type=kind)
    image = value("image")
    info = value("camera_info")
    if not info:  # REP-104: beside the image
        head, slash, _ = image.rpartition("/")
        info = head + slash + "camera_info"
    namespace = value("namespace")
    prefix = "/" + namespace.strip("/") if namespace.strip("/") else ""
    pose = Node(
        package="ehrnet_ros",
        executable="pose_node",
        name="pose",
        namespace=namespace,
        parameters=[value("params_file"), given],
        remappings=[("image", image), ("camera_info", info)],
        arguments=["--ros-args", "--log-level", value("log_level")],
        output="screen",
        emulate_tty=True,
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(CONFIG / "pose.rviz"), "-f", value("rviz_frame")],
        remappings=[
            ("/image", image if image.startswith("/") else f"{prefix}/{image}"),
            ("/pose/markers", f"{prefix}/pose/markers"),
            ("/pose/overlay", f"{prefix}/pose/overlay"),
        ],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return [pose, rviz]


def generate_launch_description():
    """Arguments, Fast DDS settings, the node, and RViz on request."""
    arguments = []
    for name, (_, choices, description) in PARAMETERS.items():
        more = {"choices": choices} if choices else {}
        arguments.append(
            DeclareLaunchArgument(
                name, default_value="", description=f"{description}; empty: as params_file", **more
            )
        )
    for name, default, description in (
        ("image", "image", "image topic to subscribe to, without /compressed"),
        ("camera_info", "", "its CameraInfo, for the markers; empty: camera_info beside the image"),
        ("namespace", "", "namespace of the node, such as front"),
        ("params_file", str(CONFIG / "pose.yaml"), "parameters of the node, a YAML file"),
        ("rviz_frame", "camera_optical_frame", "fixed frame of RViz: frame_id of the images"),
        ("log_level", "info", "debug, info, warn, error or fatal"),
    ):
        arguments.append(
            DeclareLaunchArgument(name, default_value=default, description=description)
        )
    arguments.append(
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            choices=["true", "false"],
            description="show image, overlay and skeletons in RViz",
        )
    )
    return LaunchDescription([*arguments, *_profile(), OpaqueFunction(function=_nodes)])
