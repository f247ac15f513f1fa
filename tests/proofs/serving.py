"""Requests served by an engine without a thread."""

from __future__ import annotations

from collections.abc import Sequence

from mmserve.engine.engine import Engine
from mmserve.types import Request


def serve(engine: Engine, requests: Sequence[Request]) -> dict[str, list[int]]:
    """The token ids of each request, all served together to their end; none may fail."""
    tokens: dict[str, list[int]] = {r.id: [] for r in requests}
    for request in requests:
        engine.add(engine.resolve(request))
    while engine.has_requests:
        for event in engine.step(wait=True):
            assert event.error is None
            tokens[event.request_id] += event.token_ids
    return tokens
