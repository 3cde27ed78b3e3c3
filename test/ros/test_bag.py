"""`ehrnet bag`: recordings in, bags of poses out, read back by others than who wrote them."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
ehrnet_msgs = pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
pytest.importorskip("rosbags", reason="needs rosbags (pip install rosbags)")

from builtin_interfaces.msg import Time  # noqa: E402
from ehrnet_msgs.msg import PoseArray, SkeletonInfo  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from ehrnet_ros.cli import main  # noqa: E402
from ehrnet_ros.image_msgs import to_image  # noqa: E402
from ehrnet_ros.pose_msgs import from_pose_array  # noqa: E402

HW = (384, 512)
STORAGE = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
TOPIC = "/front/image_raw"


def header(number, frame_id="front_optical_frame"):
    """Stamps that are not the times of recording."""
    return Header(stamp=Time(sec=1_700_000_000 + number, nanosec=number), frame_id=frame_id)


def recorded(number):
    return 1_700_000_100_000_000_000 + number * 50_000_000


def people_of(dots, number):
    """One person walking; in every third picture a second; in picture 4 nobody."""
    if number == 4:
        return np.zeros((0, 17, 2))
    people = [dots.figure((120 + 20 * number, 190), 230)]
    if number % 3 == 0:
        people.append(dots.figure((400, 200), 250))
    return np.stack(people)


def picture_of(dots, number):
    return dots.draw_people(HW, people_of(dots, number))


def compressed(picture, head):
    ok, data = cv2.imencode(".png", picture)
    assert ok
    return CompressedImage(header=head, format="bgr8; png compressed bgr8", data=data.tobytes())


def write_bag(path, messages, storage="mcap", compression=None):
    """Writes (topic, time, message) as another recorder would; definitions from rosbags' own."""
    store = get_typestore(Stores.ROS2_KILTED)
    writer = Writer(path, version=9, storage_plugin=STORAGE[storage])
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, time_ns, msg in messages:
            if topic not in connections:
                package = type(msg).__module__.split(".")[0]
                name = f"{package}/msg/{type(msg).__name__}"
                connections[topic] = writer.add_connection(topic, name, typestore=store)
            data = msg if isinstance(msg, bytes) else serialize_message(msg)
            writer.write(connections[topic], time_ns, data)
    return path


@pytest.fixture(scope="module")
def walk(dots, tmp_path_factory):
    """A recording of six pictures, and their headers."""
    messages = [(TOPIC, recorded(n), to_image(picture_of(dots, n), header(n))) for n in range(6)]
    return write_bag(tmp_path_factory.mktemp("walk") / "walk", messages)


@pytest.fixture
def convert(ros_environment, model, capfd):
    """Runs the command; its exit code and what it said."""

    def convert(source, target, *more):
        argv = ["bag", str(source), str(target), "--model", str(model), *map(str, more)]
        argv += [] if "--size" in more else ["--size", "384x512"]
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = main(argv)
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, capfd.readouterr().err

    return convert


def read_sqlite(folder):
    """(topic, time, bytes) of a bag and its topics, by sqlite3 alone."""
    (path,) = folder.glob("*.db3") if folder.is_dir() else [folder]
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT topics.name, timestamp, data FROM messages JOIN topics "
            "ON topics.id = messages.topic_id ORDER BY messages.id"
        ).fetchall()
        definitions = dict(
            db.execute("SELECT topic_type, encoded_message_definition FROM message_definitions")
        )
    return rows, definitions


