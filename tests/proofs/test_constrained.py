"""Constrained generations of the embedded model at random budgets and temperatures: every one parses and validates.

Schemas are those of the JSONSchemaBench sample that the strict step accepts; the judges are the jsonschema library,
``re.fullmatch``, membership and a parse of the XML against its element schema, none of which take part in enforcing.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.errors import ConstraintError
from mmserve.grammar.compiler import CompiledGrammar
from mmserve.grammar.judge import judge
from mmserve.grammar.spec import Choice, Constraint, JsonSchema, Regex, XmlSchema
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Prompt, Request, TextPart, TokenEvent
from tests.engine.pictures import png
from tests.grammar.sample import load

CONFIG = EngineConfig(device="cpu", dtype="float32", kv_slots=40_000, max_running=32)
LONGEST_MINIMUM = 1500
SIZES = [60, pytest.param(1000, marks=[pytest.mark.proof, pytest.mark.timeout(7200)])]

REGEXES = (
    r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}",
    r"1[3-9]\d{9}",
    r"\d{4}-(0[1-9]|1[0-2])-([0-2]\d|3[01])",
    r"(red|green|blue)( and (red|green|blue))*",
    r"#[0-9a-f]{6}",
    r"-?(0|[1-9]\d*)(\.\d+)?",
    r"[A-Z][a-z]+( [A-Z][a-z]+){0,3}",
    r"(yes|no|maybe), because .{10,60}",
    r"[\u4e00-\u9fa5]{2,8}。",
    r"(https?)://[a-z]+(\.[a-z]+)+(/\w*)*",
    r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?",
    r"\[(\d+, )*\d+\]",
    r"(🐈|🐕|cat|dog){1,5}",
    r".*\.(png|jpe?g|webp)",
    r"\w+\s\w+\s\w+[.!?]",
    r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)",
    r"<(\w+)>[^<>]{0,40}</b>",
    r"a{3,}b{2}c?",
    r"(?P<year>19|20)\d\d",
    r"[^aeiou\s]{5}",
)
WORDS = (
    "red",
    "dark red",
    "red wine",
    "深红",
    "猫",
    "🐈‍⬛",
    "a cat",
    "a cat and a dog",
    "none of these",
    "<|im_end|>",
    "\n",
    " x ",
)
XML: tuple[dict[str, object], ...] = (
    {"element": "answer", "text": "string"},
    {"element": "count", "attributes": {"unit": {"enum": ["cats", "dogs"]}}, "text": "integer"},
    {
        "element": "picture",
        "attributes": {"lang": {"enum": ["en", "zh"]}, "id": {"type": "integer", "required": False}},
        "children": [
            {"element": "caption", "text": {"type": "string", "max_length": 60}},
            {
                "element": "object",
                "min": 0,
                "max": None,
                "children": [
                    {"element": "name", "text": {"pattern": "[a-z]+"}},
                    {"element": "count", "text": "integer"},
                ],
            },
            {"choice": [{"element": "indoor"}, {"element": "outdoor", "text": {"enum": ["day", "night"]}}]},
        ],
    },
    {"element": "图", "children": [{"element": "颜色", "min": 1, "max": 4, "text": {"enum": ["红", "绿", "蓝 & 白"]}}]},
)


@dataclass
class Report:
    """What came out; ``wrong`` must stay empty."""

    answers: int = 0
    closed_early: int = 0
    tokens: int = 0
    forced: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def engine(pocket_vl: Checkpoint) -> Iterator[Engine]:
    engine = build_engine(pocket_vl, CONFIG)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def questions(pocket_vl: Checkpoint) -> list[Prompt]:
    builder = PromptBuilder(pocket_vl, Limits())
    pictures = [png(colour) for colour in ("red", "green", "blue", "noise")]
    asked = ("What is this?", "Describe the picture as JSON.", "图片里有什么？")
    return [
        builder.build([Message("user", (ImagePart(picture), TextPart(question)))])
        for picture in pictures
        for question in asked
    ]


def run(
    engine: Engine,
    questions: Sequence[Prompt],
    constraints: Callable[[random.Random], Constraint],
    count: int,
    check: Callable[[Constraint, str], bool],
) -> Report:
    """``count`` generations, 32 at a time."""
    rng, report = random.Random(count), Report()
    asked: dict[str, Constraint] = {}
    texts: dict[str, str] = {}
    while report.answers < count:
        while len(asked) < min(32, count - report.answers):
            constraint = constraints(rng)
            try:
                grammar = engine.compile(constraint, budget=0).result()
            except ConstraintError as error:
                report.refused[type(error).__name__] += 1
                continue
            if len(grammar.completion) > LONGEST_MINIMUM:
                report.refused["longer than this model is asked to write here"] += 1
                continue
            request = question(
                rng, questions, str(report.answers + len(asked)) + "-" + str(rng.random()), constraint, grammar
            )
            engine.add(engine.resolve(request), grammar)
            asked[request.id], texts[request.id] = constraint, ""
        for event in engine.step(wait=True):
            texts[event.request_id] += event.text
            if event.last:
                note(report, event, asked.pop(event.request_id), texts.pop(event.request_id), check)
    return report


def question(
    rng: random.Random, questions: Sequence[Prompt], name: str, constraint: Constraint, grammar: CompiledGrammar
) -> Request:
    budget = len(grammar.completion) + rng.choice([0, 1, 2, 5, 10, 30, 100, 300])
    sampling = SamplingParams(
        max_tokens=max(1, budget),
        temperature=rng.choice([0.0, 0.3, 1.0, 2.0, 10.0]),
        top_p=rng.choice([1.0, 0.9]),
        seed=rng.getrandbits(40),
        frequency_penalty=rng.choice([0.0, 1.0]),
    )
    return Request(name, rng.choice(questions), sampling, constraint=constraint)


def note(
    report: Report, event: TokenEvent, constraint: Constraint, text: str, check: Callable[[Constraint, str], bool]
) -> None:
    assert event.error is None, event.error
    assert event.constraint is not None
    assert event.usage is not None
    report.answers += 1
    report.tokens += event.usage.completion_tokens
    report.forced += event.constraint.forced_tokens
    report.closed_early += event.constraint.closed_early
    if event.finish_reason != "stop" or not check(constraint, text):
        report.wrong.append(f"{constraint!r:.300}: {text!r:.300}")


def judged(constraint: Constraint, text: str) -> bool:
    return judge(constraint, text) is True


@pytest.mark.parametrize("count", SIZES)
def test_json(engine: Engine, questions: list[Prompt], count: int) -> None:
    schemas = [case.schema for case in load()]

    def some(rng: random.Random) -> JsonSchema:
        return JsonSchema.of(rng.choice(schemas), strict=True)

    def check(constraint: Constraint, text: str) -> bool:
        json.loads(text)
        return judged(constraint, text)

    report = run(engine, questions, some, count, check)
    print(f"JSON Schema: {report}")
    assert not report.wrong
    assert report.closed_early >= count // 20


@pytest.mark.parametrize("count", SIZES)
def test_regex(engine: Engine, questions: list[Prompt], count: int) -> None:
    def check(constraint: Constraint, text: str) -> bool:
        assert isinstance(constraint, Regex)
        return re.fullmatch(constraint.pattern, text) is not None

    report = run(engine, questions, lambda rng: Regex(rng.choice(REGEXES)), count, check)
    print(f"regex: {report}")
    assert not report.wrong
    assert not report.refused


@pytest.mark.parametrize("count", SIZES)
def test_choices(engine: Engine, questions: list[Prompt], count: int) -> None:
    def some(rng: random.Random) -> Choice:
        return Choice(tuple(rng.sample(WORDS, rng.randint(1, len(WORDS)))))

    report = run(engine, questions, some, count, lambda c, text: isinstance(c, Choice) and text in c.options)
    print(f"choices: {report}")
    assert not report.wrong
    assert not report.refused


@pytest.mark.parametrize("count", SIZES)
def test_xml(engine: Engine, questions: list[Prompt], count: int) -> None:
    report = run(engine, questions, lambda rng: XmlSchema.of(rng.choice(XML)), count, judged)
    print(f"XML: {report}")
    assert not report.wrong
    assert not report.refused
