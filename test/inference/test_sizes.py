"""Named input sizes and what is said about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrnet_model.errors import EhrnetError
from ehrnet_model.inference.sizes import best_named_size, border_share, parse_size, size_advice


@pytest.mark.parametrize(
    ("text", "short_side", "expected"),
    [
        ("square", 384, (384, 384)),
        ("4:3", 384, (384, 512)),
        ("16:9", 384, (384, 704)),  # 682.7
        ("3:4", 384, (512, 384)),
        ("9:16", 384, (704, 384)),
        ("1:1", 416, (416, 416)),
        ("4:3", 416, (416, 576)),  # 554.7
        ("16:9", 512, (512, 928)),  # 910.2
        ("384x512", 512, (384, 512)),
        (" 32X64 ", 512, (32, 64)),
    ],
)
def test_sizes(text: str, short_side: int, expected: tuple[int, int]) -> None:
    assert parse_size(text, short_side) == expected


@pytest.mark.parametrize(
    "text",
    ["", "round", "4:0", "0:3", "384", "384x", "384x500", "0x32", "-32x32", "4:3:2", "32*64"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(EhrnetError, match="size"):
        parse_size(text, 384)


def test_what_no_memory_holds_is_refused() -> None:
    assert parse_size("4096x32", 384) == (4096, 32)
    for text in ("4128x32", "32x4128", "100000x100000", "100:1"):
        with pytest.raises(EhrnetError, match="is too large: .* 4096 at most"):
            parse_size(text, 384)


@pytest.mark.parametrize(
    ("image_hw", "name"),
    [
        ((480, 640), "4:3"),
        ((1080, 1920), "16:9"),
        ((500, 500), "square"),
        ((1920, 1080), "9:16"),
        ((640, 480), "3:4"),
        ((100, 900), "16:9"),
    ],
)
def test_the_size_that_fits_a_camera(image_hw: tuple[int, int], name: str) -> None:
    assert best_named_size(image_hw, 384) == name


def test_border_share_by_hand() -> None:
    assert border_share((480, 640), (384, 512)) == 0
    assert border_share((480, 640), (512, 512)) == pytest.approx(1 / 4)
    assert border_share((1080, 1920), (384, 384)) == pytest.approx(1 - 216 / 384)


def test_advice_only_where_it_helps() -> None:
    text = size_advice((1080, 1920), (384, 384), 384)
    assert "44%" in text and "16:9" in text and "1920x1080" in text
    assert size_advice((480, 640), (384, 512), 384) == ""
    # Nothing named fits a panorama clearly better than 16:9.
    assert size_advice((100, 900), (384, 704), 384) == ""
    assert size_advice((1080, 1920), (384, 384), 0) == ""  # the model does not say


@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.sampled_from([384, 416, 448, 480, 512]),
)
def test_whatever_is_advised_is_the_least_border(image_hw, short_side) -> None:
    name = best_named_size(image_hw, short_side)
    best = border_share(image_hw, parse_size(name, short_side))
    for other in ("square", "4:3", "16:9", "3:4", "9:16"):
        assert best <= border_share(image_hw, parse_size(other, short_side)) + 1e-12
    assert 0 <= best < 1