def read_mcap(folder):
    """(topic, time, decoded message) by the MCAP project's reader, which knows no ROS type."""
    reader = pytest.importorskip("mcap_ros2.reader", reason="needs mcap-ros2-support")
    (path,) = folder.glob("*.mcap") if folder.is_dir() else [folder]
    return [
        (m.channel.topic, m.log_time_ns, m.ros_msg) for m in reader.read_ros2_messages(str(path))
    ]


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_one_pose_array_per_image_with_its_header_and_time(dots, walk, convert, tmp_path):
    code, said = convert(walk, tmp_path / "out", "--storage", "sqlite3")
    assert code == 0 and "6 images, 7 people, on /pose/poses and /pose/markers" in said
    rows, _ = read_sqlite(tmp_path / "out")
    answers = [(t, deserialize_message(d, PoseArray)) for topic, t, d in rows if "poses" in topic]
    assert [t for t, _ in answers] == [recorded(n) for n in range(6)]
    for n, (_, answer) in enumerate(answers):
        assert answer.header == header(n)
        assert (answer.height, answer.width) == HW and math.isnan(answer.latency_ms)
        truth = people_of(dots, n)
        found = from_pose_array(answer)
        assert len(found) == len(truth)
        for person in truth:
            assert np.abs(found.xy - person).mean((1, 2)).min() < 1.0
    infos = [deserialize_message(d, SkeletonInfo) for topic, _, d in rows if "info" in topic]
    assert len(infos) == 1 and infos[0].model == "H-4 dots (preview)"
    assert (infos[0].input_height, infos[0].input_width) == (384, 512)
    assert {topic for topic, _, _ in rows} == {
        "/pose/poses",
        "/pose/markers",
        "/pose/skeleton_info",
    }


def test_foxglove_reads_it_without_knowing_the_messages(dots, walk, convert, tmp_path):
    """An MCAP that explains itself: decoded by the definitions inside, by an independent reader."""
    assert convert(walk, tmp_path / "out.mcap")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out.mcap"]
    messages = read_mcap(tmp_path / "out.mcap")
    poses = [(t, m) for topic, t, m in messages if topic == "/pose/poses"]
    assert [t for t, _ in poses] == [recorded(n) for n in range(6)]
    assert [len(m.skeletons) for _, m in poses] == [len(people_of(dots, n)) for n in range(6)]
    nose = poses[1][1].skeletons[0].keypoints[0]
    np.testing.assert_allclose((nose.x, nose.y), people_of(dots, 1)[0, 0], atol=1)
    assert poses[2][1].header.frame_id == "front_optical_frame"
    assert poses[2][1].header.stamp.sec == 1_700_000_002
    markers = [m for topic, _, m in messages if topic == "/pose/markers"]
    assert len(markers) == 6 and [len(m.markers) for m in markers] == [5, 3, 3, 5, 1, 3]
    for array in markers:
        assert array.markers[0].action == 3  # DELETEALL
        assert all(m.header.frame_id == "front_optical_frame" for m in array.markers)


@pytest.mark.parametrize("storage", STORAGE)
def test_a_second_run_writes_the_same_bytes(walk, convert, tmp_path, storage):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        code, _ = convert(walk, tmp_path / folder / "out", "--storage", storage)
        assert code == 0
    first = hashes(tmp_path / "one" / "out")
    assert first == hashes(tmp_path / "two" / "out") and len(first) == 2


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("compression", [None, CompressionMode.MESSAGE, CompressionMode.FILE])
def test_both_storages_and_zstd_are_read(dots, convert, tmp_path, storage, compression):
    messages = [(TOPIC, recorded(n), to_image(picture_of(dots, n), header(n))) for n in (0, 1)]
    source = write_bag(tmp_path / "in", messages, storage, compression)
    code, _ = convert(source, tmp_path / "out")  # in the storage of the input
    assert code == 0
    if storage == "mcap":
        counts = [
            len(m.skeletons) for topic, _, m in read_mcap(tmp_path / "out") if "poses" in topic
        ]
    else:
        rows, definitions = read_sqlite(tmp_path / "out")
        assert "Keypoint[] keypoints" in definitions["ehrnet_msgs/msg/PoseArray"]
        poses = [deserialize_message(d, PoseArray) for topic, _, d in rows if "poses" in topic]
        counts = [len(m.skeletons) for m in poses]
    assert counts == [2, 1]


