"""Writes a model's card beside it: what it is, what it was made of, what was measured with it.

python tools/model_card.py MODEL.onnx --evaluations E.json [E.json ...] --names NAME [NAME ...]
    --tuned T.json [--sizes S.json ...] -o MODEL.md

With ``--sizes`` the AP of these evaluations, each at one input size, is written beside the model as
well, where `ehrnet benchmark` looks for it, and with them those of the card on the same images, of
which README's table is made. None of INT8 belongs there: whoever exports such a graph calibrates it
on other pictures.

Every figure comes from files that `ehrnet` wrote: the model's own metadata, `ehrnet evaluate
--json` and `ehrnet tune --json`. Files about other weights are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.decode import DecodeOptions
from ehrnet_model.inference.runtime import ModelInfo, model_info

DATA = """\
Trained on photographs with people, in research use:

* 3,318 images of COCO train2017 (annotations CC BY 4.0, COCO Consortium; each image under its own
  Flickr licence), most of them with the detail of 256x256 pixels only, and 600 of Leeds Sports Pose
  Extended (Johnson and Everingham, CVPR 2011; research, citation asked);
* 1,355 images without labels (Flickr8k, EyeCrowd, OSIE, street photographs, rooms seen by a robot,
  COCO images without people), and the people in COCO images whom nobody labelled: labels by a
  teacher, RTMDet-nano and PicoDet-S with PP-TinyPose (Apache-2.0);
* 3,563 sharper images with the teacher's labels, in later runs: pedestrians and people in rooms
  (LS-chen/Pedestrian-behavior-detection-and-prediction), frames of fixed cameras
  (Mouso00/Human-Detection-Dataset-), people with masks (VikramShenoy97/Human-Segmentation-Dataset),
  which state no licence, and Clothing Co-Parsing (bearpaw/clothing-co-parsing; research);
* in the run on a GPU 2,133 more scenes with the teacher's labels (streets and shops of
  coderaohong/testing-repo, which states no licence; OSIE, Flickr8k, EyeCrowd) and 4,427 more images
  of Leeds Sports Pose Extended;
* in H-4's tenth run 1,170 more images of COCO train2017 (found stretched to squares of 416 and 640
  pixels in brianhuster/human-dataset and ahsanirfan961/Person-Tracker) with COCO's own labels, the
  sharper images but for Clothing Co-Parsing, and 8,833 more of Leeds Sports Pose Extended.

The backbone began as slices of EfficientNet-Lite0 trained on ImageNet (Apache-2.0). No image and no
label is part of this package. The images used for the figures below were never trained on.
"""


def load(path: Path, info: ModelInfo) -> dict[str, Any]:
    """A JSON file about these weights."""
    values: dict[str, Any] = json.loads(path.read_text())
    if values.get("weights_sha256") != info.weights_sha256:
        raise EhrnetError(f"{path} is about other weights than the model: make it again.")
    return values


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table of measures."""
    stray = found["false_positives_per_person_free_image"]
    cells = [
        name,
        str(found["images"]),
        f"{found['size']}, short side {found['short_side']}",
        *(f"{found[key]:.3f}" for key in ("AP", "AP50", "AP75", "APm", "APl", "AR")),
        "-" if stray is None else f"{stray:.2f}",
        f"{found['gmacs']:.2f}",
        f"{found.get('second_looks_per_image', 0):.1f} x {_views(found['decode'])}",
        _sure(found),
    ]
    return "| " + " | ".join(cells) + " |"


def _views(decode: dict[str, Any]) -> int:
    """In how many windows somebody is looked at again."""
    views: int = decode.get("second_look_views", 1)
    return views if decode.get("second_look", 0) else 0


def _sure(found: dict[str, Any]) -> str:
    """What the keypoints are worth that count as there."""
    precision, recall = found.get("keypoint_precision"), found.get("keypoint_recall")
    if precision is None or recall is None:
        return "-"
    least = found["decode"].get("min_keypoint_score", 0.0)
    return f"{precision:.2f} / {recall:.2f} from {least:g} on"


def reliability(info: ModelInfo, evaluations: list[dict[str, Any]]) -> list[str]:
    """What keypoints' scores and deviations are worth as shipped, where an evaluation says so."""
    stored = DecodeOptions.from_dict(info.decode)
    for found in evaluations:
        if found.get("by_score") and DecodeOptions.from_dict(found["decode"]) == stored:
            break
    else:
        return []
    shares = []
    for span in found["by_score"]:
        low, high, right = (span[key] for key in ("from", "to", "right"))
        where = f"from {low:g} on" if high is None else f"from {low:g} to {high:g}"
        if right is not None:
            shares.append(f"{right:.2f} {where}")
    lines = [
        "",
        f"A keypoint's score is {_meaning(stored)} that it is right (its own term of COCO's "
        "similarity is 0.5 or more; one that nobody could label is wrong). On the "
        f"{found['images']} images, as shipped, are right: {', '.join(shares)}.",
    ]
    if found["std_fit"] is not None:
        lines[-1] += f" Errors of right keypoints are {found['std_fit']:.2f} times their std."
    return lines


