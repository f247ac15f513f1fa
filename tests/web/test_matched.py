from __future__ import annotations

from typing import Any

import httpx
import pytest

from mmserve.types import Request, SamplingParams, TokenEvent
from tests.web.fakes import END, FakeEngine, FakePrompts, sse, usage_of
from web.generation import Tally
from web.matched import matched_stop

pytestmark = pytest.mark.anyio


def tally(text: str, ids: list[int], finish: str = "stop") -> Tally:
    made = Tally()
    made.add(TokenEvent("a", text=text, token_ids=tuple(ids), finish_reason=finish))
    return made


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.mark.parametrize(
    ("answer", "sampling", "matched"),
    [
        (tally("a", codes("a\nb")), SamplingParams(stop=("\n", "\nb", "z")), "\nb"),
        (tally("a", codes("a\nb")), SamplingParams(stop=("b", "\n")), "\n"),
        (tally("", codes("\n")), SamplingParams(stop=("\n",)), "\n"),
        (tally("a", codes(" a\n")), SamplingParams(stop=("\n",)), "\n"),  # its first space was the template's
        (tally("a", [*codes("a"), END]), SamplingParams(), END),
        (tally("a", [*codes("a"), END]), SamplingParams(skip_special_tokens=False), END),
        (tally("a", codes("aQ")), SamplingParams(stop_token_ids=(81,)), 81),
        (tally("aQ", codes("aQ")), SamplingParams(), None),  # a constraint had no more to say
        (tally("a", codes("a\n"), "length"), SamplingParams(stop=("\n",)), None),
        (Tally(), SamplingParams(stop=("\n",)), None),
    ],
)
def test_what_ended_an_answer(answer: Tally, sampling: SamplingParams, matched: str | int | None) -> None:
    assert matched_stop(answer, sampling, FakePrompts()) == matched


def stopped(request: Request) -> list[TokenEvent]:
    usage = usage_of(request, 2)
    return [TokenEvent(request.id, text="a", token_ids=(*codes("a\n"),), finish_reason="stop", usage=usage)]


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "What?"}]}),
    ("/v1/completions", {"prompt": "What?"}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_choice_says_what_ended_it(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    engine.script = stopped
    whole = await client.post(path, json=body | {"stop": ["\n"]})
    assert whole.json()["choices"][0]["matched_stop"] == "\n"
    streamed = await client.post(path, json=body | {"stop": ["\n"], "stream": True})
    chunks = [chunk["choices"][0] for chunk in sse(streamed.content)[:-1]]
    assert [chunk.get("matched_stop") for chunk in chunks] == [None] * (len(chunks) - 1) + ["\n"]


@pytest.mark.parametrize("name", ["stop_regex", "allowed_token_ids", "include_stop_str_in_output"])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_other_ends_of_the_peers_are_refused_not_lost(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], name: str
) -> None:
    """``stop_regex`` was ignored, and the answer ran on."""
    response = await client.post(path, json=body | {name: "a|b"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert (await client.post(path, json=body | {name: None})).status_code == 200
