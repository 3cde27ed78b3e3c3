"""Accuracy, cost and time of a model on a data set, all for the same settings.

Poses come from the estimator the robot uses. Mirrored and multi-scale passes, which papers report
with and robots do without, go through a runtime that can average heatmaps (``Passes``); what makes
people of them is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.evaluation.coco import KeypointTruth, is_person_free
from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.evaluation.sizes import size_for, sizes_for
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode, finished
from ehrnet_model.inference.estimator import PoseEstimator
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.inference.second_look import Window, first_options, look, look_again, merge
from ehrnet_model.variants import pose_variant

# Heights in pixels and numbers of people at which AP is reported apart.
HEIGHTS = (64.0, 128.0, 256.0)
GROUPS = ((1, 1), (2, 2), (3, 4), (5, None))
PCK_SHARES = (0.05, 0.1, 0.2)
# Keypoints' scores between which the share of right ones is reported apart.
SCORES = (0.2, 0.4, 0.6, 0.8)


class Passes(Runtime, Protocol):
    """A runtime that can look at an image several times, see network/passes.py."""

    def several(self, images: Sequence[np.ndarray], mirror: bool) -> np.ndarray:
        """(1, J, K, 15) peaks of the mean heatmaps of uint8 (1, H, W, 3) BGR images."""
        ...


@dataclass(frozen=True)
class Settings:
    """How images go through the network.

    Attributes:
        size: see ``sizes.size_for``.
        mirror: look at each image mirrored as well.
        scales: relative sizes of the passes.
    """

    size: str = "best"
    mirror: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        once = len(set(self.scales)) == len(self.scales)
        if 1.0 not in self.scales or not once or not all(0 < s <= 4 for s in self.scales):
            raise EhrnetError(
                f"scales {' '.join(f'{s:g}' for s in self.scales)} are not possible: give 1 and "
                "others between 0 and 4, each once, such as 0.5 1 1.5."
            )

    @property
    def single(self) -> bool:
        """Whether it is one pass, as on a robot."""
        return not self.mirror and self.scales == (1.0,)

    @property
    def ordered(self) -> tuple[float, ...]:
        """The scales with 1, whose pixels count, in front."""
        return (1.0, *(s for s in self.scales if s != 1.0))


class _Finder:
    """Finds people with given settings and says what that cost."""

    def __init__(
        self,
        runtime: Any,
        options: DecodeOptions,
        settings: Settings,
        closer: Runtime | None,
    ) -> None:
        if not settings.single and not hasattr(runtime, "several"):
            raise EhrnetError(
                f"mirrored and multi-scale passes average heatmaps, which {runtime.name} does not "
                "give: evaluate the weights (.safetensors), not a graph made of them."
            )
        self._runtime, self._options, self._settings = runtime, options, settings
        self._estimator = PoseEstimator(runtime, options, closer=closer)

    def sizes(self, image_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of every pass, without the mirrored ones."""
        fixed, wanted = self._runtime.size_hw, self._settings
        short_side = self._runtime.info.input_size
        if fixed is None:
            return sizes_for(wanted.size, image_hw, short_side, wanted.ordered)
        if wanted.size != "best" and size_for(wanted.size, image_hw, short_side) != fixed:
            raise EhrnetError(
                f"this engine takes {fixed[0]}x{fixed[1]} only, not size {wanted.size}: leave "
                "--size out, or build an engine of the other size."
            )
        return sizes_for(f"{fixed[0]}x{fixed[1]}", image_hw, short_side, wanted.ordered)

    def find(self, picture: np.ndarray, sizes: Sequence[tuple[int, int]]) -> tuple[Poses, int]:
        """The people of an RGB picture, and how many were looked at again."""
        if self._settings.single:
            self._estimator.size_hw = sizes[0]
            inferred = self._estimator.infer([picture], [True])
            return inferred.people()[0][0], inferred.second_looks[0]
        options, skeleton = self._options, self._runtime.info.skeleton
        image_hw = picture.shape[0], picture.shape[1]
        boxes = [Letterbox.fit(image_hw, hw) for hw in sizes]
        inputs = [np.ascontiguousarray(box.apply(picture)[None, ..., ::-1]) for box in boxes]
        peaks = Peaks.from_output(self._runtime.several(inputs, self._settings.mirror)[0])
        if not options.second_look:
            poses = decode(peaks, options, skeleton, boxes[0])
            return finished(poses, options, skeleton), 0
        first = decode(peaks, first_options(options), skeleton, boxes[0])

        def closer(windows: Sequence[Window]) -> np.ndarray:
            return look(picture, True, windows, self._closer)

        seen = look_again(first, boxes[0].scale, image_hw, options, skeleton, closer)
        poses = merge(seen, options, skeleton)
        return finished(poses, options, skeleton), seen.count

    def _closer(self, inputs: np.ndarray) -> np.ndarray:
        """Windows are of the size the network knows best: mirrored at most."""
        passes = [self._runtime.several([one[None]], self._settings.mirror) for one in inputs]
        return np.concatenate(passes)


