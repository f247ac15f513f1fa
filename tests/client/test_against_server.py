"""The clients against the web application itself, over sockets: one end's idea of the wire is the other's."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
from PIL import Image

from mmserve import AsyncClient, Client
from mmserve.caption import caption_folder, open_jsonl
from mmserve.client import PictureInfo
from mmserve.config import Limits
from mmserve.errors import (
    BudgetTooSmall,
    CorruptPicture,
    EngineUnavailable,
    InvalidConstraint,
    InvalidField,
    MMServeError,
    ModelNotFound,
    PictureTooLarge,
    PromptTooLong,
    QueueFull,
    TooManyPictures,
    UnsupportedConstraint,
    UnsupportedPicture,
)
from mmserve.grammar.spec import AnyJson, Choice, Grammar, JsonSchema, Regex, XmlSchema
from mmserve.sampling import SamplingParams
from mmserve.types import ConstraintReport, ImagePart, Message, Request, TextPart, TokenEvent
from tests.caption.harness import lines_of
from tests.web.fakes import ROWS, FakeEngine, FakePrompts, eventually, forever, png, say, scored, serve
from web.service import ServedModel, Service

PNG = png(8, 6)


class World:
    """The application over a scripted engine, on a port, and either client in front of it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.url = ""
        self.engine = FakeEngine()
        self.prompts = FakePrompts()
        limits = Limits(max_picture_bytes=600_000, max_pictures=3, max_body_bytes=2_000_000)
        self.service = Service(
            ServedModel("pocket-vl", created=1700000000), self.prompts, self.engine, max_model_len=512, limits=limits
        )

    def call(self, method: str, *args: Any, retries: int = 0, **kwargs: Any) -> Any:
        if self.kind == "sync":
            with Client(self.url, retries=retries) as client:
                return getattr(client, method)(*args, **kwargs)

        async def run() -> Any:
            async with AsyncClient(self.url, retries=retries) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    def stream(self, *args: Any, take: int | None = None, retries: int = 3, **kwargs: Any) -> tuple[list[str], Any]:
        """The pieces, and the stream as it was left."""
        if self.kind == "sync":
            with Client(self.url, retries=retries) as client, client.stream(*args, **kwargs) as stream:
                return [piece for _, piece in zip(range(take or 1000), stream, strict=False)], stream

        async def run() -> tuple[list[str], Any]:
            found: list[str] = []
            async with AsyncClient(self.url, retries=retries) as client, client.stream(*args, **kwargs) as stream:
                async for piece in stream:
                    found.append(piece)
                    if len(found) == take:
                        break
            return found, stream

        return asyncio.run(run())

    @property
    def asked(self) -> Request:
        return self.engine.requests[-1]

    @property
    def messages(self) -> Sequence[Message]:
        return self.prompts.built[-1]


@pytest.fixture(params=["sync", "async"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    with serve(world.service) as world.url:
        yield world


def test_ask(world: World) -> None:
    answer = world.call("ask", [PNG, png(9, 7)], "What is this?", system="Be brief.")
    assert (answer.text, answer.finish_reason, answer.model) == ("It is a cat.", "stop", "pocket-vl")
    assert answer.id == world.asked.id
    assert answer.pictures == (PictureInfo(8, 6, ROWS, (16, 12)), PictureInfo(9, 7, ROWS, (18, 14)))
    usage = answer.usage
    assert (usage.cached_tokens, usage.image_tokens, usage.completion_tokens, usage.cached_pictures) == (
        2,
        2 * ROWS,
        3,
        1,
    )
    assert 0 <= answer.timing.time_to_first_token <= answer.timing.total
    assert list(world.messages) == [
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(PNG), ImagePart(png(9, 7)), TextPart("What is this?"))),
    ]


OPTIONS: dict[str, Any] = {
    "max_tokens": 7,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "seed": 2**63,
    "stop": ["\n", "。"],
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 3,
    "cache_salt": "tenant ä",
}


@pytest.mark.parametrize("way", ["ask", "stream", "chat"])
def test_every_option_reaches_the_engine(world: World, way: str) -> None:
    world.engine.script = lambda request: say("It", " is", request=request, logprobs=True)
    if way == "ask":
        answer = world.call("ask", PNG, "q", **OPTIONS)
    elif way == "chat":
        answer = world.call("chat", [{"role": "user", "content": [PNG, "q"]}], **OPTIONS)
    else:
        answer = world.stream(PNG, "q", **OPTIONS)[1].answer
    expected = {k: v for k, v in OPTIONS.items() if k not in ("top_logprobs", "cache_salt")}
    assert world.asked.sampling == SamplingParams(**{**expected, "stop": ("\n", "。"), "logprobs": 3})
    assert world.asked.cache_salt == "tenant ä"
    assert [entry["token"] for entry in answer.logprobs["content"]] == ["It", " is"]


