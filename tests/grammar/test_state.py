"""Answers under a grammar, token by token: whatever is chosen and whenever the budget ends, they are whole."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

import mmserve
from mmserve.checkpoint import read_json
from mmserve.grammar.closing import Closer, find_completion
from mmserve.grammar.spec import Choice, Constraint, Grammar, JsonSchema, Regex
from mmserve.grammar.state import GrammarState
from mmserve.grammar.vocabulary import Vocabulary

FOLDER = Path(mmserve.__file__).parent / "assets" / "pocket-vl"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["circle", "square", "猫", "🐈"]}, "maxItems": 4},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    config = read_json(FOLDER / "config.json")
    return Vocabulary(
        FOLDER,
        size=config["text_config"]["vocab_size"],
        eos_ids=read_json(FOLDER / "generation_config.json")["eos_token_id"],
    )


@dataclass(frozen=True)
class Stub:
    """A compiled constraint whose grammar is given as it is."""

    constraint: Constraint
    prototype: LLMatcher
    completion: tuple[int, ...]
    step: str = "strict"
    relaxed: tuple[str, ...] = ()
    hints: tuple[bytes, ...] = ()

    def matcher(self) -> LLMatcher:
        return self.prototype.deep_copy()


def compiled(constraint: Constraint, grammar: str, vocabulary: Vocabulary) -> Stub:
    prototype = LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
    assert not prototype.is_error(), prototype.get_error()
    hints = (b"foo", b"xyz")
    shortest = find_completion(prototype, vocabulary, hints=hints, budget=2000)
    assert shortest is not None
    return Stub(constraint, prototype, tuple(shortest), hints=hints)


def json_schema(schema: dict[str, Any], vocabulary: Vocabulary) -> Stub:
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    return compiled(JsonSchema.of(schema), grammar, vocabulary)


def lark(source: str, vocabulary: Vocabulary, constraint: Constraint | None = None) -> Stub:
    return compiled(constraint or Grammar(source), LLMatcher.grammar_from_lark(source), vocabulary)


Choose = Callable[[Sequence[int]], int]


def answer(state: GrammarState, vocabulary: Vocabulary, choose: Choose, *, begin: bool = True) -> str:
    """Play an answer to its end, checking what must hold at every step."""
    tokens = list(state.begin()) if begin else []
    while True:
        assert len(state.held) <= state.remaining
        bits = np.frombuffer(state.matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        step = state.advance(choose(allowed))
        tokens += step.tokens
        assert len(tokens) + state.remaining == tokens_budget(state)
        if step.ended:
            ordinary = tokens[:-1] if step.silent else tokens
            assert not vocabulary.eos_ids & set(ordinary)
            return vocabulary.bytes_of(ordinary).decode()


def tokens_budget(state: GrammarState) -> int:
    return state._budget


def rolling(seed: int) -> Choose:
    rng = random.Random(seed)
    return rng.choice


@pytest.mark.parametrize("seed", range(60))
def test_random_json_is_whole_at_any_budget(vocabulary: Vocabulary, seed: int) -> None:
    grammar = json_schema(PERSON, vocabulary)
    budget = len(grammar.completion) + random.Random(seed).choice([0, 1, 2, 3, 5, 8, 13, 40, 200])
    state = GrammarState(grammar, Closer(vocabulary), budget=budget, fast_forward=seed % 2 == 0)
    text = answer(state, vocabulary, rolling(seed))
    jsonschema.validate(json.loads(text), PERSON)
    assert tokens_budget(state) - state.remaining <= budget


@pytest.mark.parametrize(
    "pattern", ["[a-z]+", "(ab|cd)*xyz", r"[0-9]{3}-[0-9]{4}", "(cat|catalogue)s?", "[猫犬]{2,5}", ".*foo"]
)
@pytest.mark.parametrize("extra", [0, 1, 4, 30])
def test_random_text_matches_its_pattern_at_any_budget(vocabulary: Vocabulary, pattern: str, extra: int) -> None:
    grammar = lark(f"start: /{pattern}/", vocabulary, Regex(pattern))
    for seed in range(5):
        state = GrammarState(grammar, Closer(vocabulary), budget=len(grammar.completion) + extra)
        text = answer(state, vocabulary, rolling(seed))
        assert re.fullmatch(pattern, text), text


def test_a_budget_below_the_shortest_answer_is_refused(vocabulary: Vocabulary) -> None:
    grammar = json_schema(PERSON, vocabulary)
    with pytest.raises(ValueError, match="budget"):
        GrammarState(grammar, Closer(vocabulary), budget=len(grammar.completion) - 1)


def test_forced_tokens_are_taken_at_once_and_only_when_asked(vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"first_name": {"enum": ["Ada", "Bob"]}, "last_name": {"const": "Lovelace"}},
        "required": ["first_name", "last_name"],
        "additionalProperties": False,
    }
    texts, chosen = [], []
    for fast_forward in (True, False):
        state = GrammarState(json_schema(schema, vocabulary), Closer(vocabulary), budget=100, fast_forward=fast_forward)
        choices = 0

        def first(allowed: Sequence[int]) -> int:
            nonlocal choices
            choices += 1
            return allowed[0]

        texts.append(answer(state, vocabulary, first))
        chosen.append(choices)
        assert (state.report().forced_tokens > 0) is fast_forward
    assert texts[0] == texts[1] == '{"first_name":"Ada","last_name":"Lovelace"}'
    assert chosen[0] < chosen[1] / 3


def test_closing_early_is_said(vocabulary: Vocabulary) -> None:
    grammar = lark("start: /[a-z]+!/", vocabulary)

    def letter(allowed: Sequence[int]) -> int:
        return next(id_ for id_ in allowed if vocabulary.bytes_of([id_]) == b"a")

    state = GrammarState(grammar, Closer(vocabulary), budget=7)
    assert answer(state, vocabulary, letter) == "aaaaaa!"
    assert state.report().closed_early
    state = GrammarState(lark('start: "yes"', vocabulary), Closer(vocabulary), budget=50)
    assert answer(state, vocabulary, rolling(0)) == "yes"
    assert not state.report().closed_early


def test_an_answer_that_only_the_budget_ends_is_closed_early(vocabulary: Vocabulary) -> None:
    def no_end(allowed: Sequence[int]) -> int:
        return next(id_ for id_ in allowed if id_ not in vocabulary.eos_ids)

    state = GrammarState(lark("start: /[a-z]*/", vocabulary), Closer(vocabulary), budget=5)
    assert len(answer(state, vocabulary, no_end)) >= 5
    assert state.report().closed_early


def test_end_of_sequence_ends_where_the_grammar_accepts(vocabulary: Vocabulary) -> None:
    def end(allowed: Sequence[int]) -> int:
        return vocabulary.eos_id if vocabulary.eos_id in allowed else allowed[0]

    state = GrammarState(lark("start: /[b-d]{2}[a-z]*/", vocabulary), Closer(vocabulary), budget=50)
    text = answer(state, vocabulary, end)
    assert re.fullmatch("[b-d]{2}[a-z]*", text)
    assert not state.report().closed_early


def test_the_only_choice_may_be_spelled_like_the_end(vocabulary: Vocabulary) -> None:
    grammar = lark('start: "<|im_end|>"', vocabulary, Choice(("<|im_end|>",)))
    for begin in (True, False):
        state = GrammarState(grammar, Closer(vocabulary), budget=50)
        assert answer(state, vocabulary, rolling(0), begin=begin) == "<|im_end|>"
        assert not state.report().closed_early


@pytest.mark.parametrize("fast_forward", [True, False])
def test_text_spelled_like_a_special_token_is_text(vocabulary: Vocabulary, fast_forward: bool) -> None:
    option = "<|im_end|> and <|image_pad|>"
    grammar = lark(f'start: "{option}" | "<|im_start|>x"', vocabulary, Choice((option, "<|im_start|>x")))
    for seed in range(4):
        state = GrammarState(grammar, Closer(vocabulary), budget=100, fast_forward=fast_forward)
        tokens = list(state.begin())
        while True:
            bits = np.frombuffer(state.matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
            step = state.advance(random.Random(seed).choice(allowed))
            tokens += step.tokens
            if step.ended:
                break
        ordinary = tokens[:-1] if step.silent else tokens
        assert not any(vocabulary.tokenizer.is_special_token(id_) for id_ in ordinary)
        assert vocabulary.bytes_of(ordinary).decode() in (option, "<|im_start|>x")


def test_stop_ids_end_only_whole_answers(vocabulary: Vocabulary) -> None:
    stop = vocabulary.tokenize(b"b")[0]
    state = GrammarState(lark("start: /a[ab]*/", vocabulary), Closer(vocabulary), budget=50, stop_ids=[stop])
    a = vocabulary.tokenize(b"a")[0]
    assert state.advance(a).tokens == (a,)
    step = state.advance(stop)
    assert (step.tokens, step.ended, step.silent) == ((stop,), True, True)
    state = GrammarState(lark("start: /b[ab]*c/", vocabulary), Closer(vocabulary), budget=50, stop_ids=[stop])
    assert not state.advance(stop).ended


def test_a_number_cannot_run_away(vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    nine = vocabulary.tokenize(b"9")[0]

    def nines(allowed: Sequence[int]) -> int:
        return nine if nine in allowed else allowed[0]

    state = GrammarState(json_schema(schema, vocabulary), Closer(vocabulary), budget=1000)
    text = answer(state, vocabulary, nines)
    assert len(text) < 100
    json.loads(text)


def test_a_text_that_loops_is_ended_and_a_long_one_is_not(vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"s": {"type": "string"}},
        "required": ["s"],
        "additionalProperties": False,
    }
    loop = vocabulary.tokenize(b"ab ab")

    def looping(count: int) -> Choose:
        tokens = iter(loop * count)
        return lambda allowed: next((t for t in tokens if t in allowed), allowed[0])

    state = GrammarState(json_schema(schema, vocabulary), Closer(vocabulary), budget=2000)
    assert len(answer(state, vocabulary, looping(300))) < 500
    rng = random.Random(0)
    letters = [id_ for id_ in range(vocabulary.size) if re.fullmatch(rb"[a-z]+", vocabulary.bytes_of([id_]))]
    state = GrammarState(json_schema(schema, vocabulary), Closer(vocabulary), budget=600)
    text = answer(state, vocabulary, lambda allowed: rng.choice(letters) if letters[0] in allowed else allowed[0])
    assert len(text) > 600
    assert state.report().closed_early


def test_long_digits_in_a_text_are_no_number(vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"s": {"type": "string"}},
        "required": ["s"],
        "additionalProperties": False,
    }
    digits = iter(str(2**500))
    tokens = [vocabulary.tokenize(d.encode())[0] for d in digits]
    quote = vocabulary.tokenize(b'"}')
    queue = iter([*vocabulary.tokenize(b'"'), *tokens, *quote])
    state = GrammarState(json_schema(schema, vocabulary), Closer(vocabulary), budget=1000)
    text = answer(state, vocabulary, lambda _: next(queue))
    assert json.loads(text) == {"s": str(2**500)}


def test_accepts_asks_about_whole_answers(vocabulary: Vocabulary) -> None:
    state = GrammarState(lark("start: /(ab)+/", vocabulary), Closer(vocabulary), budget=10)
    assert [state.accepts(text) for text in ("", "a", "ab", "aba", "abab", "x")] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_matcher_in_error_is_closed(vocabulary: Vocabulary) -> None:
    grammar = lark("start: /[a-c]+!/", vocabulary)
    state = GrammarState(grammar, Closer(vocabulary), budget=10)
    assert not state.matcher.consume_token(vocabulary.tokenize(b"Z")[0])
    step = state.advance(vocabulary.tokenize(b"a")[0])
    assert (step.ended, step.taken) == (True, False)
    assert re.fullmatch("[a-c]+!", vocabulary.bytes_of(step.tokens).decode())