def evaluate(
    runtime: Runtime,
    options: DecodeOptions,
    annotations: dict[str, Any],
    files: ImageFiles,
    settings: Settings | None = None,
    limit: int | None = None,
    closer: Runtime | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything measured about a model on a data set.

    Args:
        runtime: the model; ``Passes`` for more than one pass.
        options: how peaks become people.
        annotations: see ``load_annotations``.
        files: where the pictures are.
        settings: of the passes; default: one, as on a robot.
        limit: only the first images.
        closer: engine for second looks, see ``open_closer``; one of free size needs none.
        progress: wraps the list of images (a progress bar).

    Returns:
        The measures by name, with the settings they belong to; and the COCO results.

    Raises:
        EhrnetError: nobody is labelled, a missing or damaged image, a size that is not possible,
            an engine that fails.
    """
    settings = settings or Settings()
    chosen = annotations["images"][:limit]
    if not chosen:
        raise EhrnetError("the annotation file lists no image: there is nothing to measure.")
    ids = {image["id"] for image in chosen}
    anns = [a for a in annotations["annotations"] if a["image_id"] in ids]
    truth = KeypointTruth({**annotations, "images": chosen, "annotations": anns})
    inhabited = {a["image_id"] for a in anns}
    annotated = bool(annotations["annotations"])
    labelled = any(p["num_keypoints"] and not p["iscrowd"] for p in truth.people)
    # Person-free images alone still tell who is found where nobody is.
    if not labelled and not any(image.get("person_free") for image in chosen):
        raise EhrnetError(
            f"nobody in the {len(chosen)} images is labelled with keypoints, so nothing can be "
            "right or wrong: give annotations of COCO's kind, person_keypoints_*.json."
        )
    files.require(image["file_name"] for image in chosen)
    info = runtime.info
    finder = _Finder(runtime, options, settings, closer)
    variant = pose_variant(info.variant)
    results: list[dict[str, Any]] = []
    found: list[tuple[Any, Poses]] = []
    stray = empty = people = 0
    pixels, macs, times, looked = [], [], [], []
    window = variant.cost((options.second_look_size, options.second_look_size)).macs
    again = window * options.second_look_views
    coarse = window if options.coarse_look and options.second_look else 0
    used: set[tuple[int, int]] = set()
    for image in progress(chosen):
        picture = files.picture(image)
        sizes = finder.sizes((picture.shape[0], picture.shape[1]))
        start = time.perf_counter()
        poses, count = finder.find(picture, sizes)
        times.append(1000 * (time.perf_counter() - start))
        used.add(sizes[0])
        pixels.append(sizes[0][0] * sizes[0][1])
        looked.append(count)
        once = sum(variant.cost(hw).macs for hw in sizes) + coarse + count * again
        macs.append(once * (2 if settings.mirror else 1))
        results.extend(poses.to_coco(image["id"]))
        found.append((image["id"], poses))
        people += len(poses)
        if is_person_free(image, image["id"] in inhabited, annotated):
            empty += 1
            stray += len(poses)
    # pycocotools marks a measure of nobody with -1.
    averages = truth.average_precision(results).items()
    measures: dict[str, Any] = {name: None if v < 0 else v for name, v in averages}
    measures.update(truth.pck(results, PCK_SHARES))
    measures.update(truth.keypoint_f1(results, options.min_keypoint_score))
    fixed = runtime.size_hw
    measures.update(
        by_height=truth.by_height(results, HEIGHTS),
        by_people=truth.by_people(results, GROUPS),
        by_score=truth.by_score(results, SCORES),
        std_fit=truth.std_fit(found),
        images=len(chosen),
        person_free_images=empty,
        people_found=people,
        second_looks_per_image=float(np.mean(looked)),
        false_positives_per_person_free_image=stray / empty if empty else None,
        size=settings.size if fixed is None else f"{fixed[0]}x{fixed[1]}",
        short_side=info.input_size,
        input_sizes=sorted(f"{h}x{w}" for h, w in used),
        mean_input_pixels=float(np.mean(pixels)),
        mirror=settings.mirror,
        scales=list(settings.ordered),
        gmacs=float(np.mean(macs)) / 1e9,
        median_ms=float(np.median(times)),
        runtime=runtime.name,
        variant=info.variant,
        phi=info.phi,
        weights=info.weights_name,
        weights_sha256=info.weights_sha256,
        quality=info.quality,
        precision=info.precision,
        decode=options.to_dict(),
    )
    return measures, results
