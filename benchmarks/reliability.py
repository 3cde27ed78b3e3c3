"""Load and faults, with figures: what the node survives and what it costs.

    python -m benchmarks.reliability [--frames 20000] [--kills 100] [--fuzz 2000] [--model FILE]
        [--only overload endurance ...] [--json FILE] [--page docs/reliability.md]

Every node and camera is a process of its own, over DDS on this machine alone. The short versions
are tests: test/ros/test_faults.py.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.node import ROOT, isolate, resident_mb
from benchmarks.report import machine, print_table, write_json, write_page

NODE = "soaked"
PATIENCE_S = 60.0


def camera(topic: str, name: str, rate: float, height: int, width: int) -> None:
    """A process that publishes one noise picture at a rate, frame_id ``name number``, until killed.

    Args:
        topic: where to.
        name: first word of every frame_id, also the node's name.
        rate: images a second.
        height: of the picture in pixels.
        width: of the picture in pixels.
    """
    import rclpy
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from ehrnet_ros.image_msgs import to_image

    rclpy.init()
    node = rclpy.create_node(name)
    publisher = node.create_publisher(Image, topic, 2)
    rng = np.random.default_rng(0)
    msg = to_image(rng.integers(0, 256, (height, width, 3), np.uint8), Header())
    due, number = time.monotonic(), 0
    while True:
        number += 1
        msg.header.frame_id = f"{name} {number}"
        msg.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(msg)
        due = max(due + 1 / rate, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))


@dataclasses.dataclass
class Bench:
    """A folder, a listener in this process, and processes that end with it.

    Attributes:
        args: of the command line.
        folder: for logs.
        listener: a rclpy node; answers: (arrival, PoseArray) of NODE, all or the newest few.
        forks: starts cameras from a process that has imported what they need.
    """

    args: argparse.Namespace
    folder: Path
    listener: Any
    answers: collections.deque
    forks: Any
    processes: list[Any] = dataclasses.field(default_factory=list)
    files: set[str] = dataclasses.field(default_factory=set)
    diagnostics: dict[str, str] = dataclasses.field(default_factory=dict)

    def spin(self, seconds: float) -> None:
        """Takes messages for so long."""
        import rclpy

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rclpy.spin_once(self.listener, timeout_sec=0.05)

    def until(
        self,
        condition: Callable[[], Any],
        seconds: float = PATIENCE_S,
        each: Callable[[], None] = lambda: None,
    ) -> Any:
        """Takes messages until a condition gives something true; what it gave at last."""
        import rclpy

        end = time.monotonic() + seconds
        while not (result := condition()) and time.monotonic() < end:
            each()
            rclpy.spin_once(self.listener, timeout_sec=0.02)
        return result

    def node(self, wait: bool = True, **parameters: Any) -> subprocess.Popen:
        """The pose node; ready when it comes back."""
        values = {"lazy": "false", "model": self.args.model, "phi": -4, **parameters}
        command = [sys.executable, "-m", "ehrnet_ros.start", "pose_node", "--ros-args"]
        for name, value in values.items():
            if value != "":
                command += ["-p", f"{name}:={value}"]
        command += ["-r", f"__node:={NODE}", "-r", "image:=soak/image"]
        log = self.folder / f"{time.monotonic_ns()}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
        self.processes.append(process)
        process.log = log  # type: ignore[attr-defined]
        if wait and not self.until(
            lambda: b"Ready:" in log.read_bytes(), each=lambda: alive(process)
        ):
            raise SystemExit(f"the node does not get ready:\n{log.read_text()}")
        return process

    def camera(self, name: str, rate: float, height: int = 120, width: int = 160) -> Any:
        """A camera process."""
        process = self.forks.Process(
            target=camera, args=("soak/image", name, rate, height, width), daemon=True
        )
        process.start()
        self.processes.append(process)
        return process

    def kill(self, process: Any) -> None:
        """SIGKILL; what it leaves in /dev/shm goes at the end."""
        self.files |= {f for f in shared_memory(process.pid) if "port" not in f}
        process.kill()
        process.wait() if isinstance(process, subprocess.Popen) else process.join()
        self.processes.remove(process)

    def end(self, process: subprocess.Popen) -> str:
        """SIGINT; exit code and whether there was a traceback, as one word."""
        process.send_signal(signal.SIGINT)
        return self.ended(process)

    def ended(self, process: subprocess.Popen) -> str:
        """Waits for a node's end; exit code and whether there was a traceback, as one word."""
        try:
            code = str(process.wait(30))
        except subprocess.TimeoutExpired:
            self.kill(process)
            return "hung"
        self.processes.remove(process)
        trace = b"Traceback" in process.log.read_bytes()  # type: ignore[attr-defined]
        return f"{code} with a traceback" if trace else code

    def counts(self) -> dict[str, float]:
        """The numbers of the node's newest diagnostics."""
        found = {}
        for key, value in self.diagnostics.items():
            with contextlib.suppress(ValueError):
                found[key] = float(value)
        return found

    def tidy(self) -> None:
        """Takes away what killed processes left in /dev/shm, once nobody uses it."""
        # This process, which has shut down, may have them mapped still.
        numbers = (path.name for path in Path("/proc").iterdir() if path.name.isdigit())
        pids = [number for number in numbers if number != str(os.getpid())]
        for file in self.files.difference(*(shared_memory(pid) for pid in pids)):
            for name in (file, file + "_el"):
                with contextlib.suppress(OSError):
                    os.unlink(name)


