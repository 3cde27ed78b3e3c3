"""The launch files: what they declare, and that the real `launch` brings the nodes up with them."""

import ast
import importlib
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
    "ament_index_python": {"has_resource"},
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
# By which keywords, beside `condition`, of launch 1.0 and launch_ros 0.19; Jazzy's take them, too.
_PROCESS = (
    "additional_env cached_output cwd emulate_tty env log_cmd name on_exit output "
    "output_format prefix respawn respawn_delay shell sigkill_timeout sigterm_timeout"
)
KEYWORDS = {
    "DeclareLaunchArgument": "choices default_value description name",
    "EmitEvent": "event",
    "EnvironmentVariable": "default_value name",
    "ExecutableInPackage": "executable package",
    "ExecuteProcess": _PROCESS + " cmd",
    "LogInfo": "msg",
    "Node": _PROCESS
    + " arguments exec_name executable namespace package parameters remappings ros_arguments",
    "OnProcessExit": "on_exit target_action",
    "OpaqueFunction": "args function kwargs",
    "ParameterValue": "value value_type",
    "Shutdown": "reason",
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
    nodes = list(ast.walk(ast.parse(path.read_text(), feature_version=(3, 8))))
    imported: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and re.match("launch|ament", node.module):
            names = {alias.name for alias in node.names}
            assert names <= HUMBLE[node.module], (node.module, names)
            imported |= names
    for node in nodes:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in imported:
            given = {keyword.arg for keyword in node.keywords if keyword.arg} - {"condition"}
            assert given <= set(KEYWORDS.get(node.func.id, "").split()), (node.func.id, given)


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


# The handler that starts a crashed node again, and the node.
NODES = ["RegisterEventHandler", "Node"]


def names(entities):
    return [type(entity).__name__ for entity in entities]


@pytest.fixture
def launch_words(monkeypatch):
    """For launch files where nobody has set anything, and /dev/shm is big enough."""
    for library in ("FASTDDS", "FASTRTPS"):
        monkeypatch.delenv(f"{library}_DEFAULT_PROFILES_FILE", raising=False)
    for name in (
        "ROS_LOCALHOST_ONLY",
        "EHRNET_ENGINES",
        "ROS_DISTRO",
        "FASTDDS_BUILTIN_TRANSPORTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=2**30))
    monkeypatch.syspath_prepend(str(ROOT / "test" / "support"))
    return importlib.import_module("launch_words")


@pytest.fixture
def ended(launch_words):
    """What is executed when the first process of these ends."""

    def ended(entities, context, code):
        done = entities[0].args[0].kw["on_exit"]
        return launch_words.execute(done(types.SimpleNamespace(returncode=code), context), context)

    return ended


@pytest.fixture
def pose_launch(monkeypatch, launch_words, ended):
    """What pose.launch.py would start with some arguments, and what follows its first process."""

    def read(tensorrt=False, **given):
        found = object() if tensorrt else None
        monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
        entities, context = launch_words.read(LAUNCH / "pose.launch.py", HUMBLE, **given)
        if "ExecuteProcess" not in names(entities):
            return entities, context
        assert names(entities) == ["RegisterEventHandler", "ExecuteProcess"]
        handler = entities[0].args[0]
        assert type(handler).__name__ == "OnProcessExit"
        assert handler.kw["target_action"] is entities[1]
        command = [w if isinstance(w, str) else w.perform(context) for w in entities[1].kw["cmd"]]

        def then(code):
            return ended(entities, context, code)

        return command, then

    return read


@pytest.mark.parametrize("runtime", ["", "auto", "onnxruntime", "openvino", "torch"])
def test_without_tensorrt_the_node_starts_at_once(runtime, pose_launch):
    assert names(pose_launch(runtime=runtime)[0]) == NODES


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_another_runtime_needs_no_engine(runtime, pose_launch):
    assert names(pose_launch(tensorrt=True, runtime=runtime)[0]) == NODES


def profile_of(node):
    return {n: v for n, v in node.kw["additional_env"].items() if n.startswith("FAST")}


@pytest.mark.parametrize(
    ("distro", "name"), [("humble", "FASTRTPS"), ("jazzy", "FASTRTPS"), ("kilted", "FASTDDS")]
)
def test_nodes_with_images_and_no_others_get_the_fast_dds_profile(
    distro, name, launch_words, monkeypatch
):
    monkeypatch.setenv("ROS_DISTRO", distro)
    for file, more in (
        ("pose.launch.py", {"rviz": "true", "packages": ("rviz2",)}),
        ("demo.launch.py", {"source": "people.jpg", "scope": {"use_sim_time": "false"}}),
    ):
        nodes = launch_words.read(LAUNCH / file, HUMBLE, **more)[0]
        ours, *others = [node for node in nodes if type(node).__name__ == "Node"]
        file = str(ROOT / "config" / "fastdds_shm.xml")
        assert profile_of(ours) == {f"{name}_DEFAULT_PROFILES_FILE": file}
        for node in (*nodes, *others):
            assert node is ours or "additional_env" not in node.kw
            assert node.scope[1] == dict(os.environ)


@pytest.mark.parametrize(
    ("distro", "name", "value", "said"),
    [
        ("humble", "FASTRTPS_DEFAULT_PROFILES_FILE", "mine.xml", ""),
        ("kilted", "FASTRTPS_DEFAULT_PROFILES_FILE", "mine.xml", ""),
        ("kilted", "FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA", "=LARGE_DATA: Fast DDS uses these"),
        ("humble", "ROS_LOCALHOST_ONLY", "1", "ROS_LOCALHOST_ONLY=1"),
        ("humble", "ROS_LOCALHOST_ONLY", "0", None),
        ("jazzy", "ROS_LOCALHOST_ONLY", "1", None),
        ("jazzy", "ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST", None),
    ],
)
def test_the_profile_gives_way(distro, name, value, said, pose_launch, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", distro)
    monkeypatch.setenv(name, value)
    *words, _, node = pose_launch()[0]
    assert bool(profile_of(node)) == (said is None)
    assert [said in word.kw["msg"] for word in words] == ([True] if said else [])


def test_too_little_shared_memory_is_said(pose_launch, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=2**26))
    said, _, node = pose_launch()[0]
    assert "--shm-size=1g" in said.kw["msg"] and not profile_of(node)


def test_engines_reach_builder_and_node(pose_launch, launch_words, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    (_, build), _ = launch_words.read(LAUNCH / "pose.launch.py", HUMBLE, engines="/engines")
    _, then = pose_launch(tensorrt=True, engines="/engines")
    for process in (build, then(0)[-1]):
        assert process.kw["additional_env"]["EHRNET_ENGINES"] == "/engines"
        assert "EHRNET_ENGINES" not in process.scope[1]


def test_a_size_in_a_parameter_file_is_what_ros_reads(pose_launch, tmp_path):
    """PyYAML makes 969 of 16:9, which YAML 1.1 has as a number of base 60."""
    text = "/**:\n  ros__parameters:\n    size: 16:9\n    phi: -3\n    model: ''\n"
    (tmp_path / "mine.yaml").write_text(text)
    command, _ = pose_launch(runtime="tensorrt", params_file=str(tmp_path / "mine.yaml"))
    assert command[4:] == ["--phi=-3", "--size=16:9"]


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


def test_a_crashed_node_is_started_again_so_many_times(pose_launch, ended):
    entities, context = pose_launch(restarts="2")
    for left in (1, 0):
        for code in (0, 2):  # asked to, or it cannot start like this
            assert ended(entities, context, code) == []
        context.is_shutdown = True
        assert ended(entities, context, -2) == []
        context.is_shutdown = False
        again = ended(entities, context, -11)
        assert names(again) == ["LogInfo", *NODES], left
        entities = again[1:]
    assert names(ended(entities, context, -11)) == ["LogInfo"]


def test_a_node_that_ran_for_ten_minutes_has_all_its_restarts_again(
    pose_launch, ended, monkeypatch
):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    entities, context = pose_launch(restarts="1")
    for minutes, then in ((1, "started"), (11, "started"), (11, "started"), (9, "given up")):
        now[0] += 60 * minutes
        again = ended(entities, context, -11)
        assert (len(again) > 1) == (then == "started"), (minutes, then)
        entities = again[1:]


@pytest.mark.parametrize("built_first", [False, True])
def test_what_starts_later_sees_what_was_set_around_the_include(
    built_first, launch_words, ended, tmp_path, monkeypatch
):
    def around():
        return {"ros_namespace": "/robot", "global_params": [("use_sim_time", True)]}

    monkeypatch.setattr("importlib.util.find_spec", lambda name: built_first or None)
    monkeypatch.setenv("AROUND", "here")
    front = tmp_path / "front.yaml"
    front.touch()
    given = {"namespace": "front", "params_file": str(front), "tracking": "true"}
    entities, context = launch_words.read(LAUNCH / "pose.launch.py", HUMBLE, around(), **given)
    # The group has ended; another include has appended to its lists and set the same names.
    context.launch_configurations["global_params"].append(("other", 1))
    context.launch_configurations = {"params_file": "rear.yaml"}
    context.environment = {"ELSEWHERE": "there"}
    if built_first:
        entities = ended(entities, context, 0)
    first = entities[-1]
    again = ended(entities, context, -11)[-1]
    for node in (first, again):
        configurations, environment = node.scope
        assert configurations.items() >= around().items()
        assert (environment["AROUND"], environment.get("ELSEWHERE")) == ("here", None)
        assert node.kw["parameters"] == [str(front), {"tracking": True}]
    assert again.kw == first.kw
    assert context.scope() == ({"params_file": "rear.yaml"}, {"ELSEWHERE": "there"})


def test_a_parameter_file_is_there_and_may_lie_at_home(pose_launch, tmp_path, monkeypatch):
    """Launch itself would only warn and start the node without it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").touch()
    node = pose_launch(params_file="~/my.yaml")[0][-1]
    assert node.kw["parameters"][0] == str(tmp_path / "my.yaml")
    for runtime in ("", "tensorrt"):
        with pytest.raises(RuntimeError, match="params_file:=/my.yaml: there is no such file"):
            pose_launch(params_file="/my.yaml", runtime=runtime)


def test_numbers_are_numbers(pose_launch):
    given = pose_launch(second_look="0", live_view_port="8765")[0][-1].kw["parameters"][1]
    assert given == {"second_look": 0, "live_view_port": 8765}
    for wrong in ({"second_look": "few"}, {"rotation": "[0,left]"}, {"rotation": "[]"}):
        name, text = next(iter(wrong.items()))
        with pytest.raises(RuntimeError, match=re.escape(f"{name}:={text}: it has to be a whole")):
            pose_launch(**wrong)


@pytest.mark.parametrize("text, angle", [("90", 90), ("[0, 180]", [0, 180]), ("[90]", [90])])
def test_cameras_are_turned_together_or_each(pose_launch, text, angle):
    assert pose_launch(rotation=text)[0][-1].kw["parameters"][1] == {"rotation": angle}


def test_cameras_have_topics_of_their_own(pose_launch):
    more = {"rviz": "true", "packages": ("rviz2",)}
    entities, _ = pose_launch(cameras="[front, 'rear']", image="/{camera}/image_raw", **more)
    node = entities[1].kw
    assert node["parameters"][1]["cameras"] == ["front", "rear"]
    assert ("front/image", "/front/image_raw") in node["remappings"]
    assert ("rear/camera_info", "/rear/camera_info") in node["remappings"]
    assert ("/image", "/front/image_raw") in entities[2].kw["remappings"]
    assert pose_launch(cameras="front,rear")[0][1].kw["remappings"] == []
    with pytest.raises(RuntimeError, match="image:=/one is one topic for 2 cameras"):
        pose_launch(cameras="[front,rear]", image="/one")


def remapped(entities):
    return dict(entities[1].kw["remappings"])


def test_camera_info_of_several_cameras_is_given_like_their_images(pose_launch):
    info = "/{camera}/color/camera_info"
    for image in ("image", "/{camera}/image_raw"):
        topics = remapped(pose_launch(cameras="[front,rear]", image=image, camera_info=info)[0])
        assert topics["front/camera_info"] == "/front/color/camera_info"
        assert topics["rear/camera_info"] == "/rear/color/camera_info"
        assert ("front/image" in topics) == (image != "image")
        with pytest.raises(RuntimeError, match="camera_info:=/x/info is one topic for 2 cameras"):
            pose_launch(cameras="[front,rear]", image=image, camera_info="/x/info")
    # Beside both images is neither's own: each camera keeps its name.
    topics = remapped(pose_launch(cameras="[front,rear]", image="/image_{camera}")[0])
    assert topics == {"front/image": "/image_front", "rear/image": "/image_rear"}


def test_one_camera_needs_no_place_for_its_name(pose_launch):
    assert remapped(pose_launch(camera_info="/x/info")[0])["camera_info"] == "/x/info"
    topics = remapped(pose_launch(cameras="[front]", camera_info="/x/info")[0])
    assert topics == {"front/camera_info": "/x/info"}
    topics = remapped(pose_launch(cameras="[front]", image="/x/image_raw")[0])
    assert topics == {"front/image": "/x/image_raw", "front/camera_info": "/x/camera_info"}


def test_camera_info_lies_beside_a_compressed_image_too(pose_launch):
    given = {"image": "/camera/image_raw/compressed", "transport": "compressed"}
    topics = remapped(pose_launch(**given)[0])
    assert topics == {"image": given["image"], "camera_info": "/camera/camera_info"}


@pytest.mark.parametrize(
    ("pushed", "namespace", "image", "prefix"),
    [
        ({}, "", "image", ""),
        ({}, "front/", "image", "/front"),
        ({"ros_namespace": "/robot"}, "", "image", "/robot"),
        ({"ros_namespace": "/robot"}, "front", "image", "/robot/front"),
        ({"ros_namespace": "/robot"}, "/front", "/camera/image", "/front"),
    ],
)
def test_rviz_looks_where_the_node_is(pushed, namespace, image, prefix, pose_launch):
    given = {"namespace": namespace, "image": image, "rviz": "true", "packages": ("rviz2",)}
    rviz = pose_launch(scope=pushed, **given)[0][-1]
    assert dict(rviz.kw["remappings"]) == {
        "/image": image if image.startswith("/") else f"{prefix}/{image}",
        "/pose/markers": f"{prefix}/pose/markers",
        "/pose/overlay": f"{prefix}/pose/overlay",
    }


@pytest.mark.parametrize("text", ["true", "True", "false", None])
def test_simulated_time_reaches_all_nodes(text, launch_words):
    given = {} if text is None else {"use_sim_time": text}
    more = {"rviz": "true", "packages": ("rviz2",)}
    pose = launch_words.read(LAUNCH / "pose.launch.py", HUMBLE, **given, **more)[0]
    more = {"source": "people.jpg", "scope": {"use_sim_time": "false", **given}}
    demo = launch_words.read(LAUNCH / "demo.launch.py", HUMBLE, **more)[0]
    nodes = [word for word in (*pose, *demo) if type(word).__name__ == "Node"]
    assert len(nodes) == 3
    for node in nodes:
        said = dict(*node.kw["parameters"][-1:]).get("use_sim_time")
        assert said == (True if text in ("true", "True") else None)


def test_without_rviz_the_rest_starts_and_says_how_to_get_it(pose_launch, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    *nodes, said = pose_launch(rviz="true")[0]
    assert names(nodes) == NODES
    assert "apt install ros-jazzy-rviz2" in said.kw["msg"]


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
        ({}, (-2, "openvino", "4:3")),
        ({"target_fps": "9"}, (-1, "openvino", "4:3")),
        ({"target_fps": "9", "runtime": "onnxruntime"}, (-2, "onnxruntime", "4:3")),
        ({"target_fps": "500"}, (-4, "onnxruntime", "square")),
        ({"size": "square"}, (-4, "onnxruntime", "square")),
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
        row(-2, 40, model, runtime="openvino", threads=3),
        row(-4, 20, model),
        row(-4, 15, model, size="square"),
        row(-2, 30, model, runtime="openvino", size="16:9", person_ms=6),  # 42 with two people
        row(-4, 10, model, person_ms=4),
    ]
    (tmp_path / "ehrnet").mkdir()
    (tmp_path / "ehrnet" / "benchmark.json").write_text(json.dumps({"rows": rows}))
    started, _ = pose_launch(phi="auto", **arguments)
    assert names(started) == ["LogInfo", *NODES]
    given = started[-1].kw["parameters"][1]
    assert (given["phi"], given["runtime"], given["size"]) == expected
    assert given.get("threads") == (3 if expected == (-2, "openvino", "4:3") else None)
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


STAND_IN = f"""#!{sys.executable}
import json, os, sys
words = [open(word).read() if "launch_params_" in word else word for word in sys.argv[1:]]
with open("starts", "a") as starts:
    print(json.dumps([os.path.basename(sys.argv[0]), words, dict(os.environ)]), file=starts)
sys.exit(sys.argv[0].endswith("_node"))
"""
TWO_ROBOTS = f"""
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription, SetEnvironmentVariable
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace, SetParameter, SetRemap

def pose(**given):
    source = PythonLaunchDescriptionSource({str(LAUNCH / "pose.launch.py")!r})
    given = {{"restarts": "1", "runtime": "tensorrt", **given}}
    return IncludeLaunchDescription(source, launch_arguments=given.items())

def generate_launch_description():
    around = [
        PushRosNamespace("robot"),
        SetParameter("use_sim_time", True),
        SetRemap("/tf", "tf"),
        SetEnvironmentVariable("AROUND", "front"),
    ]
    return LaunchDescription([
        GroupAction([*around, pose(namespace="front", phi="-3", tracking="true")]),
        pose(namespace="rear", phi="-4", image="/rear/image"),
        SetParameter("other", 1),
        SetRemap("/other", "/one"),
    ])
"""


@needs_launch
def test_nodes_start_alike_behind_an_engine_and_after_a_crash(launch, tmp_path):
    for name in ("ehrnet", "pose_node"):
        program = tmp_path / "prefix" / "lib" / "ehrnet_ros" / name
        program.write_text(STAND_IN)
        program.chmod(0o755)
    file = tmp_path / "two_robots.launch.py"
    file.write_text(TWO_ROBOTS)
    process, log = launch(file)
    assert process.wait(60) == 0, log.read_text()
    starts = [json.loads(line) for line in (tmp_path / "starts").read_text().splitlines()]
    assert sorted(words[3] for name, words, _ in starts if name == "ehrnet") == [
        "--phi=-3",
        "--phi=-4",
    ]
    nodes = {"__ns:=/robot/front": [], "__ns:=/rear": []}
    for name, words, environment in starts:
        if name == "pose_node":
            (space,) = nodes.keys() & set(words)
            nodes[space].append((words, environment.get("AROUND")))
    (front, again), (rear, rear_again) = nodes.values()
    assert (front, rear) == (again, rear_again)
    assert {"use_sim_time:=True", "/tf:=tf"} <= set(front[0]) and front[1] == "front"
    assert "image:=/rear/image" in rear[0] and rear[1] is None
    assert not {"use_sim_time:=True", "/tf:=tf", "other:=1", "/other:=/one"} & set(rear[0])
    for (words, _), phi, tracking in ((front, -3, True), (rear, -4, False)):
        (given,) = [word for word in words if "ros__parameters" in word]
        assert f"phi: {phi}\n" in given and ("tracking: true\n" in given) == tracking


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
        "rate:=3",  # some seconds: the node needs them to start on a busy machine
        "size:=384x512",
    )
    peer.until(lambda: {len(a.skeletons) for a in answers} == {0, 1}, "people", seconds=40)
    assert answers[0].header.frame_id == "camera_optical_frame"
    end = time.monotonic() + 40
    while process.poll() is None and time.monotonic() < end:
        peer.spin(0.1)
    assert process.poll() == 0, log.read_text()
    assert log.read_text().count("process has finished cleanly") == 2
