"""PoseEstimator: image in, Poses out."""

from __future__ import annotations

import time
from typing import Optional, Tuple

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.decode import DecodeOptions, Peaks, decode
from ehrnet_model.inference.letterbox import Letterbox
from ehrnet_model.inference.poses import Poses, Timings
from ehrnet_model.inference.runtime import Runtime
from ehrnet_model.inference.sizes import best_named_size, parse_size


class PoseEstimator:
    """Finds people in images with one engine; belongs to the engine's thread.

    Args:
        runtime: the engine.
        options: how peaks become people; may be replaced between images. Default: what the
            model's metadata say.
        size_hw: input size for an engine with free size, else the engine's own. Default: the
            variant's input size as the short side, at the aspect (square, 4:3, 16:9 or upright)
            that fits the image best.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: Optional[DecodeOptions] = None,
        size_hw: Optional[Tuple[int, int]] = None,
    ) -> None:
        self.runtime = runtime
        self.options = options or DecodeOptions.from_dict(runtime.info.decode)
        self.size_hw = size_hw or runtime.size_hw
        self._input = np.zeros((1, 0, 0, 3), np.uint8)

    def __call__(self, image: np.ndarray, rgb: bool = False) -> Poses:
        """The people of a (h, w, 3) uint8 image, BGR unless ``rgb``, in its pixels."""
        return self.estimate(image, rgb)[0]

    def estimate(self, image: np.ndarray, rgb: bool = False) -> Tuple[Poses, Timings]:
        """The people and what each stage took.

        Raises:
            EhrnetError: the image has a wrong shape or type, or the engine failed or gave values
                that are not finite.
        """
        started = time.perf_counter()
        if image.ndim != 3:
            raise EhrnetError(
                f"expected an image of shape (height, width, 3), got {image.shape}: convert it to "
                "three channels first."
            )
        image_hw = image.shape[0], image.shape[1]
        box = Letterbox.fit(image_hw, self.input_size(image_hw))
        if self._input.shape[1:3] != box.size_hw:
            self._input = np.empty((1, *box.size_hw, 3), np.uint8)
        box.apply(image, self._input[0])
        if rgb:  # on the small picture, where it is cheap
            cv2.cvtColor(self._input[0], cv2.COLOR_RGB2BGR, dst=self._input[0])
        fitted = time.perf_counter()
        output = self.runtime(self._input)
        inferred = time.perf_counter()
        poses = decode(Peaks.from_output(output[0]), self.options, self.runtime.info.skeleton, box)
        done = time.perf_counter()
        ms = 1000.0
        return poses, Timings(
            (fitted - started) * ms, (inferred - fitted) * ms, (done - inferred) * ms
        )

    def input_size(self, image_hw: Tuple[int, int]) -> Tuple[int, int]:
        """(height, width) of the network input that an image of this size goes through."""
        if self.size_hw is not None:
            return self.size_hw
        short_side = self.runtime.info.input_size
        return parse_size(best_named_size(image_hw, short_side), short_side)