def alive(process: subprocess.Popen) -> None:
    """Stops the benchmark where a node ended by itself."""
    if process.poll() is not None:
        text = process.log.read_text()  # type: ignore[attr-defined]
        raise SystemExit(f"a node ended with {process.returncode}:\n{text}")


def shared_memory(pid: int | str) -> set[str]:
    """Files of /dev/shm that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split()[5] for line in lines if "/dev/shm/" in line}


@contextlib.contextmanager
def bench(args: argparse.Namespace, folder: Path) -> Iterator[Bench]:
    """Everything that a part of the benchmark needs."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from ehrnet_msgs.msg import PoseArray

    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["benchmarks.node", "rclpy", "ehrnet_ros.image_msgs"])
    rclpy.init()
    listener = rclpy.create_node("listener")
    this = Bench(args, folder, listener, collections.deque(maxlen=100_000), forks)

    def on_diagnostics(msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name == f"/{NODE}: poses":
                this.diagnostics = {pair.key: pair.value for pair in status.values}

    def on_poses(msg: PoseArray) -> None:
        this.answers.append((time.monotonic(), msg.header.frame_id, msg.latency_ms, msg))

    listener.create_subscription(PoseArray, f"{NODE}/poses", on_poses, 100)
    listener.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    try:
        yield this
    finally:
        for process in list(this.processes):
            this.kill(process)
        listener.destroy_node()
        rclpy.try_shutdown()
        this.tidy()


def overload(this: Bench) -> list[dict[str, Any]]:
    """30 Hz into a node that manages fewer: what it costs while it goes on and on."""
    args = this.args
    node = this.node(size=args.slow)
    this.camera("camera", 30.0, 480, 640)
    this.until(lambda: len(this.answers) > 20)
    before, since = this.counts(), time.monotonic()
    this.answers.clear()
    memory = [resident_mb(node.pid)]
    halves = []
    for _ in range(2):
        begun = len(this.answers)
        this.spin(args.seconds / 2)
        halves.append([latency for _, _, latency, _ in list(this.answers)[begun:]])
        memory.append(resident_mb(node.pid))
    seconds = time.monotonic() - since
    this.spin(1.1)  # diagnostics that count the end
    counts = this.counts()
    names = ("received", "dropped for newer ones", "refused", "failed")
    now = {name: int(counts[f"images {name}"]) for name in names}
    answered = int(counts["poses published"])
    both = halves[0] + halves[1]
    row = {
        "model": this.diagnostics["model"],
        "input": args.slow,
        "seconds": round(seconds, 1),
        "in Hz": round((now["received"] - before["images received"]) / (seconds + 1.1), 1),
        "answered Hz": round(len(both) / seconds, 1),
        "received": now["received"],
        "answered": answered,
        "dropped": now["dropped for newer ones"],
        "unaccounted for": now["received"] - answered - sum(list(now.values())[1:]),
        "age p50 ms, 1st half": round(float(np.median(halves[0])), 1),
        "2nd half": round(float(np.median(halves[1])), 1),
        "age max ms": round(max(both), 1),
        "memory MB": memory[0],
        "at the end MB": memory[-1],
        "exit": this.end(node),
    }
    return [row]


def endurance(this: Bench) -> list[dict[str, Any]]:
    """Very many frames: memory, open files and threads at a tenth of the way and at the end."""
    args = this.args
    node = this.node(size=args.small, threads=1, tracking="true")
    this.camera("camera", args.rate)
    rows = []
    begun = time.monotonic()
    answered = 0

    def count() -> None:
        nonlocal answered
        answered += len(this.answers)
        this.answers.clear()
        alive(node)

    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        this.until(lambda s=share: answered >= s * args.frames, 3600, count)  # type: ignore[misc]
        memory = resident_mb(node.pid)
        rows.append(
            {
                "answered": answered,
                "seconds": round(time.monotonic() - begun),
                "memory MB": memory,
                "growth %": round(
                    100 * (memory / (rows[0]["memory MB"] if rows else memory) - 1), 2
                ),
                "open files": len(os.listdir(f"/proc/{node.pid}/fd")),
                "threads": len(os.listdir(f"/proc/{node.pid}/task")),
            }
        )
    rows[-1]["exit"] = this.end(node)
    for row in rows[:-1]:
        row["exit"] = ""
    return rows


def cameras(this: Bench) -> list[dict[str, Any]]:
    """The camera is killed and started again, again and again."""
    node = this.node(size=this.args.small, threads=1)
    waits, memory = [], 0.0
    for number in range(this.args.kills):
        name = f"camera{number}"
        begun = time.monotonic()
        process = this.camera(name, 30.0)
        if this.until(lambda n=name: any(a[1].startswith(n + " ") for a in this.answers)):
            waits.append(time.monotonic() - begun)
        this.answers.clear()
        alive(node)
        this.kill(process)
        if number == this.args.kills // 10:
            memory = resident_mb(node.pid)
    row = {
        "killed": this.args.kills,
        "poses came back": len(waits),
        "after s, median": round(float(np.median(waits)), 2),
        "max": round(max(waits), 2),
        "memory MB": memory,
        "at the end MB": resident_mb(node.pid),
        "exit": this.end(node),
    }
    return [row]


def restarts(this: Bench) -> list[dict[str, Any]]:
    """The node is killed while images flow, and started again: is anything old answered?"""
    this.camera("camera", 30.0)
    node = this.node(size=this.args.small, threads=1)
    waits, stale, twice, back = [], 0, 0, 0

    def newest() -> int:
        return int(this.answers[-1][1].split()[1]) if this.answers else 0

    for _ in range(this.args.restarts):
        this.until(lambda: len(this.answers) > 10)
        this.kill(node)
        this.spin(0.3)  # what was on its way
        seen = {a[1] for a in this.answers}
        last, died = newest(), time.monotonic()
        this.answers.clear()
        started = time.time()
        node = this.node(size=this.args.small, threads=1)
        if this.until(lambda: this.answers):
            back += 1
            waits.append(time.monotonic() - died)
        this.spin(0.5)
        for _, name, _, msg in this.answers:
            stamp = msg.header.stamp.sec + msg.header.stamp.nanosec / 1e9
            twice += name in seen
            stale += stamp < started or int(name.split()[1]) <= last
    row = {
        "killed": this.args.restarts,
        "poses came back": back,
        "answers to images from before": stale,
        "answered twice": twice,
        "after s, median": round(float(np.median(waits)), 2),
        "max": round(max(waits), 2),
        "exit": this.end(node),
    }
    return [row]


def signals(this: Bench) -> list[dict[str, Any]]:
    """SIGINT and SIGTERM at random moments from the first line of the command on."""
    rng = random.Random(3)
    this.camera("camera", 30.0)
    ends: collections.Counter[str] = collections.Counter()
    stages: collections.Counter[str] = collections.Counter()
    left = 0
    for _ in range(this.args.signals):
        node = this.node(wait=False, size=this.args.small, threads=1)
        while not catches(node.pid, signal.SIGTERM):
            alive(node)
            time.sleep(0.002)
        this.spin(rng.uniform(0, 3))
        said = node.log.read_bytes()  # type: ignore[attr-defined]
        words = {b"Ready:": "ready", b"Loading": "loading", b"": "importing"}
        stages[next(stage for word, stage in words.items() if word in said)] += 1
        files = shared_memory(node.pid) - shared_memory("self")
        node.send_signal(rng.choice((signal.SIGINT, signal.SIGTERM)))
        ends[this.ended(node)] += 1
        left += sum("port" not in f and os.path.exists(f) for f in files)
    row = {
        "signals": this.args.signals,
        **{f"while {stage}": stages[stage] for stage in ("importing", "loading", "ready")},
        "exit code 0, no traceback": ends["0"],
        "other ends": ", ".join(f"{n} x {end}" for end, n in ends.items() if end != "0") or "none",
        "files left in /dev/shm": left,
    }
    return [row]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal by now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def fuzz(this: Bench) -> list[dict[str, Any]]:
    """Nonsense in images and CameraInfo; what is answered has to be a picture, of its size."""
    from sensor_msgs.msg import CameraInfo, Image
    from visualization_msgs.msg import MarkerArray

    from benchmarks.fuzz import fuzzed_image, fuzzed_info, is_readable

    rng = random.Random(19)
    node = this.node(size=this.args.small, threads=1)
    images = this.listener.create_publisher(Image, "soak/image", 10)
    infos = this.listener.create_publisher(CameraInfo, "camera_info", 1)
    numbers: list[float] = []
    this.listener.create_subscription(
        MarkerArray,
        f"{NODE}/markers",
        lambda msg: numbers.extend(
            v for m in msg.markers for p in m.points for v in (p.x, p.y, p.z)
        ),
        10,
    )
    this.until(images.get_subscription_count)
    this.spin(0.5)
    sizes = {}
    for number in range(this.args.fuzz):
        msg = fuzzed_image(rng, number)
        if is_readable(msg):
            sizes[msg.header.frame_id] = (msg.width, msg.height)
        infos.publish(fuzzed_info(rng))
        known = len(this.answers)
        images.publish(msg)
        # Good ones are waited for, so that each is looked at; a bad one has to stay unanswered.
        wait = 0.5 if msg.header.frame_id in sizes else 0.01
        this.until(lambda k=known: len(this.answers) > k, wait)  # type: ignore[misc]
        alive(node)
    this.spin(1.2)
    answered = {name: msg for _, name, _, msg in this.answers}
    wrong = sum(
        (msg.width, msg.height) != sizes.get(name)
        or any(len(person.keypoints) != 17 for person in msg.skeletons)
        for name, msg in answered.items()
    )
    row = {
        "images": this.args.fuzz,
        "of them pictures": len(sizes),
        "answered": len(answered),
        "answers to what is no picture": len(set(answered) - set(sizes)),
        "of a wrong shape": wrong,
        "refused": int(this.counts()["images refused"]),
        "failed": int(this.counts()["images failed"]),
        "marker points not finite": sum(not math.isfinite(v) for v in numbers),
        "exit": this.end(node),
    }
    return [row]


PARTS: dict[str, tuple[Callable[[Bench], list[dict[str, Any]]], str]] = {
    "overload": (overload, "30 Hz into a node that manages fewer"),
    "endurance": (endurance, "Many frames, one after the other, tracking on"),
    "restarts": (restarts, "The node killed (SIGKILL) and started again while images flow"),
    "signals": (signals, "SIGINT or SIGTERM at a random moment of the first three seconds"),
    "fuzz": (fuzz, "Fuzzed images and CameraInfo"),
    "cameras": (cameras, "The camera killed (SIGKILL) and started again"),
}


def _about(seconds: float) -> str:
    return (
        f"Written by `python -m benchmarks.reliability {' '.join(sys.argv[1:])}`, "
        f"{seconds:.0f} s in all. Every node and camera is a process; counts are "
        "those of this run. Ages are from the image's stamp to its answer. Memory is resident "
        "memory, shared memory included; it is compared from a tenth of the way on, when all "
        "caches are full. Killed processes cannot give back their shared memory: `fastdds shm "
        "clean` does."
    )


def main() -> None:
    """Runs the parts and writes page and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000, help="of the endurance run")
    parser.add_argument("--kills", type=int, default=100, help="of the camera")
    parser.add_argument("--restarts", type=int, default=10, help="of the node")
    parser.add_argument("--signals", type=int, default=20, help="at random moments")
    parser.add_argument("--fuzz", type=int, default=2000, help="images")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--slow", default="384x512", help="input of the overloaded node")
    parser.add_argument("--small", default="32x32", help="input of all others")
    parser.add_argument("--rate", type=float, default=200, help="[Hz] camera of the endurance run")
    parser.add_argument("--model", default="", help="an .onnx file instead of the shipped H-4")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    isolate()
    print(f"{machine()}\n")
    tables, rows = {}, []
    begun = time.monotonic()
    for name in args.only:
        part, title = PARTS[name]
        with tempfile.TemporaryDirectory() as folder, bench(args, Path(folder)) as this:
            found = part(this)
        print(f"\n{title}\n")
        print_table(found)
        tables[title] = found
        rows += [{"part": name, **row} for row in found]
        write_page(args.page, "Reliability", _about(time.monotonic() - begun), tables)
        write_json(args.json, "reliability", rows)


if __name__ == "__main__":
    main()
