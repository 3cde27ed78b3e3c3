"""./check: sets up .venv, then linters, all tests and a real `colcon build`; says what it does."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import colcon_env  # noqa: E402
import setup_env  # noqa: E402

COLCON_TEST = "test/house/test_colcon.py"
OUTCOMES = ("passed", "failed", "error", "skipped")


class Part(NamedTuple):
    """What came of one part."""

    name: str
    code: int
    seconds: float
    counts: dict[str, int]


def run(name: str, command: list[str], env: dict[str, str]) -> Part:
    """Runs one part in the repository's folder, shows what it prints, and counts its tests."""
    print(f"\n== {name}: {' '.join(command[2:] if command[1] == '-m' else command)}", flush=True)
    started = time.monotonic()
    counts: dict[str, int] = {}
    with subprocess.Popen(
        command,
        cwd=setup_env.ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # a pipe was asked for
        for line in process.stdout:
            print(line, end="", flush=True)
            # pytest's last line, such as "3 failed, 120 passed, 4 skipped in 31.5s"
            if re.search(r"\bin [\d.]+s\b", line):
                found = re.findall(r"(\d+) (passed|failed|error|skipped)", line)
                counts = {outcome: int(number) for number, outcome in found} or counts
    return Part(name, process.returncode, time.monotonic() - started, counts)


def main() -> int:
    """0 when everything holds, 1 when something does not, 2 when .venv cannot be set up."""
    parser = argparse.ArgumentParser(
        prog="./check",
        description="Linters, types, all tests and a real colcon build.",
        epilog="Everything else is handed to pytest: ./check --fast test/ros -k encoding",
    )
    parser.add_argument("--fast", action="store_true", help="without the colcon build")
    args, rest = parser.parse_known_args()
    started = time.monotonic()
    try:
        python = str(setup_env.ensure("check"))
        if not args.fast:
            colcon_env.ensure()
    except setup_env.SetupError as error:
        print(f"./check: {error}", file=sys.stderr)
        return 2
    set_up = time.monotonic() - started
    env = setup_env.environment()
    # Runs on two cores: libraries that start a thread per core each get in each other's way.
    env.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    # Many tests wait for processes: files run side by side. What somebody chose runs in order.
    side_by_side = [] if rest else ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    parts = [
        run("ruff", [python, "-m", "ruff", "check", "."], env),
        run("format", [python, "-m", "ruff", "format", "--check", "."], env),
        run("mypy", [python, "-m", "mypy"], env),
        # Many tests start processes that have to find each other; on a busy machine one in hundreds
        # is late. Such a test is run again, once, and named.
        run(
            "pytest",
            [
                *(python, "-m", "pytest", "-q", "-raR", "--reruns", "1", "--rerun-show-tracebacks"),
                *(f"--ignore={COLCON_TEST}", *side_by_side, *rest),
            ],
            env,
        ),
    ]
    if not args.fast:
        parts.append(run("colcon", [python, "-m", "pytest", "-q", COLCON_TEST], env))
    return report(parts, set_up)


def report(parts: list[Part], set_up: float) -> int:
    """Prints the table of parts and the sum of the tests; gives the exit code."""
    print(f"\n{'setup':<8} {set_up:6.0f} s")
    total = dict.fromkeys(OUTCOMES, 0)
    for part in parts:
        for outcome, number in part.counts.items():
            total[outcome] += number
        said = ", ".join(f"{number} {outcome}" for outcome, number in part.counts.items())
        verdict = "ok" if part.code == 0 else f"FAILED with {part.code}"
        print(f"{part.name:<8} {part.seconds:6.0f} s  {verdict:<14} {said}")
    failed = [part.name for part in parts if part.code]
    print("everything holds" if not failed else f"does not hold: {', '.join(failed)}")
    failures = total["failed"] + total["error"]
    print(f"{total['passed']} passed, {failures} failed, {total['skipped']} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("./check: stopped.", file=sys.stderr)
        sys.exit(130)
