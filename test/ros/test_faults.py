"""What must not bring the node down or make it say what it did not compute, across processes.

The long versions, with figures, are in benchmarks/reliability.py.
"""

import functools
import itertools
import math
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")

import rclpy  # noqa: E402
from builtin_interfaces.msg import Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from ehrnet_msgs.msg import PoseArray  # noqa: E402
from rcl_interfaces.srv import GetParameters, SetParameters  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Float32MultiArray  # noqa: E402
from visualization_msgs.msg import MarkerArray  # noqa: E402

from benchmarks.fuzz import fuzzed_image, fuzzed_info, is_readable  # noqa: E402
from ehrnet_ros.pose_msgs import from_pose_array  # noqa: E402

# Nobody is there, and it is no picture of which that would be said: a ramp of greys.
EMPTY = np.broadcast_to(np.linspace(20, 90, 640)[None, :, None], (480, 640, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def node(start, model):
    """One node for most tests, with an input small enough to keep up with a fuzzer."""
    process = start(
        "pose_node",
        model=model,
        lazy="false",
        size="256x320",
        remaps=["image:=faults/image", "camera_info:=faults/camera_info"],
    )
    process.wait_for_log("Ready:")
    yield process
    assert process.popen.poll() is None, process.log()
    assert process.interrupt() == 0, process.log()
    assert "Traceback" not in process.log()


@pytest.fixture
def camera(peer, node):
    publisher = peer.publisher(Image, "faults/image", 10)
    peer.until(publisher.get_subscription_count, "the node's subscription")
    return publisher


@pytest.fixture
def answers(peer, node):
    found = peer.listen(PoseArray, "pose/poses", 100)
    peer.until(lambda: peer.node.count_publishers("pose/poses"), "the node's publisher")
    return found


@pytest.fixture
def ask(peer, camera, answers, image_of):
    """Sends an empty image until it is answered; what came."""

    def ask(frame_id="asked", each=None):
        msg = image_of(EMPTY, frame_id=frame_id)

        def send():
            camera.publish(msg)
            if each:
                each()

        def answered():
            return [a for a in answers if a.header == msg.header]

        return peer.until(answered, "an answer", each=send)[-1]

    return ask


def shared_memory(pid):
    """Files of /dev/shm that a process has mapped."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # ended, or somebody else's
        return set()
    return {line.split()[5] for line in lines if "/dev/shm/" in line}


def left_behind(files):
    """Those of the files that still exist and are not of a process that lives."""
    processes = (p.name for p in pathlib.Path("/proc").iterdir() if p.name.isdigit())
    in_use = set().union(*(shared_memory(pid) for pid in processes))
    # A port belongs to everybody in the domain.
    return {f for f in files if os.path.exists(f) and f not in in_use and "port" not in f}


def catches(pid, number):
    """Whether a process has a handler for a signal by now."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("stage", ["importing", "loading", "inactive", "estimating"])
def test_a_signal_at_any_stage_ends_it_with_0_and_leaves_nothing(
    peer, start, model, image_of, stage, number
):
    name = f"{stage}_{number.name}"  # a name that no node had before
    process = start(
        "start pose_node",
        extra=[
            *("-p", f"model:={model}", "-p", "lazy:=false", "-p", "size:=384x512"),
            *("-p", f"autostart:={'false' if stage == 'inactive' else 'true'}"),
            *("-r", f"image:={name}/image", "-r", f"__node:={name}"),
        ],
    )
    pid = process.popen.pid
    if stage == "importing":
        # Python itself handles SIGINT only: SIGTERM's handler is the sign that ours are there.
        peer.until(lambda: catches(pid, signal.SIGTERM), "a handler")
    elif stage == "loading":
        process.wait_for_log("Loading")
    elif stage == "inactive":
        assert peer.change_state(name, "configure")
        process.wait_for_log("Ready:")
    else:
        process.wait_for_log("Ready:")
        publisher = peer.publisher(Image, f"{name}/image", 1)
        answers = peer.listen(PoseArray, f"{name}/poses")
        peer.until(lambda: answers, "poses", each=lambda: publisher.publish(image_of(EMPTY)))
        publisher.publish(image_of(EMPTY))
    files = shared_memory(pid)
    assert files or stage == "importing"
    assert process.interrupt(number) == 0, process.log()
    assert "Traceback" not in process.log() and "Error" not in process.log()
    assert not left_behind(files)


LOSES_THE_GPU = """
from ehrnet_model.inference.cuda import DeviceLost
from ehrnet_model.inference.estimator import PoseEstimator

def infer(self, images, rgb, *more):
    if WHEN:
        raise DeviceLost("CUDA's cudaStreamSynchronize failed with error 719: start it again.")
    return sound(self, images, rgb, *more)

sound, PoseEstimator.infer = PoseEstimator.infer, infer
"""


@pytest.mark.parametrize("when", ["True", "images[0].any()"], ids=["loading", "running"])
def test_a_node_that_lost_its_gpu_ends_so_that_it_can_be_started_again(
    when, peer, start, model, image_of, patched
):
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        remaps=["__node:=lost", "image:=lost/image"],
        script=patched(LOSES_THE_GPU.replace("WHEN", when)),
    )
    camera = peer.publisher(Image, "lost/image", 10)

    def ended():
        camera.publish(image_of(EMPTY + 100))
        return node.popen.poll() is not None

    peer.until(ended, "its end")
    # pose.launch.py starts it again after any code but 0 and 2.
    assert node.popen.returncode == 3, node.log()
    assert "failed with error 719: start it again." in node.log()
    assert "Traceback" not in node.log()


HANGS = """
import threading
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_ros import pose_node

def infer(self, images, rgb, *more):
    if images[0].any():  # while loading it answers
        threading.Event().wait()
    return sound(self, images, rgb, *more)

sound, PoseEstimator.infer = PoseEstimator.infer, infer
pose_node.HUNG_S = 2.0
"""


def test_an_engine_that_hangs_is_told(peer, start, model, image_of, patched):
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        remaps=["__node:=stuck", "image:=stuck/image"],
        script=patched(HANGS),
    )
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, "stuck/image", 10)
    heard = peer.listen(DiagnosticArray, "/diagnostics")

    def told():
        camera.publish(image_of(EMPTY + 100))
        own = [s for m in heard for s in m.status if s.name.startswith("/stuck")]
        return [s for s in own if "has not answered" in s.message]

    status = peer.until(told, "the complaint")[-1]
    assert status.level == DiagnosticStatus.ERROR
    peer.spin(1.5)
    assert node.log().count("The engine has not answered for") == 1, "held back for a while"
    node.popen.kill()


