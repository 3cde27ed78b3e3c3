"""What a network says about images, kept, so that people can be made of it in many ways."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.evaluation.sizes import size_for
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode, group_all
from ehrnet_model.inference.keypoint_score import rated
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.inference.second_look import (
    SecondLook,
    Window,
    first_options,
    look,
    look_again,
    merge,
)
from ehrnet_model.skeleton import COCO_17, SkeletonInfo


@dataclass(frozen=True)
class Closer:
    """Second looks at one image, each kept: many options look at the same places.

    Attributes:
        runtime: of free size, open as long as people are made.
        files: where the picture is.
        name: of the picture's file.
    """

    runtime: Runtime
    files: ImageFiles
    name: str
    _kept: dict[Window, np.ndarray] = field(default_factory=dict)

    def fresh(self) -> Closer:
        """One that has kept nothing yet."""
        return Closer(self.runtime, self.files, self.name)

    def __call__(self, windows: Sequence[Window]) -> np.ndarray:
        """Peaks (W, J, 30, 15). Raises EhrnetError as ``ImageFiles`` and engines do."""
        new = [window for window in windows if window not in self._kept]
        if new:
            picture = self.files.decode(self.name)
            # One by one: what is kept must not depend on what was looked at together.
            for window in new:
                self._kept[window] = look(picture, True, [window], self.runtime)[0]
        return np.array([self._kept[window] for window in windows])


class Groups:
    """``decode.group_all``, each answer kept: most options change what is made of groups."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, float, float, float], np.ndarray] = {}

    def __call__(
        self,
        peaks: Sequence[Peaks],
        options: DecodeOptions,
        spans: np.ndarray | None,
        thresholds: Sequence[float],
    ) -> list[np.ndarray]:
        """See ``decode.group_all``; of one skeleton only."""
        reach = 0.0 if spans is None else options.reach
        names: dict[int, bytes] = {}  # each comes once for each of its thresholds
        keys = []
        for one, threshold in zip(peaks, thresholds):
            name = names.get(id(one)) or names.setdefault(id(one), _digest(one))
            keys.append((name, float(threshold), options.tag_threshold, reach))
        new = [number for number, key in enumerate(keys) if key not in self._kept]
        if new:
            some, at = [peaks[number] for number in new], [thresholds[number] for number in new]
            for number, groups in zip(new, group_all(some, options, spans, at)):
                self._kept[keys[number]] = groups.astype(np.int8)
        return [self._kept[key].astype(np.int64) for key in keys]


def _digest(peaks: Peaks) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (peaks.score, peaks.xy, peaks.tag):
        digest.update(np.ascontiguousarray(part))
    return digest.digest()


@dataclass(frozen=True)
class Seen:
    """What the network said about one image.

    Attributes:
        image_id: of the image in its annotations.
        peaks: see there.
        box: how the image lay in the network's input.
        closer: for second looks; without one there are none.
        groups: keeps them.
    """

    image_id: Any
    peaks: Peaks
    box: Letterbox
    closer: Closer | None = None
    groups: Groups = field(default_factory=Groups)

    def people(self, options: DecodeOptions, skeleton: SkeletonInfo = COCO_17) -> Poses:
        """The people that these options make of it, stds as wide as the peaks are."""
        again = self.again(options, skeleton)
        if again is None:
            poses = decode(self.peaks, options, skeleton, self.box, self.groups)
        else:
            poses = merge(again, options, skeleton, self.groups)
        return rated(poses, options.keypoint_score, skeleton)

    def again(self, options: DecodeOptions, skeleton: SkeletonInfo = COCO_17) -> SecondLook | None:
        """Both looks, where these options have a second one."""
        if self.closer is None or not options.second_look:
            return None
        first = decode(self.peaks, first_options(options), skeleton, self.box, self.groups)
        return look_again(
            first, self.box.scale, self.box.image_hw, options, skeleton, self.closer, self.groups
        )


def see(
    runtime: Runtime, images: Iterable[dict[str, Any]], files: ImageFiles, size: str = "best"
) -> list[Seen]:
    """Runs the network once on every image; and again, later, on parts of it where options say so.

    Args:
        runtime: any engine; its fixed size wins.
        images: records with ``id`` and ``file_name``.
        files: where the pictures are.
        size: see ``size_for``.

    Raises:
        EhrnetError: an image is missing or does not decode, or the engine fails.
    """
    seen = []
    for image in images:
        picture = files.picture(image)
        image_hw = picture.shape[0], picture.shape[1]
        size_hw = runtime.size_hw or size_for(size, image_hw, runtime.info.input_size)
        box = Letterbox.fit(image_hw, size_hw)
        output = runtime(np.ascontiguousarray(box.apply(picture)[None, ..., ::-1]))
        closer = Closer(runtime, files, image["file_name"]) if runtime.size_hw is None else None
        seen.append(Seen(image["id"], Peaks.from_output(output[0]), box, closer))
    return seen