def test_stream(world: World) -> None:
    words = ["Eine ", "猫", "👩‍👩‍👧", "\n\n", "data: [DONE]"]
    world.engine.script = lambda request: say(*words, request=request)
    pieces, stream = world.stream(PNG, "Was?")
    assert pieces == words
    assert (stream.answer.text, stream.answer.finish_reason) == ("".join(words), "stop")
    assert stream.answer.usage.image_tokens == ROWS
    assert stream.answer.pictures == (PictureInfo(8, 6, ROWS, (16, 12)),)
    assert stream.answer.timing.total >= 0


def test_an_answer_without_text(world: World) -> None:
    world.engine.script = lambda request: say("", request=request)
    pieces, stream = world.stream(PNG, "q")
    assert (pieces, stream.answer.text) == ([], "")


def test_leaving_a_stream_aborts_the_request(world: World) -> None:
    world.engine.script = forever
    pieces, _ = world.stream(PNG, "q", take=3)
    assert pieces == ["w0 ", "w1 ", "w2 "]
    eventually(lambda: world.engine.aborted == [world.asked.id])


def test_an_error_after_the_start_of_a_stream(world: World) -> None:
    def fail(request: Request) -> Iterator[TokenEvent | Exception]:
        yield TokenEvent(request.id, text="It", token_ids=(1,))
        yield CorruptPicture("tile 3 is damaged", param="image")

    world.engine.script = fail
    with pytest.raises(CorruptPicture, match="tile 3"):
        world.stream(PNG, "q")


def test_chat_in_turns(world: World, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    answer = world.call(
        "chat",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [path, "What is this?"]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": ["And this?", Image.new("RGB", (5, 5))]},
        ],
    )
    assert answer.text == "It is a cat."
    assert answer.usage.image_tokens == 2 * ROWS
    roles = [(m.role, [type(part).__name__ for part in m.parts]) for m in world.messages]
    assert roles == [
        ("system", ["TextPart"]),
        ("user", ["ImagePart", "TextPart"]),
        ("assistant", ["TextPart"]),
        ("user", ["TextPart", "ImagePart"]),
    ]
    assert world.messages[1].parts[0] == ImagePart(PNG)


@pytest.mark.parametrize(
    ("pictures", "options", "raised", "param"),
    [
        (b"this is text", {}, UnsupportedPicture, "image"),
        (b"", {}, UnsupportedPicture, "image"),
        ([PNG] * 4, {}, TooManyPictures, "image"),
        (PNG + bytes(700_000), {}, PictureTooLarge, "image"),
        (PNG + bytes(3_000_000), {}, PictureTooLarge, None),
        (PNG, {"model": "gpt-9"}, ModelNotFound, "model"),
        (PNG, {"temperature": -1.0}, InvalidField, "temperature"),
        (PNG, {"top_logprobs": 3}, InvalidField, None),
    ],
    ids=[
        "text",
        "empty",
        "too many",
        "too large",
        "body too large",
        "no such model",
        "out of range",
        "without logprobs",
    ],
)
def test_refusals_come_back_as_their_classes(
    world: World, pictures: Any, options: Any, raised: type[MMServeError], param: str | None
) -> None:
    with pytest.raises(MMServeError) as caught:
        world.call("ask", pictures, "q", **options)
    assert type(caught.value) is raised, caught.value
    assert caught.value.param == param


@pytest.mark.parametrize("way", ["ask", "stream", "chat"])
@pytest.mark.parametrize(
    "error", [PromptTooLong("too long"), CorruptPicture("damaged", param="image"), EngineUnavailable("it ended")]
)
def test_what_the_engine_refuses_comes_back_as_its_class(world: World, way: str, error: MMServeError) -> None:
    world.engine.script = lambda _: [error]
    ways: dict[str, Callable[[], object]] = {
        "ask": lambda: world.call("ask", PNG, "q"),
        "stream": lambda: world.stream(PNG, "q", retries=0),
        "chat": lambda: world.call("chat", [{"role": "user", "content": "q"}]),
    }
    with pytest.raises(MMServeError) as caught:
        ways[way]()
    assert type(caught.value) is type(error)
    assert (caught.value.message, caught.value.param) == (error.message, error.param)


def test_an_empty_question(world: World) -> None:
    with pytest.raises(InvalidField) as caught:
        world.call("ask", PNG, "")
    assert caught.value.param == "question"


def test_a_full_queue_is_waited_for(world: World) -> None:
    world.engine.script = lambda request: (
        [QueueFull("64 requests wait")] if len(world.engine.requests) == 1 else say("Yes.", request=request)
    )
    with pytest.raises(QueueFull, match="64 requests wait"):
        world.call("ask", PNG, "q")
    world.engine.requests.clear()
    assert world.call("ask", PNG, "q", retries=1).text == "Yes."


