"""The two figures: what stands in them, and that files come out whole."""

import argparse
import itertools
import json

import cv2
import dots
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib")

from matplotlib.text import Text  # noqa: E402

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.evaluation.plot import (  # noqa: E402
    accuracy_figure,
    read_measures,
    sheet_figure,
)
from ehrnet_model.inference.estimator import PoseEstimator  # noqa: E402
from ehrnet_model.inference.models import PACKAGE_FOLDER  # noqa: E402
from ehrnet_ros.cli import plot  # noqa: E402

OURS = {
    "variant": "H-4",
    "AP": 0.25,
    "gmacs": 2.5,
    "input_sizes": ["192x256", "256x192", "192x352"],
    "mirror": False,
    "scales": [1.0],
    "images": 131,
}


def command(*arguments):
    parser = argparse.ArgumentParser()
    plot.add_arguments(parser)
    return plot.run(parser.parse_args([str(a) for a in arguments]))


def test_every_row_stands_at_its_accuracy_and_cost():
    rows = [OURS, {**OURS, "mirror": True, "gmacs": 5.0, "AP": 0.3, "input_sizes": ["384x512"]}]
    rows.append({**OURS, "gmacs": 9.0, "input_sizes": ["192x256", "64x64"]})
    (axes,) = accuracy_figure(rows).axes
    points = {(round(float(x), 2), round(100 * float(y), 1)) for x, y in _points(axes)}
    # The paper's Table 3, as printed; and the true cost of its evaluation on a 640x480 image.
    printed = {(25.6, 64.8), (14.2, 59.2), (7.7, 52.9), (4.2, 44.8), (2.1, 35.7)}
    true = {(65.88, 64.8), (41.08, 59.2), (20.09, 52.9), (12.46, 44.8), (4.82, 35.7)}
    assert printed <= points
    for cost, ap in true:
        assert any(abs(x - cost) < 0.02 and y == ap for x, y in points), (cost, ap)
    assert {(2.5, 25.0), (5.0, 30.0), (9.0, 25.0)} <= points
    texts = [text.get_text() for text in axes.texts]
    assert {"H0", "H-4, short side 192", "H-4, 384x512", "H-4, short side 64 to 192"} <= set(texts)
    assert "131 images" in axes.get_title()


def test_the_legend_says_what_was_done_with_an_image():
    def words(**more):
        (axes,) = accuracy_figure([{**OURS, **more}]).axes
        return [text.get_text() for text in axes.get_legend().get_texts()][-1]

    assert words() == words(second_looks_per_image=0.0) == "ours, single pass"
    assert words(second_looks_per_image=1.5) == "ours, second looks"
    assert words(scales=[1.0, 0.5]) == "ours, multi-scale"
    assert words(scales=[1.0, 0.5], second_looks_per_image=1.5) == "ours, multi-scale"
    assert words(mirror=True) == "ours, with mirror"


def test_a_point_says_all_that_was_done_with_an_image():
    rows = [{**OURS, "second_looks_per_image": 1.5, "scales": [1.0, 0.5], "mirror": True}]
    (axes,) = accuracy_figure(rows).axes
    assert axes.texts[-1].get_text() == "H-4, short side 192, multi-scale, second looks"


def test_names_of_points_beside_each_other_can_be_read():
    """As of one model at several sizes and precisions, whose points almost coincide."""
    sizes = ("192x192", "192x256", "192x352")
    rows = [
        {**OURS, "input_sizes": [size], "gmacs": 2.5 + n / 10, "AP": 0.25 + n / 500 + more}
        for n, size in enumerate(sizes)
        for more in (0, 0.001)
    ]
    figure = accuracy_figure([*rows, {**OURS, "AP": 0.0}])
    figure.draw_without_rendering()
    ours = [text for text in figure.axes[0].texts if text.get_text().startswith("H-4, ")]
    assert {text.get_text() for text in ours} >= {f"H-4, {size}" for size in sizes}
    assert len(ours) == 4 and min(text.get_position()[1] for text in ours) > 0
    boxes = [Text.get_window_extent(text) for text in ours]  # without the line to the point
    for one, two in itertools.combinations(boxes, 2):
        assert not one.overlaps(two)


@pytest.mark.parametrize(("ap", "top"), [(0.3, 0.75), (0.9, 0.945), (1.0, 1.05)])
def test_no_point_lies_above_the_axes(ap, top):
    (axes,) = accuracy_figure([{**OURS, "AP": ap}]).axes
    assert axes.get_ylim() == pytest.approx((0, top))