def _meaning(options: DecodeOptions) -> str:
    return "the probability" if options.keypoint_score else "about the chance"


def card(
    info: ModelInfo,
    evaluations: list[dict[str, Any]],
    rows: list[str],
    tuned: dict[str, Any] | None,
    note: str,
) -> str:
    """The text."""
    recipe = info.extra.get("recipe", {})
    kind = {
        "preview": "**Preview.** Right on large, clear people at best; far below the paper's "
        "accuracy.",
    }.get(info.quality, info.quality)
    lines = [
        f"# {info.variant}: {info.weights_name}",
        "",
        kind,
        "",
        "Licence of the weights: Apache-2.0. Keypoints: COCO-17. Coordinates: " + info.coordinates,
        f"(see ehrnet_model/inference/runtime.py). Weights `{info.weights_sha256[:16]}`.",
        "",
        "## Data",
        "",
        DATA,
        "## Measured",
        "",
        "COCO keypoint AP by pycocotools. One pass over the image, and one over every view of each "
        "person looked at again (the second is mirrored); GMACs count all of them.",
        "",
        "| images | number | input | AP | AP50 | AP75 | APm | APl | AR | people found per "
        "person-free image | GMACs | looked at again per image x views | keypoints: precision / "
        "recall |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "`for AP`: options that keep nearly everything, for comparing models; `as shipped`: those "
        "stored in the model, for robots.",
        *reliability(info, evaluations),
    ]
    if tuned is not None:
        options = recipe.get("last_run", {}).get("options", {})
        # Both shares are by id, the smaller one a part of the larger.
        unseen = min(1.0, options.get("holdout", 0.0) / tuned["held_back"])
        lines += [
            "",
            f"`ehrnet tune` on {tuned['images']} images of the training data, {unseen:.0%} of them "
            f"held back from training, and {tuned['person_free_images']} person-free ones:",
            "",
        ]
        for name, called in (
            ("start", "where it began"),
            ("ap", "for AP"),
            ("display", "for robots"),
        ):
            measures = {k: v for k, v in tuned[name].items() if k != "decode"}
            said = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in measures.items())
            made = [DecodeOptions.from_dict(d) for d in (tuned[name]["decode"], info.decode)]
            shipped = made[0] == made[1]
            lines.append(f"* {called}{' (as shipped)' if shipped else ''}: {said}")
        if tuned.get("person_score_images"):
            again = info.decode.get("second_score")
            after = "; so was the one that counts after second looks" if again else ""
            if info.decode.get("keypoint_score"):
                after += ", and the keypoints' scores"
            lines += [
                "",
                f"The person score was fitted to {tuned['person_score_images']} other images, most "
                f"of them trained on{after}.",
            ]
        check = tuned.get("person_score_check")
        if check:
            lines[-1] += (
                f" In {check['folds']} parts of all these images, each scored by a fit to the "
                f"others, AP is {check['AP_fitted_score']:.3f}; with the mean of the keypoints' "
                f"scores instead {check['AP_mean_score']:.3f}, and in the best order of the people "
                f"found {check['AP_best_order']:.3f}."
            )
    if note:
        lines += ["", note]
    if recipe:
        lines += ["", "## Recipe", "", "```json", json.dumps(recipe, indent=1), "```"]
    lines += [
        "",
        "How it was trained, what was tried, and the commands: docs/training.md.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """0 when the card was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--evaluations", type=Path, nargs="*", default=[])
    parser.add_argument("--names", nargs="*", default=[], help="of the evaluations, in that order")
    parser.add_argument("--tuned", type=Path)
    parser.add_argument("--sizes", type=Path, nargs="*", default=[])
    parser.add_argument("--note", default="", help="a sentence below the figures")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        info = model_info(args.model)
        evaluations = [load(path, info) for path in args.evaluations]
        rows = [row(name, e) for name, e in zip(args.names, evaluations, strict=True)]
        tuned = None if args.tuned is None else load(args.tuned, info)
        args.out.write_text(card(info, evaluations, rows, tuned, args.note))
        if args.sizes:
            kept = (
                *("weights_sha256", "precision", "size", "short_side", "input_sizes", "mirror"),
                *("scales", "decode", "gmacs", "images", "AP", "AP50", "second_looks_per_image"),
                *("keypoint_precision", "keypoint_recall"),
            )
            found = [load(path, info) for path in args.sizes]
            images = found[0]["images"]
            looks = info.decode.get("second_look", 0), _views(info.decode)
            found += [
                e
                for e in evaluations
                if (e["images"], e["precision"]) == (images, "fp32")
                and (e["decode"].get("second_look", 0), _views(e["decode"])) == looks
            ]
            shipped = [{key: f[key] for key in kept} for f in found]
            beside = args.out.with_name(f"{args.out.stem}.evaluations.json")
            beside.write_text(json.dumps(shipped, indent=1) + "\n")
    except EhrnetError as error:
        print(f"model_card: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
