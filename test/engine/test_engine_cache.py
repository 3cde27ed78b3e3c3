"""Engines are stored whole, found by everything that makes them valid, and built once."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import grp
import hashlib
import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from stand_in_builder import StandInBuilder

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import engine as cache
from ehrnet_model.inference import engine_folder
from ehrnet_model.inference.answers import answers_file
from ehrnet_model.inference.cuda import OutOfDeviceMemory
from ehrnet_model.inference.engine import (
    REVISION,
    Engine,
    EngineSpec,
    Platform,
    ensure_engine,
    find_engine,
    read_plan,
    stored_engines,
)

PROGRAM = Path(__file__).parents[1] / "support" / "stand_in_builder.py"
SIZE = (384, 384)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache and memory folder of this test alone."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("EHRNET_ENGINES", raising=False)
    return tmp_path


@pytest.fixture
def model(dots_model: Path, tmp_path: Path) -> Path:
    for file in (dots_model, answers_file(dots_model)):
        shutil.copy(file, tmp_path)
    return tmp_path / dots_model.name


def ensure(model: Path, builder: StandInBuilder, **options) -> Engine:
    return ensure_engine(model, options.pop("size_hw", SIZE), builder, **options)


def test_an_engine_is_built_once_and_described_in_clear(model, tmp_path) -> None:
    builder = StandInBuilder(level=3)
    first = ensure(model, builder)
    assert first.path is not None and first.path.parent == tmp_path / "cache" / "ehrnet" / "engines"
    assert first.path.name.startswith("H-4-fp32-384x384-b1-")
    text = json.loads(first.path.with_suffix(".engine.json").read_text())
    assert text["spec"]["platform"]["tensorrt"] == "10.3.0"
    assert text["spec"]["platform"]["gpu"] == "Orin"
    assert text["spec"]["settings"] == {"level": 3}
    assert text["onnx"] == "dots.onnx" and text["layers"] == {"fp32": 3}
    assert text["verdict"]["state"] == "same" and text["verdict"]["keypoints"] > 10
    again = ensure(model, builder)
    assert builder.builds == 1
    assert again == dataclasses.replace(first, plan=None)
    assert (first.path.stat().st_mode & 0o777, first.path.parent.stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )
    ensure(model, builder, rebuild=True)
    assert builder.builds == 2


SPEC = EngineSpec("0" * 64, "fp32", SIZE, 1, Platform("10.3.0", "Orin", "8.7", "R36"), {"a": 1})
CHANGES = [
    ({"onnx_sha256": "1" * 64}, "ONNX file 111111111111 instead of 000000000000"),
    ({"precision": "fp16"}, "precision fp16 instead of fp32"),
    ({"size_hw": (384, 512)}, "input size 384x512 instead of 384x384"),
    ({"max_batch": 2}, "batch 2 instead of 1"),
    ({"platform": Platform("8.5.2", "Orin", "8.7", "R36")}, "TensorRT 8.5.2 instead of 10.3.0"),
    ({"platform": Platform("10.3.0", "Thor", "8.7", "R36")}, "GPU Thor instead of Orin"),
    (
        {"platform": Platform("10.3.0", "Orin", "7.2", "R36")},
        "compute capability 7.2 instead of 8.7",
    ),
    ({"platform": Platform("10.3.0", "Orin", "8.7")}, "system none instead of R36"),
    (
        {"platform": Platform("10.3.0", "Orin", "8.7", "R36", 8)},
        "multiprocessors 8 instead of 0",
    ),
    (
        {"platform": Platform("10.3.0", "Orin", "8.7", "R36", 0, "Orin Nano")},
        "board Orin Nano instead of none",
    ),
    ({"settings": {"a": 2}}, "setting a 2 instead of 1"),
    ({"settings": {"a": 1, "b": 0}}, "setting b 0 instead of none"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES, ids=[text for _, text in CHANGES])
def test_every_part_changes_the_key_and_is_named(change, text) -> None:
    other = dataclasses.replace(SPEC, **change)
    assert other.key() != SPEC.key()
    assert other.differences(SPEC) == [text]
    fields = {f.name for f in dataclasses.fields(EngineSpec)}
    assert {name for changed, _ in CHANGES for name in changed} == fields, "a part is not tested"


def test_after_an_update_the_reason_for_building_again_is_said(model, caplog) -> None:
    ensure(model, StandInBuilder("8.6.1"))
    with caplog.at_level(logging.WARNING):
        new = ensure(model, StandInBuilder("10.3.0"))
    assert "does not fit this machine any more: TensorRT 10.3.0 instead of 8.6.1." in caplog.text
    assert new.info.spec.platform.tensorrt == "10.3.0"
    assert len(stored_engines()) == 2, "the old system may be booted again"


def test_an_engine_of_another_size_is_no_forerunner(model, caplog) -> None:
    ensure(model, StandInBuilder(), size_hw=(256, 256))
    with caplog.at_level(logging.WARNING):
        ensure(model, StandInBuilder(), size_hw=(384, 512))
    assert "There is no engine yet for this model at 384x512, fp32." in caplog.text
    assert "any more" not in caplog.text


@pytest.mark.parametrize("damage", ["cut", "other", "description", "no description", "foreign"])
def test_what_does_not_load_is_built_again_once(damage, model, caplog) -> None:
    builder = StandInBuilder()
    path = ensure(model, builder).path
    assert path is not None
    sidecar = path.with_suffix(".engine.json")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:100])
    elif damage == "other":
        path.write_bytes(whole[:-1] + b"1")
    elif damage == "description":
        sidecar.write_text("{")
    elif damage == "no description":
        sidecar.unlink()
    else:
        text = json.loads(sidecar.read_text())
        text["spec"]["platform"]["tensorrt"] = "8.5.2"
        sidecar.write_text(json.dumps(text))
    with caplog.at_level(logging.WARNING):
        assert ensure(model, builder).path == path
    assert builder.builds == 2
    assert "Building the engine again, with an unchanged key" in caplog.text
    if damage == "foreign":
        assert "TensorRT 8.5.2 instead of 10.3.0" in caplog.text
    assert path.read_bytes() == whole
    ensure(model, builder)
    assert builder.builds == 2


def test_an_engine_that_never_loads_is_an_error_not_a_loop(model) -> None:
    builder = StandInBuilder()
    ensure(model, builder)
    builder.refuses = b"stand-in"
    with pytest.raises(EhrnetError, match="does not accept the new engine"):
        ensure(model, builder)
    assert builder.builds == 2


def test_an_engine_outlives_a_moment_of_short_memory(model) -> None:
    builder = StandInBuilder()
    path = ensure(model, builder).path
    builder.memory_is_short = True
    with pytest.raises(OutOfDeviceMemory, match="no memory for .*engine"):
        ensure(model, builder)
    builder.memory_is_short = False
    assert ensure(model, builder).path == path and builder.builds == 1


def test_a_wrong_engine_is_refused_and_not_built_again(model) -> None:
    builder = StandInBuilder()

    def all_to_the_right(peaks: np.ndarray) -> np.ndarray:
        peaks[..., 1] += 3
        return peaks

    builder.answer = all_to_the_right
    for _ in range(2):
        with pytest.raises(EhrnetError, match="engine.* is wrong and is not used: .* px"):
            ensure(model, builder)
        assert find_engine(model) is None
    assert builder.builds == 1, "another would be as wrong, and take minutes"


def test_an_engine_in_another_precision_than_its_graph_is_refused_and_not_built_again(
    model,
) -> None:
    builder = StandInBuilder()
    builder.fault = "it has fp16 layers where the graph is fp32 (3 fp16)."
    for _ in range(2):
        with pytest.raises(EhrnetError, match="is wrong and is not used: it has fp16 layers"):
            ensure(model, builder)
    assert builder.builds == 1 and find_engine(model) is None
    builder.fault = ""
    assert ensure(model, builder, rebuild=True).info.verdict.state == "same"


def test_an_engine_that_the_memory_does_not_suffice_to_check_is_not_built_again(model) -> None:
    builder = StandInBuilder()
    builder.memory_is_short = True
    for _ in range(2):
        with pytest.raises(OutOfDeviceMemory):
            ensure(model, builder)
    assert [engine.info.verdict.state for engine in stored_engines()] == ["unchecked"]
    builder.memory_is_short = False
    assert ensure(model, builder).info.verdict.state == "same" and builder.builds == 1


def test_a_new_engine_that_does_not_load_is_not_kept_but_its_timings_are(model) -> None:
    builder = StandInBuilder()
    builder.refuses = b"stand-in"
    with pytest.raises(EhrnetError, match="does not accept the new engine"):
        ensure(model, builder)
    assert stored_engines() == []
    builder.refuses = b"\xff refused"
    ensure(model, builder)
    assert builder.timing_caches == [b"", b"timed 1"]


def test_engines_of_another_revision_are_not_run(model) -> None:
    """What builds them was mended since; their key says so, and their verdict may be too kind."""
    ensure(model, StandInBuilder(revision=REVISION - 1))
    assert find_engine(model) is None
    engine = ensure(model, StandInBuilder(revision=REVISION))
    assert find_engine(model).path == engine.path


def test_an_engine_that_is_wrong_in_full_batches_only_is_refused(model) -> None:
    builder = StandInBuilder()

    def third_row(peaks: np.ndarray) -> np.ndarray:
        peaks[2:, ..., 1] += 3
        return peaks

    builder.answer = third_row
    with pytest.raises(EhrnetError, match="is wrong and is not used: as image 3 of 4 at once, "):
        ensure(model, builder, max_batch=4)
    assert ensure(model, builder, max_batch=2).info.verdict.state == "same"


@pytest.mark.parametrize("case", ["no answers", "other size"])
def test_an_engine_that_cannot_be_checked_says_so(case, model, caplog) -> None:
    size = SIZE
    if case == "no answers":
        answers_file(model).unlink()
    else:
        size = (96, 128)
    with caplog.at_level(logging.WARNING):
        engine = ensure(model, StandInBuilder(), size_hw=size)
    assert engine.info.verdict.state == "unchecked"
    assert "Nothing proves the new engine to be right" in caplog.text


def test_an_engine_is_checked_as_soon_as_the_answers_are_there(model) -> None:
    builder = StandInBuilder()
    stored = answers_file(model).read_bytes()
    answers_file(model).unlink()
    first = ensure(model, builder)
    assert ensure(model, builder).info.verdict.state == "unchecked"
    answers_file(model).write_bytes(stored)
    now = ensure(model, builder)
    assert now.info.verdict.state == "same" and now.path == first.path
    assert find_engine(first.path).info == now.info, "it is written down"
    answers_file(model).unlink()
    assert ensure(model, builder).info.verdict.state == "same" and builder.builds == 1


def test_an_engine_that_is_found_to_be_wrong_later_is_refused_not_built_again(model) -> None:
    builder = StandInBuilder()
    builder.answer = lambda peaks: peaks[..., ::-1, :, :]  # keypoints of the other names
    stored = answers_file(model).read_bytes()
    answers_file(model).unlink()
    path = ensure(model, builder).path
    assert find_engine(model).path == path
    answers_file(model).write_bytes(stored)
    for _ in range(2):
        with pytest.raises(EhrnetError, match=f"{path} is wrong and is not used: "):
            ensure(model, builder)
        assert find_engine(model) is None
    assert builder.builds == 1 and find_engine(path).info.verdict.state == "differs"
    builder.answer = lambda peaks: peaks
    assert ensure(model, builder, rebuild=True).info.verdict.state == "same"


def test_the_timing_cache_goes_from_build_to_build_on_one_machine(model) -> None:
    builder = StandInBuilder()
    for size in (SIZE, (384, 512)):
        ensure(model, builder, size_hw=size)
    assert builder.timing_caches == [b"", b"timed 1"]
    other = StandInBuilder("8.6.1")
    ensure(model, other)
    assert other.timing_caches == [b""]


def test_progress_is_told_while_it_builds(model) -> None:
    builder = StandInBuilder()
    told: list[tuple[float, float | None, str]] = []
    heard = threading.Event()
    builder.during = lambda report: heard.wait(30) or pytest.fail("no progress")

    def progress(*now) -> None:
        told.append(now)
        heard.set()

    ensure(model, builder, progress=progress)
    seconds, share, text = told[0]
    assert seconds > 0.5 and (share, text) == (0.5, "half of it")


def test_engines_are_found_by_model_size_and_machine(model, tmp_path) -> None:
    assert find_engine(model) is None
    old = ensure(model, StandInBuilder("8.6.1"))
    square = ensure(model, StandInBuilder())
    here = square.info.spec.platform
    assert find_engine(model, SIZE, here).path == square.path
    assert find_engine(model, (384, 512), here) is None
    assert find_engine(model, SIZE, old.info.spec.platform).path == old.path
    assert find_engine(square.path).info == square.info
    assert find_engine(tmp_path / "none.engine") is None
    text = model.read_bytes()
    other = tmp_path / "other.onnx"
    other.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    assert find_engine(other) is None, "the content counts, not the name"


def test_the_smallest_batch_that_suffices_is_found_and_of_these_the_newest(model) -> None:
    engines = {}
    for batch, level in ((1, 1), (4, 1), (4, 2), (8, 1)):
        engine = ensure(model, StandInBuilder(level=level), max_batch=batch)
        engines[batch, level] = engine.path
        sidecar = engine.path.with_suffix(".engine.json")
        text = json.loads(sidecar.read_text())
        text["built"] = f"2026-01-0{level}T00:00:0{8 - batch}+00:00"  # the larger, the older
        sidecar.write_text(json.dumps(text))
    wanted = [(1, (1, 1)), (2, (4, 2)), (4, (4, 2)), (5, (8, 1))]
    for batch, found in wanted:
        assert find_engine(model, SIZE, batch=batch).path == engines[found]
    assert find_engine(model, SIZE, batch=9) is None


@pytest.mark.parametrize("batch", [0, -1])
def test_an_impossible_batch(batch, model) -> None:
    with pytest.raises(EhrnetError, match="batch of .* is not possible"):
        ensure(model, StandInBuilder(), max_batch=batch)


# Places ------------------------------------------------------------------------------------------


def test_the_folder_can_be_moved(model, tmp_path, monkeypatch) -> None:
    builder = StandInBuilder()
    assert ensure(model, builder, folder=tmp_path / "a").path.parent == tmp_path / "a"
    monkeypatch.setenv("EHRNET_ENGINES", str(tmp_path / "b"))
    assert ensure(model, builder).path.parent == tmp_path / "b"
    assert find_engine(model).path.parent == tmp_path / "b"
    monkeypatch.setenv("EHRNET_ENGINES", "~/engines")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engine_folder.engine_folder() == tmp_path / "engines"


@pytest.fixture
def many(monkeypatch) -> None:
    """The group of this user has somebody else in it."""
    group = grp.struct_group(("users", "x", os.getgid(), ["somebody"]))
    monkeypatch.setattr(engine_folder.grp, "getgrgid", lambda gid: group)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(mode, many, model, tmp_path, caplog) -> None:
    folder = tmp_path / "shared"
    ensure(model, StandInBuilder(), folder=folder)
    folder.chmod(mode)
    with pytest.raises(EhrnetError, match="others can write to .*shared, and engines are code"):
        ensure(model, StandInBuilder(), folder=folder)
    with caplog.at_level(logging.WARNING):
        assert find_engine(model, folder=folder) is None
    assert "others can write to" in caplog.text


def test_a_group_of_the_user_alone_may_write(model, tmp_path, monkeypatch) -> None:
    """As Ubuntu makes folders: of a group that has the user's name and nobody else in it."""
    name, gid = pwd.getpwuid(os.getuid()).pw_name, pwd.getpwuid(os.getuid()).pw_gid
    alone = grp.struct_group((name, "x", gid, []))
    monkeypatch.setattr(engine_folder.grp, "getgrgid", lambda _: alone)
    folder = tmp_path / "mine"
    ensure(model, StandInBuilder(), folder=folder)
    os.chown(folder, -1, gid)
    folder.chmod(0o775)
    assert find_engine(model, folder=folder) is not None


