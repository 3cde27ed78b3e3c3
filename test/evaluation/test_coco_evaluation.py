"""Drawn people through a real exported model, the decoder and pycocotools."""

import argparse
import json

import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import average_precision, load_annotations, size_for
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_ros.cli import evaluate


def run(data_set, model, *more):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    arguments = ["--annotations", data_set / "truth.json.gz", "--images", data_set / "images.zip"]
    arguments += ["--model", model, *more]
    return evaluate.run(parser.parse_args([str(a) for a in arguments]))


def test_a_model_that_finds_everything_scores_one(data_set, dots_model, tmp_path, capsys):
    out = tmp_path / "measures.json"
    assert run(data_set, dots_model, "--json", out, "--results", tmp_path / "results.json") == 0
    measures = json.loads(out.read_text())
    assert measures["AP"] == pytest.approx(1) and measures["AR"] == pytest.approx(1)
    assert measures["images"] == 3 and measures["person_free_images"] == 1
    assert measures["false_positives_per_person_free_image"] == 0
    assert measures["people_found"] == 3 and measures["mirror"] is False
    assert "AP" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    again = average_precision(load_annotations(data_set / "truth.json.gz"), found)
    assert again["AP"] == pytest.approx(measures["AP"])


def test_size_limit_and_decode_options_are_used(data_set, dots_model, tmp_path):
    out = tmp_path / "measures.json"
    run(data_set, dots_model, "--size", "384x512", "--limit", "1", "--json", out)
    measures = json.loads(out.read_text())
    assert measures["images"] == 1 and measures["mean_input_pixels"] == 384 * 512
    run(data_set, dots_model, "--decode", "person_threshold=1.0", "--json", out)
    measures = json.loads(out.read_text())
    assert measures["people_found"] == 0 and measures["AP"] == 0


def test_missing_things_are_named(data_set, dots_model, tmp_path):
    with pytest.raises(EhrnetError, match="two.png"):
        parser = argparse.ArgumentParser()
        evaluate.add_arguments(parser)
        truth = str(data_set / "truth.json.gz")
        arguments = ["--annotations", truth, "--images", str(tmp_path), "--model", str(dots_model)]
        evaluate.run(parser.parse_args(arguments))
    with pytest.raises(EhrnetError, match="neither a folder nor a zip"):
        ImageFiles([tmp_path / "nothing.zip"])
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(EhrnetError, match="no list 'images'"):
        load_annotations(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("text", "image_hw", "want"),
    [
        ("256", (480, 640), (256, 352)),
        ("best", (480, 640), (384, 512)),
        ("square", (480, 640), (384, 384)),
        ("192", (640, 480), (256, 192)),
        ("288x384", (1, 1), (288, 384)),
    ],
)
def test_sizes(text, image_hw, want):
    assert size_for(text, image_hw, 384) == want
