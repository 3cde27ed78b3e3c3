"""The graph that leaves the house: camera pixels in, peaks out, everything between in the network.

Only operators that TensorRT 8.5 and every later parser take, with the types they take: nothing
but Cast touches the uint8 image, no boolean indexing, no integer Clip, Mod or Div, a constant k.
Index arithmetic is done in float32, which is exact for the up to 2**24 cells of a map.
"""

from __future__ import annotations

import math
from typing import Any, List, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.runtime import COORDINATES, MAX_PEAKS, NMS_RADIUS
from ehrnet_model.skeleton import COCO_17

IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)
# Below this a heatmap value is noise; its logarithm must not decide where a keypoint is.
MIN_HEAT = 1e-3
# Keeps the fit finite on a flat patch; a curvature this small says nothing about the position.
_MIN_CURVATURE = 1e-6
# Of a keypoint's peak on the map at half size, in cells (see training/targets.py).
_PEAK_SIGMA = 2.0
# Beyond so many of its standard deviations a smoothing kernel ends.
_KERNEL_REACH = 2.0


class _Reshape(torch.autograd.Function):
    """(N, J, ...) -> (N, J, *last) as one Reshape with the constant [0, 0, *last].

    Left to itself the exporter writes Shape, Slice, Concat and Reshape each time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *last: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], *last)

    @staticmethod
    def symbolic(g: Any, x: Any, *last: int) -> Any:
        shape = torch.tensor([0, 0, *last], dtype=torch.int64)
        return g.op("Reshape", x, g.op("Constant", value_t=shape))


def _reshape(x: Tensor, *last: int) -> Tensor:
    out: Tensor = _Reshape.apply(x, *last)  # type: ignore[no-untyped-call]
    return out


def heat_and_tags(lowres: Tensor, highres: Tensor, keypoints: int) -> Tuple[Tensor, Tensor]:
    """What people are found on, from the network's outputs.

    Args:
        lowres: (N, 2K, h, w), heatmaps and tags.
        highres: (N, K, 2h, 2w), heatmaps.
        keypoints: K.

    Returns:
        float32 heatmaps (N, K, 2h, 2w), the mean of both resolutions, and tags (N, K, h, w).
    """
    lowres, highres = lowres.float(), highres.float()
    heat, tags = lowres[:, :keypoints], lowres[:, keypoints:]
    return (F.interpolate(heat, scale_factor=2.0, mode="bilinear") + highres) * 0.5, tags


def smoothing_kernel(sigma: float, keypoints: int) -> Tensor:
    """Weights (K, 1, S, S) of a depthwise convolution that smooths heatmaps.

    A Gaussian of ``sigma`` cells. A keypoint's peak as it should be, a Gaussian itself, keeps place
    and height and becomes wider; noise of single cells becomes less.
    """
    reach = math.ceil(_KERNEL_REACH * sigma)
    cells = torch.arange(-reach, reach + 1, dtype=torch.float64)
    line = torch.exp(-(cells**2) / (2 * sigma**2))
    line /= (line * torch.exp(-(cells**2) / (2 * _PEAK_SIGMA**2))).sum()
    return (line[:, None] * line).float().expand(keypoints, 1, -1, -1).contiguous()


class DeployedNetwork(nn.Module):
    """A pose network with everything around it that runs on the device.

    Args:
        network: takes (N, 3, H, W) float32, RGB, normalised as ImageNet; gives ``lowres``
            (N, 2J, H/4, W/4), J heatmaps then J tag maps, and ``highres`` (N, J, H/2, W/2).
        coordinates: ``pixel-centre``, log-quadratic fit and cell i at input pixel 2 i + 0.5; or
            ``reference`` or ``first-pixel``, quarter-cell shift and cell i at 2 i + 1 or 2 i (see
            ModelInfo).
        keypoints: J.
        smooth: see ModelInfo.
    """

    rgb_from_bgr: Tensor
    mean: Tensor
    inverse_std: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def __init__(
        self,
        network: nn.Module,
        coordinates: str = "pixel-centre",
        keypoints: int = COCO_17.num_keypoints,
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        if coordinates not in COORDINATES:
            raise EhrnetError(
                f"coordinate convention {coordinates!r} is unknown: use one of "
                f"{', '.join(COORDINATES)}."
            )
        self.network = network
        self.coordinates = coordinates
        self.keypoints = keypoints
        self.smoothing: Tensor | None
        kernel = smoothing_kernel(smooth, keypoints) if smooth else None
        self.register_buffer("smoothing", kernel, persistent=False)
        mean = torch.tensor(IMAGENET_MEAN_RGB).view(1, 3, 1, 1) * 255
        std = torch.tensor(IMAGENET_STD_RGB).view(1, 3, 1, 1) * 255
        self.register_buffer("rgb_from_bgr", torch.tensor([2, 1, 0]), persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("inverse_std", 1 / std, persistent=False)
        # Row by row over the 3x3 patch, as the last nine of the peaks' channels.
        shifts = torch.tensor([-1.0, 0.0, 1.0])
        self.register_buffer("shift_x", shifts.repeat(3), persistent=False)
        self.register_buffer("shift_y", shifts.repeat_interleave(3), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) BGR -> float32 (N, J, 30, 15), laid out as inference/runtime.py says.

        H and W are multiples of 32.
        """
        return self.peaks(*self.maps(self.normalise(image)))

    def maps(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """What ``normalise`` gave -> heatmaps (N, J, H/2, W/2) and tags (N, J, H/4, W/4)."""
        lowres, highres = self.network(x)
        heat, tags = heat_and_tags(lowres, highres, self.keypoints)
        if self.smoothing is not None:
            reach = self.smoothing.shape[3] // 2
            heat = F.conv2d(heat, self.smoothing, padding=reach, groups=self.keypoints)
        return heat, tags

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) BGR -> float32 (N, 3, H, W) RGB, ImageNet's mean and deviation."""
        # Planes first: subtracting along an innermost axis of three is slow on a CPU.
        x = image.to(torch.float32).permute(0, 3, 1, 2)
        x = torch.index_select(x, 1, self.rgb_from_bgr)
        return (x - self.mean) * self.inverse_std

    def peaks(self, heat: Tensor, tags: Tensor) -> Tensor:
        """The best 30 local maxima of each heatmap, with what grouping needs around them.

        Args:
            heat: (N, J, h, w) at half the input size.
            tags: (N, J, h/2, w/2); read as if bilinearly enlarged to h x w, half-pixel centres.
        """
        height, width = _size(heat, 2), _size(heat, 3)
        pooled = F.max_pool2d(heat, 2 * NMS_RADIUS + 1, stride=1, padding=NMS_RADIUS)
        # Exact in every engine: the maximum is one of its inputs.
        maxima = heat * torch.eq(heat, pooled).to(torch.float32)
        value, index = torch.topk(_reshape(maxima, -1), MAX_PEAKS, dim=2)
        # A broken value anywhere must reach the host; maxima and top-k may step over it.
        poison = F.adaptive_avg_pool2d(heat, 1).squeeze(3) * 0.0
        score = F.relu(value) + poison

        position = index.to(torch.float32)
        cell_y = torch.floor((position + 0.5) / width)
        cell_x = position - cell_y * width
        patch = self._patch(heat, cell_x, cell_y, height, width)
        tag = _read_enlarged(tags, cell_x, cell_y, height * 0.5, width * 0.5)
        # No neighbour outside the map, no shift across its border.
        inner_x = _between(cell_x, width)
        inner_y = _between(cell_y, height)
        left, right, above, below = (patch[..., i : i + 1] for i in (3, 5, 1, 7))
        peak = patch[..., 4:5]
        x = cell_x.unsqueeze(3) + self._offset(left, peak, right) * inner_x.unsqueeze(3)
        y = cell_y.unsqueeze(3) + self._offset(above, peak, below) * inner_y.unsqueeze(3)
        centre = COORDINATES[self.coordinates]
        parts: List[Tensor] = [
            score.unsqueeze(3),
            x * 2.0 + centre,
            y * 2.0 + centre,
            tag.unsqueeze(3),
            cell_x.unsqueeze(3),
            cell_y.unsqueeze(3),
            patch,
        ]
        return torch.cat(parts, 3)

    def _patch(
        self, heat: Tensor, cell_x: Tensor, cell_y: Tensor, height: Tensor, width: Tensor
    ) -> Tensor:
        """3x3 heatmap values around each cell, (N, J, 30, 9); border values repeat outside."""
        x = _within(cell_x.unsqueeze(3) + self.shift_x, width)
        y = _within(cell_y.unsqueeze(3) + self.shift_y, height)
        return _gather(heat, y * width + x, len(self.shift_x))

    def _offset(self, before: Tensor, peak: Tensor, after: Tensor) -> Tensor:
        """Where between -0.5 and 0.5 cells the maximum lies on one axis.

        The logarithm of a Gaussian is a parabola, so three values give its top exactly. The
        reference knows only the sign of the slope and moves a quarter of a cell.
        """
        if self.coordinates != "pixel-centre":
            return torch.sign(after - before) * 0.25
        before, peak, after = (
            torch.log(torch.clamp(v, min=MIN_HEAT)) for v in (before, peak, after)
        )
        curvature = torch.clamp(peak * 2.0 - before - after, min=_MIN_CURVATURE)
        return torch.clamp((after - before) * 0.5 / curvature, -0.5, 0.5)


