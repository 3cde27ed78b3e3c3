"""Drawn people through a real exported model, the decoder and pycocotools."""

import argparse
import gzip
import json
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import dots
import numpy as np
import pytest

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import KeypointTruth, load_annotations
from ehrnet_model.evaluation.measure import Settings
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.evaluation.sizes import size_for, sizes_for
from ehrnet_model.inference.poses import Poses
from ehrnet_model.variants import VARIANTS
from ehrnet_ros.cli import evaluate

FACTS = Path(__file__).parents[1] / "facts"


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
    assert measures["PCK@0.05"] == 1
    assert [row["people"] for row in measures["by_height"]] == [0, 0, 1, 2]
    assert [row["AP"] for row in measures["by_height"]][2:] == pytest.approx([1, 1])
    assert [row["images"] for row in measures["by_people"]] == [1, 1, 0, 0]
    # 4:3 pictures at a short side of 384: one pass through H-4 at 384x512.
    assert measures["input_sizes"] == ["384x512"]
    assert measures["gmacs"] == pytest.approx(VARIANTS["H-4"].cost((384, 512)).macs / 1e9)
    text, err = capsys.readouterr()
    assert "\r" not in err, "a bar, although nobody watches"
    assert "GMACs" in text and "people 256 and more pixels high (2 people)" in text
    found = json.loads((tmp_path / "results.json").read_text())
    again = KeypointTruth(load_annotations(data_set / "truth.json.gz")).average_precision(found)
    assert again["AP"] == pytest.approx(measures["AP"])


def test_size_limit_and_decode_options_are_used(data_set, dots_model, tmp_path):
    out = tmp_path / "measures.json"
    run(data_set, dots_model, "--size", "384x512", "--limit", "1", "--json", out)
    measures = json.loads(out.read_text())
    assert measures["images"] == 1 and measures["mean_input_pixels"] == 384 * 512
    run(data_set, dots_model, "--decode", "person_threshold=1.0", "--json", out)
    measures = json.loads(out.read_text())
    assert measures["people_found"] == 0 and measures["AP"] == 0


def test_options_of_tune_are_taken_for_the_same_variant(data_set, dots_model, tmp_path):
    tuned, out = tmp_path / "tuned.json", tmp_path / "measures.json"
    tuned.write_text(json.dumps({"variant": "H-4", "ap": {"decode": {"person_threshold": 1.0}}}))
    run(data_set, dots_model, "--tuned", tuned, "--json", out)
    assert json.loads(out.read_text())["people_found"] == 0
    tuned.write_text(json.dumps({"variant": "H-3", "ap": {"decode": {}}}))
    with pytest.raises(EhrnetError, match="for H-3"):
        run(data_set, dots_model, "--tuned", tuned)
    tuned.write_text("{}")
    with pytest.raises(EhrnetError, match="ehrnet tune"):
        run(data_set, dots_model, "--tuned", tuned)


def test_mirrored_passes_need_weights(data_set, dots_model):
    with pytest.raises(EhrnetError, match="safetensors"):
        run(data_set, dots_model, "--flip")
    with pytest.raises(EhrnetError, match="scales 0.5"):
        run(data_set, dots_model, "--scales", "0.5")
    with pytest.raises(EhrnetError, match="scales 0.5 0.5 1 are not possible: .* each once"):
        run(data_set, dots_model, "--scales", "0.5", "0.5", "1")


def test_person_free_images_alone_tell_who_is_found_there(data_set, dots_model, tmp_path):
    data, out = load_annotations(data_set / "truth.json.gz"), tmp_path / "measures.json"
    data["images"] = [{**image, "person_free": True} for image in data["images"]]
    (tmp_path / "free.json").write_text(json.dumps({**data, "annotations": []}))
    run(data_set, dots_model, "--annotations", tmp_path / "free.json", "--json", out)
    measures = json.loads(out.read_text())
    per_image = measures["false_positives_per_person_free_image"]
    assert measures["AP"] is None and per_image == measures["people_found"] / 3 > 0


