"""The ``return_logprob`` family of ``POST /generate``: ``[logprob, token id, text]``, of prompt and answer."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from mmserve.types import ConstraintReport, Request, TokenEvent
from tests.web.fakes import END, PLACEHOLDER, FakeEngine, Step, sse, usage_of
from tests.web.native import entry, made, post, scores, spell

pytestmark = pytest.mark.anyio

WHAT = [*map(ord, "What")]
ANSWER = [ord("a"), ord("b"), END]


def lines(ids: list[int], *, text: bool = False) -> list[list[float | int | str | None]]:
    return [[-id_ / 100, id_, chr(id_) if text else None] for id_ in ids]


@pytest.fixture(autouse=True)
def answers(engine: FakeEngine) -> None:
    engine.script = lambda request: spell(request, "a", "b")


async def test_of_the_answer_alone(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for start in ({}, {"logprob_start_len": -1}, {"logprob_start_len": 4}):
        meta = (await made(client, text="What", return_logprob=True, **start))["meta_info"]
        assert meta["output_token_logprobs"] == lines(ANSWER)
        assert meta["output_token_logprobs_length"] == 3
        assert meta["input_token_logprobs"] == []
        assert not {"normalized_prompt_logprob", "input_top_logprobs", "output_top_logprobs"} & set(meta)
    assert [request.score_from for request in engine.requests] == [None] * 3


async def test_not_asked_for_is_not_told(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    meta = (await made(client, text="What", logprob_start_len=0, top_logprobs_num=2))["meta_info"]
    assert not [name for name in meta if "logprob" in name]
    assert [request.sampling.logprobs for request in engine.requests] == [None]


async def test_of_the_prompt_beside_the_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"return_logprob": True, "logprob_start_len": 2, "return_text_in_logprobs": True}
    meta = (await made(client, text="What", **body))["meta_info"]
    assert meta["input_token_logprobs"] == lines(WHAT[2:], text=True)
    assert meta["output_token_logprobs"] == lines(ANSWER, text=True)
    assert meta["normalized_prompt_logprob"] == pytest.approx(-(WHAT[2] + WHAT[3]) / 200)
    assert meta["cached_tokens"] == 5  # of the two requests, the one that came first to the prompt
    assert sorted(request.score_from or 0 for request in engine.requests) == [0, 2]


async def test_the_first_token_has_none(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1, "return_text_in_logprobs": True}
    meta = (await made(client, text="What", **body))["meta_info"]
    assert meta["input_token_logprobs"] == [[None, WHAT[0], "W"], *lines(WHAT[1:], text=True)]
    assert meta["input_top_logprobs"][0] is None
    assert meta["input_top_logprobs"][1] == [[-WHAT[1] / 100, WHAT[1], "h"], [-9999.0, 120, "x"]]
    assert len(meta["output_top_logprobs"]) == 3
    assert {request.sampling.logprobs for request in engine.requests} == {1}
    meta = (await made(client, text="W", **body))["meta_info"]
    assert meta["input_token_logprobs"] == [[None, WHAT[0], "W"]]


async def test_scoring_only(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """As SGLang's frontend compares choices: with a place to begin at, and without."""
    nothing = {"max_new_tokens": 0, "temperature": 0}
    first, second = await made(
        client, text=["What", "Whale"], sampling_params=nothing, return_logprob=True, logprob_start_len=3
    )
    assert first["meta_info"]["input_token_logprobs"] == lines([ord("t")])
    assert second["meta_info"]["input_token_logprobs"] == lines([*map(ord, "le")])
    assert second["meta_info"]["output_token_logprobs"] == []
    [whole] = await made(client, input_ids=[WHAT], sampling_params=nothing, return_logprob=True)
    assert whole["meta_info"]["input_token_logprobs"] == [[None, WHAT[0], None], *lines(WHAT[1:])]
    [none] = await made(client, input_ids=[WHAT], sampling_params=nothing, return_logprob=True, logprob_start_len=-1)
    assert none["meta_info"]["input_token_logprobs"] == []
    assert [request.score_from for request in engine.requests] == [3, 3, 1, 3]


async def test_each_prompt_has_its_own_settings(client: httpx.AsyncClient) -> None:
    answers = await made(
        client, text=["What", "What"], return_logprob=[True, False], logprob_start_len=[1, -1], top_logprobs_num=[2, 0]
    )
    assert answers[0]["meta_info"]["input_token_logprobs"] == lines(WHAT[1:])
    assert "output_top_logprobs" in answers[0]["meta_info"]
    assert "output_token_logprobs" not in answers[1]["meta_info"]


async def test_a_stream_of_them_is_cumulative(client: httpx.AsyncClient) -> None:
    response = await post(client, text="What", stream=True, return_logprob=True, logprob_start_len=3)
    *chunks, _ = sse(response.content)
    counts = [len(chunk["meta_info"]["output_token_logprobs"]) for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert all(n == chunk["meta_info"]["completion_tokens"] for n, chunk in zip(counts, chunks, strict=True))
    assert chunks[-1]["meta_info"]["input_token_logprobs"] == lines([ord("t")])


async def test_forced_tokens_have_no_logprob(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        assert request.constraint is not None
        ids = (ord("{"), ord("a"), ord("}"))
        yield TokenEvent(
            request.id, "{a}", ids, (entry(ord("a")),), "stop", usage_of(request, 3), None, ConstraintReport()
        )

    engine.script = script
    body = {"return_logprob": True, "top_logprobs_num": 1, "return_text_in_logprobs": True}
    meta = (await made(client, text="What", sampling_params={"regex": "{a}"}, **body))["meta_info"]
    assert meta["output_token_logprobs"] == [[None, 123, "{"], *lines([97], text=True), [None, 125, "}"]]
    assert [line is None for line in meta["output_top_logprobs"]] == [True, False, True]


async def test_what_was_relaxed_is_told(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    report = ConstraintReport("lenient", ("something",), closed_early=True)

    def script(request: Request) -> Iterator[Step]:
        yield TokenEvent(request.id, "1", (49,), (), "stop", usage_of(request, 1), None, report)

    engine.script = script
    meta = (await made(client, text="What", sampling_params={"json_schema": {"type": "integer"}}))["meta_info"]
    assert meta["constraint"] == {"step": "lenient", "relaxed": ["something"], "valid": True}
    assert meta["closed_early"] is True


async def test_places_of_pictures(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    from tests.web.test_native import PICTURE

    engine.script = lambda request: iter([scores(request)])
    answer = await made(
        client,
        text=f"a{PLACEHOLDER}b",
        image_data=PICTURE,
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=0,
    )
    ids = [id_ for _, id_, _ in answer["meta_info"]["input_token_logprobs"]]
    assert ids == [ord("a"), *[ord(PLACEHOLDER)] * 4, ord("b")]
