"""What is stored beside a model tells a right engine from a wrong one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.answers import Answers, answers_file, read_answers, write_answers
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.parity import LIMITS, Verdict, _is_lost, _most_changed, check_engine
from ehrnet_model.inference.runtime import model_info


@pytest.fixture(scope="module")
def model(dots_model: Path) -> Path:
    """Exported with two pictures, each with two people it finds."""
    return dots_model


@pytest.fixture
def answers(model: Path) -> Answers:
    return read_answers(model, model_info(model))


def edited(model: Path, out: Path, edit) -> Path:
    """A copy of the graph with its initialisers as ``edit(name, array)`` gives them."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(str(model))
    for tensor in proto.graph.initializer:
        array = edit(tensor.name, onnx.numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, str(out))
    return out


def test_export_stores_every_named_size(answers: Answers) -> None:
    assert sorted(answers.by_size) == [(384, 384), (384, 512), (384, 704)]
    for (height, width), (images, peaks) in answers.by_size.items():
        assert images.shape == (2, height, width, 3) and images.dtype == np.uint8
        assert peaks.shape == (2, 17, 30, 15)


def test_the_model_itself_passes_on_all_sizes_and_on_one(model, answers) -> None:
    verdict = check_engine(open_runtime(model), answers, "fp32")
    assert (verdict.state, verdict.people, verdict.changed) == ("same", 12, 0), verdict
    assert verdict.keypoints >= 200
    assert verdict.xy_max_px < 0.05
    verdict = check_engine(open_runtime(model, size_hw=(384, 512)), answers, "fp32")
    assert (verdict.people, verdict.sizes) == (4, ("384x512",))


def without_an_ankle(name: str, array: np.ndarray) -> np.ndarray:
    if array.shape == (17, 3, 1, 1):
        array[15] = 0
    return array


def swapped_channels(name: str, array: np.ndarray) -> np.ndarray:
    return array[::-1].copy() if array.tolist() == [2, 1, 0] else array


def broken(name: str, array: np.ndarray) -> np.ndarray:
    return array * np.float32("nan") if array.shape == (17, 3, 1, 1) else array


@pytest.mark.parametrize("edit", [without_an_ankle, swapped_channels, broken])
def test_a_wrong_engine_is_found(edit, model, answers, tmp_path) -> None:
    wrong = edited(model, tmp_path / "wrong.onnx", edit)
    verdict = check_engine(open_runtime(wrong), answers, "int8")
    assert verdict.state == "differs", verdict


class Altered:
    """The model's own answers with a small change to them."""

    def __init__(self, model: Path, change) -> None:
        self.runtime = open_runtime(model)
        self.info, self.name, self.size_hw = self.runtime.info, "altered", (384, 512)
        self.change = change

    def __call__(self, images):
        return self.change(self.runtime(images))

    def close(self) -> None:
        self.runtime.close()


def moved(pixels: float):
    def change(peaks):
        peaks[..., 1] += np.where(peaks[..., 0] > 0, pixels, 0)
        return peaks

    return change


def weaker(score: float):
    def change(peaks):
        peaks[..., 0] = np.maximum(peaks[..., 0] - score, 0)
        return peaks

    return change


def tags_of_the_other(peaks):
    """Left ankles take the tag of the person beside them."""
    tags = peaks[:, 15, :2, 3].copy()
    peaks[:, 15, :2, 3] = tags[:, ::-1]
    return peaks


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (moved(0.05), ["fp32", "fp16", "int8"]),
        (moved(0.3), ["fp16", "int8"]),
        (moved(1.5), ["int8"]),
        (moved(4.0), []),
        (weaker(0.01), ["fp16", "int8"]),
        (weaker(0.05), ["int8"]),
        (weaker(0.2), []),
        (tags_of_the_other, []),  # 4 of 68 keypoints only, but all ankles of that side
    ],
)
def test_each_precision_has_its_limits(change, passes, model, answers) -> None:
    found = [p for p in LIMITS if check_engine(Altered(model, change), answers, p).state == "same"]
    assert found == passes


def test_people_of_the_wrong_keypoints_are_counted(model, answers) -> None:
    verdict = check_engine(Altered(model, tags_of_the_other), answers, "fp16")
    assert (verdict.state, verdict.changed) == ("differs", 4)
    assert "4 changed hands" in verdict.reason
    assert "keypoint 15 is mostly wrong" in verdict.reason


@pytest.mark.parametrize(
    ("wrong", "right", "lost_in"),
    [
        (3, 0, []),  # too few to say anything
        (3, 1, ["fp32", "fp16"]),  # int8, a quarter allowed: 4 * 0.25**3 * 0.75 + 0.25**4 = .051
        (4, 0, ["fp32", "fp16", "int8"]),  # 0.25**4 = .0039
        (4, 4, []),
        (5, 1, ["fp32", "fp16", "int8"]),  # 6 * 0.25**5 * 0.75 + 0.25**6 = .0046
    ],
)
def test_a_keypoint_is_lost_where_it_is_mostly_wrong_and_not_by_chance(wrong, right, lost_in):
    assert [p for p, limit in LIMITS.items() if _is_lost(wrong, right, limit.changed)] == lost_in


@pytest.mark.parametrize(("pixels", "changed"), [(5, 0), (12, 3)])
def test_a_keypoint_on_another_maximum_has_changed(pixels, changed, model, answers) -> None:
    """Three of 68 are too few to be seen in the 95th percentile of the distance."""
    _, peaks = answers.by_size[384, 512]
    peaks[0, [0, 5, 9], 0, 1] += pixels
    verdict = check_engine(Altered(model, lambda peaks: peaks), answers, "fp32")
    assert (verdict.keypoints, verdict.changed) == (68, changed)
    assert verdict.state == ("differs" if changed else "same")


