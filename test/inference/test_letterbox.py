"""Where pixels go: letterbox there and back, against pictures whose content is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.letterbox import Letterbox

sides = st.integers(1, 3000)
images = st.tuples(sides, sides)
inputs = st.tuples(st.integers(1, 24), st.integers(1, 24)).map(lambda s: (32 * s[0], 32 * s[1]))


@given(images, inputs, st.floats(-100, 3100), st.floats(-100, 3100))
def test_undo_is_the_inverse_of_project(image_hw, size_hw, x, y) -> None:
    box = Letterbox.fit(image_hw, size_hw)
    xy = np.array([x, y], np.float64)
    pixel = 1 / min(box.scale_xy)  # one input pixel in image pixels
    np.testing.assert_allclose(box.undo(box.project(xy)), xy, atol=1e-3 * max(1, pixel))


@given(images, inputs)
def test_the_image_lies_inside_centred_with_its_aspect(image_hw, size_hw) -> None:
    box = Letterbox.fit(image_hw, size_hw)
    (height, width), (x, y) = box.inner_hw, box.offset_xy
    assert height == size_hw[0] or width == size_hw[1]
    assert abs(2 * x + width - size_hw[1]) <= 1 and abs(2 * y + height - size_hw[0]) <= 1
    assert x >= 0 and y >= 0 and height >= 1 and width >= 1
    exact = min(size_hw[0] / image_hw[0], size_hw[1] / image_hw[1])
    assert abs(height - max(1, exact * image_hw[0])) <= 0.5 + 1e-9
    assert abs(width - max(1, exact * image_hw[1])) <= 0.5 + 1e-9
    # The image's outer edges are the inner rectangle's outer edges.
    edges = np.array([[-0.5, -0.5], [image_hw[1] - 0.5, image_hw[0] - 0.5]])
    expected = [[x - 0.5, y - 0.5], [x + width - 0.5, y + height - 0.5]]
    np.testing.assert_allclose(box.project(edges), expected, atol=1e-3)


def dot(image_hw: tuple[int, int], x: float, y: float, sigma: float) -> np.ndarray:
    grid_y, grid_x = np.ogrid[: image_hw[0], : image_hw[1]]
    bell = np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * sigma**2))
    return np.repeat((bell * 255).round().astype(np.uint8)[..., None], 3, 2)


def centre(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(60, 900), st.integers(60, 900)),
    inputs,
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_drawn_dot_arrives_where_project_says(image_hw, size_hw, u, v) -> None:
    box = Letterbox.fit(image_hw, size_hw)
    sigma = max(3.0, 3.0 / min(box.scale_xy))
    free = np.array([image_hw[1], image_hw[0]]) - 1 - 9 * sigma
    assume((free > 0).all())
    x, y = 4.5 * sigma + free * (u, v)
    image = dot(image_hw, x, y, sigma)
    there = centre(box.apply(image))
    # A twentieth of a pixel, or what a fiftieth of the image's becomes where that is enlarged.
    within = max(0.05, 0.02 * max(box.scale_xy))
    np.testing.assert_allclose(there, box.project(np.array([x, y])), atol=within)
    back = box.undo(there)
    np.testing.assert_allclose(back, [x, y], atol=0.05 * max(1, 1 / min(box.scale_xy)))


@pytest.mark.parametrize("image_hw", [(480, 640), (1080, 1920), (37, 501), (300, 20), (64, 96)])
def test_around_the_image_it_is_black(image_hw: tuple[int, int]) -> None:
    box = Letterbox.fit(image_hw, (64, 96))
    out = np.full((64, 96, 3), 77, np.uint8)
    result = box.apply(np.full((*image_hw, 3), 255, np.uint8), out)
    assert result is out
    (height, width), (x, y) = box.inner_hw, box.offset_xy
    expected = np.zeros((64, 96, 3), np.uint8)
    expected[y : y + height, x : x + width] = 255
    np.testing.assert_array_equal(out, expected)


def test_fine_stripes_average_out_instead_of_vanishing() -> None:
    image = np.zeros((960, 1280, 3), np.uint8)
    image[:, ::4] = 255
    out = Letterbox.fit((960, 1280), (96, 128)).apply(image)
    assert abs(out.astype(float).mean() - 255 / 4) < 4
    assert out.max() < 140


def test_a_fitting_image_is_copied_pixel_by_pixel_whatever_its_strides() -> None:
    big = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    box = Letterbox.fit((64, 96), (64, 96))
    np.testing.assert_array_equal(box.apply(big[::2, ::-2]), big[::2, ::-2])


@pytest.mark.parametrize("image_hw", [(70, 90), (200, 300)])
def test_strides_do_not_matter(image_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    view = rng.integers(0, 256, (2 * image_hw[0], image_hw[1], 3), np.uint8)[::-2, :, ::-1]
    box = Letterbox.fit(image_hw, (64, 96))
    np.testing.assert_array_equal(box.apply(view), box.apply(view.copy()))


def test_wrong_images_are_refused() -> None:
    with pytest.raises(EhrnetError, match="cannot be fitted"):
        Letterbox.fit((0, 10), (32, 32))
    box = Letterbox.fit((10, 10), (32, 32))
    with pytest.raises(EhrnetError, match="uint8"):
        box.apply(np.zeros((10, 10, 3), np.float32))
    with pytest.raises(EhrnetError, match=r"\(10, 10, 3\)"):
        box.apply(np.zeros((10, 11, 3), np.uint8))
