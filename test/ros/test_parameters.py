"""Parameters: one declaration, and every text that repeats it is held to it."""

import dataclasses
import importlib
import pathlib

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.inference.decode import DecodeOptions  # noqa: E402
from ehrnet_model.inference.keypoint_score import TERMS_KEYPOINT  # noqa: E402
from ehrnet_model.inference.person_score import TERMS, TERMS_AGAIN  # noqa: E402
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
    # One of every option, none at its default: a robot decodes as the model was evaluated.
    stored = DecodeOptions(
        keypoint_threshold=0.33,
        person_threshold=0.2,
        tag_threshold=0.7,
        reach=1.3,
        levels=3,
        max_people=7,
        min_keypoints=5,
        refine=False,
        refine_threshold=0.11,
        legs=True,
        nms_oks=0.9,
        second_look=6,
        second_look_threshold=0.4,
        second_look_size=160,
        second_look_views=3,
        coarse_look=True,
        shared=0.6,
        min_keypoint_score=0.4,
        std_gain=0.5,
        person_score=(0.5,) * TERMS,
        second_score=(0.5,) * TERMS_AGAIN,
        keypoint_score=(0.5,) * TERMS_KEYPOINT,
    )
    usual = DecodeOptions().to_dict()
    assert all(value != usual[name] for name, value in stored.to_dict().items())
    assert decode_options(Settings(), stored.to_dict()) == stored
    given = {"keypoint_threshold": 0.0, "refine": 1, "min_keypoints": 2, "levels": 1}
    options = decode_options(changed(Settings(), given, configured=True), stored.to_dict())
    assert options == dataclasses.replace(stored, **{**given, "refine": True})
    assert options.refine is True
    for name, value in (("min_keypoints", 0), ("refine", 2), ("levels", -2), ("reach", -0.5)):
        with pytest.raises(EhrnetError, match=f"{name} cannot be {value}: .*, or -1"):
            changed(Settings(), {name: value}, configured=True)
    with pytest.raises(EhrnetError, match="does not exist"):
        decode_options(Settings(), {"no_such_option": 1})
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


@pytest.mark.parametrize(
    "program, words, line",
    [
        ("pose_node", "phi:=-3", "-p phi:=-3"),
        ("pose_node", "--phi -3 --lazy", "-p phi:=-3 -p lazy:=true"),
        ("pose_node", "--phi=-3 --ros-args -p batch:=1 -- --threads 2", "-p phi:=-3 -p threads:=2"),
        ("pose_node", "-p runtime:=openvino", "-p runtime:=openvino"),  # a remap rule to ROS
        ("pose_node", "runtime:=openvino", "-p runtime:=openvino"),
        ("depth_node", "--depth-min-m 1.0", "-p depth_min_m:=1.0"),
        ("tracking_node", "--params-file x.yaml", "--params-file x.yaml"),
        ("picture_node", "people.jpg", "-p source:=people.jpg"),
    ],
)
def test_what_ros_would_lose_is_refused_with_the_line_to_type(capfd, program, words, line):
    pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
    assert importlib.import_module(f"ehrnet_ros.{program}").main(words.split()) == 2
    assert capfd.readouterr().err.endswith(f"is not understood: write --ros-args {line}\n")


@pytest.mark.parametrize(
    "program, word, texts",
    [
        ("pose_node", "--help", ("phi:=-4", "-p phi:=-3")),
        ("picture_node", "-h", ("fov_deg:=60.0", "-p source:=people.jpg")),
        ("depth_node", "--help", ("lazy:=true", "stamp_slop_s:=0.02", "-r depth_image:=")),
        ("tracking_node", "--help", ("track_smoothing:=true", "-r poses:=")),
    ],
)
def test_help(capfd, program, word, texts):
    pytest.importorskip("ehrnet_msgs.msg", reason="needs the built ehrnet_msgs")
    assert importlib.import_module(f"ehrnet_ros.{program}").main([word]) == 0
    said = capfd.readouterr().out
    assert said.startswith(f"usage: {program} ") and all(text in said for text in texts)