def test_models_and_health(world: World) -> None:
    assert world.call("models") == ["pocket-vl"]
    assert world.call("health") == {"status": "ok"}
    world.call("wait_ready", 5)
    world.engine.ready = False
    with pytest.raises(EngineUnavailable):
        world.call("health")
    with pytest.raises(EngineUnavailable, match=r"not ready after 0\.3 s"):
        world.call("wait_ready", 0.3)


def test_captioning_a_folder(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (8 + i // 2, 8)).save(buffer, "PNG")  # three pairs of copies
        (folder / f"{i}.png").write_bytes(buffer.getvalue())
    (folder / "text.png").write_bytes(b"this is text")

    async def run() -> Any:
        async with AsyncClient(world.url) as client:
            with open_jsonl(tmp_path / "c.jsonl") as ledger:
                return await caption_folder(folder, client, ledger, concurrency=3)

    report = asyncio.run(run())
    assert [failure.file for failure in report.failures] == ["text.png"]
    assert isinstance(report.failures[0].error, UnsupportedPicture)
    assert (report.progress.captioned, report.progress.copied) == (6, 3)
    assert len(world.engine.requests) == 3
    assert {line["caption"] for line in lines_of(tmp_path / "c.jsonl")} == {"It is a cat."}


class Shape(pydantic.BaseModel):
    color: str
    shape: str


@pytest.mark.parametrize("way", ["ask", "stream", "chat"])
@pytest.mark.parametrize(
    ("options", "text", "constraint", "parsed"),
    [
        ({"schema": Shape, "strict": True}, '{"color":"红","shape":"🔺"}', JsonSchema, Shape(color="红", shape="🔺")),
        ({"schema": {"type": "array"}}, "[1]", JsonSchema, [1]),
        ({"json": True}, "{}", AnyJson, {}),
        ({"choices": ["红", "b"]}, "红", Choice, "红"),
        ({"regex": "a+"}, "aa", Regex, None),
        ({"grammar": 'start: "a"'}, "a", Grammar, None),
        ({"xml": {"element": "a"}}, "<a/>", XmlSchema, None),
        ({"structural_tag": {"format": {"type": "regex", "pattern": "a"}}}, "a", Regex, None),
    ],
    ids=str,
)
def test_constraints_reach_the_engine_and_their_answers_come_back(
    world: World, way: str, options: Any, text: str, constraint: type, parsed: Any
) -> None:
    report = ConstraintReport(closed_early=True, forced_tokens=2)
    world.engine.script = lambda request: say(text[:1], text[1:], request=request, report=report)
    if way == "stream":
        answer = world.stream(PNG, "q", **options)[1].answer
    elif way == "chat":
        answer = world.call("chat", [{"role": "user", "content": [PNG, "q"]}], **options)
    else:
        answer = world.call("ask", PNG, "q", **options)
    assert type(world.asked.constraint) is constraint
    assert (answer.text, answer.parsed) == (text, parsed)
    assert (answer.constraint.step, answer.constraint.closed_early, answer.constraint.valid) == ("strict", True, True)
    if options.get("strict"):
        assert world.asked.constraint.strict  # type: ignore[union-attr]


def test_refusals_of_a_constraint(world: World) -> None:
    with pytest.raises(InvalidConstraint) as caught:
        world.call("ask", PNG, "q", regex="")
    assert caught.value.param == "regex"
    errors = [UnsupportedConstraint("not at /a", param="schema"), BudgetTooSmall("9 tokens", param="max_tokens")]
    for error in errors:
        script: list[TokenEvent | Exception | float] = [error]
        world.engine.script = lambda _, script=script: script  # type: ignore[misc]
        with pytest.raises(type(error)) as refused:
            world.call("ask", PNG, "q", schema={})
        assert refused.value.param == error.param


def test_decide(world: World) -> None:
    chances = {"red": 0.1, "blue": 0.3, "yes": 0.5, "1": 0.2, "2": 0.2}
    world.engine.script = lambda request: scored(request, lambda text: math.log(chances.get(text, 1e-9)))
    decision = world.call("decide", [PNG, PNG], "Which colour?", ["red", "blue"])
    assert (decision.choice, decision.score, decision.model) == ("blue", None, "pocket-vl")
    assert decision.probabilities["blue"] == pytest.approx(0.75)
    assert decision.label_mass == pytest.approx(0.4)
    assert decision.usage.image_tokens == 2 * ROWS
    assert world.messages[0].parts == (ImagePart(PNG), ImagePart(PNG), TextPart("Which colour?"))
    assert world.call("decide", PNG, "Is it red?").choice is True
    assert world.call("decide", PNG, "How much?", levels=range(1, 3)).score == pytest.approx(1.5)
    assert world.call("decide", PNG, "How much?", levels=["none", "some", "all"]).score == pytest.approx(1.5)
