"""What the clients send for a constraint, and what they make of the answer."""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import httpx
import pydantic
import pytest
from typing_extensions import TypedDict

from mmserve import Answer, Client
from mmserve.client import AnswerNotValid, ConstraintKept, Decision, about_picture
from mmserve.errors import InvalidConstraint
from mmserve.types import Usage
from tests.client.harness import CHAT, ENDING, VQA, Both, event_stream, fields, sse

JPEG = b"\xff\xd8\xff\xe0 jpeg"
KEPT = {"step": "coerced", "relaxed": ["a", "b"], "closed_early": True, "forced_tokens": 3, "valid": True}


class Person(pydantic.BaseModel):
    name: str
    age: int = 0

    @pydantic.field_validator("age")
    @classmethod
    def _plausible(cls, age: int) -> int:
        if age > 150:
            raise ValueError("nobody is that old")
        return age


class Family(pydantic.BaseModel):
    people: list[Person]
    pets: dict[str, int] = {}


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Movie(TypedDict):
    title: str


class Colour(enum.Enum):
    RED = "red"
    CAT = "猫"


class Legs(enum.IntEnum):
    TWO = 2
    FOUR = 4


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Server:
    """Replies with ``text`` on every path; keeps the requests."""

    def __init__(self, text: str, **extra: Any) -> None:
        self.text = text
        self.extra = extra
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if request.url.path.endswith("/chat/completions"):
            choice = {**CHAT["choices"][0], "message": {"content": self.text}}  # type: ignore[index]
            return httpx.Response(200, json={**CHAT, "choices": [choice | self.extra.pop("choice", {})], **self.extra})
        if b'name="stream"' in request.read():
            half = len(self.text) // 2
            chunks = [{"delta": self.text[:half]}, {"delta": self.text[half:], **ENDING, **self.extra}, "[DONE]"]
            return event_stream([sse(*chunks)])
        return httpx.Response(200, json={**VQA, "answer": self.text, **self.extra})

    @property
    def form(self) -> dict[str, list[str]]:
        sent = fields(self.seen[-1])
        del sent["question"]
        return sent

    @property
    def body(self) -> dict[str, Any]:
        sent: dict[str, Any] = json.loads(self.seen[-1].content)
        del sent["messages"]
        return sent


def asked(kind: str, server: Server, way: str, **options: Any) -> Answer:
    """The answer by ``ask``, ``stream``, ``chat`` or ``caption``."""
    both = Both(kind, server)
    if way == "stream":
        found = both.stream(JPEG, "q", **options)
        if found.error is not None:
            raise found.error
        assert found.answer is not None
        return found.answer
    arguments = {"ask": (JPEG, "q"), "chat": ([{"role": "user", "content": "q"}],), "caption": (JPEG,)}[way]
    answer = both.call(way, *arguments, **options)
    assert isinstance(answer, Answer)
    return answer


WAYS = ["ask", "stream", "chat", "caption"]

SCHEMAS: list[tuple[Any, str, Any]] = [
    (Person, '{"name":"Ada","age":36}', Person(name="Ada", age=36)),
    (Family, '{"people":[{"name":"Ada"}],"pets":{"cat":2}}', Family(people=[Person(name="Ada")], pets={"cat": 2})),
    (Point, '{"x":1,"y":2.5}', Point(1.0, 2.5)),
    (Movie, '{"title":"Brazil"}', {"title": "Brazil"}),
    (list[int], "[1,2]", [1, 2]),
    (int | None, "null", None),
    (Colour, '"猫"', Colour.CAT),
    ({"type": "object"}, '{"b":1,"a":2}', {"b": 1, "a": 2}),
    ('{"type":"array"}', "[]", []),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("schema", "text", "parsed"), SCHEMAS, ids=lambda value: str(value)[:30])
def test_schema(kind: str, way: str, schema: Any, text: str, parsed: Any) -> None:
    answer = asked(kind, Server(text), way, schema=schema)
    assert (answer.parsed, answer.text) == (parsed, text)
    assert type(answer.parsed) is type(parsed)


def test_a_model_is_sent_as_its_schema_without_room_for_inventions(kind: str) -> None:
    server = Server('{"people":[]}')
    asked(kind, server, "ask", schema=Family)
    sent = json.loads(server.form["schema"][0])
    assert set(server.form) == {"schema"}
    assert sent["additionalProperties"] is False
    assert sent["$defs"]["Person"]["additionalProperties"] is False
    assert sent["$defs"]["Person"]["properties"]["name"] == {"title": "Name", "type": "string"}
    assert sent["properties"]["pets"]["additionalProperties"] == {"type": "integer"}
    asked(kind, server, "chat", schema=Family, strict=True)
    named = server.body["response_format"]["json_schema"]
    assert server.body == {"response_format": {"type": "json_schema", "json_schema": named}}
    assert named == {"name": "Family", "schema": sent, "strict": True}
    asked(kind, server, "ask", schema=Family, strict=True)
    assert server.form["strict"] == ["true"]


