"""A device that computes hashes instead of attention, and the sequential truth to hold the scheduler against.

The "keys and values" of a position are a hash of everything before it: ids, positions, picture rows. A token is
the last hash modulo a small vocabulary. So one wrong slot, a stale row or a wrong position changes the answer. The
score of a known token is a hash of what is before it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmserve.config import EngineConfig
from mmserve.engine.plan import SchedulerOutput
from mmserve.engine.scheduler import Scheduler
from mmserve.sampling import SamplingParams
from mmserve.types import ContentHash, Grid, ImageHeader, IntArray, MediaItem, MediaRange, Picture, Prompt, Request

VOCABULARY = 5
PAD = 1000
FORCED = 1


def mix(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def make_picture(name: str, rows: int) -> Picture:
    content = ContentHash(hashlib.sha256(name.encode()).digest())
    return Picture(name.encode(), ImageHeader("PNG", 1, 1), content, Grid(1, 2, 2 * rows), rows)


def make_prompt(parts: list[int | Picture]) -> Prompt:
    """Ints are tokens, pictures stand for their rows."""
    token_ids: list[int] = []
    pictures: list[Picture] = []
    ranges: list[MediaRange] = []
    for part in parts:
        if isinstance(part, int):
            token_ids.append(part)
        else:
            ranges.append(MediaRange(len(token_ids), len(token_ids) + part.rows, len(pictures)))
            token_ids += [PAD] * part.rows
            pictures.append(part)
    return Prompt(np.array(token_ids, dtype=np.int64), tuple(pictures), tuple(ranges))


def positions_of(prompt: Prompt) -> tuple[IntArray, int]:
    """One axis; a picture's rows share a position and the next one skips, so that a position is not the index."""
    inside = {i for start, end, _ in prompt.ranges for i in range(start + 1, end)}
    ends = {end for _, end, _ in prompt.ranges}
    positions, at = [], -1
    for i in range(len(prompt) + 1):
        at += (0 if i in inside else 1) + (2 if i in ends else 0)
        positions.append(at)
    return np.array([positions[:-1]], dtype=np.int64), positions[-1]


def forced_after(request: Request, outputs: list[int]) -> list[int]:
    """What a make-believe grammar puts behind the outputs so far: a request of seed ``FORCED`` has one."""
    assert request.sampling.max_tokens is not None
    room = request.sampling.max_tokens - len(outputs)
    if request.sampling.seed != FORCED or (outputs and outputs[-1] > 1):
        return []
    return [2 + len(outputs) % 2] * min(room - (not outputs), 1 + len(outputs) % 3)


def truth(request: Request) -> list[int]:
    """The answer, computed alone and in order; of a request that scores, the scores."""
    prompt = request.prompt
    positions, next_position = positions_of(prompt)
    row_of = {}
    for start, end, picture in prompt.ranges:
        for i in range(start, end):
            row_of[i] = (prompt.media[picture].content, i - start)
    state = mix("start")
    scores: list[int] = []
    for i, token in enumerate(prompt.token_ids.tolist()):
        scores.append(mix(state, "score", token))
        state = mix(state, token, int(positions[0, i]), row_of.get(i))
    if request.score_from is not None:
        return scores[request.score_from :]
    outputs: list[int] = []
    assert request.sampling.max_tokens is not None
    queue = forced_after(request, outputs)
    while len(outputs) < request.sampling.max_tokens:
        chosen = not queue
        outputs.append(queue.pop(0) if queue else state % VOCABULARY)
        state = mix(state, outputs[-1], next_position + len(outputs) - 1, None)
        queue += forced_after(request, outputs) if chosen else []
    return outputs


class HashDevice:
    """Executes plans over slots that hold hashes; knows only what the plans told it."""

    def __init__(self, slots: int) -> None:
        self.slots: dict[int, int] = {}
        self.tier: dict[int, int] = {}
        self.rows: set[ContentHash] = set()
        self.pixels: set[ContentHash] = set()
        self.encoded: list[ContentHash] = []
        self.scores: dict[tuple[str, int], int] = {}
        self.computed_tokens = 0
        self.size = slots

    def move(self, plan: SchedulerOutput, damages: Callable[[], bool]) -> set[str]:
        """Between the tiers; returns whose fetch was damaged."""
        for copy in plan.save:
            for source, target in zip(copy.source.tolist(), copy.target.tolist(), strict=True):
                self.tier[target] = self.slots[source]
        damaged = set()
        for sequence_id, copy in plan.fetch:
            broken = damages()
            damaged |= {sequence_id} if broken else set()
            for source, target in zip(copy.source.tolist(), copy.target.tolist(), strict=True):
                self.slots[target] = -1 if broken else self.tier[source]
        return damaged

    def execute(self, plan: SchedulerOutput) -> dict[str, int]:
        for content in plan.forget:
            self.rows.discard(content)
            self.pixels.discard(content)
        for content in plan.encode:
            self.pixels.remove(content)
            assert content not in self.rows, "a picture was encoded while its rows were there"
            self.rows.add(content)
            self.encoded.append(content)
        assert len({slot for chunk in plan.chunks for slot in chunk.slots[chunk.start :].tolist()}) == sum(
            len(chunk.token_ids) for chunk in plan.chunks
        ), "two chunks write the same slot"
        tokens = {}
        for chunk in plan.chunks:
            row_of: dict[int, tuple[ContentHash, int]] = {}
            for piece in chunk.media:
                assert piece.content in self.rows, "rows were forgotten while they were needed"
                for k in range(piece.count):
                    row_of[piece.at + k] = (piece.content, piece.first_row + k)
            for k, token in enumerate(chunk.token_ids.tolist()):
                at = chunk.start + k
                before = self.slots[int(chunk.slots[at - 1])] if at else mix("start")
                state = mix(before, token, int(chunk.positions[0, k]), row_of.get(k))
                self.slots[int(chunk.slots[at])] = state
                self.computed_tokens += 1
                if chunk.scored[0] <= k < chunk.scored[1]:
                    assert chunk.targets is not None
                    target = int(chunk.targets[k - chunk.scored[0]])
                    self.scores[chunk.sequence_id, at + 1] = mix(state, "score", target)
            if chunk.row is not None:
                assert chunk.row.position == chunk.stop
                tokens[chunk.sequence_id] = state % VOCABULARY
        return tokens


