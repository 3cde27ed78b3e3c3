"""From image to network input and back: the one place where coordinates change.

Convention, here and everywhere: pixel centres lie at whole numbers, the first pixel at (0, 0). So
enlarging by s moves x to ``(x + 0.5) * s - 0.5``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

import cv2
import numpy as np

from ehrnet_model.errors import EhrnetError

# Training windows reach over the image's edge into black.
_BORDER = 0


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in an input of another size: aspect kept, centred, black around it.

    Centred, since a network sees people at either edge of the picture equally well that way.

    Attributes:
        image_hw: (height, width) of the image in pixels.
        size_hw: (height, width) of the network input in pixels.
        inner_hw: (height, width) the image takes inside the input.
        offset_xy: where the image's first pixel lies inside the input.
    """

    image_hw: Tuple[int, int]
    size_hw: Tuple[int, int]
    inner_hw: Tuple[int, int]
    offset_xy: Tuple[int, int]

    @staticmethod
    def fit(image_hw: Tuple[int, int], size_hw: Tuple[int, int]) -> Letterbox:
        """The largest fit. Raises EhrnetError for an empty image or input."""
        (h, w), (height, width) = image_hw, size_hw
        if min(h, w, height, width) < 1:
            raise EhrnetError(f"an image of {w}x{h} pixels cannot be fitted into {width}x{height}.")
        scale = min(height / h, width / w)
        inner = max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))
        offset = (width - inner[1]) // 2, (height - inner[0]) // 2
        return Letterbox((h, w), (height, width), inner, offset)

    @property
    def scale_xy(self) -> Tuple[float, float]:
        """Input pixels per image pixel along x and y.

        They differ by the rounding of ``inner_hw`` to whole pixels: much where an image is so long
        that its short side becomes a few pixels, or less than one.
        """
        return self.inner_hw[1] / self.image_hw[1], self.inner_hw[0] / self.image_hw[0]

    @property
    def scale(self) -> float:
        """Input pixels per image pixel, geometric mean of both axes."""
        x, y = self.scale_xy
        return float(np.sqrt(x * y))

    def apply(self, image: np.ndarray, out: Optional[np.ndarray] = None) -> np.ndarray:
        """The network input.

        Args:
            image: (h, w, 3) uint8 of ``image_hw``; any strides.
            out: (H, W, 3) uint8 contiguous to write into.

        Raises:
            EhrnetError: the image has another shape or type.
        """
        if image.shape != (*self.image_hw, 3) or image.dtype != np.uint8:
            raise EhrnetError(
                f"expected an image of shape {(*self.image_hw, 3)} uint8, got {image.shape} "
                f"{image.dtype}."
            )
        if out is None:
            out = np.empty((*self.size_hw, 3), np.uint8)
        (height, width), (x, y) = self.inner_hw, self.offset_xy
        out[:y], out[y + height :] = _BORDER, _BORDER
        out[y : y + height, :x], out[y : y + height, x + width :] = _BORDER, _BORDER
        inner = out[y : y + height, x : x + width]
        if (height, width) == self.image_hw:
            inner[:] = image
        else:
            resized = cv2.resize(
                _halved(image, height, width),
                (width, height),
                inner,
                interpolation=cv2.INTER_LINEAR,
            )
            if not np.shares_memory(resized, inner):
                inner[:] = resized
        return out

    def undo(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) positions in the input -> positions in the image, float32."""
        scale = np.array(self.scale_xy, np.float32)
        offset = np.array(self.offset_xy, np.float32)
        return ((xy - offset + 0.5) / scale - 0.5).astype(np.float32)

    def project(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) positions in the image -> positions in the input, float32. Inverse of undo."""
        scale = np.array(self.scale_xy, np.float32)
        offset = np.array(self.offset_xy, np.float32)
        return ((xy + 0.5) * scale - 0.5 + offset).astype(np.float32)


def _halved(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image, halved as often as it stays at least height x width.

    Then samples are less than two pixels apart, and interpolating between neighbours lets nothing
    vanish that the network could see. Averaging areas of any size (INTER_AREA) takes ten times as
    long; halving has a fast path. Resizing in steps lands where resizing at once does, since
    ``(x + 0.5) * s - 0.5`` chains.
    """
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        half = (image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2
        image = cv2.resize(image, half, interpolation=cv2.INTER_LINEAR)
    return image
