"""Choosing decode options: by hand-made counts, and end to end with a real exported model."""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json

import dot_data
import dots
import numpy as np
import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import KeypointTruth, is_person_free, load_annotations
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.evaluation.seen import Groups, see
from ehrnet_model.evaluation.tune import (
    choosing_part,
    clear,
    climb,
    held_back_first,
    person_free_images,
    quiet,
    tune,
)
from ehrnet_model.held_back import held_back
from ehrnet_model.inference.decode import DecodeOptions, decode, typed_options
from ehrnet_model.inference.keypoint_score import TERMS_KEYPOINT, USUAL_MINIMUM
from ehrnet_model.inference.opening import open_runtime
from ehrnet_model.inference.person_score import TERMS, TERMS_AGAIN
from ehrnet_model.skeleton import COCO_17
from ehrnet_model.variants import pose_variant


def command(name, *arguments):
    """Runs a verb as the command line does."""
    verb = importlib.import_module(f"ehrnet_ros.cli.{name}")
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(a) for a in arguments]))


def annotation(number, xy, image=1, **more):
    low, high = xy.min(0), xy.max(0)
    return {
        "id": number,
        "image_id": image,
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float((high - low).prod()),
        "keypoints": [float(c) for x, y in xy for c in (x, y, 2)],
        **more,
    }


def result(xy, score, image=1):
    triples = [(x, y, 0.9) if np.isfinite(x) else (0, 0, 0) for x, y in xy]
    keypoints = [float(c) for triple in triples for c in triple]
    return {"image_id": image, "category_id": 1, "keypoints": keypoints, "score": score}


def test_truth_given_back_scores_one_whatever_the_ids():
    people = [dots.figure((150, 240), 260), dots.figure((470, 230), 300)]
    annotations = {
        "images": [{"id": 1}],
        "annotations": [annotation(0, people[0]), annotation(0, people[1])],
    }
    results = [result(xy, 0.5) for xy in people]
    assert KeypointTruth(annotations).average_precision(results)["AP"] == pytest.approx(1)


def test_keypoint_f1_counts_what_a_person_would_count():
    """One person found without 3 keypoints and with 2 wrong ones, one not found, one invented."""
    found, missed = dots.figure((150, 240), 260), dots.figure((470, 230), 300)
    crowd = dots.figure((320, 900), 200)
    annotations = {
        "images": [{"id": 1}],
        "annotations": [
            annotation(1, found),
            annotation(2, missed),
            annotation(3, crowd, iscrowd=1),
        ],
    }
    guess = found.copy()
    guess[:3] = np.nan
    guess[[9, 10]] += 200
    strange = dots.figure((900, 240), 260)
    strange[4:] = np.nan
    results = [result(guess, 0.9), result(strange, 0.8), result(crowd, 0.7)]
    measures = KeypointTruth(annotations).keypoint_f1(results)
    right, reported, labelled = 17 - 3 - 2, (17 - 3) + 4, 2 * 17
    assert measures["keypoint_precision"] == pytest.approx(right / reported)
    assert measures["keypoint_recall"] == pytest.approx(right / labelled)
    assert measures["keypoint_f1"] == pytest.approx(2 * right / (reported + labelled))
    assert KeypointTruth(annotations).keypoint_f1([])["keypoint_f1"] == 0


def test_climbing_finds_the_top_of_a_hill_and_ignores_noise():
    def hill(options):
        height = -abs(options.tag_threshold - 0.5) - abs(options.keypoint_threshold - 0.2)
        return height + (1e-4 if options.refine else 0), options

    start = DecodeOptions(refine=False)
    choices = {
        "refine": (False, True),
        "tag_threshold": (0.2, 0.5, 1.0),
        "keypoint_threshold": (0.1, 0.2),
    }
    top = climb(hill, start, choices)
    assert top == dataclasses.replace(start, tag_threshold=0.5, keypoint_threshold=0.2)


def test_which_images_are_chosen_by():
    annotations = {
        "images": [
            {"id": number, "labelled_keypoints": list(range(17 if number % 2 else 12))}
            for number in range(1000)
        ],
        "annotations": [
            annotation(number + 1, dots.figure((150, 240), 260), image=number)
            for number in range(500)
        ],
    }
    part = choosing_part(annotations, 0.1)
    kept = {image["id"] for image in part["images"]}
    assert kept == {n for n in range(1, 1000, 2) if held_back(n, 0.1)}
    assert {a["image_id"] for a in part["annotations"]} == {n for n in kept if n < 500}
    assert len(person_free_images(annotations)) == 500
    with pytest.raises(EhrnetError, match="no labelled person"):
        choosing_part({**annotations, "annotations": []}, 0.1)


