"""Where the letterbox puts pixels, against dots drawn at known places."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.letterbox import Letterbox

HW = tuple[int, int]
SIDES = st.integers(1, 3000)
INPUT_SIDES = st.integers(1, 24).map(lambda n: 32 * n)
SIZES = [
    ((480, 640), (384, 512)),
    ((1080, 1920), (384, 704)),
    ((1079, 1919), (384, 704)),
    ((1081, 721), (256, 256)),
    ((2160, 3840), (224, 384)),
    ((100, 77), (320, 320)),
]


def dot(image_hw: HW, centre: np.ndarray, sigma: float) -> np.ndarray:
    """(h, w, 3) uint8 with a soft white dot on black."""
    y, x = np.ogrid[: image_hw[0], : image_hw[1]]
    value = 250 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
    return np.repeat(value.round().astype(np.uint8)[..., None], 3, 2)


def centroid(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize(("image_hw", "size_hw"), SIZES)
def test_a_dot_lands_where_the_letterbox_says(image_hw: HW, size_hw: HW) -> None:
    box = Letterbox.fit(image_hw, size_hw)
    sigma = max(3.0, 2.0 / box.scale)
    for share in ((0.3, 0.4), (0.62, 0.55)):
        centre = np.array(share) * (image_hw[1], image_hw[0])
        found = centroid(box.apply(dot(image_hw, centre, sigma)))
        np.testing.assert_allclose(found, box.project(centre), atol=0.05)
        np.testing.assert_allclose(box.undo(found), centre, atol=0.05 / box.scale)


@given(SIDES, SIDES, INPUT_SIDES, INPUT_SIDES, st.floats(0, 1), st.floats(0, 1))
def test_undo_and_project_are_inverse_for_any_aspect(
    h: int, w: int, height: int, width: int, u: float, v: float
) -> None:
    box = Letterbox.fit((h, w), (height, width))
    xy = np.array([u * (w - 1), v * (h - 1)])
    there = box.project(xy)
    assert (there > -0.51).all() and (there < np.array([width, height]) - 0.49).all()
    np.testing.assert_allclose(box.undo(there), xy, atol=1e-3 * (1 + 1 / min(box.scale_xy)))
    # As large as fits, in the middle.
    assert box.inner_hw[0] == height or box.inner_hw[1] == width
    assert abs(2 * box.offset_xy[0] + box.inner_hw[1] - width) <= 1
    assert abs(2 * box.offset_xy[1] + box.inner_hw[0] - height) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 6), st.integers(1, 6))
def test_fills_the_inside_and_blackens_the_border(h: int, w: int, rows: int, columns: int) -> None:
    size_hw = 32 * rows, 32 * columns
    box = Letterbox.fit((h, w), size_hw)
    out = np.full((*size_hw, 3), 77, np.uint8)
    assert box.apply(np.full((h, w, 3), 200, np.uint8), out) is out
    (height, width), (x, y) = box.inner_hw, box.offset_xy
    expected = np.zeros_like(out)
    expected[y : y + height, x : x + width] = 200
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("image_hw", [(1080, 1920), (1083, 1917), (720, 1280), (480, 640)])
@pytest.mark.parametrize("size_hw", [(384, 704), (192, 256), (64, 96)])
def test_nothing_vanishes_in_shrinking(image_hw: HW, size_hw: HW) -> None:
    # A bar two input pixels wide arrives with about its share of light wherever it stands.
    box = Letterbox.fit(image_hw, size_hw)
    bar = int(2 / box.scale)
    share = 255 * 3 * box.inner_hw[0] * bar * box.scale
    for left in range(image_hw[1] // 2, image_hw[1] // 2 + bar + 1):
        image = np.zeros((*image_hw, 3), np.uint8)
        image[:, left : left + bar] = 255
        assert 0.5 * share < box.apply(image).astype(int).sum() < 1.5 * share


def test_shrinking_is_close_to_averaging_areas() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (68, 120, 3), np.uint8)
    image = cv2.resize(coarse, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    box = Letterbox.fit((1080, 1920), (288, 512))
    truth = cv2.resize(image, (512, 288), interpolation=cv2.INTER_AREA)
    assert np.abs(box.apply(image).astype(int) - truth).mean() < 2


def test_views_and_given_memory() -> None:
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 256, (97, 140, 4), np.uint8)
    box = Letterbox.fit((48, 70), (64, 96))
    for view in (whole[1::2, ::2, :3], whole[96:0:-2, ::2, 2::-1]):
        expected = box.apply(np.ascontiguousarray(view))
        memory = rng.integers(0, 256, (2, 64, 96, 3), np.uint8)
        box.apply(view, memory[1])
        np.testing.assert_array_equal(memory[1], expected)
        assert expected.flags.c_contiguous


def test_same_size_is_the_image_itself() -> None:
    image = np.random.default_rng(2).integers(0, 256, (64, 96, 3), np.uint8)
    box = Letterbox.fit((64, 96), (64, 96))
    np.testing.assert_array_equal(box.apply(image), image)
    np.testing.assert_array_equal(box.undo(np.array([[0.0, 0.0], [3.5, 2]])), [[0, 0], [3.5, 2]])


def test_empty_and_wrong_images_are_refused() -> None:
    with pytest.raises(EhrnetError, match="0x480"):
        Letterbox.fit((480, 0), (384, 512))
    box = Letterbox.fit((480, 640), (384, 512))
    for wrong in (np.zeros((480, 640), np.uint8), np.zeros((640, 480, 3), np.uint8)):
        with pytest.raises(EhrnetError, match="expected an image"):
            box.apply(wrong)
    with pytest.raises(EhrnetError, match="float32"):
        box.apply(np.zeros((480, 640, 3), np.float32))
