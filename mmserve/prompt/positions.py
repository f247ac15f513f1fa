"""Positions of a prompt's tokens: one axis, or M-RoPE's three (Qwen2-VL, arXiv:2409.12191, 2.1)."""

from __future__ import annotations

import numpy as np

from mmserve.types import Grid, IntArray, Picture, Prompt


def plain_positions(prompt: Prompt) -> tuple[IntArray, int]:
    """Every token counts, a picture's rows too: int64 of shape (1, n), and the next token's position."""
    return np.arange(len(prompt), dtype=np.int64)[None], len(prompt)


def mrope_positions(prompt: Prompt, merge_size: int) -> tuple[IntArray, int]:
    """Temporal, height and width position of every prompt token, int64 of shape (3, n), and the next token's position.

    Text counts up on all three axes. A picture's rows keep its start on the time axis and add their row and column (in
    merged patches) on the others; the text after it goes on after the larger of its two sides. Positions depend on
    the whole prompt only, never on how much of it is cached. Equal to transformers' ``Qwen2VLModel.get_rope_index``.

    Each picture must own one range: this family has no tiles.
    """
    positions = np.empty((3, len(prompt)), dtype=np.int64)
    at, next_position = 0, 0
    for start, end, item in prompt.ranges:
        picture = prompt.media[item]
        assert isinstance(picture, Picture)
        grid = picture.grid
        positions[:, at:start] = np.arange(next_position, next_position + start - at)
        next_position += start - at
        positions[:, start:end] = _picture_positions(grid, merge_size) + next_position
        next_position += max(grid.h, grid.w) // merge_size
        at = end
    positions[:, at:] = np.arange(next_position, next_position + len(prompt) - at)
    return positions, next_position + len(prompt) - at


def _picture_positions(grid: Grid, merge_size: int) -> IntArray:
    axes = np.indices((grid.t, grid.h // merge_size, grid.w // merge_size), dtype=np.int64)
    return axes.reshape(3, -1)
