"""The comparison of two engines' peaks sees what differs and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from ehrnet_model.inference.answers import read_answers
from ehrnet_model.inference.models import PACKAGE_FOLDER
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.parity import SAME, check_engine, compare_peaks


def some_peaks() -> np.ndarray:
    """(1, 17, 30, 15): twelve spread candidates per keypoint, best first, the rest empty."""
    rng = np.random.default_rng(0)
    peaks = np.zeros((1, 17, 30, 15), np.float32)
    peaks[..., :12, 0] = np.linspace(1, 0.1, 12)
    cells = np.stack(np.meshgrid(np.arange(0, 60, 10), np.arange(0, 50, 10)), -1).reshape(-1, 2)
    for keypoint in peaks[0]:
        keypoint[:, 4:6] = rng.permutation(cells)
        keypoint[:, 1:3] = 2 * keypoint[:, 4:6] + rng.uniform(-0.5, 1.5, (30, 2))
        keypoint[:, 3] = rng.uniform(-3, 3, 30)
        keypoint[:, 6:] = keypoint[:, :1] * 0.5
        keypoint[:, 10] = keypoint[:, 0]
    return peaks


def test_the_order_of_candidates_does_not_matter() -> None:
    one = some_peaks()
    two = one[:, :, np.random.default_rng(1).permutation(30)]
    difference = compare_peaks(one, two)
    assert (difference.compared, difference.missing) == (17 * 12, 0)
    assert difference.within(0, 0, 0)


@pytest.mark.parametrize(
    ("channel", "change", "field", "expected"),
    [(0, 0.01, "score", 0.01), (1, 0.3, "xy", 0.3), (3, 0.3, "tag", 0.1), (9, 0.05, "patch", 0.05)],
)
def test_each_kind_of_difference_is_measured(channel, change, field, expected) -> None:
    one = some_peaks()
    two = one.copy()
    two[0, 5, 2, channel] += change
    difference = compare_peaks(one, two)
    assert getattr(difference, field) == pytest.approx(expected, rel=0.05)
    assert not difference.within(1e-3, 0.05, 0.005)
    assert difference.missing == 0


def test_a_lost_candidate_is_missing_and_a_moved_one_twice() -> None:
    one = some_peaks()
    lost = one.copy()
    lost[0, 3, 4, 0] = 0
    assert compare_peaks(one, lost).missing == 1
    moved = one.copy()
    moved[0, 3, 4, 1:3] += 6
    moved[0, 3, 4, 4:6] += 3
    assert compare_peaks(one, moved).missing == 2


def test_a_top_between_two_cells_may_be_named_by_either() -> None:
    one = some_peaks()
    two = one.copy()
    two[0, 3, 4, 4] += 1
    difference = compare_peaks(one, two)
    assert difference.missing == 0 and difference.compared == 17 * 12


def test_a_plateau_may_be_one_candidate_or_four() -> None:
    one = some_peaks()
    two = one.copy()
    for place, step in enumerate([(1, 0), (0, 1), (1, 1)], 12):
        two[0, 3, place] = two[0, 3, 4]
        two[0, 3, place, 4:6] += step
        two[0, 3, [4, place], 11] = two[0, 3, 4, 0]
    assert compare_peaks(one, two).missing == compare_peaks(two, one).missing == 0


def test_a_flat_top_has_no_place_to_compare() -> None:
    one = some_peaks()
    one[0, 3, 4, 6:] = one[0, 3, 4, 0]
    two = one.copy()
    two[0, 3, 4, 1] += 0.7
    assert compare_peaks(one, two).xy == 0


def test_a_flat_top_may_be_named_by_several_cells() -> None:
    one = some_peaks()
    two = one.copy()
    two[0, 3, 12:14] = two[0, 3, 4]
    two[0, 3, 12:14, 4] += [1, 2]
    two[0, 3, 4, 5] -= 1
    assert compare_peaks(one, two).missing == compare_peaks(two, one).missing == 0
    two[0, 3, 13, 5] += 3
    assert compare_peaks(one, two).missing == 1


def test_the_last_place_of_a_full_list_may_go_to_an_equal() -> None:
    one = some_peaks()
    one[..., 0] = np.linspace(1, 0.5, 30)
    two = one.copy()
    two[0, 3, 29, 1:3] += 40
    two[0, 3, 29, 4:6] += 20
    assert compare_peaks(one, two).missing == 0


def test_no_peaks_on_either_side_is_agreement() -> None:
    nothing = np.zeros((1, 17, 30, 15), np.float32)
    assert compare_peaks(nothing, nothing).within(0, 0, 0)
    assert compare_peaks(nothing, some_peaks()).missing == 17 * 12
    assert not compare_peaks(nothing, some_peaks()).within(1, 1, 0.5)


@pytest.mark.parametrize("phi", [-3, -4])
def test_the_shipped_models_give_the_answers_stored_beside_them(phi) -> None:
    model = PACKAGE_FOLDER / f"H{phi}.onnx"
    runtime = open_runtime(model, "onnxruntime", threads=1)
    answers = read_answers(model, runtime.info)
    verdict = check_engine(runtime, answers, "fp32")
    assert verdict.state == SAME, verdict
    # Three photographs with people, of whom some are clear.
    assert "0 people" not in verdict.reason
