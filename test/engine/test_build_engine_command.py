"""``ehrnet build-engine``: what it builds, what it says, and what it tells /diagnostics."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import dots
import pytest
from stand_in_builder import StandInBuilder

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.engine import find_engine
from ehrnet_ros.cli import build_engine


def run(builder: StandInBuilder | None, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    build_engine.add_arguments(parser)
    return build_engine.run(parser.parse_args([*arguments]), builder)


def test_the_usual_size_is_built_and_the_verdict_printed(model, capsys) -> None:
    assert run(StandInBuilder(), "--if-missing") == 0
    out = capsys.readouterr().out
    assert "H-4-fp32-384x512-b1-" in out
    assert (
        "H-4, fp32, 384x512, batch 1, built in" in out and "same: 68 keypoints of 4 people" in out
    )


def test_auto_takes_the_engine_that_is_there(model, capsys) -> None:
    builder = StandInBuilder()
    run(builder, "--size", "square")
    assert run(builder, "--if-missing") == 0
    assert builder.builds == 1
    assert "384x384" in capsys.readouterr().out.splitlines()[-1]
    run(builder, "--size", "square")  # without --if-missing it is built again
    assert builder.builds == 2


def test_folder_and_batch(model, tmp_path, capsys) -> None:
    run(StandInBuilder(), "--engines", str(tmp_path / "mine"), "--batch", "2")
    (engine,) = (tmp_path / "mine").glob("*.engine")
    assert "-b2-" in engine.name


def test_an_engine_of_a_larger_batch_is_not_missing(model, capsys) -> None:
    builder = StandInBuilder()
    run(builder, "--size", "square", "--batch", "4")
    for batch, said in (("2", "384x384, batch 4"), ("8", "384x512, batch 8")):
        run(builder, "--if-missing", "--batch", batch)
        assert said in capsys.readouterr().out.splitlines()[-1]
    assert builder.builds == 2


def test_a_model_that_looks_twice_gets_two_engines_and_whole_images_the_right_one(
    model, dots_model, capsys
) -> None:
    dots.with_decode(dots_model, model, second_look=12, second_look_size=256)
    builder = StandInBuilder()
    assert run(builder, "--if-missing") == 0
    whole, closer = capsys.readouterr().out.splitlines()
    # No more than eight windows at once, however many people may be looked at.
    assert "384x512, batch 1" in whole and "256x256, batch 8" in closer
    assert run(builder, "--if-missing") == 0 and builder.builds == 2
    find_engine(model, (384, 512)).path.unlink()  # the other one is not for whole images
    assert run(builder, "--if-missing") == 0 and builder.builds == 3
    assert find_engine(model, (384, 512)) is not None
    capsys.readouterr()

    def found(**wanted: object) -> object:
        engine = find_engine(model, **wanted)
        return engine and (engine.info.spec.size_hw, engine.info.spec.max_batch)

    assert found() == ((384, 512), 1)
    assert found(size_hw=(256, 256), batch=8) == ((256, 256), 8)
    assert found(batch=4) is None  # that of second looks takes four, but not of whole images
    # One engine of the windows' size is enough for both.
    assert run(StandInBuilder(), "--size", "256x256", "--batch", "8") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_engine_for_second_looks_is_held_to_answers_of_its_size(model, tmp_path) -> None:
    """As export stores them; the same engine for whole images is right."""
    twice = dots.export_dots(tmp_path / "twice.onnx", second_look=4, second_look_size=256)
    found = build_engine.engines_of(twice, (384, 512), StandInBuilder())
    assert [engine.info.spec.size_hw for engine in found] == [(384, 512), (256, 256)]
    assert [engine.info.verdict.state for engine in found] == ["same", "same"]
    wrong = StandInBuilder("10.4.0")
    wrong.answer = lambda peaks: peaks * (len(peaks) == 1)
    with pytest.raises(EhrnetError, match=r"is wrong and is not used: as image \d of 4 at once"):
        build_engine.engines_of(twice, (384, 512), wrong)
    assert wrong.builds == 2


def test_without_tensorrt_it_says_what_to_install(model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EhrnetError, match="tensorrt is not available: .* JetPack"):
        run(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phi", "-2"], "no weights for phi -2"),
        (["--model", "none.onnx"], "no model file none.onnx"),
        (["--size", "100x100"], "multiples of 32"),
        (["--size", "foo"], "'foo' is not understood"),
        (["--batch", "0"], "batch of 0"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_wrong_use(arguments, message, there, model, monkeypatch) -> None:
    """The same with TensorRT and without."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EhrnetError, match=message):
        run(StandInBuilder() if there else None, *arguments)


def test_a_foreign_onnx_file_is_refused(model, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(str(model))
    del proto.metadata_props[:]
    onnx.save(proto, str(tmp_path / "foreign.onnx"))
    with pytest.raises(EhrnetError, match="not one written by `ehrnet export`"):
        run(StandInBuilder(), "--model", str(tmp_path / "foreign.onnx"))


PUBLISHER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ehrnet_ros.build_status import BuildStatus
status = BuildStatus("H-4 fp16")
while not any(p.get_subscription_count() for p in status._node.publishers):
    time.sleep(0.05)
status(61.0, 0.25, "tactics")
status.done(False, "unchecked: nothing stored.")
"""


def test_diagnostics_hear_how_far_it_is(tmp_path, monkeypatch) -> None:
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
    pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
    import os

    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))
    # Fast DDS reads its profile once in a process: without it here, the images of all later tests
    # of this process would not fit its shared memory.
    old = os.environ.get("ROS_DISTRO", "") in ("humble", "iron", "jazzy")
    profile = Path(__file__).parents[2] / "config" / "fastdds_shm.xml"
    monkeypatch.setenv(f"{'FASTRTPS' if old else 'FASTDDS'}_DEFAULT_PROFILES_FILE", str(profile))
    context = rclpy.Context()
    context.init()
    node = rclpy.create_node("listener", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    heard: list = []
    node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", PUBLISHER, root], env=os.environ)
    try:
        end = time.monotonic() + 60
        while len(heard) < 2 and time.monotonic() < end:
            executor.spin_once(0.1)
        assert process.wait(30) == 0
    finally:
        process.kill()
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()
    first, last = (msg.status[0] for msg in heard)
    assert first.name == "ehrnet engine" and first.hardware_id == "H-4 fp16"
    assert first.message == "Building the TensorRT engine for 61 s, 25%: tactics."
    assert {v.key: v.value for v in first.values} == {"seconds": "61", "share": "0.250"}
    assert (last.level, last.message) == (DiagnosticStatus.WARN, "unchecked: nothing stored.")
