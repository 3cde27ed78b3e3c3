"""One image, several passes: mirrored and at several scales, heatmaps averaged.

What papers report with, and what a robot does without: every pass costs a whole network. It needs
the maps, so it runs on weights and not on an exported graph, which gives peaks only.

Coordinates. The weights' convention says where cell i of the half-size map lies, at input pixel
2 i + c, and averaging must know it. With c = 0.5 (``pixel-centre``) all passes agree. Any other c
is the other way round in the mirrored map (1 - c), so that the mean of both has cell i at 2 i + 0.5
along x; and at another scale s, what c differs from 0.5 is worth 1 / s as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import COORDINATES, check_images, check_peaks
from ehrnet_model.network.torch_runtime import TorchRuntime

_MIRROR_AXIS = 3


class PassesRuntime(TorchRuntime):
    """A TorchRuntime that can also look several times."""

    def several(self, images: Sequence[np.ndarray], mirror: bool) -> np.ndarray:
        """Peaks of the mean heatmaps, as the runtime itself gives them.

        Tags come from the first image, the way round it came. The mirrored image gives everybody
        another tag, which the published evaluation keeps as a second number per keypoint; the mean
        of both would tell people apart worse than either, where one rises from left to right and
        so the other falls.

        Args:
            images: the same picture at several sizes, each uint8 (1, H, W, 3) BGR; the first is the
                one whose pixels positions are given in.
            mirror: look at each mirrored as well.

        Returns:
            float32 (1, J, 30, 15).

        Raises:
            EhrnetError: no image, a wrong type or size, or values that are not finite.
        """
        deployed = self._deployed
        if deployed is None:
            raise EhrnetError("this torch runtime was closed: open the model again.")
        if not len(images):
            raise EhrnetError("no image was given to look at.")
        heats: list[Tensor] = []
        tags = torch.zeros(0)
        scales = []
        with torch.inference_mode():
            for image in images:
                tensor = torch.from_numpy(check_images(image, None)).to(self._device)
                heat, tag = self._maps(tensor, mirror)
                if heats:
                    scales.append(heat.shape[2] / heats[0].shape[2])
                    heat = F.interpolate(heat, size=heats[0].shape[2:], mode="bilinear")
                else:
                    scales.append(1.0)
                    tags = tag
                heats.append(heat)
            peaks = deployed.peaks(torch.stack(heats).mean(0), tags).cpu().numpy()
        own = COORDINATES[deployed.coordinates]
        # The top of a sum lies nearer the sharper summand: weights s^2 for offsets 1 / s.
        shifted = 0.5 + (own - 0.5) * sum(scales) / sum(s * s for s in scales)
        # Column 1 is x, 2 is y.
        peaks[..., 1] += (0.5 if mirror else shifted) - own
        peaks[..., 2] += shifted - own
        return check_peaks(peaks, 1, self.info, self.name)

    def _maps(self, image: Tensor, mirror: bool) -> tuple[Tensor, Tensor]:
        """Heatmaps at half the size and tags at a quarter, of one image both ways round."""
        deployed = self._deployed
        assert deployed is not None
        x = deployed.normalise(image)
        heat, tags = self._once(x)
        if not mirror:
            return heat, tags
        swap = torch.tensor(self.info.skeleton.flip, device=image.device)
        back = self._once(x.flip(_MIRROR_AXIS))[0].flip(_MIRROR_AXIS)[:, swap]
        return (heat + back) * 0.5, tags

    def _once(self, x: Tensor) -> tuple[Tensor, Tensor]:
        deployed = self._deployed
        assert deployed is not None
        return deployed.maps(x)
