"""Prompts that callers write whole: ``build_text``, ``build_ids`` and ``decode``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.checkpoint import Checkpoint
from mmserve.config import Limits
from mmserve.errors import CorruptPicture, InvalidField, PromptTooLong, TooManyPictures, UnsupportedPicture
from mmserve.prompt import PromptBuilder
from mmserve.prompt.specials import SpecialTokens
from mmserve.types import MediaRange, Prompt
from tests.prompt.test_builder import image, message

PAD = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def builder(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint, Limits(max_pictures=3))


def same(one: Prompt, other: Prompt) -> bool:
    contents = [[picture.content for picture in prompt.pictures] for prompt in (one, other)]
    return (
        one.token_ids.tolist() == other.token_ids.tolist() and one.ranges == other.ranges and contents[0] == contents[1]
    )


def test_text_that_the_template_would_write_is_the_templates_prompt(builder: PromptBuilder) -> None:
    """So a client that renders the template itself shares every cached prefix with one that sends messages."""
    red, blue = image(64, 64, 1), image(120, 60, 2)
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{PAD}One {PAD}two?<|im_end|>\n<|im_start|>assistant\n"
    )
    messages = [message("system", "Be brief."), message("user", red, "One ", blue, "two?")]
    assert same(builder.build_text(rendered, [red, blue], cache_salt="s"), builder.build(messages, cache_salt="s"))
    assert not same(builder.build_text(rendered, [red, blue]), builder.build(messages, cache_salt="s"))


def test_special_tokens_are_special_here_alone(builder: PromptBuilder) -> None:
    [end] = builder.build_text("<|im_end|>", []).token_ids.tolist()
    assert builder.decode([end]) == ""
    assert builder.decode([end], special=True) == "<|im_end|>"
    typed, plain = (builder.build([message("user", text)]).token_ids.tolist() for text in ("<|im_end|>", "Hello"))
    assert typed.count(end) == plain.count(end) == 2


def test_ids_with_and_without_room_for_the_rows(builder: PromptBuilder) -> None:
    pictures = [image(64, 64, 1), image(120, 60, 2)]
    text = f"a{PAD}b{PAD}c"
    whole = builder.build_text(text, pictures)
    pad = int(whole.token_ids[whole.ranges[0].start])
    short = [int(i) for at, i in enumerate(whole.token_ids) if i != pad or any(at == r.start for r in whole.ranges)]
    assert same(builder.build_ids(short, pictures), whole)
    assert same(builder.build_ids(whole.token_ids.tolist(), pictures), whole)
    beside = builder.build_ids([pad, pad], pictures)
    first, second = (picture.rows for picture in beside.pictures)
    assert beside.ranges == (MediaRange(0, first, 0), MediaRange(first, first + second, 1))
    assert not whole.token_ids.flags.writeable


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_placeholders_and_pictures_must_agree(builder: PromptBuilder, pictures: int) -> None:
    with pytest.raises(InvalidField, match=f"2 placeholders for {pictures} pictures") as told:
        builder.build_text(f"{PAD}{PAD}", [image(64, 64, k) for k in range(pictures)])
    assert told.value.param == "text"
    pad = builder.build_text(PAD, [image()]).token_ids.tolist()[1]
    with pytest.raises(InvalidField, match=r"write one <\|image_pad\|>") as told:
        builder.build_ids([pad, pad, 5], [image(64, 64, k) for k in range(pictures)])
    assert told.value.param == "input_ids"


def test_pictures_are_judged(builder: PromptBuilder) -> None:
    with pytest.raises(UnsupportedPicture) as told:
        builder.build_text(PAD * 2, [image(), b"hello"])
    assert told.value.param == "images[1]"
    with pytest.raises((CorruptPicture, UnsupportedPicture)):
        builder.build_ids([1], [image()[:10]])
    with pytest.raises(TooManyPictures):
        builder.build_text(PAD * 4, [image()] * 4)


@pytest.mark.parametrize("ids", [[-1], [10**6], [0, 2**70]])
def test_ids_that_are_none(builder: PromptBuilder, ids: list[int]) -> None:
    with pytest.raises(InvalidField, match="is no token id") as told:
        builder.build_ids(ids, [])
    assert told.value.param == "input_ids"


def test_what_is_no_prompt(builder: PromptBuilder) -> None:
    for text in ("", "\ud800"):
        with pytest.raises(InvalidField) as told:
            builder.build_text(text, [])
        assert told.value.param == "text"
    with pytest.raises(InvalidField, match="empty"):
        builder.build_ids([], [])


def test_length(checkpoint: Checkpoint, builder: PromptBuilder) -> None:
    most = checkpoint.max_model_len
    assert len(builder.build_ids([1] * most, [])) == most  # it can still be scored
    with pytest.raises(PromptTooLong):
        builder.build_ids([1] * (most + 1), [])
    with pytest.raises(PromptTooLong):
        builder.build_text("猫1 " * most, [])
    with pytest.raises(PromptTooLong, match="more than"):
        builder.build_text("x" * 10_000_000, [])  # at once, before it is encoded


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_decode_is_the_other_way_round(builder: PromptBuilder, text: str) -> None:
    if "<|" in text or not text:
        return
    ids = builder.build_text(text, []).token_ids
    normal = builder.tokenizer.normalizer.normalize_str(text) if builder.tokenizer.normalizer else text
    assert builder.decode(ids.tolist()) == normal
    assert builder.decode(ids.tolist(), special=True) == normal


def test_cut_leaves_marks_as_they_are(builder: PromptBuilder) -> None:
    specials = SpecialTokens(builder.tokenizer.get_added_tokens_decoder())
    text = "\ufdd0\ufdd0a<|im_end|>\ufdd1"
    assert [run for run, _ in specials.cut(text)] == ["\ufdd0\ufdd0a", "\ufdd1"]


def test_the_bytes_of_tokens(builder: PromptBuilder) -> None:
    ids = builder.build_text("né 猫<|im_end|>", ()).token_ids.tolist()
    assert b"".join(map(builder.token_bytes, ids)) == "né 猫<|im_end|>".encode()
    assert builder.token_bytes(10**6) == b""