def test_cameras_raw_and_compressed_get_outputs_of_their_own(dots, convert, tmp_path):
    info = CameraInfo(width=512, height=384, k=[300.0, 0, 100, 0, 400, 50, 0, 0, 1])
    messages = []
    for n in range(4):
        raw = to_image(picture_of(dots, n), header(n, "front"))
        messages.append(("/front/image_raw", recorded(n), raw))
        small = compressed(picture_of(dots, n + 1), header(n, "rear"))
        messages.append(("/robot/rear/image_raw/compressed", recorded(n) + 1, small))
        # What is none: a compressed copy, depth, and what this package drew itself.
        copy = compressed(picture_of(dots, n), header(n, "front"))
        messages.append(("/front/image_raw/compressed", recorded(n) + 2, copy))
        depth = to_image(np.zeros((4, 4), np.uint8), header(n), "16UC1")
        messages.append(("/front/depth", recorded(n) + 3, depth))
        flow = to_image(np.zeros((4, 4), np.uint8), header(n), "32FC2")
        messages.append(("/front/flow", recorded(n) + 5, flow))
        if n == 2:  # late: markers before it are drawn by it, too
            messages.append(("/front/camera_info", recorded(n) + 4, info))
    code, said = convert(write_bag(tmp_path / "in", messages), tmp_path / "out")
    assert code == 0 and "/front/image_raw: 4 images, 6 people, on /pose/front/poses" in said
    assert (
        "/robot/rear/image_raw/compressed: 4 images" in said
        and "depth" not in said
        and "flow" not in said
    )
    found = read_mcap(tmp_path / "out")
    outputs = ("poses", "markers", "skeleton_info")
    names = {f"/pose/{camera}/{output}" for camera in ("front", "robot_rear") for output in outputs}
    assert {topic for topic, _, _ in found} == names
    for camera, frame, shift in (("front", "front", 0), ("robot_rear", "rear", 1)):
        answers = [m for topic, _, m in found if topic == f"/pose/{camera}/poses"]
        assert [m.header.frame_id for m in answers] == [frame] * 4
        counts = [len(people_of(dots, n + shift)) for n in range(4)]
        assert [len(m.skeletons) for m in answers] == counts
    markers = next(m for topic, _, m in found if topic == "/pose/front/markers")
    answer = next(m for topic, _, m in found if topic == "/pose/front/poses")
    joints = next(m for m in markers.markers if m.ns == "joints")
    nose = answer.skeletons[0].keypoints[0]
    assert joints.points[0].x == pytest.approx((nose.x - 100) / 300, abs=1e-5)
    assert joints.points[0].y == pytest.approx((nose.y - 50) / 400, abs=1e-5)


def test_topics_whose_names_become_the_same_are_kept_apart(dots, convert, tmp_path):
    topics = ("/a/b/image", "/a_b/image", "/a/b/other")
    messages = [
        (topic, recorded(n), to_image(picture_of(dots, n), header(n, topic[1:])))
        for n in range(2)
        for topic in topics
    ]
    assert convert(write_bag(tmp_path / "in", messages), tmp_path / "out")[0] == 0
    frames = {}
    for topic, _, msg in read_mcap(tmp_path / "out"):
        if topic.endswith("/poses"):
            frames.setdefault(topic, set()).add(msg.header.frame_id)
    assert sorted(frames.values()) == sorted({topic[1:]} for topic in topics)


def test_a_topic_can_be_chosen(dots, convert, tmp_path):
    messages = [
        (f"/{name}/image_raw", recorded(n), to_image(picture_of(dots, n), header(n, name)))
        for n in range(2)
        for name in ("left", "right")
    ]
    source = write_bag(tmp_path / "in", messages)
    assert convert(source, tmp_path / "out", "--topic", "right/image_raw")[0] == 0
    answers = [m for topic, _, m in read_mcap(tmp_path / "out") if topic == "/pose/poses"]
    assert [m.header.frame_id for m in answers] == ["right"] * 2
    code, said = convert(source, tmp_path / "none", "--topic", "/rihgt/image_raw")
    assert code == 2 and "no images on /rihgt/image_raw" in said
    assert "/left/image_raw, /right/image_raw" in said and not (tmp_path / "none").exists()


def test_images_that_cannot_be_read_are_counted_and_named(dots, convert, tmp_path):
    good = to_image(picture_of(dots, 0), header(0))
    short = to_image(picture_of(dots, 1), header(1))
    short.step = 7
    broken = bytes(serialize_message(good))[:40]
    messages = [(TOPIC, recorded(n), m) for n, m in enumerate((good, short, broken, good))]
    code, said = convert(write_bag(tmp_path / "in", messages), tmp_path / "out")
    assert code == 1
    assert "2 images, 4 people" in said and "2 images have no poses" in said and "step 7" in said
    answers = [t for topic, t, _ in read_mcap(tmp_path / "out") if topic == "/pose/poses"]
    assert answers == [recorded(0), recorded(3)]
    code, said = convert(write_bag(tmp_path / "bad", messages[1:3]), tmp_path / "nothing")
    assert code == 2 and "None of the 2 images on /front/image_raw can be read" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "in", "out"]


