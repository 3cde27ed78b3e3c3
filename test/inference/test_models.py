"""Which model file is loaded, and what is said when there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference import models
from ehrnet_model.inference.models import available_models, find_model, user_folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The user's folder and the package's, both empty."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    package = tmp_path / "package"
    monkeypatch.setattr(models, "PACKAGE_FOLDER", package)
    assert user_folder() == tmp_path / "share" / "ehrnet" / "models"
    for folder in (user_folder(), package):
        folder.mkdir(parents=True)
    return user_folder(), package


def test_the_users_own_model_comes_first(folders: tuple[Path, Path]) -> None:
    user, package = folders
    shipped = package / "H-4.onnx"
    shipped.write_bytes(b"shipped")
    assert find_model(-4) == shipped
    (user / "H-4.onnx").write_bytes(b"own")
    assert find_model(-4) == user / "H-4.onnx"
    assert set(available_models()) == {-4}


def test_without_weights_it_says_what_to_do(folders: tuple[Path, Path]) -> None:
    with pytest.raises(EhrnetError, match="present: none"):
        find_model(-3)
    (folders[1] / "H-4.onnx").write_bytes(b"shipped")
    with pytest.raises(EhrnetError) as caught:
        find_model(-3)
    text = str(caught.value)
    for words in ("phi -3", "H-3", "phi -4", "ehrnet train", "ehrnet export --phi -3"):
        assert words in text


def test_published_weights_are_one_command_away(folders: tuple[Path, Path]) -> None:
    with pytest.raises(EhrnetError, match="phi -2 .*`ehrnet get-weights --phi -2`"):
        find_model(-2)


@pytest.mark.parametrize("phi", [1, -5, 7])
def test_variants_that_do_not_exist(phi: int) -> None:
    with pytest.raises(EhrnetError, match=f"phi {phi} does not exist"):
        find_model(phi)


def test_a_path_is_taken_as_it_is(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own = tmp_path / "mine.onnx"
    with pytest.raises(EhrnetError, match="mine.onnx"):
        find_model(-4, str(own))
    own.write_bytes(b"")
    assert find_model(5, str(own)) == own
    with pytest.raises(EhrnetError, match="no model file"):
        find_model(-4, str(tmp_path))


def test_paths_that_lead_nowhere(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EhrnetError, match="~nosuchuser/H-4.onnx"):
        find_model(-4, "~nosuchuser/H-4.onnx")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    monkeypatch.setattr(models, "PACKAGE_FOLDER", closed)
    root = os.geteuid() == 0  # for whom nothing is closed
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(EhrnetError, match="closed/H-4.onnx that this user can reach"):
            find_model(-4, str(closed / "H-4.onnx"))
        assert available_models() == {}
    finally:
        if root:
            os.seteuid(0)


def test_a_user_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(EhrnetError, match="set XDG_DATA_HOME or HOME"):
        user_folder()
