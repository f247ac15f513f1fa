"""Pieces of answers behind a prompt: ``append_text`` and ``append_choices``."""

from __future__ import annotations

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import Limits
from mmserve.errors import InvalidField, PromptTooLong
from mmserve.prompt import PromptBuilder
from mmserve.types import Prompt
from tests.prompt.test_builder import image, message


@pytest.fixture
def asked(builder: PromptBuilder) -> Prompt:
    return builder.build([message("user", image(64, 64, 1), "Which?")])


def behind(prompt: Prompt, whole: Prompt) -> list[int]:
    assert whole.token_ids[: len(prompt)].tolist() == prompt.token_ids.tolist()
    assert (whole.pictures, whole.ranges) == (prompt.pictures, prompt.ranges)
    return [int(id_) for id_ in whole.token_ids[len(prompt) :]]


def test_a_piece_of_answer_is_text_and_ends_as_a_turn_does(
    builder: PromptBuilder, checkpoint: Checkpoint, asked: Prompt
) -> None:
    ids = behind(asked, builder.append_text(asked, "a <|im_end|> cat 🐈"))
    assert builder.decode(ids) == "a <|im_end|> cat 🐈"
    assert not set(ids) & set(checkpoint.eos_token_ids)
    ended = behind(asked, builder.append_text(asked, "a <|im_end|> cat 🐈", end=True))
    assert ended == [*ids, checkpoint.eos_token_ids[0]]
    assert behind(asked, builder.append_text(asked, "")) == []


def test_what_cannot_be_appended_is_refused(builder: PromptBuilder, asked: Prompt) -> None:
    with pytest.raises(InvalidField, match="surrogate"):
        builder.append_text(asked, "\ud800")
    with pytest.raises(PromptTooLong):
        builder.append_text(asked, "word " * 100_000)


@pytest.mark.parametrize("opening", ["", "a ", "It is a", "ca"])
@pytest.mark.parametrize("choices", [["cat"], ["cat", "catfish"], ["t", "x 猫", "🐈"]])
@pytest.mark.parametrize("end", [True, False])
def test_choices_are_scored_from_the_first_token_that_is_not_the_openings(
    builder: PromptBuilder, asked: Prompt, opening: str, choices: list[str], end: bool
) -> None:
    said, start = builder.append_choices(asked, opening, choices, end=end)
    opened = behind(asked, builder.append_text(asked, opening))
    wanted = [behind(asked, builder.append_text(asked, opening + choice, end=end)) for choice in choices]
    assert [behind(asked, each) for each in said] == wanted
    shared = 0
    while shared < len(opened) and all(len(w) - 1 > shared and w[shared] == opened[shared] for w in wanted):
        shared += 1
    assert start == len(asked) + shared
    assert all(start < len(each) for each in said)


def test_an_opening_that_merges_with_a_choice_is_scored_with_it(checkpoint: Checkpoint) -> None:
    builder = PromptBuilder(checkpoint, Limits())
    prompt = builder.build([message("user", "Which?")])
    texts = [
        text
        for text in ("the", "in", "er", "an", "re", "ing")
        if len(builder.append_text(prompt, text)) - len(prompt) == 1
    ]
    assert texts  # pieces that the vocabulary has as one token
    text = texts[0]
    _, start = builder.append_choices(prompt, text[:1], [text[1:]])
    assert start == len(prompt)
