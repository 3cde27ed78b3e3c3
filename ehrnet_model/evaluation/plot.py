"""The paper's two pictures of results, with ours in them: Fig. 1 and Fig. 3.

Drawn with matplotlib (the extra ``plot``), without its global state: figures are made, saved and
forgotten.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import read_json
from ehrnet_model.evaluation.sizes import paper_size
from ehrnet_model.inference import atomic
from ehrnet_model.inference.draw import draw_poses
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.runtime import model_info
from ehrnet_model.variants import PUBLISHED, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
_CELL_INCHES = 3.0
# A cell's longer side, in units of the other.
_MOST_OBLONG = 3.0
# What a line of text takes of the height of Fig. 1.
_LINE = 0.03
# The paper's images are COCO's, most of them of this size.
_USUAL_HW = (480, 640)


def read_measures(path: Path) -> list[dict[str, Any]]:
    """What ``ehrnet evaluate --json`` wrote, or a list of it as models come with.

    Rows of ``H-4.evaluations.json`` that do not say their variant have that of ``H-4.onnx`` beside.

    Raises:
        EhrnetError: any other file; what it lacks is named.
    """
    values = read_json(path, "files written by `ehrnet evaluate --json`")
    rows = values if isinstance(values, list) else [values]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EhrnetError(
            f"{path} holds no evaluation: give files written by `ehrnet evaluate --json`."
        )
    beside = Path(path).with_name(Path(path).name.replace(".evaluations.json", ".onnx"))
    if any("variant" not in row for row in rows) and beside != Path(path) and beside.is_file():
        rows = [{"variant": model_info(beside).variant, **row} for row in rows]
    for row in rows:
        for name, right in _WANTED.items():
            if not right(row.get(name)):
                raise EhrnetError(
                    f"{path} has {row.get(name)!r:.40} for {name!r}, which cannot be drawn: give "
                    "files written by `ehrnet evaluate --json`."
                )
    return rows


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# What a figure needs of an evaluation.
_WANTED: dict[str, Callable[[Any], bool]] = {
    "AP": _number,
    "gmacs": lambda value: _number(value) and value > 0,
    "variant": lambda value: isinstance(value, str),
    "input_sizes": lambda value: (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(size, str) and re.fullmatch(r"\d+x\d+", size) for size in value)
    ),
    "mirror": lambda value: isinstance(value, bool),
    "images": lambda value: value is None or type(value) is int,
    "scales": lambda value: value is None or isinstance(value, list),
    "second_looks_per_image": lambda value: value is None or _number(value),
}


def accuracy_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """AP against multiply-accumulates (paper Fig. 1): the paper's rows and ours.

    The paper prints AP beside a cost it was not obtained at. Its rows are drawn where it prints
    them, joined to where they belong: two passes (mirror) at the size that the published evaluation
    gives most COCO images, counted truly. Ours are drawn at the cost of the very same run.

    Args:
        rows: see ``read_measures``.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    printed = np.array([[float(p.flops.rstrip("B")), p.ap_val / 100] for p in PUBLISHED.values()])
    true = printed.copy()
    for n, name in enumerate(PUBLISHED):
        variant = VARIANTS[name]
        size = paper_size(_USUAL_HW, variant.input_size)
        true[n, 0] = 2 * variant.cost(size).macs / 1e9
        axes.plot([printed[n, 0], true[n, 0]], [printed[n, 1]] * 2, color="0.8", linewidth=1)
        axes.annotate(name, printed[n], (-4, 6), textcoords="offset points", ha="right")
    axes.plot(*printed.T, "o-", color="0.4", label="paper, as printed (val2017)")
    axes.plot(*true.T, "o", color="0.4", fillstyle="none", label="paper, cost of its evaluation")
    kinds = (
        ("s", "C1", "single pass"),
        ("^", "C2", "second looks"),
        ("v", "C3", "multi-scale"),
        ("D", "C0", "with mirror"),
    )
    for marker, color, words in kinds:
        ours = [row for row in rows if _kind(row) == words]
        if ours:
            places = np.array([[row["gmacs"], row["AP"]] for row in ours])
            axes.plot(*places.T, marker, color=color, label=f"ours, {words}")
    top = max([0.75, *(1.05 * row["AP"] for row in rows)])
    for name in sorted({row["variant"] for row in rows}):
        _label(axes, [row for row in rows if row["variant"] == name], _LINE * top)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100, 200]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("GMACs per image, all passes")
    axes.set_ylabel("COCO keypoint AP")
    axes.set_ylim(0, top)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    images = sorted({row["images"] for row in rows if row.get("images") is not None})
    if images:
        counts = " and ".join(str(n) for n in images)
        axes.set_title(f"ours measured on {counts} images, the paper's on 5000", fontsize=9)
    return figure


