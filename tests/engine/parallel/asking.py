"""Requests, and answers of a shared model held against those of one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import Request, TokenEvent
from tests.models.equality import Case, cases, resolve
from tests.models.test_families import tiny as tiny_family
from tests.reference import Expected, Tally

CONFIG = EngineConfig(device="cpu", dtype="float32", check_invariants=True, kv_slots=4096, share_threshold=8)
SIZES = ((28, 28), (60, 100), (150, 90), (97, 97))


def tiny(path: Path, kind: str, **overrides: object) -> Checkpoint:
    return resolve(tiny_family(path / kind, kind, **overrides))


def asked(pictures: Sequence[int]) -> list[Case]:
    return cases(pictures, sizes=SIZES)


def requests(checkpoint: Checkpoint, asked: Iterable[Case], **sampling: object) -> list[Request]:
    """Greedy ones of eight tokens, under numbers."""
    builder = PromptBuilder(checkpoint, Limits())
    settings = {"max_tokens": 8, "ignore_eos": True, "seed": 1} | sampling
    return [
        Request(str(i), builder.build([case.message]), SamplingParams(**settings))  # type: ignore[arg-type]
        for i, case in enumerate(asked)
    ]


def add(engine: Engine, request: Request) -> None:
    request = engine.resolve(request)
    wanted = request.constraint
    engine.add(request, None if wanted is None else engine.compile(wanted, request.sampling.max_tokens).result())


def run(engine: Engine, asked: Iterable[Request]) -> dict[str, list[TokenEvent]]:
    """All events of requests that are served together."""
    events: dict[str, list[TokenEvent]] = {}
    for request in asked:
        events[request.id] = []
        add(engine, request)
    for _ in range(5000):
        if not engine.has_requests:
            return events
        for event in engine.step(wait=True):
            events[event.request_id].append(event)
    raise AssertionError("the engine hangs")


def tokens(events: Iterable[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def alone(checkpoint: Checkpoint, asked: Sequence[Request]) -> dict[str, Expected]:
    """What one process answers to each by itself, and how far each token led."""
    engine = build_engine(checkpoint, dataclasses.replace(CONFIG, reuse=False))
    expected = {}
    try:
        for request in asked:
            told = dataclasses.replace(request, sampling=request.sampling.replace(logprobs=2))
            events = run(engine, [told])[request.id]
            best = [each.top for event in events for each in event.logprobs]
            leads = [first[2] - second[2] for first, second in best]
            expected[request.id] = Expected(request.prompt.token_ids.tolist(), tokens(events), leads)
    finally:
        engine.close()
    return expected


def compare(tally: Tally, expected: dict[str, Expected], events: dict[str, list[TokenEvent]]) -> None:
    """Raises ``AssertionError`` where an answer parts from the expected one at anything but a near tie."""
    for name, right in expected.items():
        assert events[name][-1].error is None
        tally.compare(right, tokens(events[name]))
