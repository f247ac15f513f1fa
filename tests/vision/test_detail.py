"""How a wish for detail changes what a picture is cut into, and which wishes are refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

from mmserve.errors import InvalidField, UnsupportedPicture
from mmserve.types import Detail, Grid
from tests.checkpoints import tiny_qwen2_vl
from vision.detail import LOW_PIXELS, WholeGeometry, lower, unchanged, within_limits
from vision.geometry import QwenGeometry
from vision.pixels import QwenPixels, processor_for
from vision.tiles import AnyResGeometry, SquareGeometry

BLOCK = 28 * 28
WIDE = QwenGeometry(14, 2, 4 * BLOCK, 1024 * BLOCK)


def limits(geometry: QwenGeometry, detail: Detail) -> tuple[int, int]:
    found = within_limits(geometry, detail)
    assert isinstance(found, QwenGeometry)
    return found.min_pixels, found.max_pixels


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"level": "medium"}, "detail"),
        ({"level": ""}, "detail"),
        ({"min_pixels": 0}, "min_pixels"),
        ({"max_pixels": -1}, "max_pixels"),
        ({"max_pixels": 10**30}, "max_pixels"),
        ({"max_pixels": 1000.5}, "max_pixels"),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidField) as caught:
        Detail(**fields)  # type: ignore[arg-type]
    assert caught.value.param == named


def test_what_is_said_on_the_wire_is_what_differs_from_the_default() -> None:
    assert Detail().said() == {}
    assert Detail("low", max_pixels=5).said() == {"detail": "low", "max_pixels": 5}


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        (Detail("low"), (4 * BLOCK, LOW_PIXELS)),
        (Detail(max_pixels=10 * BLOCK), (4 * BLOCK, 10 * BLOCK)),
        (Detail(max_pixels=2 * BLOCK), (2 * BLOCK, 2 * BLOCK)),
        (Detail(min_pixels=500 * BLOCK), (500 * BLOCK, 1024 * BLOCK)),
        (Detail("low", min_pixels=500 * BLOCK), (500 * BLOCK, 500 * BLOCK)),
        (Detail("low", max_pixels=900 * BLOCK), (4 * BLOCK, 900 * BLOCK)),
        (Detail("high", min_pixels=BLOCK, max_pixels=BLOCK), (BLOCK, BLOCK)),
    ],
)
def test_numbers_count_before_the_level_and_the_models_other_limit(detail: Detail, expected: tuple[int, int]) -> None:
    assert limits(WIDE, detail) == expected


@pytest.mark.parametrize("detail", [Detail(), Detail("auto"), Detail("high"), Detail(max_pixels=1024 * BLOCK)])
def test_a_wish_without_effect_leaves_the_geometry_and_so_the_identity_alone(detail: Detail) -> None:
    assert within_limits(WIDE, detail) == WIDE
    small = QwenGeometry(14, 2, 4 * BLOCK, 16 * BLOCK)
    assert within_limits(small, Detail("low")) == small


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
@pytest.mark.parametrize("value", [1, BLOCK - 1, 1024 * BLOCK + 1, 2**40])
def test_the_models_own_limits_hold(name: str, value: int) -> None:
    with pytest.raises(InvalidField, match=r"between 784 and 802,816 pixels") as caught:
        within_limits(WIDE, Detail(**{name: value}))  # type: ignore[arg-type]
    assert caught.value.param == name


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    least=st.integers(BLOCK, 1024 * BLOCK),
    most=st.integers(BLOCK, 1024 * BLOCK),
)
@settings(max_examples=300, deadline=None)
def test_no_wish_makes_a_picture_larger_than_the_model_takes(width: int, height: int, least: int, most: int) -> None:
    """Blocks are rounded up where a picture grows, which without a ceiling would go beyond the model's limit."""
    geometry = within_limits(WIDE, Detail("auto", min(least, most), max(least, most)))
    try:
        grid, rows = geometry.measure(width, height)
    except UnsupportedPicture:
        return
    assert rows * BLOCK <= WIDE.max_pixels
    assert rows == grid.h * grid.w // 4 > 0


def test_a_picture_that_would_outgrow_the_model_is_refused_with_the_way_out() -> None:
    geometry = within_limits(WIDE, Detail(min_pixels=1024 * BLOCK))
    with pytest.raises(UnsupportedPicture, match=r"of 1×150 pixels has more than the 802,816 .* lower min_pixels"):
        geometry.measure(1, 150)


def test_families_of_tiles_leave_them_out_at_low_detail() -> None:
    tiles, whole = AnyResGeometry(28, 2, ((56, 56),)), WholeGeometry(2)
    adapt = lower(whole)
    assert adapt(tiles, Detail("low", max_pixels=1)) == whole
    assert adapt(tiles, Detail("high", min_pixels=1)) == tiles
    assert whole.measure(1, 10_000) == (Grid(1, 2, 2), 5)
    square = SquareGeometry(2, 0)
    assert unchanged(square, Detail("low", 1, 1)) is square
    assert within_limits(square, Detail("low", 1, 1)) is square


def test_pixels_and_rows_equal_transformers_at_random_limits(tmp_path: Path) -> None:
    """The header's promise is what the processor makes, and the pixels are those of transformers' own limits."""
    tiny_qwen2_vl(tmp_path, preprocessor={"min_pixels": WIDE.min_pixels, "max_pixels": WIDE.max_pixels})
    ours, rng = QwenPixels(tmp_path, WIDE), random.Random(0)
    for _ in range(40):
        least, most = sorted(int(BLOCK * 256 ** rng.random()) for _ in range(2))
        size = int(400 ** rng.random()) + 3, int(400 ** rng.random()) + 3
        detail = Detail(rng.choice(("auto", "low", "high")), least, most)
        geometry = within_limits(WIDE, detail)
        try:
            grid, _ = geometry.measure(*size)
        except UnsupportedPicture:
            continue
        picture = Image.effect_noise(size, 80).convert("RGB")
        made = processor_for(ours, detail)(picture, grid)
        theirs = Qwen2VLImageProcessor(size={"shortest_edge": least, "longest_edge": most})
        expected = theirs(images=[picture], return_tensors="pt")
        assert tuple(made.grid) == tuple(expected["image_grid_thw"][0].tolist())
        assert torch.equal(made.values, expected["pixel_values"])
    assert processor_for(ours, Detail())(picture, WIDE.grid(*size)).grid == WIDE.grid(*size)