def _label(axes: Axes, rows: Sequence[dict[str, Any]], line: float) -> None:
    """Names the points of one variant in a column beside them, one line of text below the other.

    Of points that would have the same name, such as two precisions, the best has it.
    """
    best = {_name(row): row for row in sorted(rows, key=lambda row: row["AP"])}
    named = sorted(best.items(), key=lambda item: -item[1]["AP"])
    column = max(row["gmacs"] for row in rows) * 1.15
    middle = sum(row["AP"] for _, row in named) / len(named)
    bottom = max(middle - (len(named) - 1) / 2 * line, line)
    for n, (name, row) in enumerate(reversed(named)):
        axes.annotate(
            name,
            (row["gmacs"], row["AP"]),
            (column, bottom + n * line),
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.7},
        )


def _name(row: dict[str, Any]) -> str:
    """Variant, input, and what was done with each image beside what the legend says."""
    return ", ".join([row["variant"], _size(row), *_done(row)[1:]])


def _kind(row: dict[str, Any]) -> str:
    """What was done with each image; of several things what comes first."""
    return _done(row)[0]


def _done(row: dict[str, Any]) -> list[str]:
    done = ["with mirror"] * row["mirror"] + ["multi-scale"] * _several(row)
    done += ["second looks"] * bool(row.get("second_looks_per_image"))
    return done or ["single pass"]


def _several(row: dict[str, Any]) -> bool:
    return (row.get("scales") or [1.0]) != [1.0]


def _size(row: dict[str, Any]) -> str:
    """The input as HxW; of several the short side, in pixels."""
    sizes = row["input_sizes"]
    if len(sizes) == 1:
        return str(sizes[0])
    sides = [min(map(int, size.split("x"))) for size in sizes]
    low, high = min(sides), max(sides)
    return f"short side {low}" + (f" to {high}" if high > low else "")


def sheet_figure(pictures: Sequence[np.ndarray], estimators: Sequence[PoseEstimator]) -> Figure:
    """The same pictures through several models (paper Fig. 3).

    Args:
        pictures: uint8 BGR, one row each; beyond 3:1 and 1:3 there is room left beside them.
        estimators: one column each; the title says which weights.
    """
    from matplotlib.figure import Figure

    if not pictures or not estimators:
        raise EhrnetError("a sheet needs at least one picture and one model.")
    heights = [
        min(max(p.shape[0] / p.shape[1], 1 / _MOST_OBLONG), _MOST_OBLONG) * _CELL_INCHES
        for p in pictures
    ]
    size = _CELL_INCHES * len(estimators), sum(heights) + 0.5
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(pictures), len(estimators), squeeze=False, height_ratios=heights)
    for column, estimator in enumerate(estimators):
        info = estimator.runtime.info
        name = info.variant if info.quality == "released" else f"{info.variant} ({info.quality})"
        grid[0, column].set_title(name)
        for axes, picture in zip(grid[:, column], pictures, strict=True):
            poses = estimator(picture).above(estimator.options.min_keypoint_score)
            drawn = draw_poses(picture, poses, info.skeleton)
            axes.imshow(cv2.cvtColor(drawn, cv2.COLOR_BGR2RGB))
            axes.set_axis_off()
    return figure


def check_target(path: Path) -> None:
    """Raises EhrnetError unless a figure can be written as this."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise EhrnetError(f"{path} should end in one of {', '.join(FORMATS)}.")
    atomic.check_target(path)


def save_figure(figure: Figure, path: Path) -> None:
    """Raises EhrnetError when it cannot be written; what was there before stays then."""
    path = Path(path)
    check_target(path)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
    atomic.save_bytes(path, drawn.getvalue())