def _points(axes):
    return [point for line in axes.lines for point in zip(*line.get_data(), strict=True)]


def test_a_sheet_shows_every_picture_with_every_model_and_its_poses(dots_model):
    people = np.stack([dots.figure((320, 240), 300)])
    pictures = [dots.draw_people((480, 640), people), np.zeros((320, 320, 3), np.uint8)]
    estimators = [PoseEstimator.open(dots_model), PoseEstimator.open(dots_model)]
    figure = sheet_figure(pictures, estimators)
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["H-4 (preview)"] * 2
    shown = [axes.images[0].get_array() for axes in figure.axes]
    first, second = shown[:2], shown[2:]
    for picture in first:
        # A bone from shoulder to hip, over what was black between the dots.
        x, y = ((people[0, 5] + people[0, 11]) / 2).round().astype(int)
        assert pictures[0][y, x].max() == 0 and picture[y, x].max() > 100
    for picture in second:
        assert not picture.any()
    with pytest.raises(EhrnetError, match="at least one"):
        sheet_figure([], estimators)


@pytest.mark.parametrize(("size_hw", "inches"), [((2100, 20), 9), ((20, 2100), 1), ((64, 64), 3)])
def test_strips_take_no_more_room_than_three_cells(size_hw, inches, dots_model):
    figure = sheet_figure([np.zeros((*size_hw, 3), np.uint8)], [PoseEstimator.open(dots_model)])
    assert figure.get_size_inches() == pytest.approx((3, inches + 0.5))


def test_the_evaluations_that_came_with_a_model_are_drawn(tmp_path):
    path = PACKAGE_FOLDER / "H-4.evaluations.json"
    rows = read_measures(path)
    stored = json.loads(path.read_text())
    assert [row["AP"] for row in rows] == [row["AP"] for row in stored]
    assert {row["variant"] for row in rows} == {"H-4"}
    assert command("accuracy", path, "-o", tmp_path / "out.png") == 0
    # Without the model nobody knows of which variant they are.
    copy = tmp_path / path.name
    copy.write_text(json.dumps(stored))
    with pytest.raises(EhrnetError, match="has None for 'variant'"):
        read_measures(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"input_sizes": []},
        {"input_sizes": ["abc", "d"]},
        {"input_sizes": [[192, 256]]},
        {"images": "x"},
        {"AP": float("nan")},
        {"AP": None},
        {"AP": True},
        {"gmacs": 0},
        {"gmacs": float("inf")},
        {"mirror": 1},
        {"scales": 1.0},
        {"second_looks_per_image": "x"},
    ],
)
def test_what_cannot_be_drawn_is_named(change, tmp_path):
    path = tmp_path / "measures.json"
    path.write_text(json.dumps([OURS, {**OURS, **change}]))
    (name,) = change
    with pytest.raises(EhrnetError, match=f"measures.json has .* for '{name}', which cannot"):
        read_measures(path)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_files_come_out_whole(suffix, dots_model, tmp_path):
    measures, picture = tmp_path / "h4.json", tmp_path / "picture.png"
    measures.write_text(json.dumps(OURS))
    cv2.imwrite(str(picture), dots.draw_people((480, 640), [dots.figure((320, 240), 300)]))
    one, three = tmp_path / f"one{suffix}", tmp_path / f"three{suffix}"
    assert command("accuracy", measures, "-o", one) == 0
    assert command("sheet", picture, "--model", dots_model, "-o", three) == 0
    for path in (one, three):
        if suffix == ".png":
            assert cv2.imread(str(path)).shape[1] > 300
        else:
            assert path.read_text().rstrip().endswith("</svg>")
    assert set(tmp_path.iterdir()) == {measures, picture, one, three}


def test_wrong_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    bad = tmp_path / "bad.json"
    bad.write_text('{"AP": 0.5}')
    out = tmp_path / "out.png"
    for words, arguments in {
        "bad.json has None for 'gmacs', which": ["accuracy", bad, "-o", out],
        r"none.json cannot be read as JSON \(No such file or directory\): give files written by "
        "`ehrnet evaluate --json`": ["accuracy", tmp_path / "none.json", "-o", out],
        "should end in": ["accuracy", "-o", tmp_path / "out.bmp"],
        "there is no folder": ["accuracy", "-o", tmp_path / "no" / "out.png"],
        "cannot be read": ["sheet", tmp_path / "none.png", "--model", bad, "-o", out],
        "does not decode": ["sheet", bad, "--model", bad, "-o", out],
    }.items():
        with pytest.raises(EhrnetError, match=words):
            command(*arguments)
    assert not out.exists()
