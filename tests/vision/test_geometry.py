from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmserve.errors import ConfigError, UnsupportedPicture
from mmserve.types import Grid
from tests.vision.files import noise
from vision.geometry import QwenGeometry

PUBLISHED = QwenGeometry(14, 2, 56 * 56, 12_845_056)


def by_transformers(geometry: QwenGeometry, width: int, height: int) -> Grid:
    block = geometry.patch_size * geometry.merge_size
    h, w = smart_resize(height, width, block, geometry.min_pixels, geometry.max_pixels)
    return Grid(1, h // geometry.patch_size, w // geometry.patch_size)


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_the_published_geometry_is_smart_resize(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(UnsupportedPicture, match="crop it"):
            PUBLISHED.grid(width, height)
    else:
        assert PUBLISHED.grid(width, height) == by_transformers(PUBLISHED, width, height)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([14, 16]),
    st.sampled_from([1, 2]),
    st.integers(1, 100_000),
    st.integers(0, 1_000_000),
)
def test_any_geometry_is_smart_resize(width: int, height: int, patch: int, merge: int, low: int, more: int) -> None:
    geometry = QwenGeometry(patch, merge, low, low + more)
    if max(width, height) <= 200 * min(width, height):
        grid = geometry.grid(width, height)
        assert grid == by_transformers(geometry, width, height)
        assert geometry.measure(width, height) == (grid, geometry.rows(grid))
        assert min(grid) >= 1
        assert geometry.rows(grid) * merge**2 == grid.t * grid.h * grid.w
        assert geometry.resized(grid) == (grid.w * patch, grid.h * patch)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (29, 27), (64, 64), (1, 200), (300, 100), (1000, 1000), (13, 999)])
def test_the_processor_itself_agrees(size: tuple[int, int]) -> None:
    geometry = QwenGeometry(14, 2, 4 * 784, 64 * 784)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 4 * 784, "longest_edge": 64 * 784})
    batch = processor(images=[noise(*size)], return_tensors="pt")
    assert [tuple(grid) for grid in batch["image_grid_thw"].tolist()] == [geometry.grid(*size)]


@pytest.mark.parametrize(("size", "taken"), [((200, 1), True), ((201, 1), False), ((2, 401), False), ((2, 400), True)])
def test_the_aspect_ratio_is_bounded_as_in_transformers(size: tuple[int, int], taken: bool) -> None:
    if taken:
        assert PUBLISHED.grid(*size) == by_transformers(PUBLISHED, *size)
    else:
        with pytest.raises(ValueError, match="aspect ratio"):
            by_transformers(PUBLISHED, *size)
        with pytest.raises(UnsupportedPicture, match=f"{size[0]}×{size[1]}"):
            PUBLISHED.grid(*size)


def test_a_square_megapixel_has_as_many_rows_as_published() -> None:
    assert PUBLISHED.rows(PUBLISHED.grid(1008, 1008)) == 1296


SPELLINGS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({}, (56 * 56, 28 * 28 * 1280)),
    ({"min_pixels": 3136, "max_pixels": 50_176}, (3136, 50_176)),
    ({"size": {"shortest_edge": 3136, "longest_edge": 50_176}}, (3136, 50_176)),
    ({"size": {"shortest_edge": 3136, "longest_edge": 50_176}, "min_pixels": 784}, (784, 50_176)),
    ({"size": {"min_pixels": 1, "max_pixels": 2}, "min_pixels": 3136, "max_pixels": 50_176}, (3136, 50_176)),
    ({"max_pixels": 50_176}, (3136, 50_176)),
    ({"min_pixels": None, "max_pixels": 50_176, "size": None}, (3136, 50_176)),
]


@pytest.mark.parametrize(("settings_", "expected"), SPELLINGS)
def test_the_limits_are_read_as_transformers_reads_them(settings_: dict[str, Any], expected: tuple[int, int]) -> None:
    geometry = QwenGeometry.from_configs({}, settings_)
    assert (geometry.min_pixels, geometry.max_pixels) == expected
    given_ = {name: value for name, value in settings_.items() if value is not None}
    # A copy of the defaults: some versions of transformers write the limits into their class's own dictionary.
    given_.setdefault("size", {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280})
    processor = Qwen2VLImageProcessor(**given_)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == expected


def test_patches_are_read_from_both_files_which_must_agree() -> None:
    geometry = QwenGeometry.from_configs(
        {"patch_size": 16, "spatial_merge_size": 1}, {"patch_size": 16, "merge_size": 1}
    )
    assert (geometry.patch_size, geometry.merge_size) == (16, 1)
    with pytest.raises(ConfigError, match="patches of 14 merged by 2, but the vision tower expects 16 merged by 2"):
        QwenGeometry.from_configs({"patch_size": 16}, {})


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"size": {"height": 100, "width": 100}}, "shortest_edge and longest_edge"),
        ({"size": {"min_pixels": 1, "max_pixels": 2}}, "shortest_edge and longest_edge"),
        ({"do_resize": False}, "do_resize"),
        ({"min_pixels": 100, "max_pixels": 99}, "make no sense"),
        ({"patch_size": 0}, "patches of 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        QwenGeometry.from_configs({}, settings_)