@pytest.mark.parametrize("place", ["folder", "link", "linked", "file"])
def test_an_engine_by_its_path_is_refused_where_others_can_write(place, model, tmp_path) -> None:
    """Forged, with a description that fits: nothing of it gets to TensorRT."""
    folder = tmp_path / "brought"
    path = ensure(model, StandInBuilder(), folder=folder).path
    assert find_engine(path).path == path
    forged = b"code of somebody else"
    path.write_bytes(forged)
    described = path.with_suffix(".engine.json")
    sidecar = json.loads(described.read_text())
    described.write_text(json.dumps({**sidecar, "sha256": hashlib.sha256(forged).hexdigest()}))
    assert read_plan(find_engine(path)) == forged  # in a folder of this user alone
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    link = other / path.name
    link.symlink_to(path)
    (other / described.name).symlink_to(described)
    named = link if "link" in place else path
    {"folder": folder, "link": other, "linked": folder, "file": path}[place].chmod(0o777)
    with pytest.raises(EhrnetError, match="others can write to .*, and engines are code"):
        read_plan(find_engine(named))


@contextlib.contextmanager
def not_root():
    """This process is a user who may not do everything."""
    user = os.getuid()
    if not user:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if not user:
            os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away")
def test_a_folder_of_another_user_is_refused(model, tmp_path, caplog) -> None:
    folder = tmp_path / "theirs"
    ensure(model, StandInBuilder(), folder=folder)
    os.chown(folder, 65534, -1)
    with caplog.at_level(logging.WARNING):
        assert find_engine(model, folder=folder) is None
    assert "theirs is another user's (uid 65534, this is 0)" in caplog.text


