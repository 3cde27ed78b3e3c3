"""The launch files: what they declare, and that the real `launch` brings the nodes up with them."""

import ast
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
try:
    import launch_ros.actions  # noqa: F401

    NO_LAUNCH = ""
except ImportError:
    NO_LAUNCH = "needs launch_ros, which comes with a ROS install only"
needs_launch = pytest.mark.skipif(bool(NO_LAUNCH), reason=NO_LAUNCH)

# What Humble's launch 1.0 and launch_ros 0.19 have, of the names that launch files use.
HUMBLE = {
    "launch": {"LaunchDescription"},
    "launch.actions": {
        "DeclareLaunchArgument",
        "EmitEvent",
        "ExecuteProcess",
        "GroupAction",
        "IncludeLaunchDescription",
        "LogInfo",
        "OpaqueFunction",
        "RegisterEventHandler",
        "SetEnvironmentVariable",
        "TimerAction",
    },
    "launch.conditions": {"IfCondition", "UnlessCondition"},
    "launch.event_handlers": {"OnProcessExit", "OnShutdown"},
    "launch.events": {"Shutdown"},
    "launch.launch_description_sources": {"PythonLaunchDescriptionSource"},
    "launch.substitutions": {
        "EnvironmentVariable",
        "LaunchConfiguration",
        "PathJoinSubstitution",
        "PythonExpression",
    },
    "launch_ros.actions": {"LifecycleNode", "Node", "PushRosNamespace", "SetParameter"},
    "launch_ros.parameter_descriptions": {"ParameterFile", "ParameterValue"},
    "launch_ros.substitutions": {"FindPackageShare"},
}
RUNNER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
file, *arguments = sys.argv[1:]
service = LaunchService(argv=[], noninteractive=True)
source = PythonLaunchDescriptionSource(file)
pairs = [tuple(argument.split(":=", 1)) for argument in arguments]
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=pairs)])
)
sys.exit(service.run())
"""


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.launch.py")), ids=lambda path: path.name)
def test_launch_files_use_only_what_humble_has(path):
    for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 8))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0].startswith("launch"):
            names = {alias.name for alias in node.names}
            assert names <= HUMBLE[node.module], (node.module, names)


def test_arguments_offer_what_the_parameters_allow():
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    from ehrnet_ros.parameters import FIELDS

    tree = ast.parse((LAUNCH / "pose.launch.py").read_text())
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PARAMETERS"
    )
    offered = {
        key.value: [
            c.value if isinstance(c, ast.Constant) else ast.literal_eval(c) for c in choices
        ]
        for key, choices in (
            (key, getattr(value.elts[1], "elts", []))
            for key, value in zip(table.keys, table.values)
        )
    }
    assert set(offered) <= set(FIELDS)
    assert offered["phi"] == ["", *(str(phi) for phi in range(0, -5, -1))]
    for name in ("runtime", "transport", "input_qos"):
        assert offered[name] == ["", *FIELDS[name].metadata["choices"]]


@pytest.fixture
def launch(ros_environment, tmp_path):
    """Starts a launch file as `ros2 launch` does, in a prefix with the package's executables."""
    prefix = tmp_path / "prefix"
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    programs = prefix / "lib" / "ehrnet_ros"
    for folder in (index, programs):
        folder.mkdir(parents=True)
    (index / "ehrnet_ros").touch()
    for name in ("pose_node", "picture_node"):
        program = programs / name
        program.write_text(
            f"#!{sys.executable}\n"
            f"import sys\nfrom ehrnet_ros.{name} import main\nsys.exit(main())\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": os.pathsep.join(
            [str(prefix), os.environ.get("AMENT_PREFIX_PATH", ""), sys.prefix]
        ),
    }
    running = []

    def launch(file, *arguments):
        log = open(tmp_path / f"launch{len(running)}.log", "w+b")
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(LAUNCH / file), *arguments],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
        )
        running.append((process, log))
        return process, pathlib.Path(log.name)

    yield launch
    for process, log in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@needs_launch
def test_a_phi_that_does_not_exist_stops_before_anything_starts(launch):
    process, log = launch("pose.launch.py", "phi:=5")
    assert process.wait(30) != 0
    assert 'Argument "phi" provided value "5" is not valid' in log.read_text()
    assert "process started" not in log.read_text()


@needs_launch
def test_arguments_are_strings_and_end_as_the_parameters_types(launch, peer):
    from rcl_interfaces.srv import GetParameters

    process, log = launch("pose.launch.py", "phi:=-3", "namespace:=typed", "lazy:=false")
    request = GetParameters.Request(names=["phi", "lazy", "transport"])
    phi, lazy, transport = peer.call(
        GetParameters, "/typed/pose/get_parameters", request, seconds=40
    ).values
    assert (phi.type, phi.integer_value) == (2, -3)
    assert (lazy.type, lazy.bool_value) == (1, False)
    assert (transport.type, transport.string_value) == (4, "raw")
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert "process has finished cleanly" in log.read_text()


@needs_launch
def test_demo_launch_shows_people_and_stops_at_the_end_of_the_source(launch, peer, model, dots):
    import cv2
    from ehrnet_msgs.msg import PoseArray

    folder = model.parent / "pictures"
    folder.mkdir()
    picture = dots.draw_people((480, 640), dots.figure((320, 240), 400)[None])
    for i in range(40):
        cv2.imwrite(str(folder / f"{i:02}.png"), picture if i % 2 else np.zeros_like(picture))
    answers = peer.listen(PoseArray, "/shown/pose/poses")
    process, log = launch(
        "demo.launch.py",
        f"source:={folder}",
        f"model:={model}",
        "namespace:=shown",
        "rviz:=false",
        "loop:=false",
        "rate:=10",
        "size:=384x512",
    )
    peer.until(lambda: {len(a.skeletons) for a in answers} == {0, 1}, "people", seconds=40)
    assert answers[0].header.frame_id == "camera_optical_frame"
    end = time.monotonic() + 40
    while process.poll() is None and time.monotonic() < end:
        peer.spin(0.1)
    assert process.poll() == 0, log.read_text()
    assert log.read_text().count("process has finished cleanly") == 2
