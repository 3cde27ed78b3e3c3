"""The host's peak finding against the graph's, and the reference decoder against golden answers."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_decoder import decode_reference

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.reference import enlarge, find_peaks
from ehrnet_model.skeleton import COCO_17

FACTS = Path(__file__).parents[1] / "facts"
# What the published code made of the maps of `golden_maps`, recorded from a run of it.
GOLDEN: list[dict[str, Any]] = json.loads(
    gzip.decompress((FACTS / "golden_decode.json.gz").read_bytes())
)["cases"]


def uniform(name: str, *shape: int) -> np.ndarray:
    """float64 in [0, 1) from NumPy's raw PCG64 stream, which is stable across versions."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((np.asarray(raw, np.uint64) >> np.uint64(11)) * 2.0**-53).reshape(shape)


def golden_maps(people: int, tag_dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heatmaps (17, 64, 80) and (17, 128, 160), tags (tag_dims, 17, 64, 80), by the file's rule."""
    if people == 0:
        low, high = np.full((17, 64, 80), 0.01), np.full((17, 128, 160), 0.01)
        return low, high, np.zeros((tag_dims, 17, 64, 80))
    u = uniform(f"decode:{people}:people", people, 17, 4)
    index = np.arange(people)[:, None]
    x = (index % 4 + 0.5) * 80 / 4 + (u[..., 0] - 0.5) * 0.5 * 80 / 4
    y = (index // 4 + 0.5) * 64 / 3 + (u[..., 1] - 0.5) * 0.5 * 64 / 3
    amplitude = np.where(u[..., 3] < 0.15, 0, 0.5 + 0.5 * u[..., 2])

    def blobs(name: str, height: int, width: int, factor: int, sigma: float) -> np.ndarray:
        grid_y, grid_x = np.mgrid[:height, :width]
        square = (grid_x - factor * x[..., None, None]) ** 2
        square += (grid_y - factor * y[..., None, None]) ** 2
        heat = (amplitude[..., None, None] * np.exp(-square / (2 * sigma**2))).max(0)
        return np.maximum(0.02 * uniform(f"decode:{people}:{name}", 17, height, width), heat)

    grid_y, grid_x = np.mgrid[:64, :80]
    square = (grid_x - x[..., None, None]) ** 2 + (grid_y - y[..., None, None]) ** 2
    nearest = square.argmin(0)
    noise = uniform(f"decode:{people}:tag", tag_dims, 17, 64, 80) - 0.5
    tags = 2 * nearest + 0.3 * np.arange(tag_dims)[:, None, None, None] + 0.1 * noise
    return blobs("low", 64, 80, 1, 1.5), blobs("high", 128, 160, 2, 2.0), tags


def mirror(maps: np.ndarray) -> np.ndarray:
    """What a perfectly symmetric network gives for the mirrored image."""
    return maps[list(COCO_17.flip), :, ::-1]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['people']} people {c['tag_dims']}d")
def test_reference_decoder_gives_the_published_answers(case: dict[str, Any]) -> None:
    pytest.importorskip("scipy.optimize", reason="the published assignment is SciPy's")
    low, high, tags = golden_maps(case["people"], case["tag_dims"])
    lowres = np.concatenate([low, tags[0]])
    mirrored = None
    if case["tag_dims"] == 2:
        mirrored = np.concatenate([mirror(low), mirror(tags[1])]), mirror(high)
    result = decode_reference(lowres, high, (240, 300), mirrored)
    groups, dims = case["groups"], 3 + case["tag_dims"]
    assert len(result.matched) == groups
    np.testing.assert_allclose(
        result.matched, np.reshape(case["matched"], (groups, 17, dims)), atol=2e-5
    )
    np.testing.assert_allclose(
        result.refined, np.reshape(case["refined_input_px"], (groups, 17, 3)), atol=2e-5
    )
    image = np.reshape(case["image_px"], (groups, 17, 3))
    np.testing.assert_allclose(result.image_xy, image[..., :2], atol=2e-5)
    np.testing.assert_allclose(result.person_score, case["person_score"], atol=2e-5)


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EhrnetError, match="do not fit"):
        find_peaks(np.zeros((34, 8, 8)), np.zeros((17, 8, 8)))
    with pytest.raises(EhrnetError, match="convention"):
        find_peaks(np.zeros((34, 8, 8)), np.zeros((17, 16, 16)), "corner")


