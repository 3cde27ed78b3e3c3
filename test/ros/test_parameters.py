"""Parameters: one declaration, and every text that repeats it is held to it."""

import pathlib

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.inference.decode import DecodeOptions  # noqa: E402
from ehrnet_ros import parameters  # noqa: E402
from ehrnet_ros.parameters import FIELDS, Settings, changed, check, decode_options  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_pose_yaml_is_the_declaration():
    text = (ROOT / "config" / "pose.yaml").read_text()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(Settings()).items()}
    assert values == plain
    assert {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in plain.items()}
    assert text == parameters.parameters_yaml(), "write it again: parameters_yaml()"


def test_defaults_are_allowed_and_everything_is_described():
    check(Settings())
    for name, field in FIELDS.items():
        assert field.metadata["description"].endswith("."), name
        assert field.default not in ([],) and parameters.allowed(name)
    table = parameters.parameters_table().splitlines()
    assert len(table) == 2 + len(FIELDS)
    assert all(line.count("|") == table[0].count("|") for line in table)


@pytest.mark.parametrize(
    "text, size_hw",
    [
        ("auto", None),
        ("square", (416, 416)),
        ("4:3", (416, 576)),
        ("16:9", (416, 768)),
        ("384x512", (384, 512)),
    ],
)
def test_sizes(text, size_hw):
    settings = changed(Settings(), {"size": text}, configured=False)
    assert parameters.input_size(settings, 416) == size_hw


@pytest.mark.parametrize("text", ["", "384", "384x", "x512", "-32x32", "0x32", "100x100"])
def test_wrong_sizes(text):
    with pytest.raises(EhrnetError, match="Parameter size cannot be"):
        changed(Settings(), {"size": text}, configured=False)


def test_decode_options_come_from_the_model_until_they_are_set():
    stored = {"keypoint_threshold": 0.33, "nms_oks": 0.9}
    options = decode_options(Settings(), stored)
    assert (options.keypoint_threshold, options.nms_oks) == (0.33, 0.9)
    assert options.tag_threshold == DecodeOptions().tag_threshold
    settings = changed(Settings(), {"keypoint_threshold": 0.0, "refine": False}, configured=True)
    options = decode_options(settings, stored)
    assert (options.keypoint_threshold, options.nms_oks, options.refine) == (0.0, 0.9, False)
    with pytest.raises(EhrnetError, match="does not exist"):
        decode_options(settings, {"no_such_option": 1})
    assert decode_options(Settings(), {}) == DecodeOptions()


def test_what_changes_when():
    settings = Settings()
    assert changed(settings, {"max_people": 2}, configured=True).max_people == 2
    assert changed(settings, {"phi": -2}, configured=False).phi == -2
    assert changed(settings, {"phi": -4}, configured=True) == settings  # no change at all
    assert changed(settings, {"use_sim_time": True}, configured=True) == settings  # not ours
    with pytest.raises(EhrnetError, match="phi is built into the running engine"):
        changed(settings, {"phi": -2}, configured=True)
    with pytest.raises(EhrnetError, match="only read at start"):
        changed(settings, {"autostart": False}, configured=False)
    with pytest.raises(EhrnetError, match='transport cannot be "h264": it has to be raw or comp'):
        changed(settings, {"transport": "h264"}, configured=False)
    with pytest.raises(EhrnetError, match="marker_depth cannot be .nan"):
        changed(settings, {"marker_depth": float("nan")}, configured=False)