def test_images_held_back_come_first_and_others_from_all_over():
    images = [{"id": number} for number in range(400)]
    first = [n for n in range(400) if held_back(n, 0.1)]
    chosen = [image["id"] for image in held_back_first(images, 0.1, len(first) + 10)]
    assert chosen[: len(first)] == first
    rest = chosen[len(first) :]
    assert 5 < len(rest) <= 10 and rest[0] < 40 and rest[-1] > 300
    assert [image["id"] for image in held_back_first(images, 0.1, 3)] == first[:3]
    assert len(held_back_first(images, 0.1, None)) == 400


@pytest.mark.parametrize(
    ("image", "annotated", "file_has_any", "free"),
    [
        ({}, False, True, True),
        ({}, True, True, False),
        ({}, False, False, False),
        ({"all_people_labelled": False}, False, True, False),
        ({"person_free": True}, False, False, True),
        ({"person_free": False}, False, True, False),
    ],
)
def test_who_is_person_free(image, annotated, file_has_any, free):
    assert is_person_free(image, annotated, file_has_any) is free


@pytest.fixture(scope="module")
def tempting(tmp_path_factory):
    """People with all keypoints, and person-free pictures with something that looks like half one.

    The model sees 8 of 17 keypoints there, a person score just below one half.
    """
    half = dots.figure((320, 240), 300)
    half[8:] = np.nan
    nobody = np.zeros((0, 17, 2))
    people = np.stack([dots.figure((150, 240), 260), dots.figure((470, 230), 300)])
    pictures = {
        "two.png": (dots.draw_people((480, 640), people), people),
        "one.png": (dots.draw_people((480, 640), people[:1]), people[:1]),
        "half.png": (dots.draw_people((480, 640), half[None]), nobody),
        "black.png": (dots.draw_people((480, 640), nobody), nobody),
    }
    return dot_data.write_data_set(tmp_path_factory.mktemp("tempting"), pictures)


def test_tuned_options_find_people_and_no_ghosts(tempting, dots_model, tmp_path, capsys):
    out = tmp_path / "tuned.json"
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    code = command(
        "tune", *data, "--model", dots_model, "--held-back", 1, "--json", out, "--size", "square"
    )
    assert code == 0
    tuned = json.loads(out.read_text())
    assert tuned["images"] == 4 and tuned["person_free_images"] == 2
    assert tuned["start"]["false_positives_per_person_free_image"] == 0.5
    assert tuned["ap"]["AP"] == pytest.approx(1)
    assert tuned["display"]["false_positives_per_person_free_image"] == 0
    assert tuned["display"]["keypoint_f1"] == pytest.approx(1)
    assert 0.3 < tuned["display"]["decode"]["person_threshold"] < 0.9
    said = capsys.readouterr()
    assert "the scores stay as they are" in said.err  # two people are too few
    assert "\r" not in said.err, "a bar, although nobody watches"
    assert "20 settings tried, the last: AP 1.0000" in said.err
    # The printed settings are arguments of the other verbs, and mean the same there.
    lines = [line for line in said.out.splitlines() if line.startswith("display  keypoint_thr")]
    words = lines[0].split()[1:]
    measures = tmp_path / "measures.json"
    command(
        "evaluate", *data, "--model", dots_model, "--json", measures, "--size", "square",
        "--decode", *words,
    )  # fmt: skip
    again = json.loads(measures.read_text())
    assert again["decode"] == tuned["display"]["decode"]
    assert again["false_positives_per_person_free_image"] == 0 and again["AP"] == pytest.approx(1)
    # Dots are found far more exactly than their width says; now std says how exactly.
    assert again["decode"]["std_gain"] < 0.5
    assert again["std_fit"] == pytest.approx(1, rel=0.02)


