"""``ehrnet tune``: decode options that suit a model."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ehrnet_ros.cli.settings import add_pictures, user_path

if TYPE_CHECKING:
    from ehrnet_model.evaluation.seen import Seen
    from ehrnet_model.evaluation.tune import Choice
    from ehrnet_model.inference.decode import DecodeOptions
    from ehrnet_model.inference.runtime import ModelInfo, Runtime
    from ehrnet_model.skeleton import SkeletonInfo

# Where stderr is no terminal, a line after so many.
_SETTINGS_A_LINE = 10

HELP = "choose decode options for a model by measuring on images held back from training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this verb."""
    add_pictures(parser, "COCO keypoint file of the training data")
    parser.add_argument(
        "--person-free",
        type=user_path,
        metavar="JSON[.gz]",
        help="another list of images; those marked person_free are used, their pictures are looked "
        "for in --images too",
    )
    parser.add_argument("--phi", type=int, default=-4, help="which shipped model (default -4)")
    parser.add_argument(
        "--model", type=user_path, metavar="FILE", help=".onnx, .engine or .safetensors instead"
    )
    parser.add_argument("--runtime", default="auto", help="engine (default auto)")
    parser.add_argument("--size", default="best", help="input size, as in `ehrnet evaluate`")
    parser.add_argument(
        "--held-back",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="share of the images that training held back (its --holdout; default 0.03); 1: all",
    )
    parser.add_argument(
        "--stray",
        type=float,
        default=0.1,
        metavar="N",
        help="people found per person-free image must stay below this (default 0.1)",
    )
    parser.add_argument(
        "--score-share",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of the images, trained on or not, that the scores are fitted to, beside "
        "the other person-free ones (default 0.25); 0: keep the model's",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="N",
        help="also measure the person score on images it was not fitted to, in N parts of them in "
        "turn (default 0: not)",
    )
    parser.add_argument(
        "--second-look",
        type=int,
        metavar="N",
        help="look again at up to N people of an image, in both sets (default: as the model says). "
        "A model whose stored options have second looks is tuned from those on, in fewer steps",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=150,
        metavar="N",
        help="person-free images to choose by, held-back ones first (default 150)",
    )
    parser.add_argument(
        "--keep",
        type=user_path,
        metavar="JSON",
        help="keep the options of an earlier --json, and only fit to the model what goes with its "
        "weights: scores, deviations, the person threshold; minutes instead of an hour",
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write both sets here")


def run(args: argparse.Namespace) -> int:
    """Measures, chooses and prints two sets of options."""
    from ehrnet_model.evaluation.coco import load_annotations
    from ehrnet_model.inference.atomic import check_target

    _check(args)
    if args.json is not None:
        check_target(args.json)
    annotations = load_annotations(args.annotations, truth=True)
    images = _images(args, annotations)
    if not images.empty:
        print(
            "no person-free images: only the set for AP is chosen, not the one that export takes "
            "(--person-free brings some)",
            file=sys.stderr,
        )
    with contextlib.closing(_open(args)) as runtime:
        _choose(args, annotations, images, runtime)
    return 0


def _choose(
    args: argparse.Namespace, annotations: dict[str, Any], images: _Images, runtime: Runtime
) -> None:
    from tqdm import tqdm

    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation.coco import KeypointTruth
    from ehrnet_model.evaluation.pictures import ImageFiles
    from ehrnet_model.evaluation.rescore import cross_check
    from ehrnet_model.evaluation.seen import see
    from ehrnet_model.evaluation.tune import choosing_part, restricted, tune
    from ehrnet_model.inference.decode import DecodeOptions

    files = ImageFiles(args.images)
    files.require(image["file_name"] for image in images.all)
    info = runtime.info
    kept = None if args.keep is None else _kept(args.keep, info)
    start = DecodeOptions.from_dict(info.decode) if kept is None else kept["ap"]
    settled = start.second_look > 0
    if args.second_look is not None:
        start = replace(start, second_look=args.second_look)
    if start.second_look and runtime.size_hw is not None:
        raise EhrnetError(
            f"{args.model or info.variant} runs at one size only: give --second-look 0, or a "
            "model of free size."
        )
    seen = see(
        runtime, tqdm(images.all, unit="image", file=sys.stderr, disable=None), files, args.size
    )
    inhabited, visited = len(images.part["images"]), len(images.part["images"]) + len(images.empty)
    if images.fitted:
        try:
            start = _with_scores(start, seen[visited:], annotations, info.skeleton)
        except EhrnetError as error:
            print(f"the scores stay as they are: {error}", file=sys.stderr)
            images = replace(images, fitted=[])
    settings = 0
    with tqdm(unit=" setting", file=sys.stderr, disable=None) as bar:

        def progress(text: str) -> None:
            nonlocal settings
            settings += 1
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            if bar.disable and settings % _SETTINGS_A_LINE == 0:
                print(f"{settings} settings tried, the last: {text}", file=sys.stderr, flush=True)

        choices = tune(
            seen[:inhabited],
            images.part,
            seen[inhabited:visited],
            start,
            args.stray,
            args.held_back,
            settled,
            info.skeleton,
            progress,
            kept,
        )
    checked: dict[str, float] = {}
    if args.folds and images.fitted:
        once = list({image.image_id: image for image in seen}.values())
        everybody = KeypointTruth(restricted(choosing_part(annotations, 1.0), once))
        options = choices["ap"].options
        try:
            checked = cross_check(once, everybody, options, args.folds, info.skeleton)
        except EhrnetError as error:  # what was chosen is not lost for it
            print(f"the person score is not checked: {error}", file=sys.stderr)
    _report(args, images, info, choices, checked)


def _with_scores(
    start: DecodeOptions,
    seen: list[Seen],
    annotations: dict[str, Any],
    skeleton: SkeletonInfo,
) -> DecodeOptions:
    """The options with scores that are fitted to what was seen."""
    from tqdm import tqdm

    from ehrnet_model.evaluation.coco import KeypointTruth
    from ehrnet_model.evaluation.rescore import (
        fit_keypoint_score,
        fit_person_score,
        fit_second_score,
    )
    from ehrnet_model.inference.keypoint_score import USUAL_MINIMUM

    truth = KeypointTruth(annotations)
    score = fit_person_score(seen, truth, start, skeleton)
    fitted = replace(start, person_score=score, second_score=())
    if start.second_look:
        again = tqdm(seen, unit="image again", file=sys.stderr, disable=None)
        fitted = replace(fitted, second_score=fit_second_score(again, truth, fitted, skeleton))
    again = tqdm(seen, unit="image again", file=sys.stderr, disable=None)
    chance = fit_keypoint_score(again, truth, fitted, skeleton)
    return replace(fitted, keypoint_score=chance, min_keypoint_score=USUAL_MINIMUM)


def _kept(path: Path, info: ModelInfo) -> dict[str, DecodeOptions]:
    """The sets of options in a file; that they were chosen for other weights is why it is given."""
    from ehrnet_model.evaluation.tune import tuned_options
    from ehrnet_model.inference.decode import DecodeOptions

    anyones = replace(info, weights_sha256="")
    return {
        name: DecodeOptions.from_dict(tuned_options(path, name, anyones))
        for name in ("ap", "display")
    }


@dataclass(frozen=True)
class _Images:
    """What is looked at.

    Attributes:
        part: annotations of the images that options are chosen on.
        empty: person-free images, likewise.
        fitted: images for the scores.
    """

    part: dict[str, Any]
    empty: list[dict[str, Any]]
    fitted: list[dict[str, Any]]

    @property
    def all(self) -> list[dict[str, Any]]:
        """Those to choose on first, then those to fit to."""
        return [*self.part["images"], *self.empty, *self.fitted]


def _check(args: argparse.Namespace) -> None:
    from ehrnet_model.errors import EhrnetError

    if not 0 < args.held_back <= 1 or args.stray <= 0 or args.limit < 1:
        raise EhrnetError(
            "--held-back is a share above 0 and up to 1, --stray a number above 0, --limit 1 or "
            "more."
        )
    if not 0 <= args.score_share <= 1:
        raise EhrnetError("--score-share is a share between 0 and 1.")
    if args.keep is not None and args.second_look is not None:
        raise EhrnetError("--keep keeps --second-look as it is, too: give one of the two.")
    if args.folds < 0 or args.folds == 1 or (args.folds and not args.score_share):
        raise EhrnetError("--folds is 2 or more, with a --score-share above 0; or 0 for none.")


def _images(args: argparse.Namespace, annotations: dict[str, Any]) -> _Images:
    from ehrnet_model.errors import EhrnetError
    from ehrnet_model.evaluation.coco import load_annotations
    from ehrnet_model.evaluation.tune import choosing_part, held_back_first, person_free_images

    part = choosing_part(annotations, args.held_back)
    free = person_free_images(annotations)
    if args.person_free is not None:
        names = {image["id"]: image["file_name"] for image in annotations["images"]}
        more = person_free_images(load_annotations(args.person_free))
        for image in more:
            if names.get(image["id"], image["file_name"]) != image["file_name"]:
                raise EhrnetError(
                    f"{args.person_free}: image {image['file_name']} has the id {image['id']}, as "
                    f"{names[image['id']]} of {args.annotations}: give the images of one file "
                    "other ids."
                )
        free += [image for image in more if image["id"] not in names]
    empty = held_back_first(free, args.held_back, args.limit)
    if not args.score_share:
        return _Images(part, empty, [])
    # Options are chosen on images that the score does not know, where there are others.
    chosen = {image["id"] for image in (*part["images"], *empty)}
    inhabited = choosing_part(annotations, args.score_share)["images"]
    fitted = [image for image in inhabited if image["id"] not in chosen] or part["images"]
    known = {image["id"] for image in fitted} | chosen
    return _Images(part, empty, fitted + [image for image in free if image["id"] not in known])


def _open(args: argparse.Namespace) -> Runtime:
    from ehrnet_model.inference.models import find_model
    from ehrnet_model.inference.opening import open_runtime

    model = find_model(args.phi, None if args.model is None else str(args.model))
    runtime_name = args.runtime
    if runtime_name == "auto" and model.suffix == ".safetensors":
        runtime_name = "torch"
    return open_runtime(model, runtime_name)


def _report(
    args: argparse.Namespace,
    images: _Images,
    info: ModelInfo,
    choices: dict[str, Choice],
    checked: dict[str, float],
) -> None:
    from ehrnet_model.held_back import held_back
    from ehrnet_model.inference.atomic import save_json
    from ehrnet_model.inference.decode import COEFFICIENTS

    inhabited = len(images.part["images"])
    unseen = sum(held_back(image["id"], args.held_back) for image in images.empty)
    print(
        f"{info.variant} on {inhabited} held-back images and {len(images.empty)} person-free, "
        f"{unseen} of them held back"
    )
    for name, choice in choices.items():
        parts = [f"{key} {value:.3f}" for key, value in choice.measures.items()]
        print(f"{name:8s} {', '.join(parts)}")
    if checked:
        parts = [f"{key} {value:.3f}" for key, value in checked.items()]
        print(
            f"person score, each of {args.folds} parts of the images scored by a fit to the "
            f"others: {', '.join(parts)}"
        )
    for name, choice in choices.items():
        values = choice.options.to_dict()
        for fitted in COEFFICIENTS:
            del values[fitted]  # nothing to read
        print(f"{name:8s} {' '.join(f'{key}={float(value):g}' for key, value in values.items())}")
    if args.json is not None:
        save_json(
            args.json,
            {
                "variant": info.variant,
                "weights": info.weights_name,
                "weights_sha256": info.weights_sha256,
                "size": args.size,
                "held_back": args.held_back,
                "images": inhabited,
                "person_free_images": len(images.empty),
                "person_free_images_held_back": unseen,
                "person_score_images": len(images.fitted),
                **({"person_score_check": {"folds": args.folds, **checked}} if checked else {}),
                **{
                    name: {"decode": choice.options.to_dict(), **choice.measures}
                    for name, choice in choices.items()
                },
            },
        )
        print(f"to compare: ehrnet evaluate --tuned {args.json}")
        if "display" in choices:
            print(f"to use: ehrnet export --tuned {args.json}")
