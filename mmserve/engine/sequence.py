"""Sequence: the mutable state of one request, the scheduler's alone."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto

import numpy as np

from mmserve.cache.key import Spans, build_key, first_rows, media_spans
from mmserve.cache.radix import Handle
from mmserve.cache.tier import Loan
from mmserve.engine.plan import Chunk, RowSlice, SamplingRow
from mmserve.types import ContentHash, IntArray, Request


class Phase(Enum):
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


class Sequence:
    """One request on its way.

    Positions ``< computed`` have keys and values in ``slots``; of these the first ``handle.length`` belong to the tree
    and the others, up to ``reserved``, to this sequence. ``wanted`` are media items whose rows are being made for
    it, ``held`` those whose rows it keeps in the encoder cache. ``loan`` is what a step is fetching for it from the
    second tier.
    """

    def __init__(
        self, request: Request, numbers: tuple[int, ...], positions: IntArray, next_position: int, arrival: int
    ) -> None:
        self.request = request
        self.numbers = numbers
        self.arrival = arrival
        self.seed = request.sampling.seed or 0
        self.spans: Spans = media_spans(request.prompt.ranges, numbers)
        self.phase = Phase.WAITING
        self.handle: Handle | None = None
        self.computed = 0
        self.reserved = 0
        self.outputs: list[int] = []
        self.wanted: set[ContentHash] = set()
        self.held: set[ContentHash] = set()
        self.started: set[ContentHash] = set()
        self.blocked_by: tuple[Sequence, int] | None = None
        self.loan: Loan | None = None
        self.looked_up = False
        self.cached_tokens: int | None = None
        self.cached_pictures = 0
        self._newest = 0
        self._positions = positions
        self._next_position = next_position
        self._first_rows = first_rows(request.prompt.ranges)
        self._key = build_key(request.prompt, numbers)
        self._ids = request.prompt.token_ids
        self._slots: IntArray = np.empty(0, dtype=np.int64)
        self._length = len(self._key)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def salt(self) -> str:
        return self.request.cache_salt

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    def __len__(self) -> int:
        """Known tokens: the prompt's and those generated so far."""
        return self._length

    @property
    def pending(self) -> int:
        return self._length - self.computed

    @property
    def in_prefill(self) -> bool:
        """Whether more than the tokens of the last ``append`` are to be computed before the next is chosen."""
        return self.pending > self._newest or not self.computed

    @property
    def reusable(self) -> int:
        """How many tokens a cached prefix may have: the next token's logits must be computed, or those to be scored."""
        if self.request.score_from is None:
            return self._length - 1
        return self.request.score_from - 1

    @property
    def key(self) -> IntArray:
        return self._key[: self._length]

    @property
    def reusable_key(self) -> IntArray:
        """The key as far as the first token that has to be computed, that one included."""
        return self._key[: self.reusable + 1]

    @property
    def slots(self) -> IntArray:
        return self._slots[: self.reserved]

    def append(self, tokens: Collection[int]) -> None:
        """Add generated tokens, whose keys and values are not computed yet: a chosen one and those that it forces."""
        length = self._length + len(tokens)
        while length > len(self._key):
            self._key = _grown(self._key)
            self._ids = _grown(self._ids)
        self._key[self._length : length] = self._ids[self._length : length] = tuple(tokens)
        self._length = length
        self._newest = len(tokens) if self.computed else 0
        self.outputs.extend(tokens)

    def reserve(self, slots: IntArray) -> None:
        """Slots for the tokens behind the reserved ones; they are this sequence's."""
        stop = self.reserved + len(slots)
        self._make_room(stop)
        self._slots[self.reserved : stop] = slots
        self.reserved = stop

    def adopt(self, prefix: IntArray) -> None:
        """Use the tree's slots for the handle's prefix."""
        self._make_room(len(prefix))
        self._slots[: len(prefix)] = prefix
        self.reserved = max(self.reserved, len(prefix))
        self.computed = max(self.computed, len(prefix))

    def own_slots(self) -> IntArray:
        assert self.handle is not None
        return self._slots[self.handle.length : self.reserved].copy()

    def drop_slots(self) -> None:
        self.handle = None
        self.computed = self.reserved = 0
        self._slots = np.empty(0, dtype=np.int64)

    def _make_room(self, length: int) -> None:
        if length > len(self._slots):
            wider: IntArray = np.empty(max(length, len(self._key)) + 64, dtype=np.int64)
            wider[: self.reserved] = self._slots[: self.reserved]
            self._slots = wider

    def media_from(self, position: int) -> list[int]:
        """Indices of the prompt's media items with a row at or behind ``position``, in order, each once."""
        found = {r.item: None for r in self.request.prompt.ranges if r.end > position}
        return list(found)

    def wanted_in_order(self) -> list[ContentHash]:
        """``wanted`` in the order of the prompt, in which a video's blocks are best decoded."""
        return [item.content for item in self.request.prompt.media if item.content in self.wanted]

    def chunk(self, tokens: int, banned: tuple[int, ...]) -> Chunk:
        """The next ``tokens`` tokens as work; their slots must be reserved."""
        start, stop = self.computed, self.computed + tokens
        assert stop <= self.reserved
        row, scored, targets = None, (0, 0), None
        if self.request.score_from is not None:
            low, high = max(start, self.request.score_from - 1), max(start, min(stop, self._length - 1))
            if low < high:
                scored, targets = (low - start, high - start), self._ids[low + 1 : high + 1]
        elif stop == self._length:
            row = SamplingRow(
                self.request.sampling, self.seed, stop, self._ids[: self.prompt_length], self.outputs, banned
            )
        return Chunk(
            sequence_id=self.id,
            start=start,
            token_ids=self._ids[start:stop],
            positions=self._positions_of(start, stop),
            slots=self._slots[:stop],
            media=tuple(self._slices(start, stop)) if start < self.prompt_length else (),
            row=row,
            scored=scored,
            targets=targets,
            top_logprobs=self.request.sampling.logprobs or 0,
        )

    def _positions_of(self, start: int, stop: int) -> IntArray:
        if stop <= self.prompt_length:
            return self._positions[:, start:stop]
        if start + 1 == stop:
            return np.full((len(self._positions), 1), self._next_position + start - self.prompt_length, dtype=np.int64)
        prompt = self._positions[:, start:stop]
        behind = np.arange(max(start, self.prompt_length), stop, dtype=np.int64) - self.prompt_length
        generated = np.broadcast_to(behind + self._next_position, (len(self._positions), len(behind)))
        return np.concatenate([prompt, generated], axis=1) if prompt.shape[1] else generated

    def _slices(self, start: int, stop: int) -> list[RowSlice]:
        slices = []
        for (low, high, item), first in zip(self.request.prompt.ranges, self._first_rows, strict=True):
            begin, end = max(low, start), min(high, stop)
            if begin < end:
                content = self.request.prompt.media[item].content
                slices.append(RowSlice(content, first + begin - low, end - begin, begin - start))
        return slices


def _grown(array: IntArray) -> IntArray:
    grown: IntArray = np.empty(max(64, 2 * len(array)), dtype=np.int64)
    grown[: len(array)] = array
    return grown