def test_sets_are_chosen_for_people_looked_at_again(tempting, dots_model, tmp_path, capsys):
    """The half person of a person-free picture, seen twice, has to stay out."""
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    looks = 3, 256
    model = dots.with_decode(dots_model, tmp_path / "dots.onnx", second_look_size=looks[1])
    out = tmp_path / "tuned.json"
    words = ["--held-back", 1, "--size", "square", "--json", out, "--second-look", looks[0]]
    assert command("tune", *data, "--model", model, *words) == 0
    tuned = json.loads(out.read_text())
    for name in ("start", "ap", "display"):
        decode = tuned[name]["decode"]
        assert (decode["second_look"], decode["second_look_size"]) == looks
    assert tuned["ap"]["AP"] == pytest.approx(1)
    assert tuned["display"]["false_positives_per_person_free_image"] == 0
    assert tuned["display"]["keypoint_f1"] == pytest.approx(1)
    measures = tmp_path / "measures.json"
    command(
        "evaluate", *data, "--model", model, "--json", measures, "--size", "square", "--tuned", out
    )
    assert "were looked at again" in capsys.readouterr().out
    again = json.loads(measures.read_text())
    assert again["AP"] == pytest.approx(tuned["ap"]["AP"])
    # Two people, one and half a one on four pictures; each costs a window.
    assert 0.75 <= again["second_looks_per_image"] <= 1
    command(
        "evaluate", *data, "--model", model, "--json", measures, "--size", "square",
        "--tuned", out, "--decode", "second_look=0",
    )  # fmt: skip
    once = json.loads(measures.read_text())
    window = pose_variant(once["variant"]).cost((256, 256)).macs / 1e9
    looked = again["second_looks_per_image"]
    assert again["gmacs"] - once["gmacs"] == pytest.approx(looked * window)
    with pytest.raises(EhrnetError, match="second_look = 99 is not possible"):
        command("tune", *data, "--model", model, "--second-look", 99)


