"""Real nodes in real processes, and one node in this process that talks to them."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = (
    20.0  # for discovery and start-up on a busy machine; a test waits only as long as needed
)


@pytest.fixture(scope="session")
def ros_environment(tmp_path_factory):
    """Variables of all processes of this test session: a domain of its own, big shared memory."""
    pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
    home = tmp_path_factory.mktemp("ros_home")
    values = {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_HOME": str(home),
        "ROS_LOG_DIR": str(home / "log"),
        "ROS_PYTHON_CHECK_FIELDS": "1",
        "XDG_DATA_HOME": str(home / "data"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(
            os.pathsep
        ),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    distro = os.environ.get("ROS_DISTRO", "")
    if distro == "humble":
        values["ROS_LOCALHOST_ONLY"] = "1"
    else:
        values["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    library = "FASTRTPS" if distro in ("humble", "iron", "jazzy") else "FASTDDS"
    values[f"{library}_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds_shm.xml")
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield values
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def dots():
    """The module that draws people as coloured dots and exports a network that finds them."""
    spec = importlib.util.spec_from_file_location("dots", ROOT / "test" / "support" / "dots.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model(dots, tmp_path_factory):
    """A model file with known answers."""
    pytest.importorskip("torch", reason="writing the test model needs torch")
    pytest.importorskip("onnx", reason="writing the test model needs onnx")
    pytest.importorskip("onnxruntime", reason="the nodes compute with onnxruntime")
    return dots.export_dots(tmp_path_factory.mktemp("model") / "dots.onnx")


class Process:
    """A node as a process of its own; what it says is kept."""

    def __init__(self, module, parameters, folder, remaps=(), namespace="", extra=(), script=None):
        # A module, with a word behind it if it takes one.
        program = [script] if script else ["-m", *f"ehrnet_ros.{module}".split()]
        command = [sys.executable, *program, "--ros-args"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        for remap in remaps:
            command += ["-r", remap]
        if namespace:
            command += ["-r", f"__ns:=/{namespace}"]
        command += extra
        self.path = folder / f"{module.replace(' ', '_')}_{time.monotonic_ns()}.log"
        with open(self.path, "wb") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def log(self):
        return self.path.read_text(errors="replace")

    def wait_for_log(self, text, seconds=PATIENCE_S):
        end = time.monotonic() + seconds
        while text not in self.log():
            if self.popen.poll() is not None and text not in self.log():
                pytest.fail(f"ended with {self.popen.returncode} before '{text}':\n{self.log()}")
            if time.monotonic() > end:
                pytest.fail(f"'{text}' was not said within {seconds} s:\n{self.log()}")
            time.sleep(0.05)
        return self.log()

    def wait(self, seconds=PATIENCE_S):
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            pytest.fail(f"did not end within {seconds} s:\n{self.log()}")

    def interrupt(self, number=signal.SIGINT):
        """The exit code after a signal."""
        self.popen.send_signal(number)
        return self.wait(10.0)


@pytest.fixture(scope="session")
def patched(tmp_path_factory):
    """Writes scripts that run the pose node with something of it replaced."""

    def write(text):
        script = tmp_path_factory.mktemp("patched") / "patched.py"
        head = "import sys\nfrom ehrnet_ros import camera, pose_node\n"
        script.write_text(f"{head}{text}\nsys.exit(pose_node.main())\n")
        return script

    return write


@pytest.fixture(scope="module")
def start(ros_environment, tmp_path_factory):
    """Starts nodes; those of fixtures end with the file, a test's own with the test."""
    folder = tmp_path_factory.mktemp("nodes")
    processes = []

    def start(module, remaps=(), namespace="", extra=(), script=None, **parameters):
        process = Process(module, parameters, folder, remaps, namespace, extra, script)
        processes.append(process)
        return process

    start.processes = processes
    yield start
    _kill(processes)


def _kill(processes):
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


