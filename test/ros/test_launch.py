"""The launch files: what they declare, and that the real `launch` brings the nodes up with them."""

import ast
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time
import types

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
        "TextSubstitution",
    },
    "launch_ros.actions": {"LifecycleNode", "Node", "PushRosNamespace", "SetParameter"},
    "launch_ros.parameter_descriptions": {"ParameterFile", "ParameterValue"},
    "launch_ros.substitutions": {"ExecutableInPackage", "FindPackageShare"},
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
    assert offered["phi"] == ["", "auto", *(str(phi) for phi in range(0, -5, -1))]
    for name in ("runtime", "transport", "input_qos"):
        assert offered[name] == ["", *FIELDS[name].metadata["choices"]]


# The handler that starts a crashed node again, the node, and RViz.
NODES = ["RegisterEventHandler", "Node", "Node"]


def names(entities):
    return [type(entity).__name__ for entity in entities]


@pytest.fixture
def pose_launch(monkeypatch):
    """What pose.launch.py would start with some arguments, and what follows its first process."""
    sys.path.insert(0, str(ROOT / "test" / "support"))
    import launch_words

    def read(tensorrt=False, **given):
        found = object() if tensorrt else None
        monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
        entities, context = launch_words.read(LAUNCH / "pose.launch.py", HUMBLE, **given)
        if "ExecuteProcess" not in names(entities):
            return entities, None
        assert names(entities) == ["RegisterEventHandler", "ExecuteProcess"]
        handler = entities[0].args[0]
        assert type(handler).__name__ == "OnProcessExit"
        assert handler.kw["target_action"] is entities[1]
        command = [w if isinstance(w, str) else w.perform(context) for w in entities[1].kw["cmd"]]

        def then(code):
            return handler.kw["on_exit"](types.SimpleNamespace(returncode=code), context)

        return command, then

    return read


@pytest.mark.parametrize("runtime", ["", "auto", "onnxruntime", "openvino", "torch"])
def test_without_tensorrt_the_node_starts_at_once(runtime, pose_launch):
    assert names(pose_launch(runtime=runtime)[0]) == NODES


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_another_runtime_needs_no_engine(runtime, pose_launch):
    assert names(pose_launch(tensorrt=True, runtime=runtime)[0]) == NODES


def test_the_engine_is_built_first_and_the_node_follows(pose_launch):
    command, then = pose_launch(runtime="tensorrt", phi="-3", size="16:9")
    assert command[:4] == ["<ehrnet>", "build-engine", "--if-missing", "--diagnostics"]
    assert command[4:] == ["--phi=-3", "--size=16:9", "--batch=1"]
    assert names(then(0)) == NODES
    (shutdown,) = then(2)
    assert type(shutdown).__name__ == "EmitEvent", "no other runtime in silence"
    assert "no other runtime was allowed" in shutdown.kw["event"].kw["reason"]


def test_with_auto_the_node_starts_without_an_engine_too(pose_launch):
    command, then = pose_launch(tensorrt=True)
    assert command[4:] == ["--phi=-4", "--size=auto", "--batch=1"]  # of config/pose.yaml
    assert names(then(0)) == NODES
    assert names(then(2)) == ["LogInfo", *NODES]


def test_a_crashed_node_is_started_again_so_many_times(pose_launch):
    entities, _ = pose_launch(restarts="2")
    for left in (1, 0):
        ended = entities[0].args[0].kw["on_exit"]
        context = types.SimpleNamespace(is_shutdown=False)
        for code in (0, 2):  # asked to, or it cannot start like this
            assert ended(types.SimpleNamespace(returncode=code), context) == []
        stopping = types.SimpleNamespace(is_shutdown=True)
        assert ended(types.SimpleNamespace(returncode=-2), stopping) == []
        again = ended(types.SimpleNamespace(returncode=-11), context)
        assert names(again) == ["LogInfo", *NODES[:2]], left
        entities = again[1:]
    ended = entities[0].args[0].kw["on_exit"]
    assert names(ended(types.SimpleNamespace(returncode=-11), context)) == ["LogInfo"]


def test_cameras_have_topics_of_their_own(pose_launch):
    entities, _ = pose_launch(cameras="[front, 'rear']", image="/{camera}/image_raw")
    node = entities[1].kw
    assert node["parameters"][1]["cameras"] == ["front", "rear"]
    assert ("front/image", "/front/image_raw") in node["remappings"]
    assert ("rear/camera_info", "/rear/camera_info") in node["remappings"]
    assert ("/image", "/front/image_raw") in entities[2].kw["remappings"]
    assert pose_launch(cameras="front,rear")[0][1].kw["remappings"] == []
    with pytest.raises(RuntimeError, match="image:=/one is one topic for 2 cameras"):
        pose_launch(cameras="[front,rear]", image="/one")


@pytest.mark.parametrize(("code", "how"), [(0, "ready"), (2, "not there")])
def test_build_only_stops_after_the_engine(code, how, pose_launch):
    _, then = pose_launch(build_only="true")
    (shutdown,) = then(code)
    assert shutdown.kw["event"].kw["reason"] == f"build_only: the engine is {how}"