def _size(x: Tensor, axis: int) -> Tensor:
    """A map's size as a float32 scalar, followed by the exporter; a constant when it is fixed."""
    if torch.onnx.is_in_onnx_export():
        return torch._shape_as_tensor(x)[axis].to(torch.float32)
    return torch.tensor(float(x.shape[axis]), device=x.device)


def _within(position: Tensor, size: Tensor) -> Tensor:
    """Clamped to 0 .. size - 1 with float minimum and maximum (integer Clip is not for 8.5)."""
    return torch.minimum(torch.clamp(position, min=0.0), size - 1.0)


def _between(cell: Tensor, size: Tensor) -> Tensor:
    """1 where a cell has both neighbours on this axis, 0 at the border."""
    return torch.clamp(torch.minimum(cell, size - 1.0 - cell), 0.0, 1.0)


def _gather(maps: Tensor, index: Tensor, count: int) -> Tensor:
    """Values of (N, J, h, w) at float cell numbers (N, J, 30, count), of the same shape."""
    flat = _reshape(index, MAX_PEAKS * count).to(torch.int64)
    return _reshape(torch.gather(_reshape(maps, -1), 2, flat), MAX_PEAKS, count)


def _read_enlarged(
    maps: Tensor, cell_x: Tensor, cell_y: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Values (N, J, 30) a twice enlarged map would have at cells, without enlarging it.

    Bilinear with half-pixel centres: cell c of the enlarged map is c/2 - 1/4 of the small one, so
    it weighs its own cell 3/4 and the neighbour on its side 1/4; borders repeat.
    """
    own_x, own_y = torch.floor(cell_x * 0.5), torch.floor(cell_y * 0.5)
    # -1 for even cells, +1 for odd ones.
    side_x = (cell_x - own_x * 2.0) * 2.0 - 1.0
    side_y = (cell_y - own_y * 2.0) * 2.0 - 1.0
    next_x, next_y = _within(own_x + side_x, width), _within(own_y + side_y, height)
    index = torch.stack(
        (
            own_y * width + own_x,
            own_y * width + next_x,
            next_y * width + own_x,
            next_y * width + next_x,
        ),
        3,
    )
    weights = torch.tensor([0.5625, 0.1875, 0.1875, 0.0625], device=maps.device)
    return (_gather(maps, index, 4) * weights).sum(3)


def example_images(shape: Tuple[int, int, int], seed: int = 0, noise: float = 0.25) -> Tensor:
    """uint8 (N, H, W, 3): soft colour fields under a share of noise, for tracing and parity."""
    n, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    soft = torch.rand((n, 3, height // 16, width // 16), generator=generator)
    soft = F.interpolate(soft, size=(height, width), mode="bilinear")
    grain = torch.rand((n, 3, height, width), generator=generator)
    image: Tensor = (soft * (1 - noise) + grain * noise) * 255
    return image.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


__all__ = ["MIN_HEAT", "DeployedNetwork", "example_images", "heat_and_tags", "smoothing_kernel"]
