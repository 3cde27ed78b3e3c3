"""All benchmarks, one after the other, into docs/speed.md and docs/speed.json.

    python -m benchmarks [--frames 10000]

Needs what `./check` installs. An idle machine gives better figures; the load is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.report import machine, machine_line, print_table

ROOT = Path(__file__).resolve().parent.parent
TITLES = {
    "grouping": "Peaks to people, by people in the image (ms; tags far apart and close together)",
    "stages": (
        "From Image message to PoseArray message in one process (ms, median / p95); images of "
        "noise, each person looked at again (in a photograph) adds the time of its column"
    ),
    "node": "The node as a process, fed images of noise by a camera process over Fast DDS",
}


def run(name: str, *arguments: str) -> list[dict[str, Any]]:
    """Rows of one benchmark, run in a process of its own so that memory figures are its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(path)]
        subprocess.run(command, cwd=ROOT, check=True)
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
        return rows


def main() -> None:
    """Runs everything and writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000, help="frames of the memory run")
    args = parser.parse_args()
    stages = [row for phi in ("-4", "-3") for row in run("stages", "--phi", phi)]
    results = {
        "grouping": run("grouping"),
        "stages": stages,
        "node": [
            *run("node", "--frames", "300"),
            *run("node", "--frames", "300", "--camera", "1920x1080"),
            *run("node", "--frames", str(args.frames), "--size", "128x160", "--rate", "100"),
        ],
    }
    report = {"date": date.today().isoformat(), "machine": machine(), "results": results}
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print(
            "# Speed and memory\n\nWritten by `python -m benchmarks`; figures of a shared machine"
        )
        print(f"vary from run to run.\n\n{report['date']}, {machine_line(report['machine'])}")
        for name, rows in results.items():
            print(f"\n## {TITLES[name]}\n")
            print_table(rows)
    (ROOT / "docs" / "speed.md").write_text(text.getvalue())
    (ROOT / "docs" / "speed.json").write_text(json.dumps(report, indent=1) + "\n")
    print(text.getvalue())


if __name__ == "__main__":
    main()
