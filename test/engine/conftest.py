"""A user who has one model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ehrnet_model.inference.answers import answers_file


@pytest.fixture
def model(dots_model: Path, tmp_path: Path, monkeypatch) -> Path:
    """The only model of this user, for phi -4, with its answers; folders of this test alone."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "data" / "ehrnet" / "models"
    folder.mkdir(parents=True)
    shutil.copy(dots_model, folder / "H-4.onnx")
    shutil.copy(answers_file(dots_model), folder / "H-4.answers.npz")
    return folder / "H-4.onnx"
