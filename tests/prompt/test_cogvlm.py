"""CogVLM's prompts: one form of text, a picture in front of it, and positions that a picture's middle shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmserve.config import Limits
from mmserve.errors import InvalidField
from mmserve.prompt import PromptBuilder
from mmserve.prompt.cogvlm import TEMPLATES, cog_positions
from mmserve.prompt.template import ChatTemplate
from mmserve.types import MediaRange, Message, Prompt, TextPart
from tests.checkpoints.cogvlm import COGVLMS, tiny_cogvlm
from tests.checkpoints.tokenizer import sentencepiece_tokenizer_json
from tests.models.cogvlm_reference import CogReference, positions_of
from tests.models.equality import Case, resolve

PICTURE = Image.new("RGB", (30, 40), "blue")


def builder(path: Path, kind: str, **changes: Any) -> PromptBuilder:
    return PromptBuilder(resolve(tiny_cogvlm(path, kind, **changes)), Limits())


def user(text: str, *pictures: Image.Image) -> Message:
    return Case(text, pictures).message


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


@pytest.mark.parametrize("kind", COGVLMS)
class TestText:
    def test_question_and_answer(self, kind: str, tmp_path: Path) -> None:
        build = builder(tmp_path, kind)
        prompt = build.build([user("Is it red?"), assistant("No."), user("Blue?")])
        text = build.decode(prompt.token_ids.tolist()).removeprefix(" ")
        assert text == "Question: Is it red? Answer: No.\nQuestion: Blue? Answer:"
        assert prompt.opens_answer
        assert prompt.system_tokens == 0

    def test_short_answers(self, kind: str, tmp_path: Path) -> None:
        build = builder(tmp_path, kind, template_version="vqa")
        prompt = build.build([user("Is it red?"), assistant("No."), user("Blue?")])
        text = build.decode(prompt.token_ids.tolist()).removeprefix(" ")
        assert text == "Question: Is it red? Short answer: No.\nQuestion: Blue? Short answer:"

    def test_models_that_were_not_taught_to_chat(self, kind: str, tmp_path: Path) -> None:
        build = builder(tmp_path, kind, template_version="base")
        prompt = build.build([user("A picture of", PICTURE)])
        assert build.decode(prompt.token_ids.tolist()[28:]).removeprefix(" ") == "A picture of"
        with pytest.raises(InvalidField, match="send a single user message"):
            build.build([user("A"), assistant("B"), user("C")])

    def test_parts_of_an_answer_follow(self, kind: str, tmp_path: Path) -> None:
        """What is answered in pieces reads as if the template had written it."""
        build = builder(tmp_path, kind)
        begun = build.append_text(build.build([user("Is it red?", PICTURE)]), " No.")
        whole = build.build([user("Is it red?", PICTURE), assistant("No.")], add_generation_prompt=False)
        said = [build.decode(prompt.token_ids.tolist()) for prompt in (begun, whole)]
        assert said[0] + "\n" == said[1]

    def test_a_question_without_the_place_for_its_answer(self, kind: str, tmp_path: Path) -> None:
        build = builder(tmp_path, kind)
        prompt = build.build([user("Is it red?")], add_generation_prompt=False)
        assert build.decode(prompt.token_ids.tolist()).removeprefix(" ") == "Question: Is it red?"

    def test_turns(self, kind: str, tmp_path: Path) -> None:
        build = builder(tmp_path, kind)
        for messages in ([user("a"), user("b")], [assistant("a"), user("b")]):
            with pytest.raises(InvalidField, match="must take turns, a question first"):
                build.build(messages)
        with pytest.raises(InvalidField, match="there is no question to answer"):
            build.build([user("a"), assistant("b")])

    def test_marks_and_special_tokens_that_callers_type_are_text(self, kind: str, tmp_path: Path) -> None:
        build = builder(tmp_path, kind)
        typed = "<|picture|> <s> a </s> <|end_of_text|> <|reserved_special_token_0|> <unk>"
        prompt = build.build([user(typed, PICTURE), assistant("<|picture|>"), user("?")])
        assert prompt.picture_tokens == 27
        assert prompt.ranges == (MediaRange(1, 28, 0),)
        assert typed in build.decode(prompt.token_ids.tolist()[28:])

    def test_raw_prompts(self, kind: str, tmp_path: Path) -> None:
        """As text with the mark in it, and as ids with the picture's rows in them."""
        build = builder(tmp_path, kind)
        data = user("", PICTURE).parts[0]
        assert not isinstance(data, TextPart)
        told = build.build([user("hi", PICTURE)])
        text = build.build_text("<|picture|>Question: hi Answer:", [data.data])
        ids = build.build_ids(told.token_ids.tolist(), [data.data])
        for prompt in (text, ids):
            assert prompt.token_ids.tolist() == told.token_ids.tolist()
            assert prompt.ranges == told.ranges
            assert prompt.pictures[0].content == told.pictures[0].content


def test_text_behind_a_picture_begins_as_a_text_does(tmp_path: Path) -> None:
    """Also with a tokenizer that puts its blank before the first text only: the published code encodes the text alone
    and puts the picture in front."""
    path = tiny_cogvlm(tmp_path, "cogvlm")
    (path / "tokenizer.json").write_text(sentencepiece_tokenizer_json(legacy=False))
    build, reference = PromptBuilder(resolve(path), Limits()), CogReference(path)
    for pictures in ((), (PICTURE,)):
        prompt = build.build([user("Is it red?", *pictures)])
        assert prompt.token_ids.tolist() == reference.prompt(len(pictures), "Is it red?")[0]


def test_texts_may_be_strings_or_parts() -> None:
    """And white space in them is the caller's."""
    template = ChatTemplate(TEMPLATES["chat"], {})
    parts = [{"type": "text", "text": " a\n"}, {"type": "image"}, {"type": "text", "text": "\n b"}]
    assert template.takes_strings
    for content, expected in (("  x \n", "Question:   x \n Answer:"), (parts, "<|picture|>Question:  a\n\n b Answer:")):
        assert template.render([{"role": "user", "content": content}], add_generation_prompt=True) == expected


@given(st.integers(0, 5), st.one_of(st.just(0), st.integers(3, 30)), st.integers(0, 5))
def test_positions(before: int, rows: int, behind: int) -> None:
    kinds = [0] * before + [1] * rows + [0] * behind
    if not kinds:
        return
    ranges = (MediaRange(before, before + rows, 0),) if rows else ()
    positions, following = cog_positions(Prompt(np.zeros(len(kinds), dtype=np.int64), ranges=ranges))
    assert positions.dtype == np.int64
    assert positions.tolist() == [positions_of(kinds)]
    assert following == positions[0, -1] + 1