def test_scores_are_fitted_for_both_looks(tempting, dots_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ehrnet_model.evaluation.rescore._LEAST_PEOPLE", 1)  # three are there
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    model = dots.with_decode(dots_model, tmp_path / "dots.onnx", second_look_size=256)
    words = ["--held-back", 1, "--size", "square", "--json", tmp_path / "tuned.json"]
    for looks, fitted in ((0, 0), (3, TERMS_AGAIN)):
        assert command("tune", *data, "--model", model, *words, "--second-look", looks) == 0
        tuned = json.loads((tmp_path / "tuned.json").read_text())
        for name in ("start", "ap", "display"):
            assert len(tuned[name]["decode"]["second_score"]) == fitted
            assert len(tuned[name]["decode"]["person_score"]) == TERMS
            assert len(tuned[name]["decode"]["keypoint_score"]) == TERMS_KEYPOINT
            assert tuned[name]["decode"]["min_keypoint_score"] == USUAL_MINIMUM
    # Only the half person of a person-free picture and two true ones teach it.
    assert tuned["ap"]["AP"] == pytest.approx(1)
    assert "second_score" not in capsys.readouterr().out


def test_kept_options_get_what_goes_with_the_weights(
    tempting, dots_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ehrnet_model.evaluation.rescore._LEAST_PEOPLE", 1)  # three are there
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    odd = {"tag_threshold": 0.9, "nms_oks": 0.71, "second_look": 3, "second_look_size": 256}
    sets = {
        "ap": DecodeOptions(**odd, min_keypoints=3, std_gain=7.0),
        "display": DecodeOptions(
            **odd, min_keypoints=5, person_threshold=0.999, min_keypoint_score=0.25
        ),
    }
    before = tmp_path / "before.json"
    told = {"variant": "H-4", "weights_sha256": "of others"}
    for name, options in sets.items():
        told[name] = {"decode": options.to_dict()}
    before.write_text(json.dumps(told))
    out = tmp_path / "tuned.json"
    words = ["--held-back", 1, "--size", "square", "--keep", before, "--json", out]
    assert command("tune", *data, "--model", dots_model, *words) == 0
    tuned = json.loads(out.read_text())
    assert tuned["weights_sha256"] != "of others"
    fitted = {"person_score", "second_score", "keypoint_score", "std_gain"}
    for name, options in sets.items():
        mine, given = tuned[name]["decode"], options.to_dict()
        free = fitted | ({"person_threshold"} if name == "display" else set())
        assert {n for n in mine if mine[n] != given[n]} == free
        assert len(mine["second_score"]) == TERMS_AGAIN
        assert len(mine["keypoint_score"]) == TERMS_KEYPOINT and mine["std_gain"] < 1
    assert tuned["display"]["decode"]["person_threshold"] < 0.9
    assert tuned["display"]["false_positives_per_person_free_image"] == 0
    assert tuned["display"]["keypoint_f1"] == pytest.approx(1)
    assert "other weights" not in capsys.readouterr().err, "that is why it was given"
    with pytest.raises(EhrnetError, match="one of the two"):
        command("tune", *data, "--model", dots_model, *words, "--second-look", 2)
    before.write_text(json.dumps({name: told[name] for name in told if name != "display"}))
    with pytest.raises(EhrnetError, match="had no person-free images"):
        command("tune", *data, "--model", dots_model, *words)


def test_options_with_second_looks_are_a_start(tempting, dots_model, tmp_path):
    """It is not asked once more what suits the first look alone."""
    annotations = load_annotations(tempting / "truth.json.gz", truth=True)
    images, files = annotations["images"], ImageFiles([tempting / "images.zip"])
    start = DecodeOptions(second_look=3, second_look_size=256, keypoint_threshold=0.4, nms_oks=0.6)
    told: dict[bool, list[str]] = {True: [], False: []}
    with contextlib.closing(open_runtime(dots_model, "onnxruntime")) as runtime:
        seen = see(runtime, images, files, "square")
        for settled, lines in told.items():
            choices = tune(seen, annotations, [], start, settled=settled, progress=lines.append)
            assert choices["ap"].measures["AP"] == pytest.approx(1)
            assert choices["ap"].options.second_look == 3
    assert 0 < len(told[True]) < len(told[False]) / 2


def test_people_found_twice_are_left_out_for_use_where_that_costs_nothing(tempting, dots_model):
    annotations = load_annotations(tempting / "truth.json.gz", truth=True)
    images, files = annotations["images"], ImageFiles([tempting / "images.zip"])
    start = DecodeOptions(second_look=3, second_look_size=256, shared=1.0)
    with contextlib.closing(open_runtime(dots_model, "onnxruntime")) as runtime:
        seen = see(runtime, images, files, "square")
        choices = tune(seen, annotations, seen[2:], start, settled=True)
    assert choices["ap"].options.shared == 1.0
    assert choices["display"].options.shared == DecodeOptions().shared < 1
    assert choices["display"].measures["keypoint_f1"] == pytest.approx(1)


def test_kept_groups_change_nothing(tempting, dots_model):
    """One ``Seen`` asked in many ways, against a new one for every question."""
    annotations = load_annotations(tempting / "truth.json.gz", truth=True)
    files = ImageFiles([tempting / "images.zip"])
    twice = DecodeOptions(second_look=3, second_look_size=256, second_look_views=2, levels=2)
    asked = [
        dataclasses.replace(twice, **changes)
        for changes in (
            {}, {"keypoint_threshold": 0.4}, {"tag_threshold": 0.01}, {"reach": 0.0},
            {"second_look": 0}, {"levels": 1}, {"min_keypoints": 17}, {"legs": True}, {},
        )
    ]  # fmt: skip
    with contextlib.closing(open_runtime(dots_model, "onnxruntime")) as runtime:
        for kept in see(runtime, annotations["images"], files, "square"):
            for options in asked:
                fresh = dataclasses.replace(kept, groups=Groups())
                one, other = kept.people(options), fresh.people(options)
                plain = decode(kept.peaks, options, COCO_17, kept.box)
                for name in ("xy", "score", "std", "person_score"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
                    if not options.second_look:
                        np.testing.assert_array_equal(getattr(one, name), getattr(plain, name))


def test_the_person_score_is_checked_in_parts(tempting, dots_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ehrnet_model.evaluation.rescore._LEAST_PEOPLE", 1)  # three are there
    out = tmp_path / "tuned.json"
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    words = ["--held-back", 1, "--size", "square", "--folds", 5, "--json", out]
    assert command("tune", *data, "--model", dots_model, *words) == 0
    check = json.loads(out.read_text())["person_score_check"]
    assert check["folds"] == 5 and check["AP_best_order"] == pytest.approx(1)
    assert 0 < check["AP_fitted_score"] <= 1 and 0 < check["AP_mean_score"] <= 1
    assert "person score, each of 5 parts" in capsys.readouterr().out


def test_as_many_ghosts_are_allowed_as_asked(tempting, dots_model):
    """Two of the pictures are person-free, one of them with somebody of a score below one half."""
    annotations = load_annotations(tempting / "truth.json.gz")
    runtime = open_runtime(dots_model)
    files = ImageFiles([tempting / "images.zip"])
    empty = see(runtime, person_free_images(annotations), files, "square")
    runtime.close()
    assert [len(seen.people(DecodeOptions())) for seen in empty] == [1, 0]
    (ghost,) = empty[0].people(DecodeOptions()).person_score
    assert quiet(DecodeOptions(), empty, 0.6).person_threshold == 0
    threshold = quiet(DecodeOptions(), empty, 0.5).person_threshold
    assert ghost < threshold < ghost + 0.002


def test_shares_that_are_none_are_refused(tempting, dots_model):
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    for words in (["--held-back", 0], ["--held-back", 2], ["--stray", 0]):
        with pytest.raises(EhrnetError, match="held-back"):
            command("tune", *data, "--model", dots_model, *words)
    for words in (["--folds", 1], ["--folds", 4, "--score-share", 0]):
        with pytest.raises(EhrnetError, match="--folds is 2 or more"):
            command("tune", *data, "--model", dots_model, *words)


def test_without_person_free_images_there_is_nothing_to_export_and_it_is_said(
    tempting, dots_model, h4_weights, tmp_path, capsys
):
    out = tmp_path / "tuned.json"
    inhabited = load_annotations(tempting / "truth.json.gz")
    inhabited["images"] = inhabited["images"][:2]
    (tmp_path / "inhabited.json").write_text(json.dumps(inhabited))
    data = ["--annotations", tmp_path / "inhabited.json", "--images", tempting / "images.zip"]
    words = ["--held-back", 1, "--score-share", 0, "--size", "square", "--json", out]
    assert command("tune", *data, "--model", dots_model, *words) == 0
    assert "--person-free brings some" in capsys.readouterr().err
    with pytest.raises(EhrnetError, match="had no person-free images: run it again with --person"):
        command("export", "--weights", h4_weights, "-o", tmp_path / "a.onnx", "--tuned", out)


def test_export_knows_the_options(h4_weights, tmp_path):
    with pytest.raises(EhrnetError, match="none.json cannot be read .* by `ehrnet tune --json`"):
        command(
            "export", "--weights", h4_weights, "-o", tmp_path / "a.onnx",
            "--tuned", tmp_path / "none.json",
        )  # fmt: skip
    with pytest.raises(EhrnetError, match="does not exist"):
        command(
            "export", "--weights", h4_weights, "-o", tmp_path / "a.onnx", "--decode", "nothing=1"
        )
    later = {"keypoint_threshold": 0.2, "of_a_later_version": 1}
    (tmp_path / "later.json").write_text(
        json.dumps({"variant": "H-4", "display": {"decode": later}, "ap": {"decode": later}})
    )
    with pytest.raises(EhrnetError, match="'of_a_later_version' does not exist"):
        command(
            "export", "--weights", h4_weights, "-o", tmp_path / "a.onnx",
            "--tuned", tmp_path / "later.json",
        )  # fmt: skip
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    "pair", [("levels", 2.7), ("refine", 0.5), ("levels", np.nan), ("max_people", np.inf)]
)
def test_options_that_count_or_switch_take_no_halves(pair):
    with pytest.raises(EhrnetError, match=f"{pair[0]} is (a whole number|0 or 1), not"):
        typed_options([pair])
    assert typed_options([("levels", 2.0), ("refine", 0.0)]) == {"levels": 2, "refine": False}


def test_an_engine_of_one_size_is_tuned_without_second_looks_only(
    tempting, dots_model, tmp_path, monkeypatch
):
    """Stored options have them, too: what was chosen for one look would be used for two."""
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    model = dots.with_decode(dots_model, tmp_path / "twice.onnx", second_look=3)
    pinned = functools.partial(open_runtime, size_hw=(384, 512))
    monkeypatch.setattr("ehrnet_model.inference.opening.open_runtime", pinned)
    with pytest.raises(EhrnetError, match="runs at one size only: give --second-look 0"):
        command("tune", *data, "--model", model, "--held-back", 1)


def test_two_files_that_number_their_images_alike_are_refused(tempting, dots_model, tmp_path):
    data = ["--annotations", tempting / "truth.json.gz", "--images", tempting / "images.zip"]
    others = {"images": [{"id": 1, "file_name": "room.png", "person_free": True}]}
    (tmp_path / "others.json").write_text(json.dumps(others))
    with pytest.raises(EhrnetError, match="room.png has the id 1, as .*png of"):
        command("tune", *data, "--model", dots_model, "--person-free", tmp_path / "others.json")


def test_the_person_threshold_is_where_keypoints_are_right():
    """One true person at .5, jumbles below and above; what leaves people out costs recall."""
    person = {
        "image_id": 1, "bbox": [0, 0, 90, 180], "area": 9000.0,
        "keypoints": [float(c) for x, y in dots.figure((50, 100), 160) for c in (x, y, 2)],
    }  # fmt: skip
    truth = KeypointTruth({"images": [{"id": 1}], "annotations": [person]})
    right = {"image_id": 1, "category_id": 1, "keypoints": person["keypoints"]}
    wrong = {**right, "keypoints": [value + 500 for value in person["keypoints"]]}

    def found(*people):
        return [{**result, "score": score} for result, score in people]

    # The lowest of equals: none between the jumble and the person says more.
    some = found((right, 0.5), (wrong, 0.31))
    assert clear(truth, some, 0.2) == pytest.approx(0.32)
    assert clear(truth, some, 0.4) == pytest.approx(0.4)
    # Nothing is gained above somebody who is wrong and surer than the one who is right.
    assert clear(truth, found((right, 0.5), (wrong, 0.8)), 0.1) == pytest.approx(0.1)
    assert clear(truth, [], 0.25) == 0.25


def test_a_lower_threshold_that_is_as_good_is_chosen():
    """Beside 200 true people one wrong one below them cannot be told from none; five can."""
    people = [annotation(n, dots.figure((150, 240), 260), image=n) for n in range(1, 201)]
    truth = KeypointTruth({"images": [{"id": n} for n in range(1, 201)], "annotations": people})
    sure = [result(dots.figure((150, 240), 260), 0.9, image=n) for n in range(1, 201)]

    def ghosts(count):
        far = dots.figure((900, 900), 260)
        return [result(far, 0.31, image=n) for n in range(1, count + 1)]

    # F1 with them is 400 / 401 = .9975 and 400 / 405 = .988.
    assert clear(truth, sure + ghosts(1), 0.1) == pytest.approx(0.1)
    assert clear(truth, sure + ghosts(5), 0.1) == pytest.approx(0.32)


def test_unsure_keypoints_do_not_count_where_the_threshold_is_chosen():
    """The ghost's keypoints are all below .5, so nothing speaks against it."""
    person, far = dots.figure((150, 240), 260), dots.figure((900, 900), 260)
    truth = KeypointTruth({"images": [{"id": 1}], "annotations": [annotation(1, person)]})
    ghost = result(far, 0.31)
    ghost["keypoints"][2::3] = [0.4] * 17
    found = [result(person, 0.5), ghost]
    assert clear(truth, found, 0.1) == pytest.approx(0.32)
    assert clear(truth, found, 0.1, 0.5) == pytest.approx(0.1)


def test_who_may_be_somebody_unlabelled_is_not_judged():
    """Of five found, two are somebody labelled, and two are wrong wherever people are labelled."""
    labelled, stranger = dots.figure((150, 240), 260), dots.figure((470, 230), 300)
    shifted = labelled + [0, 60]  # most of it still inside the box
    for partly in (True, False):
        images = [{"id": 1, "all_people_labelled": not partly}, {"id": 2}]
        people = [annotation(1, labelled), annotation(2, labelled, image=2)]
        truth = KeypointTruth({"images": images, "annotations": people})
        true = [result(labelled, 0.9), result(labelled, 0.9, image=2)]
        double, elsewhere = result(shifted, 0.8), result(stranger, 0.7)
        complete = result(stranger, 0.7, image=2)
        found = [*true, double, elsewhere, complete]
        wanted = [*true, double, complete] if partly else found
        assert truth.judged(found, 0.3) == wanted
        # Each of the people of 17 keypoints; nothing found is lost by what is not judged.
        measures = truth.keypoint_f1(truth.judged(found, 0.3))
        assert measures["keypoint_recall"] == 1
        assert measures["keypoint_precision"] == pytest.approx(2 / len(wanted))
    assert truth.judged([], 0.3) == []