def test_nobody_to_find_is_said_before_any_work(data_set, tmp_path, dots_model):
    for change in ({"keypoints": [0] * 51}, {"iscrowd": 1}):
        data = load_annotations(data_set / "truth.json.gz")
        data["annotations"] = [{**ann, **change} for ann in data["annotations"]]
        (tmp_path / "none.json").write_text(json.dumps(data))
        with pytest.raises(EhrnetError, match="nobody in the 3 images is labelled"):
            run(data_set, dots_model, "--annotations", tmp_path / "none.json")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_weights_are_told_from_a_broken_graph(runtime, data_set, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0{}              ")
    with pytest.raises(EhrnetError, match="w.safetensors holds weights, which run on `torch` only"):
        run(data_set, weights, "--runtime", runtime)


def test_a_size_that_is_none_brings_the_list_of_all(data_set, dots_model):
    words = "'auto' is not understood: use best, paper, a short side such as 256, square, 4:3"
    with pytest.raises(EhrnetError, match=words):
        run(data_set, dots_model, "--size", "auto")


def people_of(heights, image=1):
    """Annotations of people of given heights side by side in one image."""
    annotations = []
    for number, height in enumerate(heights, 1):
        xy = dots.figure((200 * number, 200), height)
        low, high = xy.min(0), xy.max(0)
        annotations.append(
            {
                "id": 100 * image + number,
                "image_id": image,
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "area": float((high - low).prod()),
                "keypoints": [float(c) for x, y in xy for c in (x, y, 2)],
            }
        )
    return annotations


def found(annotation, score=0.9, shift=0.0):
    keypoints = np.array(annotation["keypoints"]).reshape(-1, 3) + [shift, 0, 0]
    return {
        "image_id": annotation["image_id"],
        "category_id": 1,
        "keypoints": keypoints.ravel().tolist(),
        "score": score,
    }


def test_ap_by_height_counts_only_people_of_that_height():
    """Tall people found, short ones not, and a ghost of middle height with the best score."""
    people = people_of([40, 50, 300, 320])
    ghost = found(people_of([150])[0], score=1.0, shift=2000)
    truth = KeypointTruth({"images": [{"id": 1}], "annotations": people})
    rows = truth.by_height([found(people[2]), found(people[3]), ghost], (64, 128, 256))
    assert [row["people"] for row in rows] == [2, 0, 0, 2]
    assert rows[0]["AP"] == 0 and rows[1]["AP"] is None
    # The ghost is 150 pixels high: nobody's, but of another height than both.
    assert rows[3]["AP"] == pytest.approx(1)
    tall_ghost = found(people[3], score=1.0, shift=2000)
    rows = truth.by_height([found(people[2]), found(people[3]), tall_ghost], (64, 128, 256))
    assert 0.3 < rows[3]["AP"] < 0.9
    assert [row["AP"] for row in truth.by_height([], (64,))] == [0, 0]


def test_ap_by_number_of_people_looks_at_those_images_only():
    one, three = people_of([100]), people_of([100, 110, 120], image=2)
    truth = KeypointTruth({"images": [{"id": 1}, {"id": 2}], "annotations": [*one, *three]})
    rows = truth.by_people([found(one[0])], ((1, 1), (2, 2), (3, None)))
    assert [(row["images"], row["people"], row["AP"]) for row in rows] == [
        (1, 1, pytest.approx(1)),
        (0, 0, None),
        (1, 3, 0),
    ]


def test_pck_is_a_share_of_all_labelled_keypoints():
    """One of two people found, 6 pixels off at a height of 100 (the box is 90 high)."""
    people = people_of([100, 100])
    truth = KeypointTruth({"images": [{"id": 1}], "annotations": people})
    measures = truth.pck([found(people[0], shift=6)], (0.05, 0.1))
    assert measures == {"PCK@0.05": 0.0, "PCK@0.1": 0.5}
    assert truth.pck([], (0.1,)) == {"PCK@0.1": 0.0}


def scored(result, score):
    keypoints = np.array(result["keypoints"]).reshape(-1, 3)
    keypoints[:, 2] = score
    return {**result, "keypoints": keypoints.ravel().tolist()}


def test_scores_are_held_against_what_is_right():
    """One exact, one off by 10 pixels, a ghost; and one whose face nobody could label.

    At 10 pixels and an area of 10,000 the five of the face are below .5 by COCO's sigmas, such as
    ears: exp(-100 / (2 * 10000 * (2 * .035) ** 2)) = .36; the worst other, wrists, have .72.
    """
    people = [{**p, "area": 10000.0} for p in people_of([100, 110, 120])]
    people[2]["keypoints"] = [0.0] * 15 + people[2]["keypoints"][15:]
    truth = KeypointTruth({"images": [{"id": 1}], "annotations": people})
    results = [
        scored(found(people[0]), 0.9),
        scored(found(people[1], shift=10), 0.5),
        scored(found(people[1], shift=3000), 0.5),
        scored(found(people_of([100, 110, 120])[2]), 0.1),
    ]
    assert truth.by_score(results, (0.2, 0.4, 0.8)) == [
        {"from": 0.0, "to": 0.2, "keypoints": 17, "right": pytest.approx(12 / 17)},
        {"from": 0.2, "to": 0.4, "keypoints": 0, "right": None},
        {"from": 0.4, "to": 0.8, "keypoints": 34, "right": pytest.approx(12 / 34)},
        {"from": 0.8, "to": None, "keypoints": 17, "right": 1.0},
    ]
    assert [row["keypoints"] for row in truth.by_score([], (0.5,))] == [0, 0]
    # From .5 on: 17 and 12 of 51 are right, of 46 labelled; from .6 on 17 of 17.
    for score, right, sure in ((0.5, 29, 51), (0.6, 17, 17), (0.95, 0, 0)):
        assert truth.keypoint_f1(results, score) == {
            "keypoint_precision": pytest.approx(right / max(sure, 1)),
            "keypoint_recall": pytest.approx(right / 46),
            "keypoint_f1": pytest.approx(2 * right / (sure + 46)),
        }


def test_deviations_are_held_against_errors():
    """3 pixels off in x at 2 pixels std, none in y; far off ones are not right, so do not count."""
    people = [{**p, "area": 1e4} for p in people_of([100, 110])]
    xy = np.array([p["keypoints"] for p in people]).reshape(2, 17, 3)[..., :2]
    xy[0, :, 0] += 3
    xy[1, :10] += 500
    std = np.full((2, 17), 2.0)
    std[0, 3] = np.nan  # unknown
    poses = Poses.build(xy, np.full((2, 17), 0.9), std, np.ones(2))
    truth = KeypointTruth({"images": [{"id": 1}], "annotations": people})
    expected = np.sqrt(16 * 1.5**2 / (2 * (16 + 7)))
    assert truth.std_fit([(1, poses)]) == pytest.approx(expected)
    assert truth.std_fit([(1, poses.with_std_gain(2))]) == pytest.approx(expected / 2)
    assert truth.std_fit([(1, Poses.empty())]) is None


def broken(**changes):
    annotation = {**people_of([100])[0], **changes}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 640, "height": 480}],
        "annotations": [{k: v for k, v in annotation.items() if v is not None}],
    }