def test_a_schema_of_ones_own_goes_as_it_is(kind: str) -> None:
    server = Server("{}")
    schema = {"type": "object", "properties": {"名": {}}}
    asked(kind, server, "ask", schema=schema)
    assert json.loads(server.form["schema"][0]) == schema
    asked(kind, server, "chat", schema=json.dumps(schema))
    assert server.body["response_format"]["json_schema"] == {"name": "answer", "schema": schema}


CHOICES: list[tuple[Any, list[str], str, Any]] = [
    (["red", "猫"], ["red", "猫"], "猫", "猫"),
    (("a", "b"), ["a", "b"], "a", "a"),
    (Colour, ["red", "猫"], "猫", Colour.CAT),
    (Legs, ["2", "4"], "4", Legs.FOUR),
    (Literal["a", 1, True, None], ["a", "1", "true", "null"], "true", True),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("choices", "texts", "text", "parsed"), CHOICES, ids=lambda value: str(value)[:30])
def test_choices(kind: str, way: str, choices: Any, texts: list[str], text: str, parsed: Any) -> None:
    server = Server(text)
    answer = asked(kind, server, way, choices=choices)
    assert answer.parsed == parsed
    assert type(answer.parsed) is type(parsed)
    if way == "chat":
        assert server.body == {"structured_outputs": {"choice": texts}}
    else:
        assert json.loads(server.form["choices"][0]) == texts


PLAIN: list[tuple[dict[str, Any], dict[str, list[str]], dict[str, Any]]] = [
    ({"json": True}, {"json": ["true"]}, {"response_format": {"type": "json_object"}}),
    ({"regex": "[0-9]+"}, {"regex": ["[0-9]+"]}, {"structured_outputs": {"regex": "[0-9]+"}}),
    ({"regex": re.compile("a+")}, {"regex": ["a+"]}, {"structured_outputs": {"regex": "a+"}}),
    ({"grammar": 'start: "a"'}, {"grammar": ['start: "a"']}, {"structured_outputs": {"grammar": 'start: "a"'}}),
    ({"xml": {"element": "a"}}, {"xml": ['{"element": "a"}']}, {"xml": {"element": "a"}}),
    ({"structural_tag": "{}"}, {"structural_tag": ["{}"]}, {"structural_tag": "{}"}),
    (
        {"must_include": "cat", "must_not_include": ["dog", "cow"], "start_with": "A", "max_words": 9},
        {"must_include": ["cat"], "must_not_include": ["dog", "cow"], "start_with": ["A"], "max_words": ["9"]},
        {"must_include": ["cat"], "must_not_include": ["dog", "cow"], "start_with": "A", "max_words": 9},
    ),
    ({"json": False, "strict": False, "schema": None}, {}, {}),
]


@pytest.mark.parametrize(("options", "form", "body"), PLAIN, ids=str)
def test_other_kinds(kind: str, options: dict[str, Any], form: dict[str, Any], body: dict[str, Any]) -> None:
    server = Server("123")
    for way in ("ask", "caption", "stream"):
        answer = asked(kind, server, way, **options)
        sent = server.form
        sent.pop("stream", None)
        assert sent == form
        assert answer.parsed == (123 if options.get("json") else None)
    asked(kind, server, "chat", **options)
    assert server.body == body


@pytest.mark.parametrize(
    ("options", "raised"),
    [
        ({"schema": Person, "regex": "a"}, InvalidConstraint),
        ({"json": True, "must_include": "a"}, InvalidConstraint),
        ({"strict": True}, InvalidConstraint),
        ({"schema": "{"}, InvalidConstraint),
        ({"schema": b"no schema"}, TypeError),
        ({"choices": "abc"}, TypeError),
        ({"choices": [1, 2]}, TypeError),
        ({"choices": 3}, TypeError),
        ({"choices": ["a", "a"]}, InvalidConstraint),
        ({"choises": ["a"]}, TypeError),
    ],
    ids=str,
)
def test_misuse_is_found_out_before_anything_is_sent(kind: str, options: dict[str, Any], raised: type) -> None:
    for way in WAYS:
        server = Server("x")
        with pytest.raises(raised):
            asked(kind, server, way, **options)
        assert not server.seen


