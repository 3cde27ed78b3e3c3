"""What a network says about images, kept, so that people can be made of it in many ways."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ehrnet_model.evaluation.pictures import ImageFiles
from ehrnet_model.evaluation.sizes import size_for
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.poses import Poses
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.skeleton import COCO_17, SkeletonInfo


@dataclass(frozen=True)
class Seen:
    """What the network said about one image.

    Attributes:
        image_id: of the image in its annotations.
        peaks: see there.
        box: how the image lay in the network's input.
    """

    image_id: Any
    peaks: Peaks
    box: Letterbox

    def people(self, options: DecodeOptions, skeleton: SkeletonInfo = COCO_17) -> Poses:
        """The people that these options make of it."""
        return decode(self.peaks, options, skeleton, self.box)


def see(
    runtime: Runtime, images: Iterable[dict[str, Any]], files: ImageFiles, size: str = "best"
) -> list[Seen]:
    """Runs the network once on every image.

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
        picture = files.decode(image["file_name"])
        image_hw = picture.shape[0], picture.shape[1]
        size_hw = runtime.size_hw or size_for(size, image_hw, runtime.info.input_size)
        box = Letterbox.fit(image_hw, size_hw)
        output = runtime(np.ascontiguousarray(box.apply(picture)[None, ..., ::-1]))
        seen.append(Seen(image["id"], Peaks.from_output(output[0]), box))
    return seen