def test_what_the_parameter_file_says_reaches_the_builder(pose_launch, tmp_path):
    file = tmp_path / "mine.yaml"
    said = "{phi: -2, runtime: tensorrt, model: a b.onnx, batch: 4}"
    file.write_text(f"/pose:\n  ros__parameters: {said}")
    command, _ = pose_launch(params_file=str(file), size="512x512")
    assert command[4:] == ["--phi=-2", "--model=a b.onnx", "--size=512x512", "--batch=4"]
    file.write_text("[broken")
    assert names(pose_launch(params_file=str(file))[0]) == NODES


def test_the_builders_command_line_is_understood(pose_launch):
    import argparse

    from ehrnet_ros.cli import build_engine

    parser = argparse.ArgumentParser()
    build_engine.add_arguments(parser)
    command, _ = pose_launch(runtime="tensorrt", phi="-3", model="m.onnx", size="16:9")
    args = parser.parse_args(command[2:])
    assert (args.phi, args.model, args.size, args.batch) == (-3, "m.onnx", "16:9", 1)
    assert args.if_missing and args.diagnostics and args.engines is None


def row(phi, p95, model, **more):
    """One row as `ehrnet benchmark` writes it, as far as the launch file reads it."""
    return {
        "phi": phi,
        "pipeline_p95_ms": p95,
        "model": str(model),
        "quality": "preview",
        "runtime": "onnxruntime",
        "size": "4:3",
        **more,
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("-2", "openvino", "4:3")),
        ({"target_fps": "9"}, ("-1", "openvino", "4:3")),
        ({"target_fps": "9", "runtime": "onnxruntime"}, ("-2", "onnxruntime", "4:3")),
        ({"target_fps": "500"}, ("-4", "onnxruntime", "square")),
        ({"size": "square"}, ("-4", "onnxruntime", "square")),
    ],
)
def test_auto_takes_the_largest_that_is_fast_enough(
    arguments, expected, pose_launch, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    model = tmp_path / "model.onnx"
    model.touch()
    rows = [
        row(0, 1, model, quality="random"),
        row(0, 1, tmp_path / "gone.onnx"),
        row(-1, 100, model, runtime="openvino"),
        row(-2, 60, model),
        row(-2, 40, model, runtime="openvino"),
        row(-4, 20, model),
        row(-4, 15, model, size="square"),
    ]
    (tmp_path / "ehrnet").mkdir()
    (tmp_path / "ehrnet" / "benchmark.json").write_text(json.dumps({"rows": rows}))
    started, _ = pose_launch(phi="auto", **arguments)
    assert names(started) == ["LogInfo", *NODES]
    node = next(entity for entity in started if type(entity).__name__ == "Node")
    values = {k: v.args[0] for k, v in node.kw["parameters"][1].items()}
    given = {k: v.kw["text"] for k, v in values.items() if type(v).__name__ == "TextSubstitution"}
    assert (given["phi"], given["runtime"], given["size"]) == expected
    assert given["model"] == str(model)


@pytest.mark.parametrize("text", [None, "", "{}", '{"rows": []}', '{"rows": [{"phi": 1}]}'])
def test_auto_without_a_measurement_says_what_to_run(text, pose_launch, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if text is not None:
        (tmp_path / "ehrnet").mkdir()
        (tmp_path / "ehrnet" / "benchmark.json").write_text(text)
    started, _ = pose_launch(phi="auto")
    assert names(started) == ["LogInfo", "EmitEvent"]
    assert "run `ehrnet benchmark --all`" in started[0].kw["msg"]


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
def test_cameras_share_a_node_that_comes_back_after_a_crash(launch, peer, model):
    from rcl_interfaces.srv import GetParameters

    process, log = launch(
        "pose.launch.py",
        f"model:={model}",
        "cameras:=[front,rear]",
        "image:=/cam_{camera}/image_raw",
        "namespace:=robot",
        "lazy:=false",
        "restarts:=1",
    )
    request = GetParameters.Request(names=["cameras"])
    for _ in range(2):
        (cameras,) = peer.call(
            GetParameters, "/robot/pose/get_parameters", request, seconds=40
        ).values
        assert list(cameras.string_array_value) == ["front", "rear"]
        for topic in ("/cam_front/image_raw", "/cam_rear/image_raw"):
            peer.until(lambda t=topic: peer.node.count_subscribers(t), topic, seconds=40)
        numbers = re.findall(
            r"pose_node-\d+\]: process started with pid \[(\d+)\]", log.read_text()
        )
        os.kill(int(numbers[-1]), signal.SIGKILL)
        peer.until(lambda: "process has died" in log.read_text(), "the death", seconds=20)
        peer.spin(2.0)
    peer.until(lambda: "once too often" in log.read_text(), "the end of restarts", seconds=20)
    assert log.read_text().count("starting it again") == 1
    process.send_signal(signal.SIGINT)
    process.wait(20)


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
