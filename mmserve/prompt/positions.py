"""Positions of a prompt's tokens: one axis, or M-RoPE's three (Qwen2-VL, arXiv:2409.12191, 2.1)."""

from __future__ import annotations

import numpy as np

from mmserve.types import Grid, IntArray, Picture, Prompt
from vision.video import VideoBlock


def plain_positions(prompt: Prompt) -> tuple[IntArray, int]:
    """Every token counts, a picture's rows too: int64 of shape (1, n), and the next token's position."""
    return np.arange(len(prompt), dtype=np.int64)[None], len(prompt)


def mrope_positions(prompt: Prompt, merge_size: int) -> tuple[IntArray, int]:
    """Temporal, height and width position of every prompt token, int64 of shape (3, n), and the next token's position.

    Text counts up on all three axes. A picture's rows keep its start on the time axis and add their row and column (in
    merged patches) on the others; the text after it goes on after the larger of its two sides. So do a video's blocks,
    all from the video's start, each its number of intervals later on the time axis. Positions depend on the whole
    prompt only, never on how much of it is cached. Equal to transformers' ``get_rope_index`` of Qwen2-VL and
    Qwen2.5-VL, in float32 where that is.

    Each item must own one range: this family has no tiles.
    """
    positions = np.empty((3, len(prompt)), dtype=np.int64)
    at, next_position, begin = 0, 0, 0
    for start, end, number in prompt.ranges:
        item = prompt.media[number]
        assert isinstance(item, Picture | VideoBlock)
        positions[:, at:start] = np.arange(next_position, next_position + start - at)
        next_position += start - at
        index, interval = (item.index, item.interval) if isinstance(item, VideoBlock) else (0, 1.0)
        if not index:
            begin = next_position
        positions[:, start:end] = _grid_positions(item.grid, merge_size) + begin
        positions[0, start:end] += int(np.float32(index) * np.float32(interval))
        next_position = begin + max(item.grid.h, item.grid.w) // merge_size
        at = end
    positions[:, at:] = np.arange(next_position, next_position + len(prompt) - at)
    return positions, next_position + len(prompt) - at


def _grid_positions(grid: Grid, merge_size: int) -> IntArray:
    axes = np.indices((grid.t, grid.h // merge_size, grid.w // merge_size), dtype=np.int64)
    return axes.reshape(3, -1)