@pytest.fixture(autouse=True)
def nodes_end_with_their_test(request):
    """What a test starts does not outlive it: its second attempt would meet the first's node."""
    uses = "start" in request.fixturenames
    processes = request.getfixturevalue("start").processes if uses else []
    shared = len(processes)
    yield
    _kill(processes[shared:])


_GOALS = {
    "configure": "inactive",
    "activate": "active",
    "deactivate": "inactive",
    "cleanup": "unconfigured",
    "active_shutdown": "finalized",
}


class Peer:
    """A node in this process: a camera, and everybody who listens."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        rclpy.init(args=[])
        self.node = rclpy.create_node("peer")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._entities = []
        self._clients = {}

    def close(self):
        import rclpy

        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def publisher(self, kind, topic, qos=5):
        publisher = self.node.create_publisher(kind, topic, qos)
        self._entities.append((self.node.destroy_publisher, publisher))
        return publisher

    def listen(self, kind, topic, qos=10):
        """A list that grows by each message."""
        messages = []
        subscription = self.node.create_subscription(kind, topic, messages.append, qos)
        self._entities.append((self.node.destroy_subscription, subscription))
        return messages

    def clean(self):
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def until(self, condition, what, seconds=PATIENCE_S, each=None, every=0.1):
        """Spins until a condition gives something true; calls ``each`` every so many seconds."""
        end = time.monotonic() + seconds
        again = 0.0
        while True:
            result = condition()
            if result:
                return result
            now = time.monotonic()
            assert now < end, f"{what} did not happen within {seconds} s"
            if each is not None and now >= again:
                again = now + every
                each()
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind, name, request, seconds=PATIENCE_S, again=True):
        """The answer of a service.

        A server may answer before it has discovered who asks, and the answer is lost: a client
        gets half a second to be found, and what does no harm twice is asked again.
        """
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
            self.until(self._clients[name].service_is_ready, f"service {name}", seconds)
            self.spin(0.5)
        client = self._clients[name]
        futures = []

        def ask():
            if not futures or (again and time.monotonic() - ask.asked > 3):
                ask.asked = time.monotonic()
                futures.append(client.call_async(request))

        self.until(lambda: any(f.done() for f in futures), f"answer of {name}", seconds, ask)
        return next(f.result() for f in futures if f.done())

    def set_parameter(self, node, name, value):
        """The answer of a node to the wish to change one of its parameters."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, f"{node}/set_parameters", request).results[0]

    def change_state(self, node, transition):
        """Asks for a lifecycle transition by name; whether it succeeded.

        Its question or answer may get lost as in ``call``, but asked again it would be refused
        where the first question was heard: then the state says what became of it.
        """
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        number = getattr(Transition, f"TRANSITION_{transition.upper()}")
        request = ChangeState.Request(transition=Transition(id=number))
        before = self.state(node)
        end = time.monotonic() + PATIENCE_S
        lost = False
        while True:
            try:
                done = self.call(ChangeState, f"{node}/change_state", request, 3, False).success
                return done or (lost and self.state(node) == _GOALS[transition])
            except AssertionError:
                lost = True
                if (after := self.state(node)) != before:
                    return after == _GOALS[transition]
                if time.monotonic() > end:
                    raise

    def state(self, node):
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, f"{node}/get_state", GetState.Request()).current_state.label


@pytest.fixture(scope="session")
def _peer(ros_environment):
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def peer(_peer):
    """The node of this process, with what a test made of it taken away afterwards."""
    yield _peer
    _peer.clean()


@pytest.fixture
def image_of(_peer):
    """A function from a BGR array to an Image message with a unique stamp."""
    from std_msgs.msg import Header

    from ehrnet_ros.image_msgs import to_image

    def image_of(picture, encoding="bgr8", frame_id="front_optical_frame"):
        stamp = _peer.node.get_clock().now().to_msg()
        return to_image(
            np.ascontiguousarray(picture), Header(stamp=stamp, frame_id=frame_id), encoding
        )

    return image_of
