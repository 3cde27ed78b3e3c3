"""Decode options that suit a model, chosen by measuring on images it was not trained on.

The network runs once per image. What it says (``Peaks``) is kept, and people are made of it again
and again with other options. Two sets come out, because two users want different things:

* ``ap``: the highest COCO keypoint AP. AP charges nothing for people of low score or for keypoints
  that are not there, so this set keeps nearly everything. It is for comparing models.
* ``display``: for robots and people. The highest mean of AP and of the F1 of keypoints from
  ``min_keypoint_score`` on (sure ones that are right, against all sure and all labelled), among the
  options that find fewer than a given number of people per person-free image; of person thresholds
  about as good the lowest.

One option is changed at a time, and a change is kept when it gains something worth the name;
sweeps end when none does. Somebody found where people may be unlabelled counts neither for nor
against options: else those that find few would look best. What a standard deviation is to be
multiplied by is fitted at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import PERSON_OKS, KeypointTruth, is_person_free, read_json
from ehrnet_model.evaluation.seen import Seen
from ehrnet_model.held_back import held_back
from ehrnet_model.inference.decode import COEFFICIENTS, DecodeOptions
from ehrnet_model.inference.runtime import ModelInfo
from ehrnet_model.skeleton import COCO_17, SkeletonInfo

_log = logging.getLogger(__name__)

# What is tried, in this order.
CHOICES: dict[str, tuple[Any, ...]] = {
    "keypoint_threshold": (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6),
    "levels": (1, 2, 3, 4, 6),
    "tag_threshold": (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0),
    "reach": (0.0, 1.0, 1.3, 1.8, 2.5),
    "refine": (False, True),
    "refine_threshold": (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3),
    "legs": (False, True),
    "nms_oks": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "min_keypoints": (1, 2, 3, 4, 5, 6, 8),
    "person_threshold": (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12),
}
# What is tried once people are looked at again, which takes longer.
AGAIN: dict[str, tuple[Any, ...]] = {
    "coarse_look": (False, True),
    "second_look_threshold": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "keypoint_threshold": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    "levels": (1, 2, 3, 4, 6),
    "tag_threshold": (0.5, 0.75, 1.0, 1.5),
    "reach": (1.3, 1.8, 2.5),
    "min_keypoints": (2, 3, 4, 5, 6, 8),
    "refine": (False, True),
    "nms_oks": (0.3, 0.5, 0.7),
    "shared": (0.3, 0.5, 1.0),
}
# What is tried for use alone: AP does not mind how sure a keypoint is.
SURE: dict[str, tuple[Any, ...]] = {"min_keypoint_score": (0.0, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)}
SWEEPS = 3
# From one half of 462 pictures to another the gain of an option varied by .0024 (deviation).
_WORTH = 2e-3
# The standard deviation, between samples of 182 or 131 images, of the F1 that a person threshold
# gives more than another one a tenth away: such thresholds cannot be told apart.
_ALIKE = 5e-3
# Person thresholds are chosen in steps of this, and higher ones tried in these.
_STEP, _STRIDE = 1e-3, 2e-2


@dataclass(frozen=True)
class Choice:
    """Options and what they gave. ``measures``: see ``tune``."""

    options: DecodeOptions
    measures: dict[str, float]


def choosing_part(annotations: dict[str, Any], share: float) -> dict[str, Any]:
    """The images held back from training on which options can be chosen.

    Images that label only some of the keypoints are left out, since nobody in them is labelled as
    COCO labels people.

    Args:
        annotations: see ``load_annotations``.
        share: of the images held back, as it was in training; 1 for all.

    Raises:
        EhrnetError: no labelled person is left.
    """
    images = [
        image
        for image in annotations["images"]
        if held_back(image["id"], share)
        and len(image.get("labelled_keypoints", COCO_17.names)) == COCO_17.num_keypoints
    ]
    part = _only(annotations, images)
    people = part["annotations"]
    if not any(any(v > 0 for v in (a.get("keypoints") or [])[2::3]) for a in people):
        raise EhrnetError(
            f"of the {len(annotations['images'])} images, the share {share:g} that is held back "
            "from training holds no labelled person to choose by: give a larger share (1 takes "
            "all) or other annotations."
        )
    return part


def restricted(annotations: dict[str, Any], seen: Sequence[Seen]) -> dict[str, Any]:
    """The part of annotations that is about these images."""
    ids = {image.image_id for image in seen}
    return _only(annotations, [image for image in annotations["images"] if image["id"] in ids])


def _only(annotations: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    ids = {image["id"] for image in images}
    people = [a for a in annotations["annotations"] if a["image_id"] in ids]
    return {**annotations, "images": images, "annotations": people}


def person_free_images(annotations: dict[str, Any]) -> list[dict[str, Any]]:
    """The images of an annotation file that are known to show nobody, held back or not."""
    inhabited = {a["image_id"] for a in annotations["annotations"]}
    return [
        image
        for image in annotations["images"]
        if is_person_free(image, image["id"] in inhabited, bool(inhabited))
    ]


def held_back_first(
    images: Sequence[dict[str, Any]], share: float, limit: int | None
) -> list[dict[str, Any]]:
    """At most ``limit`` images: those held back, which say most, and others from all over."""
    first = [image for image in images if held_back(image["id"], share)]
    rest = [image for image in images if not held_back(image["id"], share)]
    if limit is None:
        return first + rest
    room = limit - len(first)
    return first[:limit] + (rest[:: max(1, math.ceil(len(rest) / room))] if room > 0 else [])


def tune(
    people: Sequence[Seen],
    annotations: dict[str, Any],
    empty: Sequence[Seen],
    start: DecodeOptions,
    stray: float = 0.1,
    share: float = 1.0,
    settled: bool = False,
    skeleton: SkeletonInfo = COCO_17,
    progress: Callable[[str], None] = lambda text: None,
    kept: Mapping[str, DecodeOptions] | None = None,
) -> dict[str, Choice]:
    """Chooses the sets ``ap`` and, where person-free images are given, ``display``.

    Args:
        people: the images of ``annotations``.
        annotations: who is in them.
        empty: person-free images.
        start: options to start from; ``max_people`` and ``second_look`` stay as they are. With
            second looks, all options are first chosen without, then many of them once more.
        stray: fewer people than this are found per person-free image by the display set.
        share: of the images that training held back; on the others a model may be better than
            elsewhere, so what is found in the person-free ones held back is counted apart.
        settled: ``start`` was chosen with second looks, so that it is not asked what suits the
            first look alone.
        skeleton: of the model.
        progress: told after every measurement.
        kept: sets by name whose options stay, but for scores, which are those of ``start``, the
            gain of deviations, and in the display set the person threshold.

    Returns:
        The choices by name; ``start`` as well. Their measures: ``AP``, ``keypoint_f1``,
        ``keypoint_precision``, ``keypoint_recall`` on ``people``, and on ``empty``, where there
        is any, ``false_positives_per_person_free_image``, and ``.._per_held_back_one`` for those
        of them that were held back.
    """
    truth = KeypointTruth(annotations)
    unseen = [s for s in empty if held_back(s.image_id, share)]

    def results(options: DecodeOptions) -> list[dict[str, Any]]:
        found = [r for s in people for r in s.people(options, skeleton).to_coco(s.image_id)]
        return truth.judged(found, PERSON_OKS)

    def measured(options: DecodeOptions) -> Choice:
        found = results(options)
        sure = truth.keypoint_f1(found, options.min_keypoint_score)
        measures = {"AP": truth.average_precision(found)["AP"], **sure}
        if empty:
            strays = sum(len(s.people(options, skeleton)) for s in empty)
            measures["false_positives_per_person_free_image"] = strays / len(empty)
        if unseen:
            strays = sum(len(s.people(options, skeleton)) for s in unseen)
            measures["false_positives_per_held_back_one"] = strays / len(unseen)
        return Choice(options, measures)

    def fitted(options: DecodeOptions) -> DecodeOptions:
        """With the gain that suits the standard deviations of those whom they find."""
        found = [(s.image_id, s.people(options, skeleton)) for s in people]
        gain = truth.std_fit(found)
        if gain is None:
            return options
        return dataclasses.replace(options, std_gain=min(max(round(gain, 3), 0.01), 10.0))

    def by_ap(options: DecodeOptions) -> tuple[float, DecodeOptions]:
        value = truth.average_precision(results(options))["AP"]
        progress(f"AP {value:.4f}")
        return value, options

    def by_use(options: DecodeOptions) -> tuple[float, DecodeOptions]:
        options = quiet(options, empty, stray, skeleton)
        found = results(options)
        threshold = clear(truth, found, options.person_threshold, options.min_keypoint_score)
        if threshold > options.person_threshold:
            options = dataclasses.replace(options, person_threshold=threshold)
            found = results(options)  # it also decides who is looked at again
        f1 = truth.keypoint_f1(found, options.min_keypoint_score)["keypoint_f1"]
        ap = truth.average_precision(found)["AP"]
        progress(f"F1 {f1:.4f}, AP {ap:.4f}")
        return (f1 + ap) / 2, options

    def chosen(
        measure: Callable[[DecodeOptions], tuple[float, DecodeOptions]],
        values: dict[str, tuple[Any, ...]],
        again: dict[str, tuple[Any, ...]],
        begin: DecodeOptions,
        name: str,
    ) -> Choice:
        if kept is not None:
            scores = {field: getattr(start, field) for field in COEFFICIENTS}
            return measured(fitted(measure(dataclasses.replace(kept[name], **scores))[1]))
        if settled and begin.second_look:
            return measured(fitted(climb(measure, begin, again)))
        options = climb(measure, dataclasses.replace(begin, second_look=0), values)
        if begin.second_look:
            # What suits the first look alone has to be worth it with both.
            first, _ = measure(begin)
            both, options = measure(dataclasses.replace(options, second_look=begin.second_look))
            options = climb(measure, options if both > first + _WORTH else begin, again)
        return measured(fitted(options))

    choices = {"start": measured(start), "ap": chosen(by_ap, CHOICES, AGAIN, start, "ap")}
    if empty:
        rest = {name: values for name, values in CHOICES.items() if name != "person_threshold"}
        # Of what is worth the same, that which leaves out people found twice.
        once = dataclasses.replace(start, shared=min(start.shared, DecodeOptions().shared))
        choices["display"] = chosen(by_use, {**rest, **SURE}, {**AGAIN, **SURE}, once, "display")
    return choices


def tuned_options(path: Path, name: str, info: ModelInfo) -> dict[str, Any]:
    """Decode options out of a file written by ``ehrnet tune``.

    Args:
        path: the file.
        name: of the set, ``ap`` or ``display``.
        info: the model they are meant for; a warning is logged if it has other weights than the
            options were chosen for, unless its hash is empty.

    Raises:
        EhrnetError: not such a file, no such set, or options of another variant.
    """
    wanted = "a file written by `ehrnet tune --json`"
    values = read_json(path, wanted)
    try:
        variant = values["variant"]
        if "ap" in values and name not in values:
            raise EhrnetError(
                f"{path} has options for AP only, since `ehrnet tune` had no person-free images: "
                "run it again with --person-free, a list of such images."
            )
        options = dict(values[name]["decode"])
    except (KeyError, TypeError, ValueError):
        raise EhrnetError(f"{path} has no options {name!r}: give {wanted}.") from None
    if variant != info.variant:
        raise EhrnetError(
            f"the options in {path} are for {variant}, the model is {info.variant}: run "
            "`ehrnet tune` for it."
        )
    if info.weights_sha256 not in ("", values.get("weights_sha256")):
        _log.warning("the options in %s were chosen for other weights of %s", path, variant)
    return options


def climb(
    measure: Callable[[DecodeOptions], tuple[float, DecodeOptions]],
    start: DecodeOptions,
    choices: dict[str, tuple[Any, ...]],
) -> DecodeOptions:
    """Changes one option at a time as long as that gains something, at most SWEEPS times around.

    Args:
        measure: gives the worth of options, and the options as they were measured.
        start: where to begin.
        choices: values to try, by option.
    """
    best, options = measure(start)
    tried = {start}
    for _ in range(SWEEPS):
        before = best
        for name, values in choices.items():
            for value in values:
                changed = dataclasses.replace(options, **{name: value})
                if changed in tried or (name == "refine_threshold" and not options.refine):
                    continue
                tried.add(changed)
                worth, measured = measure(changed)
                # The first of equals that is worth the change; later ones must beat it.
                if worth > best + _WORTH:
                    best, options = worth, measured
                    tried.add(options)
        if best <= before:
            break
    return options


def clear(
    truth: KeypointTruth, found: Sequence[dict[str, Any]], threshold: float, score: float = 0.0
) -> float:
    """A person threshold that suits the keypoints' F1.

    Args:
        truth: who is in the images.
        found: results with the person threshold ``threshold``.
        threshold: the lowest that is allowed.
        score: keypoints below it do not count.

    Returns:
        The lowest of those tried that is about as good as the best of them, a multiple of a
        thousandth.
    """
    highest = max((result["score"] for result in found), default=0.0)
    tried = np.append(threshold, np.arange(threshold + _STRIDE, highest, _STRIDE))
    worth = [
        truth.keypoint_f1([r for r in found if r["score"] >= value], score)["keypoint_f1"]
        for value in tried
    ]
    good = np.flatnonzero(np.array(worth) >= max(worth) - _ALIKE)
    return round(float(tried[good[0]]), 6)


def quiet(
    options: DecodeOptions,
    empty: Sequence[Seen],
    stray: float,
    skeleton: SkeletonInfo = COCO_17,
) -> DecodeOptions:
    """The same options with the lowest person threshold that finds fewer than ``stray`` people.

    ``stray`` is per image of ``empty``, the mean of all of them. The threshold is a multiple of a
    thousandth.
    """
    limit = stray * len(empty)
    everyone = dataclasses.replace(options, person_threshold=0.0)
    found = [(s, s.people(everyone, skeleton).person_score) for s in empty]
    scores = np.sort(np.concatenate([score for _, score in found] or [np.zeros(0)]))[::-1]
    allowed = max(math.ceil(limit) - 1, 0)
    threshold = 0.0
    if len(scores) > allowed:
        threshold = (np.floor(scores[allowed] / _STEP) + 1) * _STEP
    # Leaving people out frees their peaks, which may move others: so the count is taken again,
    # where anybody is left.
    while threshold < 1:
        options = dataclasses.replace(options, person_threshold=round(float(threshold), 6))
        left = [s for s, score in found if (score >= options.person_threshold).any()]
        count = sum(len(s.people(options, skeleton)) for s in left)
        if count < limit or count == 0:
            return options
        threshold += _STEP
    return dataclasses.replace(options, person_threshold=1.0)
