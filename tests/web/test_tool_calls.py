"""Tools in chat completions, over the stand-ins: what reaches the model and the grammar, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.errors import UnsupportedPicture
from mmserve.grammar.judge import judge
from mmserve.grammar.spec import AnyJson, StructuralTag
from mmserve.types import ConstraintReport, ImagePart, Message, TextPart
from tests.web.fakes import FakeEngine, FakePrompts, say, sse
from tests.web.test_chat import PNG, chat, picture, text, user
from tests.web.test_vqa import error_of
from web.openai.calls import ArgumentsSaid, CallBegun, CallEnded, CallReader, Piece, Said
from web.openai.reply import Reply, reply_of
from web.openai.tools import Function, Toolbox, toolbox_of

pytestmark = pytest.mark.anyio

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]


def call_text(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


OSLO, NOW = call_text("weather", '{"city":"Oslo"}'), call_text("clock", "{}")


def constraint_of(engine: FakeEngine) -> StructuralTag:
    constraint = engine.requests[-1].constraint
    assert isinstance(constraint, StructuralTag)
    return constraint


def toolbox(tool_choice: Any = "auto", parallel: bool | None = None) -> Toolbox:
    made = toolbox_of([(Function(**tool["function"]), "tools") for tool in TOOLS], tool_choice, parallel)
    assert made is not None
    return made


# -- what the model is told, and what the grammar allows ------------------------------------------------------------


async def test_functions_stand_behind_the_callers_own_system_prompt(
    client: httpx.AsyncClient, prompts: FakePrompts
) -> None:
    await chat(client, {"role": "system", "content": "Be brief."}, user(text("Weather?")), tools=TOOLS)
    [system, _] = prompts.built[-1]
    own, gap, told = [part.text for part in system.parts if isinstance(part, TextPart)]
    assert (own, gap) == ("Be brief.", "\n\n")
    signatures = told.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line) for line in signatures] == TOOLS
    await chat(client, user(text("Weather?")), tools=TOOLS)
    assert prompts.built[-1][0] == Message("system", (TextPart(told),))


async def test_without_the_leave_to_call_there_are_no_tools(
    client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts
) -> None:
    await chat(client, user(text("Weather?")), tools=TOOLS, tool_choice="none", response_format={"type": "json_object"})
    assert [message.role for message in prompts.built[-1]] == ["user"]
    assert engine.requests[-1].constraint == AnyJson()


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({}, ["hi", OSLO, f"Well.\n{OSLO}\n{NOW}", ""], [call_text("other", "{}"), call_text("weather", "{}")]),
        ({"parallel_tool_calls": False}, ["hi", f"Well. {OSLO}"], [f"{OSLO}\n{NOW}", f"{OSLO} hi"]),
        ({"tool_choice": "required"}, [OSLO, f"{OSLO}\n{NOW}"], ["", "hi", f"Well.\n{OSLO}", f"{OSLO}\n"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [OSLO, NOW], [f"{OSLO}\n{NOW}"]),
        (
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
            [NOW],
            [OSLO, f"{NOW}\n{NOW}", "", call_text("clock", '{"a":1}')],
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "clock"}}],
                    },
                }
            },
            [NOW, f"{NOW}\n{NOW}"],
            [OSLO, "hi"],
        ),
        ({"response_format": {"type": "json_object"}}, [OSLO, '{"a":1}'], ["hi", f"hi {OSLO}", f"{OSLO}\n{{}}"]),
    ],
)
async def test_the_grammar_of_an_answer(
    client: httpx.AsyncClient, engine: FakeEngine, fields: Mapping[str, Any], right: list[str], wrong: list[str]
) -> None:
    response = await chat(client, tools=TOOLS, **fields)
    assert response.status_code == 200, response.text
    constraint = constraint_of(engine)
    assert [answer for answer in right if not judge(constraint, answer)] == []
    assert [answer for answer in wrong if judge(constraint, answer)] == []


async def test_calls_and_results_of_the_history(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"id": "b", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
    ]
    response = await chat(
        client,
        user(text("Weather?")),
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "Rain"},
        {"role": "tool", "tool_call_id": "b", "content": [text("Noon"), picture()]},
        {"role": "assistant", "content": None, "tool_calls": calls[1:]},
        {"role": "tool", "tool_call_id": "b", "content": "Night"},
    )
    assert response.status_code == 200, response.text
    begin, end = TextPart("<tool_response>\n"), TextPart("\n</tool_response>")
    assert prompts.built[-1][1:] == [
        Message("assistant", (TextPart("I look."), TextPart(f"\n{OSLO}\n{NOW}"))),
        Message(
            "user",
            (begin, TextPart("Rain"), end, TextPart("\n"), begin, TextPart("Noon"), ImagePart(PNG), end),
        ),
        Message("assistant", (TextPart(NOW),)),
        Message("user", (begin, TextPart("Night"), end)),
    ]


async def test_an_error_names_the_message_that_was_sent(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    for place, param in (("messages[1].content[0]", "messages[0].content[0]"), ("messages[0]", "messages")):
        prompts.failure = UnsupportedPicture("no", param=place)
        error_of(await chat(client, user(picture()), tools=TOOLS), 400, "unsupported_image", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}, "tools[0].function.x"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice",
        ),
        ({"tools": [CLOCK], "max_words": 3}, "max_words"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
    ],
)
async def test_bad_tools_name_their_field(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await chat(client, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not engine.requests


# -- what comes back ------------------------------------------------------------------------------------------------


async def test_calls_in_an_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("I look.\n", OSLO, "\n" + NOW, request=request)
    [choice] = (await chat(client, tools=TOOLS)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "I look."
    ids = [call.pop("id") for call in message["tool_calls"]]
    assert len({*ids}) == 2
    assert all(id_.startswith("call_") for id_ in ids)
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"type": "function", "function": {"name": "clock", "arguments": "{}"}},
    ]


async def test_an_answer_of_calls_alone_has_no_content_and_one_of_text_no_calls(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: say(OSLO, request=request)
    assert (await chat(client, tools=TOOLS)).json()["choices"][0]["message"]["content"] is None
    engine.script = lambda request: say("Dry.", request=request)
    [choice] = (await chat(client, tools=TOOLS)).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Dry.", "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_text_that_the_budget_ended_is_not_finished(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    report = ConstraintReport(closed_early=True)
    engine.script = lambda request: say("Dry and", request=request, report=report)
    [choice] = (await chat(client, tools=TOOLS)).json()["choices"]
    assert (choice["finish_reason"], choice["closed_early"]) == ("length", True)


async def test_json_that_speaks_of_calls_is_text(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    said = json.dumps({"a": OSLO})
    engine.script = lambda request: say(said[:3], said[3:], request=request)
    [choice] = (await chat(client, tools=TOOLS, response_format={"type": "json_object"})).json()["choices"]
    assert choice["message"]["content"] == said
    assert "tool_calls" not in choice["message"]


async def test_calls_are_streamed_as_openai_streams_them(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("I", " look.\n<tool", OSLO[5:-16], OSLO[-16:], "\n" + NOW, request=request)
    *chunks, _ = sse((await chat(client, tools=TOOLS, stream=True)).content)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    [first, second] = [
        call.pop("id") for delta in deltas for call in delta.get("tool_calls", ()) if call.get("id") is not None
    ]
    assert first != second
    assert deltas == [
        {"role": "assistant", "content": None},
        {"content": "I"},
        {"content": " look."},
        {"tool_calls": [{"index": 0, "type": "function", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Oslo'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"}'}}]},
        {"tool_calls": [{"index": 1, "type": "function", "function": {"name": "clock", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 8 + ["tool_calls"]


# -- the reader alone -----------------------------------------------------------------------------------------------


def read(*texts: str, bare: bool = False) -> list[Piece]:
    reader = CallReader(toolbox(), bare=bare)
    return [piece for part in texts for piece in reader.push(part)] + reader.flush()


ANSWERS = [
    "",
    "Just text, <tool_cal and all.  ",
    OSLO,
    f"  I look.\n\n{OSLO}\n{NOW}\nDone. ",
    f"{OSLO}{OSLO}{NOW}",
    call_text("weather", '{"city":"</tool_call> and {\\n</tool_call>"}'),
    call_text("unknown", "{}") + OSLO,
    OSLO[:-3],
    OSLO[:20],
    "<tool_call><tool_call>\n",
]


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_how_the_text_is_cut_changes_nothing(answer: str, cuts: list[int], bare: bool) -> None:
    places = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    whole, cut = Reply(), Reply()
    whole.add(read(answer, bare=bare))
    cut.add(read(*(answer[a:b] for a, b in pairwise(places)), bare=bare))
    assert whole.text == cut.text
    assert [(call.name, call.arguments) for call in whole.calls] == [(call.name, call.arguments) for call in cut.calls]


def test_text_comes_as_soon_as_it_cannot_be_a_call() -> None:
    reader = CallReader(toolbox())
    assert reader.push("a <") == [Said("a")]
    assert reader.push("b") == [Said(" <b")]
    assert reader.push(" ") == []
    assert reader.push(OSLO[:-2]) != []
    assert reader.flush() == [ArgumentsSaid(0, "}\n</tool_cal")]


def test_what_is_no_call_is_text() -> None:
    for answer in (call_text("unknown", "{}"), "<tool_call>", OSLO[:20], "a < b", "{}"):
        reply = reply_of(answer, toolbox(), None)
        assert (reply.text, reply.calls) == (answer, [])
    assert reply_of(OSLO, None, None).text == OSLO


def test_the_end_of_a_call_is_told() -> None:
    pieces = read(NOW)
    assert [type(piece) for piece in pieces] == [CallBegun, ArgumentsSaid, CallEnded]


async def test_words_of_refusal_in_the_history_are_words(client: httpx.AsyncClient, prompts: FakePrompts) -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert (await chat(client, user(text("Say it.")), refused, user(text("Why?")))).status_code == 200
    assert prompts.built[-1][1] == Message("assistant", (TextPart("No."),))


async def test_a_turn_that_ends_in_calls_is_not_continued(client: httpx.AsyncClient) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    last = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    response = await chat(client, user(text("Time?")), last, tools=TOOLS, continue_final_message=True)
    error_of(response, 400, "invalid_field", "continue_final_message")
