from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLForConditionalGeneration

from mmserve.checkpoint import Checkpoint
from mmserve.prompt import mrope_positions
from mmserve.types import ContentHash, Grid, ImageHeader, MediaRange, Picture, Prompt


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    return Qwen2VLForConditionalGeneration.from_pretrained(checkpoint.path).model


def prompt_of(texts: list[int], grids: list[Grid]) -> Prompt:
    """A prompt of ``texts[0]`` text tokens, a picture, ``texts[1]`` text tokens, and so on."""
    pictures, ranges, at = [], [], 0
    for index, grid in enumerate(grids):
        at += texts[index]
        rows = grid.t * grid.h * grid.w // 4
        pictures.append(Picture(b"", ImageHeader("PNG", 1, 1), ContentHash(bytes([index])), grid, rows))
        ranges.append(MediaRange(at, at + rows, index))
        at += rows
    return Prompt(np.zeros(at + texts[len(grids)], np.int64), tuple(pictures), tuple(ranges))


sizes = st.integers(1, 9).map(lambda n: 2 * n)
grids = st.lists(st.builds(Grid, st.just(1), sizes, sizes), max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=4, max_size=4), grids)
def test_positions_are_those_of_transformers(model: Any, texts: list[int], grids: list[Grid]) -> None:
    prompt = prompt_of(texts, grids)
    types = torch.zeros(1, len(prompt), dtype=torch.int)
    for start, end, _ in prompt.ranges:
        types[0, start:end] = 1
    expected, delta = model.get_rope_index(
        torch.zeros(1, len(prompt), dtype=torch.long), types, image_grid_thw=torch.tensor(grids)
    )
    positions, next_position = mrope_positions(prompt, 2)
    assert positions.dtype == np.int64
    assert positions.tolist() == expected[:, 0].tolist()
    assert next_position == len(prompt) + delta.item()


def test_a_worked_example() -> None:
    positions, next_position = mrope_positions(prompt_of([2, 1], [Grid(1, 4, 6)]), 2)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert next_position == 6


def test_pictures_may_stand_at_the_edges_and_side_by_side() -> None:
    positions, next_position = mrope_positions(prompt_of([0, 0, 0], [Grid(1, 4, 2), Grid(1, 2, 2)]), 2)
    assert positions.tolist() == [[0, 0, 2], [0, 1, 2], [0, 0, 2]]
    assert next_position == 3


def test_text_alone_and_nothing() -> None:
    assert mrope_positions(prompt_of([3], []), 2)[0].tolist() == [[0, 1, 2]] * 3
    positions, next_position = mrope_positions(prompt_of([0], []), 2)
    assert (positions.shape, next_position) == ((3, 0), 0)


def test_pictures_of_equal_rows_and_other_grids_have_other_positions() -> None:
    shapes = [Grid(1, 4, 16), Grid(1, 8, 8), Grid(1, 16, 4)]
    found = [mrope_positions(prompt_of([1, 1], [grid]), 2)[0].tobytes() for grid in shapes]
    assert len(set(found)) == 3