def test_latencies_are_numbers_and_only_on_request(walk, convert, tmp_path):
    assert convert(walk, tmp_path / "out", "--latency")[0] == 0
    found = [m for topic, _, m in read_mcap(tmp_path / "out") if topic == "/pose/latency"]
    assert len(found) == 6
    for msg in found:
        assert msg.layout.dim[0].label == "letterbox, engine, decode [ms]"
        assert len(msg.data) == 3 and all(value > 0 for value in msg.data)


def test_parameters_of_the_node(walk, convert, tmp_path):
    assert convert(walk, tmp_path / "out", "-p", "max_people:=1", "-p", "marker_depth:=2")[0] == 0
    found = read_mcap(tmp_path / "out")
    assert max(len(m.skeletons) for topic, _, m in found if topic == "/pose/poses") == 1
    depths = {
        p.z for topic, _, a in found if "markers" in topic for m in a.markers for p in m.points
    }
    assert depths == {2.0}


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["-p", "max_poeple:=1"], "did you mean max_people"),
        (["-p", "max_people:=many"], "max_people cannot be 'many'"),
        (["-p", "lazy:=yes"], "lazy cannot be 'yes': it has to be true or false"),
        (["-p", "max_people=1"], "write NAME:=VALUE"),
        (["-p", "cameras:=front"], "all of a bag are taken; name some of them with --topic"),
        (["-p", "rotation:=0,180"], "one number turns all images of a bag"),
        (["--size", "100x100"], "size cannot be '100x100'"),
    ],
)
def test_wrong_use_is_one_sentence(walk, convert, tmp_path, more, sentence):
    code, said = convert(walk, tmp_path / "out", *more)
    assert code == 2 and sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_none(dots, walk, convert, tmp_path):
    out = tmp_path / "out"
    code, said = convert(tmp_path / "nowhere", out)
    assert code == 2 and "nowhere cannot be read" in said
    (tmp_path / "walk").mkdir()
    content = (walk / "walk.mcap").read_bytes()
    (tmp_path / "walk" / "walk.mcap").write_bytes(content)
    code, said = convert(tmp_path / "walk", out)
    assert code == 2 and "ros2 bag reindex" in said  # a recorder that was killed
    assert convert(tmp_path / "walk" / "walk.mcap", out)[0] == 0  # the file alone will do
    (tmp_path / "half.mcap").write_bytes(content[: len(content) // 2])
    code, said = convert(tmp_path / "half.mcap", tmp_path / "never")
    assert code == 2 and "half.mcap cannot be read" in said and said.count("\n") == 1
    assert "mcap recover" in said
    code, said = convert(walk, out)
    assert code == 2 and "exists already" in said
    text = write_bag(tmp_path / "text", [("/header", 1, header(0))])
    code, said = convert(text, tmp_path / "never")
    assert code == 2 and "There are no images in" in said
    only = [("/d", 1, to_image(np.zeros((4, 4), np.uint8), header(0), "16UC1"))]
    code, said = convert(write_bag(tmp_path / "depth", only), tmp_path / "never")
    assert code == 2 and "no colour images" in said and "/d" in said
    assert not (tmp_path / "never").exists()


def command(model, source, target, *more):
    arguments = ["bag", source, target, "--model", model, "--size", "384x512", *more]
    return [sys.executable, "-m", "ehrnet_ros.cli", *map(str, arguments)]


@pytest.mark.parametrize("storage", STORAGE)
def test_a_full_disk_leaves_one_sentence_and_nothing_else(
    ros_environment, model, walk, tmp_path, storage
):
    """The kernel refuses to let a file grow beyond 20 kB, as a full disk would."""
    done = subprocess.run(
        command(model, walk, tmp_path / "out", "--storage", storage),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "disk is full" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(ros_environment, dots, model, tmp_path, number):
    # Small images, so that the recording is made fast; the network sees them large and slow.
    image = to_image(np.ascontiguousarray(picture_of(dots, 0)[::10, ::10]), header(0))
    source = write_bag(tmp_path / "in", [(TOPIC, recorded(n), image) for n in range(3000)])
    log = open(tmp_path / "log", "wb")
    process = subprocess.Popen(command(model, source, tmp_path / "out"), stderr=log)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".out*")) and time.monotonic() < end:
        time.sleep(0.01)
    assert list(tmp_path.glob(".out*")) and not (tmp_path / "out").exists()
    process.send_signal(number)
    # Python ends by the signal itself where it came while code of a string ran, as rosbags has it;
    # to a shell both are 130.
    assert process.wait(30) in (128 + number, -signal.SIGINT), (tmp_path / "log").read_text()
    log.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "log"]


