"""What all benchmarks share: a table, and JSON with the machine it was measured on."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ehrnet_model.evaluation.benchmark import machine, summary

__all__ = ["machine", "print_table", "summary", "write_json"]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows of equal keys as a Markdown table on stdout."""
    keys = list(rows[0])
    cells = [keys] + [[str(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    for number, line in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def machine_line(values: Mapping[str, Any]) -> str:
    """What ``machine`` gives, for people."""
    versions = [f"{name} {values[name]}" for name in list(values)[3:]]
    here = f"{values['processor']}, {values['cores']} cores, load {values['load']}"
    return "; ".join([here, ", ".join(versions)])


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
        print(f"# {title}\n\n{about}\n\n{date.today().isoformat()}, {machine_line(machine())}")
        for heading, rows in tables.items():
            print(f"\n## {heading}\n")
            print_table(rows)
    path.write_text(text.getvalue())


def write_json(path: Path | None, name: str, rows: list[dict[str, Any]]) -> None:
    """``{"benchmark", "machine", "rows"}``; nothing without a path."""
    if path is not None:
        text = json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, indent=1)
        path.write_text(text + "\n")
