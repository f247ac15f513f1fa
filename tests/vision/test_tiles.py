"""How LLaVA's pictures are cut: against transformers' own functions, and what is refused before it fills the memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from mmserve.errors import ConfigError, UnsupportedPicture
from mmserve.types import Grid
from vision.tiles import AnyResGeometry, SquareGeometry, anyres_geometry, square_geometry, tile_settings

NEXT = AnyResGeometry(336, 24, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))
ONEVISION = AnyResGeometry(384, 27, tuple((384 * h, 384 * w) for h in range(1, 7) for w in range(1, 7)), most=9)
sides = st.one_of(st.integers(1, 40), st.integers(1, 4000))


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.sampled_from([NEXT, ONEVISION]))
def test_tiles_and_lines_are_those_of_transformers(width: int, height: int, geometry: AnyResGeometry) -> None:
    down, across = geometry.tiles(width, height)
    pinpoints = list(geometry.resolutions)
    assert (down * geometry.tile, across * geometry.tile) == select_best_resolution((height, width), pinpoints)
    grid, rows = geometry.measure(width, height)
    tiles = image_size_to_num_patches((height, width), pinpoints, geometry.tile)
    assert grid == Grid(tiles, geometry.side, geometry.side)
    left = unpad_image(torch.zeros(1, down * geometry.side, across * geometry.side), (height, width)).shape[1:]
    above, beside = geometry.padding(width, height)
    assert (down * geometry.side - 2 * above, across * geometry.side - 2 * beside) == tuple(left)
    lines, columns = geometry.shape(width, height)
    if not geometry.most:
        assert (lines, columns) == tuple(left)
    assert lines * columns <= left[0] * left[1]
    assert rows == geometry.side**2 + lines * (columns + 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(300, 4000), st.integers(300, 4000))
def test_onevision_is_scaled_down_to_about_nine_tiles(width: int, height: int) -> None:
    lines, columns = ONEVISION.shape(width, height)
    assert lines * columns <= 9 * 27**2 * 1.1**2
    above, beside = ONEVISION.padding(width, height)
    down, across = ONEVISION.tiles(width, height)
    before = (down * 27 - 2 * above) * (across * 27 - 2 * beside)
    if before <= 9 * 27**2:
        assert lines * columns == before
    if before > 9 * 27**2 * 1.21:
        assert lines * columns == pytest.approx(9 * 27**2, rel=2 / math.sqrt(min(lines, columns)))


def test_what_is_published_of_sizes() -> None:
    assert SquareGeometry(24, 0).measure(640, 480) == (Grid(1, 24, 24), 576)
    assert NEXT.measure(672, 672) == (Grid(5, 24, 24), 576 + 48 * 49)
    assert ONEVISION.measure(384, 384) == (Grid(2, 27, 27), 729 + 27 * 28)


@pytest.mark.parametrize(
    ("size", "taken"), [((1000, 1), True), ((1, 1000), True), ((1, 1001), False), ((2003, 2), False)]
)
def test_a_cropped_picture_may_not_be_a_thread(size: tuple[int, int], taken: bool) -> None:
    """Resized by its short side, it would fill the memory before it is cropped."""
    if taken:
        assert SquareGeometry(24, 0).measure(*size)[1] == 576
    else:
        with pytest.raises(UnsupportedPicture, match=f"{size[0]}×{size[1]} .* crop it"):
            SquareGeometry(24, 0).measure(*size)


def test_a_padded_picture_may_not_be_too_long() -> None:
    beside = SquareGeometry(27, 1, padded=True)
    assert beside.measure(16_384, 1)[1] == 730
    with pytest.raises(UnsupportedPicture, match="scale it down"):
        beside.measure(1, 16_385)


CONFIG: dict[str, Any] = {
    "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
    "image_grid_pinpoints": [[336, 672]],
}


@pytest.mark.parametrize(
    "processor",
    [
        {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 400}},
        {"crop_size": 336, "do_center_crop": True},
        {"crop_size": {"height": 224, "width": 224}, "do_center_crop": False, "size": {"height": 336, "width": 336}},
        {},
    ],
)
def test_the_processors_size_is_found(processor: dict[str, Any]) -> None:
    assert square_geometry(CONFIG, processor) == SquareGeometry(24, 0)
    assert anyres_geometry(CONFIG, processor) == AnyResGeometry(336, 24, ((336, 672),))


def test_class_tokens_and_what_is_left_out() -> None:
    full = CONFIG | {"vision_feature_select_strategy": "full"}
    siglip = full | {"vision_config": {**CONFIG["vision_config"], "model_type": "siglip_vision_model"}}
    assert tile_settings(CONFIG, {}).extra == tile_settings(siglip, {}).extra == 0
    assert tile_settings(full, {}).extra == 1
    assert square_geometry(full, {}).measure(5, 5)[1] == 577
    limited = siglip | {"vision_aspect_ratio": "anyres_max_9"}
    assert anyres_geometry(limited, {}).most == 9
    with pytest.raises(ConfigError, match="leave a row for each patch"):
        anyres_geometry(full, {})


def test_there_must_be_resolutions_of_whole_tiles() -> None:
    for resolutions in ((), ((336, 300),), ((0, 336),)):
        with pytest.raises(ConfigError, match="whole tiles"):
            AnyResGeometry(336, 24, resolutions)
