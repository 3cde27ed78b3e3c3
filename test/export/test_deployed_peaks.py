"""The tail of the graph against a slow, obvious account of what it should give."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, maximum_filter

torch = pytest.importorskip("torch")

from ehrnet_model.errors import EhrnetError  # noqa: E402
from ehrnet_model.network.deploy import DeployedNetwork  # noqa: E402

J = 17


class FixedMaps(torch.nn.Module):
    """Answers the same maps to every picture."""

    def __init__(self, lowres: np.ndarray, highres: np.ndarray) -> None:
        super().__init__()
        self.maps = torch.from_numpy(lowres), torch.from_numpy(highres)

    def forward(self, x):
        return self.maps


def deployed_peaks(lowres, highres, coordinates="pixel-centre", smooth=0.0) -> np.ndarray:
    n, _, h, w = highres.shape
    image = torch.zeros((n, 2 * h, 2 * w, 3), dtype=torch.uint8)
    network = DeployedNetwork(FixedMaps(lowres, highres), coordinates, J, smooth)
    return network(image).numpy()


def enlarged(maps: np.ndarray) -> np.ndarray:
    n, c, h, w = maps.shape
    size = 2 * w, 2 * h
    out = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in maps.reshape(-1, h, w)]
    return np.reshape(out, (n, c, 2 * h, 2 * w))


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (16, 16)])
@pytest.mark.parametrize(
    ("coordinates", "smooth"),
    [("pixel-centre", 0.0), ("reference", 0.0), ("first-pixel", 0.0), ("pixel-centre", 1.2)],
)
def test_peaks_of_random_maps_are_those_of_a_slow_search(shape, coordinates, smooth) -> None:
    h, w = shape
    rng = np.random.default_rng(h + w)
    lowres = rng.normal(0, 1, (2, 2 * J, h // 2, w // 2)).astype(np.float32)
    highres = rng.normal(0, 1, (2, J, h, w)).astype(np.float32)
    heat = (enlarged(lowres[:, :J]) + highres) / 2
    tags = enlarged(lowres[:, J:])
    if smooth:
        smoothed = gaussian_filter(heat, smooth, axes=(2, 3), mode="constant", radius=3)
        heat = smoothed / gaussian_filter(ideal_peak(), smooth, mode="constant", radius=3).max()
    peaks = deployed_peaks(lowres, highres, coordinates, smooth)
    assert peaks.shape == (2, J, 30, 15) and peaks.dtype == np.float32
    for n in range(2):
        for j in range(J):
            m = heat[n, j]
            local = maximum_filter(m, 5, mode="constant", cval=-np.inf) == m
            ys, xs = np.nonzero(local & (m > 0))
            order = np.argsort(-m[ys, xs])[:30]
            ys, xs = ys[order], xs[order]
            found = peaks[n, j, : len(ys)]
            np.testing.assert_array_equal(found[:, 4:6], np.stack([xs, ys], 1))
            np.testing.assert_allclose(found[:, 0], m[ys, xs], rtol=1e-5)
            np.testing.assert_allclose(found[:, 3], tags[n, j][ys, xs], rtol=1e-4, atol=1e-5)
            assert (peaks[n, j, len(ys) :, 0] == 0).all()
            around = np.pad(m, 1, mode="edge")
            for row, y, x in zip(found, ys, xs):
                patch = around[y : y + 3, x : x + 3]
                np.testing.assert_allclose(row[6:].reshape(3, 3), patch, rtol=1e-4, atol=1e-5)
                expected_x = shifted(x, w, patch[1], coordinates)
                expected_y = shifted(y, h, patch[:, 1], coordinates)
                np.testing.assert_allclose(row[1:3], [expected_x, expected_y], atol=2e-3)


def ideal_peak() -> np.ndarray:
    """What training draws: a Gaussian of two cells."""
    y, x = np.mgrid[-20:21, -20:21]
    return np.exp(-(x**2 + y**2) / (2 * 2.0**2))


def shifted(cell: int, size: int, three: np.ndarray, coordinates: str) -> float:
    """Input pixel of a maximum, from three values on one axis."""
    if cell in (0, size - 1):
        offset = 0.0
    elif coordinates != "pixel-centre":
        offset = 0.25 * np.sign(three[2] - three[0])
    else:
        # The parabola through three points, solved as a linear system.
        logs = np.log(np.maximum(three.astype(np.float64), 1e-3))
        a, b, _ = np.polyfit([-1, 0, 1], logs, 2)
        offset = np.clip(-b / (2 * a), -0.5, 0.5) if a < -1e-9 else 0.0
    first = {"pixel-centre": 0.5, "reference": 1.0, "first-pixel": 0.0}[coordinates]
    return 2 * (cell + offset) + first


def gaussian_maps(centres, sigma=2.0, h=64, w=80):
    """Maps (1, 34, h/2, w/2) and (1, 17, h, w) whose mean is a Gaussian at input pixels."""
    y, x = np.mgrid[0:h, 0:w]
    highres = np.zeros((1, J, h, w), np.float32)
    for j, (cx, cy) in enumerate(centres):
        square = ((2 * x + 0.5 - cx) / 2) ** 2 + ((2 * y + 0.5 - cy) / 2) ** 2
        highres[0, j] = 2 * np.exp(-square / (2 * sigma**2))
    return np.zeros((1, 2 * J, h // 2, w // 2), np.float32), highres


@pytest.mark.parametrize("smooth", [0.5, 1.0, 1.6])
def test_smoothing_keeps_place_and_height_of_a_peak_and_takes_noise(smooth: float) -> None:
    rng = np.random.default_rng(4)
    centres = 2 * rng.integers(10, 30, (J, 2)) + 0.5
    lowres, highres = gaussian_maps(centres)
    peaks = deployed_peaks(lowres, highres, smooth=smooth)
    np.testing.assert_allclose(peaks[0, :, 0, 1:3], centres, atol=0.01)
    np.testing.assert_allclose(peaks[0, :, 0, 0], 1, atol=1e-4)
    highres += rng.normal(0, 0.2, highres.shape).astype(np.float32)
    errors = [
        np.abs(deployed_peaks(lowres, highres, smooth=s)[0, :, 0, 1:3] - centres).mean()
        for s in (0.0, smooth)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_gaussian_tops_are_found_to_a_hundredth_of_a_pixel(sigma: float) -> None:
    rng = np.random.default_rng(3)
    centres = rng.uniform((6, 6), (150, 120), (J, 2))
    peaks = deployed_peaks(*gaussian_maps(centres, sigma))
    np.testing.assert_allclose(peaks[0, :, 0, 1:3], centres, atol=0.01)
    assert (peaks[0, :, 0, 0] > 0.85).all()


def test_a_plateau_gives_equal_positions_and_a_flat_map_nothing_wild() -> None:
    lowres, highres = gaussian_maps([(41.5, 50.5)] * J)  # between cells 20 and 21, on cell 25
    peaks = deployed_peaks(lowres, highres)[0, 0]
    assert (peaks[:2, 0] > 0.9).all()
    np.testing.assert_allclose(peaks[:2, 1:3], [[41.5, 50.5]] * 2, atol=0.01)
    flat = deployed_peaks(np.zeros_like(lowres), np.full_like(highres, 0.5))
    assert np.isfinite(flat).all()
    cells = flat[..., 4:6]
    np.testing.assert_allclose(flat[..., 1:3], 2 * cells + 0.5)


def test_maps_without_positive_values_give_no_peaks() -> None:
    rng = np.random.default_rng(0)
    lowres = np.zeros((1, 2 * J, 16, 16), np.float32)
    highres = -rng.uniform(0.1, 1, (1, J, 32, 32)).astype(np.float32)
    peaks = deployed_peaks(lowres, highres)
    assert (peaks[..., 0] == 0).all() and np.isfinite(peaks).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_broken_value_anywhere_reaches_the_score(value: float) -> None:
    lowres, highres = gaussian_maps([(40, 40)] * J)
    highres[0, 5, 60, 2] = value
    peaks = deployed_peaks(lowres, highres)
    assert not np.isfinite(peaks[0, 5, :, 0]).any()
    assert np.isfinite(peaks[0, 4]).all()


def test_normalisation_takes_bgr_pixels_to_imagenets_rgb() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    rgb = cv2.cvtColor(image[1], cv2.COLOR_BGR2RGB) / 255
    expected = (rgb - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    x = DeployedNetwork(torch.nn.Identity()).normalise(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(x[1].transpose(1, 2, 0), expected, atol=1e-5)


def test_unknown_coordinate_convention_is_refused() -> None:
    with pytest.raises(EhrnetError, match="'half' is unknown: use one of pixel-centre, "):
        DeployedNetwork(torch.nn.Identity(), "half")
