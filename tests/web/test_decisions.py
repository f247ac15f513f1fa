"""``POST /v1/decisions``: prompts, arithmetic, and the two dialects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from mmserve.errors import MMServeError, QueueFull
from mmserve.types import ImagePart, Message, Request, TextPart
from tests.web.fakes import ROWS, FakeEngine, FakePrompts, Step, png, say, scored
from tests.web.test_chat import data_uri
from tests.web.test_vqa import error_of

pytestmark = pytest.mark.anyio

COLOURS = {"id": "c", "type": "choice", "question": "Which colour?", "options": ["red", "blue"]}


def knows(engine: FakeEngine, **probabilities: float) -> None:
    """The model gives these answers these probabilities, and others none."""

    def logprob(text: str) -> float:
        return math.log(probabilities[text]) if probabilities.get(text) else -math.inf

    engine.script = lambda request: scored(request, logprob)


async def decide(client: httpx.AsyncClient, *questions: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "pocket-vl", "questions": list(questions), **fields}
    return await client.post("/v1/decisions", content=json.dumps(body))


async def answered(client: httpx.AsyncClient, *questions: dict[str, Any], **fields: Any) -> Any:
    response = await decide(client, *questions, **fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_choice(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    knows(engine, red=0.6, blue=0.2)
    response = await decide(client, COLOURS, input="Look closely.", images=[{"url": data_uri()}], cache_salt="s")
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.pop("id") == f"decision-{response.headers['x-request-id']}"
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "decision",
        "model": "pocket-vl",
        "answers": {
            "c": {
                "type": "choice",
                "choice": "red",
                "probabilities": {"red": pytest.approx(0.75), "blue": pytest.approx(0.25)},
                "logprobs": {"red": pytest.approx(math.log(0.6)), "blue": pytest.approx(math.log(0.2))},
                "label_mass": pytest.approx(0.8),
            }
        },
        "usage": {
            "prompt_tokens": ROWS + 4 + len("red") + 1 + len("blue") + 1,
            "completion_tokens": 0,
            "total_tokens": ROWS + 4 + len("red") + 1 + len("blue") + 1,
            "prompt_tokens_details": {
                "cached_tokens": 2,
                "image_tokens": ROWS,
                "cached_images": 1,
                "system_tokens": 0,
                "cached_system_tokens": 0,
                "video_tokens": 0,
                "audio_tokens": 0,
            },
        },
    }
    parts = (ImagePart(png()), TextPart("Look closely."), TextPart("\n\n"), TextPart("Which colour?"))
    assert prompts.built == [[Message("user", parts)]]
    assert prompts.salts == ["s"]
    assert {request.score_from for request in engine.requests} == {ROWS + 4}
    assert {request.cache_salt for request in engine.requests} == {"s"}
    assert len({request.id for request in engine.requests}) == 2


async def test_answers_of_all_questions_are_sent_at_once(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    together: list[int] = []

    def script(request: Request) -> Iterator[Step]:
        yield 0.02
        together.append(len(engine.running))
        yield from scored(request, lambda _: -1.0)

    engine.script = script
    await answered(client, COLOURS, {"id": "y", "type": "yes_no", "question": "Is it?"})
    assert max(together) == 6  # yes and no in two spellings each


async def test_texts_that_begin_alike_have_each_their_own_probability(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    knows(engine, cat=0.5, catfish=0.25)
    question = {"id": "q", "type": "choice", "question": "What?", "options": [{"name": "cat"}, {"name": "catfish"}]}
    answer = (await answered(client, question))["answers"]["q"]
    assert answer["probabilities"] == {"cat": pytest.approx(2 / 3), "catfish": pytest.approx(1 / 3)}
    assert answer["label_mass"] == pytest.approx(0.75)


async def test_yes_or_no_adds_up_its_spellings(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    knows(engine, yes=0.1, Yes=0.3, no=0.2)
    answer = (await answered(client, {"id": "q", "type": "yes_no", "question": "Is it red?"}))["answers"]["q"]
    assert answer["answer"] == "yes"
    assert answer["probabilities"] == {"yes": pytest.approx(2 / 3), "no": pytest.approx(1 / 3)}
    assert answer["logprobs"]["yes"] == pytest.approx(math.log(0.4))
    assert answer["label_mass"] == pytest.approx(0.6)


async def test_score_is_the_expected_value(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    knows(engine, **{"1": 0.1, "3": 0.1, "0": 0.2})
    scale = {"id": "s", "type": "score", "question": "How sharp?", "min": 1, "max": 3}
    levels = {"id": "l", "type": "score", "question": "How sharp?", "levels": ["blurred", "sharp"]}
    answers = (await answered(client, scale, levels))["answers"]
    assert answers["s"]["score"] == pytest.approx(2.0)
    assert answers["s"]["probabilities"] == {"1": pytest.approx(0.5), "2": 0.0, "3": pytest.approx(0.5)}
    assert answers["s"]["logprobs"]["2"] == -9999.0
    assert answers["l"]["score"] == pytest.approx(1 / 3)
    shown = [messages[-1].parts[-1] for messages in prompts.built]
    assert shown[0] == TextPart("How sharp?\nAnswer with a whole number from 1 to 3.")
    assert isinstance(shown[1], TextPart)
    assert "0: blurred\n1: sharp\n" in shown[1].text


async def test_described_options_are_shown(client: httpx.AsyncClient, engine: FakeEngine, prompts: FakePrompts) -> None:
    knows(engine, a=0.5)
    options = [{"name": "a", "description": "the first"}, {"name": "b"}]
    choice = {"id": "1", "type": "choice", "question": "Which?", "options": options}
    yes_no = {"id": "2", "type": "yes_no", "question": "Is it?", "yes": {"if": 1}}
    await answered(client, choice, yes_no, input={"ticket": "猫"})
    texts = ["".join(part.text for part in built[0].parts if isinstance(part, TextPart)) for built in prompts.built]
    assert texts[0].startswith('{"ticket":"猫"}\n\nWhich?')
    assert texts[0].endswith("\n- a: the first\n- b")
    assert texts[1].endswith('\n- yes: {"if":1}\n- no')


async def test_temperature_scales_the_probabilities_alone(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    knows(engine, red=0.64, blue=0.04)
    answer = (await answered(client, COLOURS, temperature=2))["answers"]["c"]
    assert answer["probabilities"]["red"] == pytest.approx(0.8)
    assert answer["label_mass"] == pytest.approx(0.68)


async def test_improbable_answers_do_not_underflow(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: scored(request, lambda text: -1000.0 - len(text))
    answer = (await answered(client, COLOURS))["answers"]["c"]
    assert answer["probabilities"]["red"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert answer["label_mass"] == 0.0


async def test_answers_that_the_model_rules_out_are_equally_likely(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    knows(engine)
    answer = (await answered(client, COLOURS))["answers"]["c"]
    assert answer["probabilities"] == {"red": 0.5, "blue": 0.5}
    assert (answer["label_mass"], answer["logprobs"]["red"]) == (0.0, -9999.0)


async def test_engine_that_did_not_score_is_an_error(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: say("red", request=request, logprobs=True)
    error_of(await decide(client, COLOURS), 500, "internal_error", None)


@pytest.mark.parametrize(("error", "status"), [(QueueFull("full"), 429), (MMServeError("the device failed"), 500)])
async def test_error_of_one_answer_ends_all(
    client: httpx.AsyncClient, engine: FakeEngine, error: MMServeError, status: int
) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield 0.01 if request.id.endswith("1") else 3600.0
        yield error

    engine.script = script
    error_of(await decide(client, COLOURS), status, error.code, None)
    assert not engine.running


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"questions": []}, "questions"),
    ({"questions": "x"}, "questions"),
    ({"questions": [{}]}, "questions[0]"),
    ({"questions": [3]}, "questions[0]"),
    ({"questions": [{**COLOURS, "type": "essay"}]}, "questions[0]"),
    ({"questions": [{**COLOURS, "id": ""}]}, "questions[0].id"),
    ({"questions": [{**COLOURS, "question": "  "}]}, "questions[0].question"),
    ({"questions": [{**COLOURS, "options": ["red"]}]}, "questions[0].options"),
    ({"questions": [{**COLOURS, "options": [str(i) for i in range(256)]}]}, "questions[0].options"),
    ({"questions": [{**COLOURS, "options": ["red", {"name": ""}]}]}, "questions[0].options[1].name"),
    ({"questions": [{**COLOURS, "options": ["red", "red"]}]}, "questions[0]"),
    ({"questions": [{**COLOURS, "options": ["red", "x" * 2001]}]}, "questions[0].options[1].name"),
    ({"questions": [{**COLOURS, "optoins": []}]}, "questions[0].optoins"),
    ({"questions": [COLOURS, COLOURS]}, "questions"),
    ({"questions": [{"id": "s", "type": "score", "question": "?"}]}, "questions[0]"),
    ({"questions": [{"id": "s", "type": "score", "question": "?", "min": 1}]}, "questions[0]"),
    ({"questions": [{"id": "s", "type": "score", "question": "?", "min": 1, "max": 1}]}, "questions[0]"),
    ({"questions": [{"id": "s", "type": "score", "question": "?", "min": 0, "max": 255}]}, "questions[0]"),
    ({"questions": [{"id": "s", "type": "score", "question": "?", "levels": ["a"]}]}, "questions[0].levels"),
    ({"questions": [COLOURS, {"type": "predicate", "instructions": "?"}]}, "questions"),
    ({"questions": [{"id": str(i), "type": "yes_no", "question": "?"} for i in range(300)]}, "questions"),
    ({"questions": [COLOURS], "temperature": 0}, "temperature"),
    ({"questions": [COLOURS], "temprature": 1}, "temprature"),
    ({"questions": [COLOURS], "prompt_format_version": 1}, "prompt_format_version"),
    ({"questions": [COLOURS], "return_prompt_token_ids": True}, "return_prompt_token_ids"),
    ({"questions": [COLOURS], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ({"questions": [COLOURS], "images": ["http://example.org/a.png"]}, "images[0].url"),
    ({"questions": [COLOURS], "images": [data_uri()] * 4}, "images[3].url"),
    ({"questions": [{"type": "predicate", "instructions": "?"}], "input": [{"role": "tool"}]}, "input[0]"),
    ({"questions": [{"type": "predicate", "instructions": ""}]}, "questions[0].instructions"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:60])
async def test_what_is_refused_names_its_place(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/decisions", json=fields)
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert error["param"] == param, error
    assert len(error["message"]) < 400
    assert not engine.requests


async def test_other_refusals(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    error_of(await decide(client, COLOURS, model="gpt"), 404, "model_not_found", "model")
    error_of(await decide(client, COLOURS, input="word " * 600), 400, "context_length_exceeded", None)
    assert (await client.post("/v1/decisions", content=b"{")).status_code == 400
    engine.ready = False
    error_of(await decide(client, COLOURS), 503, "engine_unavailable", None)


async def test_too_much_to_hash(client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    knows(engine, red=1.0)
    monkeypatch.setattr("web.decisions.questions.MAX_HASHED_BYTES", len(png()))
    assert (await decide(client, COLOURS, images=[data_uri()])).status_code == 200
    error_of(
        await decide(client, COLOURS, {**COLOURS, "id": "d"}, images=[data_uri()]), 400, "invalid_field", "questions"
    )


async def test_harmless_fields_of_other_servers(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    knows(engine, red=1.0)
    nothing = {"chat_template_kwargs": {}, "return_prompt_token_ids": False, "safety_identifier": "x"}
    assert (await decide(client, COLOURS, **nothing)).status_code == 200


def test_openai_client(live: str, engine: FakeEngine, prompts: FakePrompts) -> None:
    knows(engine, yes=0.3, no=0.1, true=0.2, cat=0.6, **{"0": 0.1, "1": 0.3})
    picture: Any = {"type": "input_image", "image_url": data_uri(), "detail": "auto"}
    with openai.OpenAI(base_url=f"{live}/v1", api_key="none", max_retries=0, timeout=10) as client:
        decision = client.decisions.create(
            model="pocket-vl",
            input=[
                {"role": "developer", "content": "Be fair."},
                {"role": "user", "content": [picture, {"type": "input_text", "text": "A picture."}]},
            ],
            questions=[
                {"type": "predicate", "name": "red", "instructions": "It is red."},
                {"type": "choice", "instructions": "Which?", "choices": [{"value": True}, {"value": "cat"}]},
                {
                    "type": "score",
                    "name": "s",
                    "instructions": [{"type": "input_text", "text": "How much?"}],
                    "levels": [{"label": "low"}, {"label": "high", "description": "very"}],
                },
            ],
        )
    predicate, choice, score = decision.answers
    assert predicate.type == "predicate"
    assert predicate.name == "red"
    assert predicate.probability == pytest.approx(0.75)
    assert choice.type == "choice"
    assert (choice.name, choice.choice) == (None, "cat")
    assert choice.confidence == pytest.approx(0.75)
    assert [p.value for p in choice.probabilities] == [True, "cat"]
    assert [p.probability for p in choice.probabilities] == pytest.approx([0.25, 0.75])
    assert score.type == "score"
    assert score.score == pytest.approx(0.75)
    assert [(p.value, p.label) for p in score.probabilities] == [(0, "low"), (1, "high")]
    assert decision.usage.output_tokens == 0
    assert decision.usage.input_tokens == decision.usage.total_tokens > 3 * ROWS
    assert prompts.built[0] == [
        Message("system", (TextPart("Be fair."),)),
        Message("user", (ImagePart(png()), TextPart("A picture."), TextPart("\n\n"), TextPart("It is red."))),
    ]
