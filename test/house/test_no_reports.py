"""No library that we load reports to its maker: a robot's network is its owner's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import ehrnet_model
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print(onnxruntime.__version__)
"""


def _load(model: Path, home: Path) -> list[str]:
    """Loads a model in a fresh home; gives the files that this left there."""
    home.mkdir()
    # CI switches the reports off by itself.
    dropped = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in dropped and "GITHUB" not in k}
    environment.update(HOME=str(home), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_keeps_no_device_id_and_no_reports(dots_model, tmp_path):
    pytest.importorskip("onnxruntime", reason="is about onnxruntime")
    assert _load(dots_model, tmp_path / "home") == []
