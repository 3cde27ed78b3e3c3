"""A camera made of a file, the pose node and RViz.

`ros2 launch ehrnet_ros demo.launch.py source:=video.mp4`; every argument of pose.launch.py can be
given too, such as phi:=-3.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

POSE = str(Path(__file__).resolve().parent / "pose.launch.py")


def _camera(context):
    image = LaunchConfiguration("image").perform(context)
    head, slash, _ = image.rpartition("/")
    # Of pose.launch.py, which is included before.
    simulated = LaunchConfiguration("use_sim_time").perform(context).lower() == "true"
    camera = Node(
        package="ehrnet_ros",
        executable="picture_node",
        name="camera",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "source": ParameterValue(LaunchConfiguration("source"), value_type=str),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
                "loop": ParameterValue(LaunchConfiguration("loop"), value_type=bool),
                **({"use_sim_time": True} if simulated else {}),
            }
        ],
        # CameraInfo lies beside the image (REP-104), where pose.launch.py looks for it.
        remappings=[("image", image), ("camera_info", head + slash + "camera_info")],
        additional_env=runpy.run_path(POSE)["fast_dds"]()[0],
        output="screen",
        emulate_tty=True,
    )
    over = Shutdown(reason="the image source has ended")
    end = OnProcessExit(target_action=camera, on_exit=[EmitEvent(event=over)])
    return [camera, RegisterEventHandler(end)]


def generate_launch_description():
    """pose.launch.py and the camera."""
    arguments = [
        DeclareLaunchArgument(
            "source",
            description="picture, folder, video, stream (rtsp://, http://) or index of a camera",
        ),
        DeclareLaunchArgument(
            "rate", default_value="0.0", description="[Hz] images per second; 0: as the source says"
        ),
        DeclareLaunchArgument(
            "loop",
            default_value="true",
            choices=["true", "false"],
            description="begin again at the end, reopen a stream that breaks off; else everything "
            "stops there",
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="true",
            choices=["true", "false"],
            description="show image, overlay and skeletons in RViz",
        ),
        DeclareLaunchArgument(
            "image", default_value="image", description="image topic to publish and to subscribe to"
        ),
        DeclareLaunchArgument(
            "namespace", default_value="", description="namespace of both nodes, such as front"
        ),
    ]
    pose = IncludeLaunchDescription(PythonLaunchDescriptionSource(POSE))
    return LaunchDescription([*arguments, pose, OpaqueFunction(function=_camera)])