def test_it_needs_no_graph(ros_environment, model, walk, tmp_path):
    """Neither a context nor a participant: rclpy is never initialised."""
    code = (
        "import sys, rclpy\n"
        "def refuse(*_, **__): raise SystemExit('rclpy.init was called')\n"
        "rclpy.init = refuse\n"
        "from ehrnet_ros.cli import main\n"
        f"sys.exit(main({command(model, walk, tmp_path / 'out')[3:]!r}) or rclpy.ok())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metadata.yaml").exists()


def test_the_same_poses_as_the_live_node(dots, model, start, peer, walk, convert, tmp_path):
    """The node in a process of its own, over DDS, on the images of the bag: field by field."""
    node = start("pose_node", model=model, lazy="false", size="384x512")
    node.wait_for_log("Ready:")
    camera = peer.publisher(Image, "image")
    peer.until(camera.get_subscription_count, "the node's subscription")
    answers = peer.listen(PoseArray, "pose/poses")
    peer.until(lambda: peer.node.count_publishers("pose/poses"), "the node's publisher")

    def live(n):
        msg = to_image(picture_of(dots, n), header(n))
        mine = lambda: [a for a in answers if a.header == msg.header]  # noqa: E731
        return peer.until(mine, f"answer {n}", each=lambda: camera.publish(msg))[0]

    live_answers = [live(n) for n in range(6)]
    assert node.interrupt() == 0
    assert convert(walk, tmp_path / "out", "--storage", "sqlite3")[0] == 0
    rows, _ = read_sqlite(tmp_path / "out")
    offline = [deserialize_message(d, PoseArray) for topic, _, d in rows if topic == "/pose/poses"]
    assert len(offline) == len(live_answers)
    for one, two in zip(live_answers, offline):
        assert (one.header, one.width, one.height) == (two.header, two.width, two.height)
        first, second = from_pose_array(one), from_pose_array(two)
        for name in ("xy", "score", "std", "person_score", "bbox", "id"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert sum(len(a.skeletons) for a in offline) == 7


def test_definitions_are_found_beside_packages_that_are_links(tmp_path, monkeypatch):
    """As `colcon build --symlink-install` leaves them."""
    from ehrnet_ros import bag

    built, installed = tmp_path / "build" / "linked_msgs", tmp_path / "install" / "lib"
    built.mkdir(parents=True)
    (built / "__init__.py").touch()
    (installed / "linked_msgs").mkdir(parents=True)
    (installed / "linked_msgs" / "__init__.py").symlink_to(built / "__init__.py")
    share = tmp_path / "install" / "share" / "linked_msgs" / "msg"
    share.mkdir(parents=True)
    (share / "Pose.msg").write_text("float32 x\n")
    monkeypatch.syspath_prepend(installed)
    assert bag._definition("linked_msgs/msg/Pose") == "float32 x\n"
    with pytest.raises(bag.EhrnetError, match="linked_msgs/msg/Other is not installed"):
        bag._definition("linked_msgs/msg/Other")


def test_the_hash_of_the_definitions_is_that_of_the_messages(walk, convert, tmp_path):
    """What is embedded is the very type that rosidl built, so that `ros2 bag play` takes it."""
    assert convert(walk, tmp_path / "out", "--storage", "sqlite3")[0] == 0
    with sqlite3.connect(tmp_path / "out" / "out.db3") as db:
        found = dict(db.execute("SELECT type, type_description_hash FROM topics"))
    places = [
        folder / "share" / "ehrnet_msgs" / "msg" for folder in Path(ehrnet_msgs.__file__).parents
    ]
    built = next(place for place in places if place.is_dir())
    for name in ("PoseArray", "SkeletonInfo"):
        description = json.loads((built / f"{name}.json").read_text())
        hashes = {h["type_name"]: h["hash_string"] for h in description["type_hashes"]}
        assert found[f"ehrnet_msgs/msg/{name}"] == hashes[f"ehrnet_msgs/msg/{name}"]
