"""What one step does, as frozen values: the scheduler's output and the runner's input. No torch."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from mmserve.cache.tier import SlotCopy
from mmserve.sampling import SamplingParams
from mmserve.types import ContentHash, IntArray, MediaItem


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Rows ``first_row <= r < first_row + count`` of a media item stand at offset ``at`` of a chunk."""

    content: ContentHash
    first_row: int
    count: int
    at: int


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What choosing one token takes.

    ``position`` is the absolute position of the token being chosen, the noise's counter; ``banned`` ids
    may not be chosen (what ``min_tokens`` forbids). ``prompt_ids`` and ``output_ids`` are for the penalties.
    """

    params: SamplingParams
    seed: int
    position: int
    prompt_ids: IntArray = field(repr=False)
    output_ids: SequenceOf[int] = field(repr=False)
    banned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some consecutive new tokens of one sequence: a piece of prefill, or the one token of a decode.

    ``token_ids`` is ``(k,)``, ``positions`` ``(axes, k)``, ``slots`` ``(start + k,)``: the KV slots of the whole
    context with the new tokens' at the end. ``row`` is set where the last position's logits choose a token. With
    ``scored``, offsets ``low <= i < high`` of the chunk, the log-probability of each next known token is wanted:
    ``targets``, ``(high - low,)``, and the ``top_logprobs`` best beside it.
    """

    sequence_id: str
    start: int
    token_ids: IntArray
    positions: IntArray
    slots: IntArray
    media: tuple[RowSlice, ...] = ()
    row: SamplingRow | None = None
    scored: tuple[int, int] = (0, 0)
    targets: IntArray | None = None
    top_logprobs: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class SchedulerOutput:
    """One step, in the order in which the runner takes it: save slots to the second tier before they are written
    again, fetch from it, forget rows and what was prepared, prepare media (in threads, for later steps), encode media,
    then run prefill and decode chunks together. ``fetch`` is by sequence; what it brings is used from the next step on.
    """

    save: tuple[SlotCopy, ...] = ()
    fetch: tuple[tuple[str, SlotCopy], ...] = ()
    forget: tuple[ContentHash, ...] = ()
    prepare: tuple[MediaItem, ...] = ()
    encode: tuple[ContentHash, ...] = ()
    prefill: tuple[Chunk, ...] = ()
    decode: tuple[Chunk, ...] = ()

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.prefill + self.decode

    @property
    def for_device(self) -> bool:
        """Whether the runner has anything to do."""
        return bool(self.save or self.fetch or self.forget or self.encode or self.prefill or self.decode)
