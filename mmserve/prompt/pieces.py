"""The pieces that a prompt is put together from, and what is known of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from mmserve.prompt.layout import Layout, Rows
from mmserve.types import IntArray, MediaItem, MediaRange, Picture, Prompt


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive prompt tokens: text and special tokens, or (``item`` set) places of that media item's next rows."""

    ids: Sequence[int]
    item: int | None = None
    special: bool = False


def rows_piece(pad_id: int, rows: Rows, first: int) -> Piece:
    """Places of rows of what a mark stands for, whose first item is ``first``."""
    return Piece([pad_id] * rows.count, item=first + rows.item)


def expanded_pieces(ids: Sequence[int], layout: Layout, pictures: Sequence[Picture]) -> list[Piece] | None:
    """``ids`` as pieces where they have just the runs of ``pad_id`` that the pictures' rows need; else ``None``."""
    runs = [(is_pad, list(run)) for is_pad, run in groupby(ids, lambda id_: id_ == layout.pad_id)]
    wanted = [
        (segment.count, k)
        for k, picture in enumerate(pictures)
        for segment in layout.expand(picture)
        if isinstance(segment, Rows)
    ]
    if [len(run) for is_pad, run in runs if is_pad] != [count for count, _ in wanted]:
        return None
    owners = iter(wanted)
    return [Piece(run, item=next(owners)[1] if is_pad else None) for is_pad, run in runs]


def assembled(
    pieces: Iterable[Piece],
    length: int,
    media: tuple[MediaItem, ...],
    *,
    system_tokens: int = 0,
    opens_answer: bool = False,
) -> Prompt:
    """The prompt of ``length`` tokens that the pieces are, one after another."""
    token_ids: IntArray = np.empty(length, dtype=np.int64)
    ranges = []
    at = 0
    for piece in pieces:
        end = at + len(piece.ids)
        token_ids[at:end] = piece.ids
        if piece.item is not None:
            ranges.append(MediaRange(at, end, piece.item))
        at = end
    token_ids.setflags(write=False)
    return Prompt(token_ids, media, tuple(ranges), system_tokens, opens_answer)


def system_tokens(pieces: Sequence[Piece], roles: Sequence[str], openings: int) -> int:
    """How many tokens come before the first turn that is not the system's, a default one of the template included.

    Turns are told by the special token that opens the first of them. 0 where the template has no such token.
    """
    opening = next((piece.ids for piece in pieces if piece.special and piece.item is None), None)
    starts: list[int] = []
    at = 0
    for piece in pieces:
        if piece.special and piece.ids == opening:
            starts.append(at)
        at += len(piece.ids)
    given = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    by_template = len(starts) - len(roles) - openings
    system = given + by_template
    return starts[system] if by_template in (0, 1) and system < len(starts) else 0