def shown(*images):
    return {"images": [{"id": 1, "file_name": "a.png", **image} for image in images]}


def of_categories(categories, *ids):
    """One annotation of each category, none where None."""
    (annotation,) = people_of([100])
    return {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": categories,
        "annotations": [
            {**annotation, "id": number, **({} if category is None else {"category_id": category})}
            for number, category in enumerate(ids)
        ],
    }


@pytest.mark.parametrize(
    ("categories", "ids", "kept"),
    [
        ([{"id": 1, "name": "dog"}, {"id": 7, "name": "person"}], (1, 7, 7, 3), [1, 2]),
        ([{"id": 7, "name": "person"}], (None, 1), [0]),
        ([{"id": 1}, {"id": 2}], (1, 2), [0]),
        ([], (18, 1, None), [1, 2]),
    ],
)
def test_other_categories_are_no_people(categories, ids, kept, tmp_path):
    path = tmp_path / "truth.json"
    data = of_categories(categories, *ids)
    for ann, category in zip(data["annotations"], ids, strict=True):
        if category == 18:
            ann["keypoints"] = [1, 2]  # a dog has others
    path.write_text(json.dumps(data))
    assert [ann["id"] for ann in load_annotations(path, truth=True)["annotations"]] == kept


NOT_A_NUMBER = [float("nan"), 0, 2] * 17


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no list 'images'"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "twice"),
        ({"images": [{"id": 1}]}, "no file_name"),
        ({"images": [{"file_name": "a"}]}, "no id"),
        ({"images": [], "annotations": {}}, "not a list"),
        (broken(image_id=7), "101 is of an image that is not listed"),
        (broken(keypoints=[1, 2, 2]), "not 17 keypoints"),
        (broken(keypoints=["x"] * 51), "lacks numbers"),
        (broken(keypoints=NOT_A_NUMBER), "visibility"),
        (broken(keypoints=[1, 2, 3] * 17), "visibility"),
        (broken(keypoints=[700, 20, 2] * 17), "outside its image"),
        (broken(keypoints=[7, -20, 1] * 17), "outside its image"),
        (broken(bbox=None), "annotation 101 has no bbox"),
        (broken(area=None), "annotation 101 has no area"),
        (broken(image_id=[1]), "annotation 101 has no image_id"),
        (shown({"id": [1]}), r"the id \[1\] of an image is no whole number"),
        (shown({"id": True}), "the id True of an image is no whole number"),
        (shown({"id": 1}, {"id": "b"}), "the id 'b' of an image is .* or not what the others are"),
        (shown({"width": None}), "image 1 has the width None: give a whole number"),
        (shown({"width": "640"}), "image 1 has the width '640': give a whole number"),
        (shown({"height": 0}), "image 1 has the height 0: give a whole number"),
        (of_categories([{"id": 1, "name": "dog"}]), "truth.json has no category 'person'"),
        (of_categories(["person"]), "not a list of objects"),
        (broken(bbox=[1, 2]), "no box"),
        (broken(area=-1.0), "no area"),
    ],
)
def test_annotations_that_are_not_right_are_named(data, words, tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    with pytest.raises(EhrnetError, match=words):
        load_annotations(path, truth=True)


def test_people_without_keypoints_are_no_fault(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(broken(keypoints=None)))
    data = load_annotations(path, truth=True)
    # Nobody to find, and whoever is found there is ignored.
    truth = KeypointTruth(data)
    assert truth.matches([found(people_of([100])[0])], 0.5) == ([], [])


@pytest.mark.parametrize("content", [b"", b"{", b'{"images": [', b"\x1f\x8bnot gzip", b"\xff\xfe"])
def test_broken_json_is_refused(content, tmp_path):
    path = tmp_path / "truth.json.gz"
    path.write_bytes(content)
    with pytest.raises(EhrnetError, match="cannot be read as JSON"):
        load_annotations(path)
    path.write_bytes(gzip.compress(b'{"images": []}')[:-9])
    with pytest.raises(EhrnetError, match="cannot be read as JSON"):
        load_annotations(path)
    packed = bytearray(gzip.compress(json.dumps(list(range(500))).encode()))
    packed[10] ^= 0x06  # a kind of block that there is not
    path.write_bytes(packed)
    with pytest.raises(EhrnetError, match="cannot be read as JSON"):
        load_annotations(path)


def test_missing_images_are_counted_before_any_work(data_set, dots_model, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("one.png", b"")
    with pytest.raises(EhrnetError, match="2 of 3 images are in none .* two.png"):
        run(data_set, dots_model, "--images", tmp_path / "some.zip")
    with pytest.raises(EhrnetError, match="neither a folder nor a zip"):
        ImageFiles([tmp_path / "nothing.zip"])


def png(size_wh):
    """A PNG file's first bytes, which promise a picture."""
    head = b"IHDR" + struct.pack(">II", *size_wh) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut", png((10**5, 10**5))]
)
def test_images_that_do_not_decode_are_named(data_set, dots_model, tmp_path, content):
    for name in ("two.png", "one.png", "none.png"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EhrnetError, match="two.png does not decode"):
        run(data_set, dots_model, "--images", tmp_path)


def test_a_damaged_zip_file_is_named(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.png", b"0123456789" * 20)
    content = bytearray(path.read_bytes())
    content[60:70] = b"x" * 10
    path.write_bytes(content)
    with pytest.raises(EhrnetError, match="one.png cannot be read"):
        ImageFiles([path]).decode("one.png")


def test_a_zip_file_with_a_password_is_named(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.png", b"0123456789")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the file's own header and in that of the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(EhrnetError, match="one.png cannot be read .*encrypted"):
        ImageFiles([path]).decode("one.png")


def grey(value, size_wh=(8, 8)):
    ok, data = cv2.imencode(".png", np.full((*size_wh[::-1], 3), value, np.uint8))
    assert ok
    return data.tobytes()


@pytest.mark.parametrize("packed", ["both", "first", "none"])
def test_a_picture_of_the_whole_name_comes_before_one_of_its_last_part(tmp_path, packed):
    places = []
    kept = {"a": {"sub/1.png": 10, "2.png": 20}, "b": {"1.png": 30, "x/2.png": 40}}
    for place, names in kept.items():
        folder = tmp_path / place
        for name, value in names.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(grey(value))
        if packed == "both" or (packed == "first" and place == "a"):
            with zipfile.ZipFile(tmp_path / f"{place}.zip", "w") as archive:
                for name in names:
                    archive.write(folder / name, name)
            folder = tmp_path / f"{place}.zip"
        places.append(folder)
    for order in (places, places[::-1]):
        files = ImageFiles(order)
        wanted = {"sub/1.png": 10, "1.png": 30, "2.png": 20, "x/2.png": 40}
        wanted.update({"elsewhere/1.png": 30, "y/2.png": 20})
        assert {name: files.decode(name)[0, 0, 0] for name in wanted} == wanted


def test_copies_of_another_size_are_refused(data_set, dots_model, tmp_path):
    files = ImageFiles([data_set / "images.zip"])
    for name in ("one.png", "two.png", "none.png"):
        half = cv2.resize(files.decode(name), None, fx=0.5, fy=0.5)
        cv2.imwrite(str(tmp_path / name), half)
    with pytest.raises(EhrnetError, match="two.png is 240x320 .*annotations are of 480x640"):
        run(data_set, dots_model, "--images", tmp_path)


def test_nobody_found_is_no_figure_for_people_who_are_not_there():
    """As when there is a wrong answer: -1 where nobody of that size is."""
    body = np.zeros((17, 3))
    body[:, 0], body[:, 1], body[:, 2] = np.linspace(100, 300, 17), np.linspace(50, 400, 17), 2
    person = {
        "image_id": 1,
        "keypoints": body.ravel().tolist(),
        "bbox": [100, 50, 200, 350],
        "area": 200.0 * 350,  # large
    }
    images = [{"id": 1, "file_name": "a.png", "width": 640, "height": 480}]
    truth = KeypointTruth({"images": images, "annotations": [person]})
    nothing = truth.average_precision([])
    wrong = body + [0, 3000, 0]
    answer = {"image_id": 1, "category_id": 1, "keypoints": wrong.ravel().tolist(), "score": 0.5}
    assert nothing == truth.average_precision([answer])
    assert nothing["AP"] == nothing["APl"] == 0 and nothing["APm"] == -1


def test_what_cannot_be_written_is_said_before_any_work(data_set, dots_model, tmp_path):
    (tmp_path / "file").write_text("")
    for target, why in (
        (tmp_path / "no" / "folder.json", "there is no folder"),
        (tmp_path / "file" / "a.json", "there is no folder"),
        (tmp_path, "it is a folder"),
        (Path("."), "it is a folder"),
    ):
        for option in ("--json", "--results"):
            with pytest.raises(EhrnetError, match=f"cannot be written: {why}"):
                run(data_set, tmp_path / "no model", option, target)


def test_what_was_measured_is_printed_even_where_it_cannot_be_written(
    data_set, dots_model, tmp_path, capsys
):
    with pytest.raises(EhrnetError, match="cannot be written"):
        run(data_set, dots_model, "--limit", 1, "--json", tmp_path / ("long" * 63))
    assert "GMACs" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_leaves_nothing_is_refused(data_set, dots_model):
    with pytest.raises(EhrnetError, match="--limit 0"):
        run(data_set, dots_model, "--limit", 0)


@pytest.mark.parametrize(
    ("text", "image_hw", "want"),
    [
        ("256", (480, 640), (256, 352)),
        ("best", (480, 640), (384, 512)),
        ("square", (480, 640), (384, 384)),
        ("4:3", (480, 640), (384, 512)),
        ("16:9", (480, 640), (384, 704)),
        ("192", (640, 480), (256, 192)),
        ("288x384", (1, 1), (288, 384)),
        ("paper", (480, 640), (384, 512)),
        ("paper", (640, 427), (576, 384)),
    ],
)
def test_sizes(text, image_hw, want):
    assert size_for(text, image_hw, 384) == want


def test_paper_sizes_are_those_of_the_published_evaluation():
    rows = json.loads((FACTS / "test_resize.json").read_text())["rows"]
    assert len(rows) == 150
    for row in rows:
        scales = [1.0] if row["min_scale"] == 1 else [1.0, 0.5, 1.5, 2.0]
        short_side = VARIANTS[row["variant"]].input_size
        sizes = sizes_for("paper", tuple(row["image_hw"]), short_side, scales)
        assert list(sizes[scales.index(row["scale"])][::-1]) == row["resized_wh"], row


def test_scales_must_make_sizes_the_network_takes():
    assert sizes_for("square", (480, 640), 384, [1.0, 0.5]) == [(384, 384), (192, 192)]
    with pytest.raises(EhrnetError, match="208x208"):
        sizes_for("square", (480, 640), 416, [1.0, 0.5])
    with pytest.raises(EhrnetError, match="smallest scale must divide evenly, such as 0.5"):
        sizes_for("paper", (480, 640), 384, [1.0, 0.75])
    assert Settings(scales=(0.5, 1.0, 1.5)).ordered == (1.0, 0.5, 1.5)