def test_enlarge_of_a_slope_keeps_the_slope() -> None:
    x = np.arange(6.0)[None, None] + 10 * np.arange(4.0)[None, :, None]
    big = enlarge(x)
    assert big.shape == (1, 8, 12)
    expected = (np.arange(12) / 2 - 0.25) + 10 * (np.arange(8) / 2 - 0.25)[:, None]
    np.testing.assert_allclose(big[0, 1:-1, 1:-1], expected[1:-1, 1:-1], rtol=1e-6)
    assert big[0, 0, 0] == x[0, 0, 0] and big[0, -1, -1] == x[0, -1, -1]


@pytest.mark.parametrize("coordinates", ["pixel-centre", "reference", "first-pixel"])
@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_find_peaks_is_the_twin_of_the_graph(coordinates: str, size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="the graph's twin is compared with needs torch")
    from ehrnet_model.network.deploy import DeployedNetwork

    h, w = size
    rng = np.random.default_rng(h)
    low = rng.random((17, h, w), np.float32) - 0.3
    tags = rng.normal(size=(17, h, w)).astype(np.float32)
    high = rng.random((17, 2 * h, 2 * w), np.float32) - 0.3
    ours = find_peaks(np.concatenate([low, tags]), high, coordinates)
    graph = DeployedNetwork(torch.nn.Identity(), coordinates)
    with torch.no_grad():
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(low)[None], scale_factor=2.0, mode="bilinear"
        )
        heat = (enlarged + torch.from_numpy(high)[None]) * 0.5
        theirs = graph.peaks(heat, torch.from_numpy(tags)[None])[0].numpy()
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (17, 30, 15)
    np.testing.assert_array_equal(ours[..., 0] > 0, theirs[..., 0] > 0)
    assert (ours[..., 0] > 0).sum() > 17
    used = ours[..., 0] > 0
    np.testing.assert_allclose(ours[..., 0], theirs[..., 0], atol=1e-6)
    np.testing.assert_allclose(ours[used], theirs[used], atol=2e-4)


def test_find_peaks_places_a_gaussian_between_cells() -> None:
    # Cell i of the half-size map is centred at input pixel 2 i + 0.5.
    x, y, sigma = 41.3, 26.9, 4.0
    half_y, half_x = np.mgrid[:32, :40] * 2 + 0.5
    quarter_y, quarter_x = np.mgrid[:16, :20] * 4 + 1.5
    high = np.zeros((17, 32, 40))
    low = np.zeros((34, 16, 20))
    high[3] = 0.8 * np.exp(-((half_x - x) ** 2 + (half_y - y) ** 2) / (2 * sigma**2))
    low[3] = 0.8 * np.exp(-((quarter_x - x) ** 2 + (quarter_y - y) ** 2) / (2 * sigma**2))
    low[17 + 3] = 1.25
    best = find_peaks(low, high)[3, 0]
    assert np.hypot(best[1] - x, best[2] - y) < 0.35
    assert best[3] == pytest.approx(1.25)
    assert (best[4], best[5]) == (20, 13)


def test_find_peaks_carries_broken_values_to_the_scores() -> None:
    low, high = np.zeros((34, 8, 8)), np.zeros((17, 16, 16))
    high[5, 3, 3] = np.nan
    peaks = find_peaks(low, high)
    assert np.isnan(peaks[5, :, 0]).all() and np.isfinite(peaks[:5, :, 0]).all()


def test_maps_smaller_than_the_number_of_peaks() -> None:
    low, high = np.zeros((34, 2, 2)), np.zeros((17, 4, 4))
    high[:, 1, 2] = 1
    peaks = find_peaks(low, high)
    assert peaks.shape == (17, 30, 15)
    assert ((peaks[..., 0] > 0).sum(1) == 1).all()