def test_a_folder_of_root_is_anybodys_to_use() -> None:
    with not_root():
        engine_folder.check_private(Path("/usr"))


def test_another_users_memory_folder_is_not_used(places, monkeypatch) -> None:
    """As after su, which leaves XDG_RUNTIME_DIR as it was: there, but not ours."""
    for base in ("/", "/nothing/there", "/dev/null", ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        with not_root():
            kept, own = engine_folder.memory_folder(), f"/dev/shm/ehrnet-{os.getuid()}"
        assert str(kept) == own


def test_a_folder_that_cannot_be_looked_into_holds_no_engines(places, caplog) -> None:
    closed = places / "closed"
    (closed / "engines").mkdir(parents=True)
    closed.chmod(0)
    with caplog.at_level(logging.WARNING), not_root():
        found = stored_engines(closed / "engines")
    closed.chmod(0o700)
    assert found == [] and "Permission denied" in caplog.text


def test_a_folder_that_cannot_exist_is_one_sentence(model) -> None:
    folder = model.parent / ("x" * 300)
    assert find_engine(model, folder=folder) is None
    with pytest.raises(EhrnetError, match="the folder .* cannot be used: .*File name too long"):
        ensure(model, StandInBuilder(), folder=folder)


# Processes ---------------------------------------------------------------------------------------


def start(model: Path, folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(model), str(folder), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def until(process: subprocess.Popen, stream, word: str) -> None:
    for line in stream:
        if word in line:
            return
    pytest.fail(f"{word!r} was not said: {process.stderr.read()}")


def test_two_processes_build_it_once(model, tmp_path) -> None:
    folder, hold = tmp_path / "engines", tmp_path / "go on"
    first = start(model, folder, "--hold", str(hold))
    until(first, first.stdout, "building")
    second = start(model, folder)
    until(second, second.stderr, "another process builds this engine, waiting")
    hold.touch()
    out, _ = first.communicate(timeout=60)
    assert "built 1 verdict same" in out
    out, _ = second.communicate(timeout=60)
    assert "built 0 verdict same" in out
    assert len(list(folder.glob("*.engine"))) == 1


def test_an_engine_built_between_the_look_and_the_lock_is_taken(
    model, tmp_path, monkeypatch
) -> None:
    folder, lock = tmp_path / "engines", cache.locked

    def late(*given):
        out, _ = start(model, folder).communicate(timeout=60)
        assert "built 1 verdict same" in out
        return lock(*given)

    monkeypatch.setattr(cache, "locked", late)
    builder = StandInBuilder()
    engine = ensure(model, builder, folder=folder)
    assert builder.builds == 0 and engine.info.verdict.state == "same"
    assert [engine.path] == list(folder.glob("*.engine"))


def test_where_there_are_no_locks_it_goes_on_without(model, tmp_path, monkeypatch, caplog) -> None:
    """As on NFS without its lock daemon."""

    def no_locks(*given):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(engine_folder.fcntl, "flock", no_locks)
    folder = tmp_path / "engines"
    path = ensure(model, StandInBuilder(), folder=folder).path
    being_written = folder / f".{path.name}.of_another"
    being_written.touch()
    assert ensure(model, StandInBuilder(), folder=folder, rebuild=True).path == path
    assert being_written.exists()
    assert caplog.text.count("without a lock in") == 2, "once a build"


@pytest.mark.parametrize("when", ["building", "writing"])
def test_kill_9_leaves_no_half_engine_and_no_lock(when, model, tmp_path) -> None:
    folder = tmp_path / "engines"
    more = ["--hang"] if when == "writing" else ["--hold", str(tmp_path / "never")]
    process = start(model, folder, *more)
    until(process, process.stdout, when)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    process.stderr.close()
    assert find_engine(model, folder=folder) is None
    builder = StandInBuilder()
    engine = ensure(model, builder, folder=folder)
    assert builder.builds == 1
    assert find_engine(model, folder=folder).path == engine.path
    left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert left == [], "what the killed process had written is cleared away"


def test_when_nothing_can_be_written_the_engine_lives_in_the_process(model, tmp_path) -> None:
    """A limit on file sizes stops every file system, the one in memory too."""
    process = start(model, tmp_path / "engines", "--bytes", "100000", "--limit", "50000")
    out, err = process.communicate(timeout=60)
    assert "engine None built 1 verdict same" in out, err
    assert err.count("WARNING: The engine of 0.1 MB could not be stored in") == 2
    assert "File too large" in err and "built again next time" in err
    assert stored_engines(tmp_path / "engines") == []


def in_small_disk(model: Path, size: str, remount: str, code: str) -> subprocess.CompletedProcess:
    """Runs Python in a mount namespace of its own in which ``disk`` is a small file system."""
    disk = model.parent / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size={size},mode=700 small {disk} && {remount} "
        f"exec {sys.executable} {PROGRAM} {model} {disk} {code}"
    )
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    if shutil.which("unshare") is None:
        pytest.skip("needs the program unshare")
    if subprocess.run([*command[:-2], "-c", "true"], capture_output=True).returncode:
        pytest.skip("this system does not allow mount namespaces")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)


@pytest.mark.parametrize(
    ("size", "remount", "reason"),
    [
        ("64k", "", "No space left on device"),
        ("1m", "mount -o remount,ro {disk} &&", "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_without_room_on_disk_it_goes_to_memory(size, remount, reason, model, tmp_path) -> None:
    remount = remount.format(disk=model.parent / "disk")
    done = in_small_disk(model, size, remount, "--bytes 100000")
    assert f"could not be stored in {tmp_path / 'disk'} ({reason})" in done.stderr, done.stderr
    assert "kept in memory until the machine is switched off" in done.stderr
    kept = tmp_path / "run" / "ehrnet" / "engines"
    assert f"engine {kept}" in done.stdout and "built 1 verdict same" in done.stdout
    assert find_engine(model, folder=tmp_path / "disk").path.parent == kept