NO_MEMORY = """
import itertools
from ehrnet_model.inference.cuda import OutOfDeviceMemory

def open_estimator(*given):
    if next(tries) < TIMES:
        raise OutOfDeviceMemory("The GPU's memory does not suffice: end other processes.")
    return sound(*given)

tries = itertools.count()
sound, pose_node.open_estimator = pose_node.open_estimator, open_estimator
pose_node.AGAIN_S = 1.0
"""


def test_a_node_that_found_no_memory_tries_again_by_itself(peer, start, model, image_of, patched):
    """At a robot's start everything loads at once; what is short then is free a minute later."""
    script = patched(NO_MEMORY.replace("TIMES", "2"))
    node = start("pose_node", model=model, lazy="false", remaps=["__node:=patient"], script=script)
    said = node.wait_for_log("Ready:")
    assert said.count("memory does not suffice") == said.count("It is tried again in 1 s.") == 2
    assert "mend this" not in said
    camera = peer.publisher(Image, "image", 10)
    answers = peer.listen(PoseArray, "patient/poses")
    peer.until(lambda: answers, "poses", each=lambda: camera.publish(image_of(EMPTY)))
    assert node.interrupt() == 0


def test_a_node_that_is_managed_leaves_trying_again_to_its_manager(peer, start, model, patched):
    script = patched(NO_MEMORY.replace("TIMES", "1"))
    node = start(
        "pose_node", model=model, autostart="false", remaps=["__node:=managed"], script=script
    )
    assert peer.change_state("managed", "configure")
    node.wait_for_log("Unconfigured: mend this")
    peer.spin(3.0)
    assert "Ready:" not in node.log() and "tried again" not in node.log()
    assert peer.change_state("managed", "configure")
    node.wait_for_log("Ready:")
    assert node.interrupt() == 0