@dataclass
class Simulation:
    """Drives a scheduler to the end, with decoding threads that finish in random order and may fail."""

    config: EngineConfig
    slots: int
    seed: int = 0
    broken: frozenset[ContentHash] = frozenset()
    check: bool = True
    tier_slots: int = 0
    damage: float = 0.0
    whole_pictures: bool = False
    answers: dict[str, list[int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.scheduler = Scheduler(
            self.config,
            num_slots=self.slots,
            row_bytes=1,
            eos_ids=(),
            tier_slots=self.tier_slots,
            whole_pictures=self.whole_pictures,
        )
        self.device = HashDevice(self.slots)
        self.preparing: list[MediaItem] = []
        self.decoded: list[ContentHash] = []

    def add(self, request: Request) -> None:
        seq = self.scheduler.add(request, *positions_of(request.prompt))
        self.answers[request.id] = [] if request.score_from is not None else forced_after(request, [])
        if self.answers[request.id]:
            self.scheduler.append(seq, self.answers[request.id])

    def _check_whole(self, plan: SchedulerOutput) -> None:
        for chunk in plan.chunks:
            seq = self.scheduler.get(chunk.sequence_id)
            assert seq is not None
            assert [seq.spans.clamp(edge) for edge in (chunk.start, chunk.stop)] == [chunk.start, chunk.stop]

    def abort(self, request_id: str) -> None:
        seq = self.scheduler.get(request_id)
        if seq is not None:
            self.scheduler.end(seq)

    def step(self) -> SchedulerOutput:
        self.steps += 1
        self.random.shuffle(self.preparing)
        while self.preparing and (self.random.random() < 0.5 or not self.scheduler.has_running):
            self._finish(self.preparing.pop())
        plan = self.scheduler.schedule()
        if self.whole_pictures:
            self._check_whole(plan)
        self.preparing += plan.prepare
        for sequence_id, token in self._execute(plan).items():
            seq = self.scheduler.get(sequence_id)
            assert seq is not None
            forced = forced_after(seq.request, [*seq.outputs, token])
            self.scheduler.append(seq, [token, *forced])
            self.answers[sequence_id] += [token, *forced]
            if len(seq.outputs) == seq.request.sampling.max_tokens:
                self.scheduler.end(seq)
        for chunk in plan.chunks:
            seq = self.scheduler.get(chunk.sequence_id)
            if seq is not None and seq.request.score_from is not None and seq.computed == len(seq):
                places = range(seq.request.score_from, len(seq))
                self.answers[seq.id] = [self.device.scores[seq.id, at] for at in places]
                self.scheduler.end(seq)
        if self.check:
            self.scheduler.check()
        return plan

    def run(self, limit: int = 20_000) -> None:
        while self.scheduler.has_requests:
            assert self.steps < limit, "the scheduler hangs"
            self.step()

    def _execute(self, plan: SchedulerOutput) -> dict[str, int]:
        damaged = self.device.move(plan, lambda: self.random.random() < self.damage)
        tokens = self.device.execute(plan)
        self.scheduler.update(plan, damaged)
        return tokens

    def _finish(self, picture: MediaItem) -> None:
        if picture.content in self.broken:
            for seq in self.scheduler.preparation_failed(picture.content):
                self.failed.append(seq.id)
                self.scheduler.end(seq)
            return
        self.decoded.append(picture.content)
        self.device.pixels.add(picture.content)
        self.scheduler.prepared(picture.content)


def request(
    name: str,
    parts: list[int | Picture],
    max_tokens: int = 3,
    salt: str = "",
    *,
    forced: bool = False,
    score_from: int | None = None,
) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=FORCED if forced else 0)
    return Request(name, make_prompt(parts), sampling, salt, score_from=score_from)