def test_how_it_was_kept(kind: str) -> None:
    kept = ConstraintKept("coerced", ("a", "b"), True, 3, True)
    for way in ("ask", "stream"):
        assert asked(kind, Server("{}", constraint=KEPT), way, json=True).constraint == kept
        assert asked(kind, Server("{}", constraint=None), way).constraint is None
    chat = Server("{}", constraint={"step": "lenient", "relaxed": ["a"], "valid": None}, choice={"closed_early": True})
    assert asked(kind, chat, "chat", json=True).constraint == ConstraintKept("lenient", ("a",), True, 0, None)
    assert asked(kind, Server("{}"), "chat", json=True).constraint == ConstraintKept()
    assert asked(kind, Server("{}"), "chat").constraint is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        ({"schema": Person}, '{"name":"Ada","age":200}', "nobody is that old"),
        ({"schema": Person}, '{"name":"Ada', "EOF"),
        ({"json": True}, "[", "Expecting value"),
        ({"choices": ["a", "b"]}, "c", "none of the choices"),
        ({"schema": {}}, "[" * 100_000, "recursion"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_answer_that_is_not_what_was_asked_for(
    kind: str, way: str, options: dict[str, Any], text: str, reason: str
) -> None:
    with pytest.raises(AnswerNotValid, match=reason) as caught:
        asked(kind, Server(text), way, **options)
    error = caught.value
    assert error.text == text
    assert error.answer is not None
    assert error.answer.usage.completion_tokens == 3
    assert error.__cause__ is not None
    assert about_picture(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.text) == (AnswerNotValid, error.message, text)


def test_one_bad_caption_does_not_end_the_others(kind: str) -> None:
    server = Server('{"name":"Ada","age":200}')
    results = Both(kind, server).caption_many([JPEG, JPEG], schema=Person)
    assert [type(result.error) for result in results] == [AnswerNotValid] * 2


def test_types_are_known_to_mypy() -> None:
    def age(client: Client) -> int:
        return client.ask(JPEG, "Who?", schema=Person).parsed.age

    handler: Callable[[httpx.Request], httpx.Response] = Server('{"name":"Ada","age":36}')
    with Client(transport=httpx.MockTransport(handler)) as client:
        assert age(client) == 36


def test_importing_the_client_brings_no_pydantic() -> None:
    code = "import sys, mmserve.client; sys.exit(bool({'pydantic', 'torch', 'PIL', 'jsonschema'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Deciding:
    """A server of ``/v1/decisions``."""

    def __init__(self, probabilities: dict[str, float], **answer: Any) -> None:
        self.answer = {
            "probabilities": probabilities,
            "logprobs": dict.fromkeys(probabilities, -1.0),
            "label_mass": 0.5,
            **answer,
        }
        self.sent: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/decisions"
        self.sent = json.loads(request.content)
        usage = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
        return httpx.Response(200, json={"model": "m", "answers": {"question": self.answer}, "usage": usage})


def test_decide(kind: str) -> None:
    server = Deciding({"red": 0.25, "猫": 0.75}, choice="猫")
    decision = Both(kind, server).call(
        "decide", [JPEG, JPEG], "Which?", Colour, model="m", temperature=2, cache_salt="s"
    )
    assert decision == Decision(
        Colour.CAT, {"red": 0.25, "猫": 0.75}, 0.5, {"red": -1.0, "猫": -1.0}, Usage(9, 0, 0, 0), "m"
    )
    images = server.sent.pop("images")
    assert [image["url"].partition(",")[0] for image in images] == ["data:image/jpeg;base64"] * 2
    assert server.sent == {
        "model": "m",
        "temperature": 2,
        "cache_salt": "s",
        "questions": [
            {"id": "question", "type": "choice", "question": "Which?", "options": [{"name": "red"}, {"name": "猫"}]}
        ],
    }


def test_decide_yes_or_no(kind: str) -> None:
    server = Deciding({"yes": 0.25, "no": 0.75}, answer="no")
    assert Both(kind, server).call("decide", [], "Is it red?").choice is False
    assert server.sent["questions"] == [{"id": "question", "type": "yes_no", "question": "Is it red?"}]
    assert server.sent["images"] == []


@pytest.mark.parametrize(
    ("levels", "scale"),
    [(range(1, 4), {"min": 1, "max": 3}), (["bad", "fair", "good"], {"levels": ["bad", "fair", "good"]})],
)
def test_decide_on_a_scale(kind: str, levels: Any, scale: dict[str, Any]) -> None:
    server = Deciding({"1": 0.25, "2": 0.75}, score=1.75)
    decision = Both(kind, server).call("decide", JPEG, "How good?", levels=levels)
    assert (decision.score, decision.choice) == (1.75, 2)
    assert server.sent["questions"] == [{"id": "question", "type": "score", "question": "How good?", **scale}]


@pytest.mark.parametrize(
    ("arguments", "raised"),
    [
        ({"choices": ["a", "b"], "levels": range(3)}, InvalidConstraint),
        ({"levels": range(0, 9, 2)}, InvalidConstraint),
        ({"levels": range(1)}, InvalidConstraint),
        ({"levels": "abc"}, TypeError),
        ({"levels": [1, 2]}, TypeError),
        ({"choices": 3}, TypeError),
    ],
)
def test_decide_misused(kind: str, arguments: dict[str, Any], raised: type) -> None:
    with pytest.raises(raised):
        Both(kind, lambda _: pytest.fail("sent")).call("decide", JPEG, "q", **arguments)
