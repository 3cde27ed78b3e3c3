"""What all benchmarks share: percentiles, a table, JSON with the machine it was measured on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import ehrnet_model


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {
        "median_ms": round(float(np.median(milliseconds)), 3),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 3),
    }


def machine() -> dict[str, Any]:
    """Where this was measured; figures mean nothing without it."""
    import cv2

    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "ehrnet_model": ehrnet_model.__version__,
    }
    try:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    except ImportError:
        pass
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows of equal keys as a Markdown table on stdout."""
    keys = list(rows[0])
    cells = [keys] + [[str(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    for number, line in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def write_page(
    path: Path | None, title: str, about: str, tables: Mapping[str, list[dict[str, Any]]]
) -> None:
    """A Markdown page with a table under each heading and where it was measured; or nothing.

    Args:
        path: of the page; None writes nothing.
        title: of the page.
        about: how it was measured, one paragraph.
        tables: heading to rows.
    """
    if path is None:
        return
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print(f"# {title}\n\n{about}\n\n{date.today().isoformat()}, {machine()}")
        for heading, rows in tables.items():
            print(f"\n## {heading}\n")
            print_table(rows)
    path.write_text(text.getvalue())


def write_json(path: Path | None, name: str, rows: list[dict[str, Any]]) -> None:
    """``{"benchmark", "machine", "rows"}``; nothing without a path."""
    if path is not None:
        text = json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, indent=1)
        path.write_text(text + "\n")
