"""What the tests of ``/generate`` share: an engine that spells its answers as the fake tokenizer does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from mmserve.types import ConstraintReport, Request, TokenEvent, TokenLogprob
from tests.web.fakes import END, Step, usage_of


def spell(
    request: Request, *pieces: str, finish: str = "stop", ids: list[int] | None = None, wait: float | None = None
) -> Iterator[Step]:
    """Answers with ``pieces``, an event each, a token a character; the last also has ``ids``, by default the end of
    the turn where that ends it. A prompt that is to be scored is."""
    if request.score_from is not None:
        yield scores(request)
        return
    tail = ids if ids is not None else [END] * (finish == "stop")
    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        if wait is not None:
            yield wait
        tokens = tuple(map(ord, piece)) + tuple(tail if last else ())
        entries = tuple(entry(id_) for id_ in tokens) if request.sampling.logprobs is not None else ()
        yield TokenEvent(
            request.id,
            piece,
            tokens,
            entries,
            finish if last else None,
            usage_of(request, sum(map(len, pieces)) + len(tail), cached=9) if last else None,
            constraint=ConstraintReport() if last and request.constraint is not None else None,
        )


def scores(request: Request) -> TokenEvent:
    assert request.score_from is not None
    ids = request.prompt.token_ids[request.score_from :].tolist()
    return TokenEvent(
        request.id, logprobs=tuple(map(entry, ids)), finish_reason="stop", usage=usage_of(request, 0, cached=5)
    )


def entry(id_: int) -> TokenLogprob:
    return TokenLogprob(id_, chr(id_), -id_ / 100, ((id_, chr(id_), -id_ / 100), (120, "x", float("-inf"))))


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/generate", content=json.dumps(body))


async def made(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await post(client, **body)
    assert response.status_code == 200, response.text
    return response.json()