SLOW = """
from ehrnet_ros import camera
camera.SILENT_S = 0.5
"""


def test_a_camera_that_is_slow_by_habit_is_not_missed(peer, start, model, image_of, patched):
    node = start(
        "pose_node",
        model=model,
        lazy="false",
        size="96x128",
        remaps=["__node:=slow", "image:=slow/image"],
        script=patched(SLOW),
    )
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, "slow/image", 10)
    peer.until(camera.get_subscription_count, "the subscription")
    for _ in range(3):
        camera.publish(image_of(EMPTY))
        peer.spin(1.2)
    used = len(node.log())
    for _ in range(5):
        camera.publish(image_of(EMPTY))
        peer.spin(1.2)
    assert "Waiting" not in node.log()[used:] and "again" not in node.log()[used:]
    peer.until(lambda: "nothing arrives" in node.log()[used:], "that images stopped")
    assert node.interrupt() == 0


def test_a_node_that_was_killed_and_restarted_answers_nothing_old(peer, start, model, image_of):
    """The camera keeps its last images for latecomers; the node must not want them."""
    keeps = QoSProfile(depth=20, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = peer.publisher(Image, "phoenix/image", keeps)
    answers = peer.listen(PoseArray, "phoenix/poses", 100)
    sent = 0

    def send(when):
        nonlocal sent
        sent += 1
        publisher.publish(image_of(EMPTY, frame_id=f"{when} {sent}"))

    def begin():
        process = start(
            "pose_node",
            model=model,
            lazy="false",
            size="96x128",
            remaps=["__node:=phoenix", "image:=phoenix/image"],
        )
        process.wait_for_log("Ready:")
        return process

    first = begin()
    peer.until(lambda: answers, "an answer", each=functools.partial(send, "first"))
    for _ in range(5):
        send("first")
    first.popen.kill()
    assert first.popen.wait() == -signal.SIGKILL
    peer.spin(0.5)  # what was on its way
    before = len(answers)
    for _ in range(10):
        send("nobody there")
    second = begin()
    peer.until(lambda: len(answers) >= before + 5, "answers", each=functools.partial(send, "new"))
    kinds = [answer.header.frame_id.split()[0] for answer in answers]
    assert set(kinds[before:]) == {"new"}
    names = [answer.header.frame_id for answer in answers]
    assert len(set(names)) == len(names)
    assert second.interrupt() == 0 and "Traceback" not in second.log()


def test_two_hundred_fuzzed_images_and_camera_infos(
    peer, node, camera, answers, ask, dots, image_of
):
    people = dots.figure((320, 240), 400)[None]
    person = image_of(dots.draw_people((480, 640), people), frame_id="a person")
    rng = random.Random(11)
    infos = peer.publisher(CameraInfo, "faults/camera_info")
    markers = peer.listen(MarkerArray, "pose/markers", 100)
    overlays = peer.listen(Image, "pose/overlay", 100)
    readable = {}
    for number in range(200):
        msg = fuzzed_image(rng, number)
        if is_readable(msg):
            readable[msg.header.frame_id] = msg
        infos.publish(fuzzed_info(rng))
        camera.publish(msg)
        peer.spin(0.02)
        if number % 10 == 0:
            before = len(answers)

            def seen(before=before):
                return [a for a in answers[before:] if a.header.frame_id == "a person"]

            peer.until(seen, "an answer", each=lambda: camera.publish(person))
    ask("the end")
    assert node.popen.poll() is None
    answered = {a.header.frame_id: a for a in answers if a.header.frame_id.startswith("fuzz")}
    assert set(answered) <= set(readable)
    assert len(answered) > 10  # the fuzzer makes good images too
    for name, answer in answered.items():
        msg = readable[name]
        assert answer.header == msg.header
        assert (answer.width, answer.height) == (msg.width, msg.height)
        assert from_pose_array(answer).xy.shape[1:] == (17, 2)
        assert math.isnan(answer.latency_ms) or answer.latency_ms >= 0
    persons = [a for a in answers if a.header.frame_id == "a person"]
    assert persons
    for answer in persons:
        np.testing.assert_allclose(from_pose_array(answer).xy, people, atol=8.0)
    assert overlays
    for overlay in overlays:
        assert overlay.header.frame_id in {*readable, "a person", "the end"}
        assert len(overlay.data) == overlay.height * overlay.step >= overlay.width * 3
    shown = [m for m in markers if m.markers[0].header.frame_id == "a person"]
    assert shown
    for msg in shown:  # whatever the lens is said to be, the person is somewhere
        points = [p for marker in msg.markers for p in marker.points]
        assert points and all(math.isfinite(v) for p in points for v in (p.x, p.y, p.z))


def test_the_clock_jumps_back(peer, start, model, dots, image_of):
    """As when a bag starts again: one answer per image, and no age that was not."""
    clock = peer.publisher(Clock, "/clock", 10)
    process = start(
        "pose_node",
        model=model,
        lazy="false",
        size="384x512",
        use_sim_time="true",
        tracking="true",
        track_birth_images=1,
        remaps=["__node:=simulated", "image:=simulated/image"],
    )
    process.wait_for_log("Ready:")
    publisher = peer.publisher(Image, "simulated/image", 10)
    answers = peer.listen(PoseArray, "simulated/poses", 100)
    peer.until(publisher.get_subscription_count, "the subscription")
    peer.until(clock.get_subscription_count, "the node's clock")
    people = dots.figure((320, 240), 400)[None]
    picture = dots.draw_people((480, 640), people)

    sent = []

    def show(now, stamp):
        """The answer to an image of simulated time ``stamp`` that arrives at ``now``."""
        known, ticks = len(answers), itertools.count()

        def send():
            clock.publish(Clock(clock=Time(sec=now)))
            if next(ticks) % 20 == 0:  # once, and again only if best effort lost it
                sent.append(f"{now} {stamp} {len(sent)}")
                msg = image_of(picture, frame_id=sent[-1])
                msg.header.stamp = Time(sec=stamp)
                publisher.publish(msg)

        peer.until(lambda: len(answers) > known, "an answer", each=send)
        peer.spin(0.1)
        names = [answer.header.frame_id for answer in answers]
        assert len(set(names)) == len(names) and set(names) <= set(sent)
        assert answers[-1].header.frame_id.startswith(f"{now} {stamp} ")
        assert answers[-1].header.stamp == Time(sec=stamp)
        np.testing.assert_allclose(from_pose_array(answers[-1]).xy, people, atol=8.0)
        return answers[-1]

    for _ in range(5):
        clock.publish(Clock(clock=Time(sec=100)))
        peer.spin(0.1)
    first = show(100, 99)
    assert first.latency_ms == pytest.approx(1000)
    assert math.isnan(show(50, 100).latency_ms)  # an image of the time before the jump
    assert show(50, 49).latency_ms == pytest.approx(1000)
    again = show(51, 50)
    assert again.latency_ms == pytest.approx(1000)
    assert first.skeletons[0].id >= 0 and again.skeletons[0].id >= 0
    assert process.interrupt() == 0 and "Traceback" not in process.log()


_NEVER_READS = """
import os, signal, sys, time
import rclpy
from ehrnet_msgs.msg import PoseArray
rclpy.init()
node = rclpy.create_node("deaf")
node.create_subscription(PoseArray, "pose/poses", print, 10)
while not node.count_publishers("pose/poses"):
    time.sleep(0.05)
print("there", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)  # its DDS threads stop too: nothing is acknowledged
"""


def test_a_subscriber_that_never_reads_holds_nobody_up(peer, node, camera, answers, ask):
    deaf = subprocess.Popen([sys.executable, "-c", _NEVER_READS], stdout=subprocess.PIPE)
    try:
        assert deaf.stdout.readline() == b"there\n"
        peer.until(lambda: _state_of(deaf.pid) == "T", "the stop")
        for number in range(100):
            ask(f"beside the deaf {number}")
    finally:
        deaf.kill()
        deaf.wait()


def _state_of(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_second_node_of_the_same_name_is_reported(peer, node, ask):
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")

    def warned(wanted):
        statuses = [s for m in diagnostics for s in m.status if s.name == "/pose: poses"]
        return [s for s in statuses if ("nodes are named /pose" in s.message) == wanted]

    other = rclpy.create_node("pose")
    try:
        status = peer.until(lambda: warned(True), "a warning", each=ask)[0]
        assert status.level == DiagnosticStatus.WARN and "__node:=" in status.message
        node.wait_for_log("2 nodes are named /pose")
    finally:
        other.destroy_node()
    diagnostics.clear()
    status = peer.until(lambda: warned(False), "the end of the warning", each=ask)[-1]
    assert status.level == DiagnosticStatus.OK


def test_a_storm_of_parameters_while_images_flow(peer, node, camera, ask, image_of):
    rng = random.Random(5)
    client = peer.node.create_client(SetParameters, "pose/set_parameters")
    peer.until(client.service_is_ready, "the service")
    peer.spin(0.5)
    choices = [
        ("max_people", lambda: rng.randrange(-5, 40), lambda v: 1 <= v <= 1000 or v == -1),
        ("keypoint_threshold", lambda: rng.uniform(-2, 2), lambda v: 0 <= v <= 1),
        ("tracking", lambda: rng.random() < 0.5, lambda v: True),
        ("phi", lambda: -3, lambda v: False),  # not while configured
        ("nonsense", lambda: 1, lambda v: False),
    ]
    asked = []
    for number in range(300):
        name, draw, allowed = rng.choice(choices)
        value = draw()
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        asked.append((name, value, allowed(value), client.call_async(request)))
        camera.publish(image_of(EMPTY))
        if number % 10 == 0:
            peer.spin(0.05)
    # DDS keeps ten requests of a client: those that were pushed out are never answered. The last
    # one is, and nothing of the storm comes after it.
    peer.until(asked[-1][3].done, "the last answer")
    ask("after the storm")
    answered = [a for a in asked if a[3].done()]
    for name, value, allowed, future in answered:
        result = future.result().results[0]
        assert result.successful == allowed, (name, value, result.reason)
        assert allowed or result.reason
    assert peer.set_parameter("pose", "max_people", 7).successful
    names = ["max_people", "phi"]
    values = peer.call(GetParameters, "pose/get_parameters", GetParameters.Request(names=names))
    assert [v.integer_value for v in values.values] == [7, -4]
    peer.node.destroy_client(client)


def test_latencies_are_numbers_for_plots_and_only_while_wanted(peer, node, camera, answers, ask):
    diagnostics = peer.listen(DiagnosticArray, "/diagnostics")
    plots = peer.listen(Float32MultiArray, "pose/latency")
    peer.until(lambda: plots, "latencies", each=ask)
    (dimension,) = plots[-1].layout.dim
    names = dimension.label.replace(" [ms]", "").split(", ")
    values = dict(zip(names, plots[-1].data))
    assert names == ["letterbox", "engine", "decode", "since arrival", "since stamp"]
    assert dimension.size == dimension.stride == len(plots[-1].data) == 5
    stages = values["letterbox"] + values["engine"] + values["decode"]
    # The age is taken just before the answer leaves, the time since arrival just after.
    assert 0 < stages <= values["since arrival"]
    assert stages <= values["since stamp"]

    def pairs():
        found = [s for m in diagnostics for s in m.status if s.name == "/pose: poses"]
        return {pair.key: pair.value for pair in found[-1].values} if found else None

    told = peer.until(pairs, "diagnostics", each=ask)
    resident = pathlib.Path(f"/proc/{node.popen.pid}/status").read_text()
    truth = int(resident.split("VmRSS:")[1].split()[0]) * 1024 / 1e6
    assert float(told["memory [MB]"]) == pytest.approx(truth, rel=0.2)
    assert told["engine check"].startswith("none")