@pytest.mark.parametrize("share", [0.005, 0.05, 0.25])
@pytest.mark.parametrize("compared", [17, 37, 68, 500, 5000])
def test_few_keypoints_may_change_by_chance(share, compared) -> None:
    """Against the binomial's own quantile: at the limit 99 of 100 engines pass."""
    most = _most_changed(share, compared)
    assert abs(most - scipy.stats.binom.ppf(0.99, compared, share)) <= 1
    assert most >= share * compared - 1


def from_place(wrong: int, change):
    """Only the answers to images from this place of a batch on are changed."""

    def some(peaks):
        peaks[wrong:] = change(peaks[wrong:])
        return peaks

    return some


def test_every_place_of_a_full_batch_is_judged_by_itself(model, answers) -> None:
    verdict = check_engine(Altered(model, lambda peaks: peaks), answers, "fp32", 5)
    assert (verdict.state, verdict.people, verdict.keypoints) == ("same", 4, 68), verdict
    # Among all places one would be too rare to count.
    late = Altered(model, from_place(4, tags_of_the_other))
    assert check_engine(late, answers, "fp16").state == "same"
    verdict = check_engine(late, answers, "fp16", 5)
    assert (verdict.state, verdict.changed) == ("differs", 4)
    assert verdict.reason.startswith("as image 5 of 5 at once, 68 keypoints of 4 people")


def test_an_engine_that_does_not_run_gets_no_verdict(model, answers) -> None:
    """It may be short of memory now; nothing says that its answers are wrong."""

    def fails(peaks):
        raise EhrnetError("TensorRT could not start the engine.")

    with pytest.raises(EhrnetError, match="could not start"):
        check_engine(Altered(model, fails), answers, "fp32")


def test_a_size_without_answers_is_unchecked_and_says_so(model, answers) -> None:
    verdict = check_engine(open_runtime(model, size_hw=(96, 128)), answers, "fp32")
    assert verdict.state == "unchecked"
    assert "no stored answers for 96x128 (stored: 384x384, 384x512, 384x704)" in verdict.reason


def test_untrained_weights_are_compared_by_candidates(h4_model: Path) -> None:
    answers = read_answers(h4_model, model_info(h4_model))
    verdict = check_engine(open_runtime(h4_model), answers, "fp32")
    assert (verdict.state, verdict.people, verdict.changed) == ("same", 0, 0), verdict
    assert verdict.keypoints > 500
    images, peaks = answers.by_size[(384, 384)]
    other = Answers(answers.weights_sha256, {(384, 384): (images[::-1], peaks)})
    assert check_engine(open_runtime(h4_model), other, "fp16").state == "differs"


def test_nothing_found_is_no_verdict(model, answers) -> None:
    images, peaks = answers.by_size[(384, 384)]
    empty = Answers(answers.weights_sha256, {(384, 384): (images * 0, peaks * 0)})
    verdict = check_engine(open_runtime(model, size_hw=(384, 384)), empty, "fp32")
    assert (verdict.state, verdict.keypoints) == ("unchecked", 0)


def test_a_verdict_survives_json(model, answers) -> None:
    verdict = check_engine(open_runtime(model), answers, "fp32")
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    with pytest.raises(ValueError, match="cannot be 'fine'"):
        Verdict.from_dict({"state": "fine", "reason": ""})


def test_unknown_precision(model, answers) -> None:
    with pytest.raises(EhrnetError, match="'fp8' is unknown: use one of fp32, fp16, int8"):
        check_engine(open_runtime(model), answers, "fp8")


# The file ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    for file in (model, answers_file(model)):
        shutil.copy(file, tmp_path)
    return tmp_path / model.name


def test_without_the_file_it_is_named(copy: Path) -> None:
    answers_file(copy).unlink()
    with pytest.raises(EhrnetError, match="dots.answers.npz is missing.*: export the model again"):
        read_answers(copy, model_info(copy))


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"noise" * 100,
        lambda whole: whole[:400] + bytes(100) + whole[500:],
    ],
    ids=["empty", "cut", "noise", "holes"],
)
def test_a_damaged_file_is_refused(damage, copy: Path) -> None:
    path = answers_file(copy)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EhrnetError, match="stored answers .* export the model again"):
        read_answers(copy, model_info(copy))


def test_pickles_are_not_opened(copy: Path) -> None:
    with open(answers_file(copy), "wb") as file:
        np.savez(file, about=np.array([{"weights_sha256": "x"}], object))
    with pytest.raises(EhrnetError, match="cannot be read"):
        read_answers(copy, model_info(copy))


def test_answers_of_other_weights_are_refused(copy: Path) -> None:
    other = dataclasses.replace(model_info(copy), weights_sha256="0" * 64)
    with pytest.raises(EhrnetError, match="belongs to other weights"):
        read_answers(copy, other)


def test_wrong_shapes_are_refused(copy: Path, answers: Answers) -> None:
    images, peaks = answers.by_size[(384, 384)]
    write_answers(
        answers_file(copy), Answers(answers.weights_sha256, {(384, 384): (images, peaks[:1])})
    )
    with pytest.raises(EhrnetError, match="hold something else|cannot be read"):
        read_answers(copy, model_info(copy))


def test_checking_needs_neither_torch_nor_onnx(model: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'rclpy'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from ehrnet_model.inference.answers import read_answers\n"
        "from ehrnet_model.inference.parity import check_engine\n"
        "from ehrnet_model.inference.opening import open_runtime\n"
        "model = Path(sys.argv[1])\n"
        "runtime = open_runtime(model, size_hw=(384, 512))\n"
        "print(check_engine(runtime, read_answers(model, runtime.info), 'fp32'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("same: 68 keypoints of 4 people"), done.stderr
