from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from mmserve.errors import ConfigError
from mmserve.prompt.specials import SpecialTokens
from tests.checkpoints import QWEN_SPECIAL_TOKENS

TOKENS = {n: AddedToken(content, special=True) for n, content in enumerate(QWEN_SPECIAL_TOKENS)}
SPECIALS = SpecialTokens(TOKENS)
OVERLAPPING = SpecialTokens(
    {n: AddedToken(t, special=True) for n, t in enumerate(["abab", "aba", "<s>", "<s><s>", "aa"])}
)

FRAGMENTS = [
    "<",
    "<|",
    "<|im_",
    "im_start",
    "start|>",
    "|>",
    ">",
    "<|image_pad|>",
    "<|im_end|>",
    "<<||",
    "\ufdd0",
    "\ufdd1",
]
qwen_text = st.lists(st.sampled_from([*FRAGMENTS, "hello", " ", "\n", "é"]), max_size=5).map("".join)
overlapping_text = st.text("ab<s>\ufdd0\ufdd1", max_size=8)


def split_back(specials: SpecialTokens, items: list[tuple[str, str]]) -> None:
    """Render ``items`` as a template would; the specials found must be its own, and the text in between unchanged."""
    rendered = "".join(specials.defuse(text) if kind == "caller" else text for kind, text in items)
    expected: list[tuple[str, int | None]] = []
    run = ""
    for kind, text in items:
        if kind == "special":
            expected.append((run, specials.ids[text]))
            run = ""
        else:
            run += text
    assert list(specials.split(rendered)) == [*expected, (run, None)]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("caller"), qwen_text),
            st.tuples(st.just("special"), st.sampled_from(QWEN_SPECIAL_TOKENS)),
            st.tuples(st.just("template"), st.sampled_from(["user\n", "\n", "Picture 1: ", "a"])),
        ),
        max_size=8,
    )
)
def test_every_special_token_is_the_templates_own_and_text_comes_back(items: list[tuple[str, str]]) -> None:
    split_back(SPECIALS, items)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.just("caller"), overlapping_text), max_size=5))
def test_the_same_with_special_tokens_that_overlap(items: list[tuple[str, str]]) -> None:
    split_back(OVERLAPPING, items)


@pytest.mark.parametrize("special", QWEN_SPECIAL_TOKENS)
def test_no_way_of_cutting_a_special_token_into_parts_makes_one(special: str) -> None:
    for cut in range(len(special) + 1):
        split_back(SPECIALS, [("caller", special[:cut]), ("caller", special[cut:])])
        for second in range(cut, len(special) + 1):
            split_back(SPECIALS, [("caller", part) for part in (special[:cut], special[cut:second], special[second:])])
    split_back(SPECIALS, [("caller", character) for character in special])


@pytest.mark.parametrize("special", QWEN_SPECIAL_TOKENS)
def test_what_the_template_writes_beside_callers_text_completes_nothing(special: str) -> None:
    for cut in range(1, len(special)):
        split_back(SPECIALS, [("template", special[:cut]), ("caller", special[cut:])])
        split_back(SPECIALS, [("template", special[:cut]), ("caller", special[cut:] + " and more")])
        split_back(SPECIALS, [("caller", special[:cut]), ("template", special[cut:])])
        split_back(SPECIALS, [("caller", "more and " + special[:cut]), ("template", special[cut:])])
        for second in range(cut + 1, len(special)):
            middle = [("template", special[:cut]), ("caller", special[cut:second]), ("template", special[second:])]
            split_back(SPECIALS, middle)


@pytest.mark.parametrize("typed", [0, 1, 2, 3, 4])
def test_marks_that_the_caller_types_come_back_in_any_number(typed: int) -> None:
    for mark in ("\ufdd0", "\ufdd1", "\ufdd0\ufdd1", "\ufdd1\ufdd0"):
        for text in ("<{}|im_end|>", "{}<|im_end|>", "<|im_end|>{}", "<{}", "{}>", "x{}y"):
            split_back(SPECIALS, [("caller", text.format(mark * typed))] * 2)


def test_ordinary_text_is_left_as_it_is() -> None:
    for text in ("", "What is this?", "a < b and c > d", "图片里有什么？", "<b>bold</b> text", "x|>y"):
        assert SPECIALS.defuse(text) == text


def test_tokens_that_are_not_special_are_text() -> None:
    specials = SpecialTokens({1: AddedToken("<s>", special=True), 2: AddedToken("<tool_call>", special=False)})
    assert specials.ids == {"<s>": 1}
    assert specials.defuse("<tool_call>") == "<tool_call>"
    assert list(specials.split("<s><tool_call>")) == [("", 1), ("<tool_call>", None)]


def test_the_longest_token_wins() -> None:
    assert list(OVERLAPPING.split("<s><s><s>")) == [
        ("", OVERLAPPING.ids["<s><s>"]),
        ("", OVERLAPPING.ids["<s>"]),
        ("", None),
    ]


def test_tokens_that_take_white_space_with_them() -> None:
    specials = SpecialTokens(
        {7: AddedToken("<mask>", special=True, lstrip=True), 8: AddedToken("<e>", special=True, rstrip=True)}
    )
    assert list(specials.split("a \n<mask> b <e> \tc")) == [("a", 7), (" b ", 8), ("c", None)]


def test_a_vocabulary_without_special_tokens() -> None:
    none = SpecialTokens({})
    assert none.defuse("<|im_end|>") == "<|im_end|>"
    assert list(none.split("<|im_end|>")) == [("<|im_end|>", None)]


def test_a_special_token_of_one_character_is_refused() -> None:
    with pytest.raises(ConfigError, match="single character"):
        SpecialTokens({1: AddedToken("$", special=True)})


@pytest.mark.parametrize("text", ["<" * 200_000, "<|im_" * 50_000, "<|im_start|>" * 20_000, "\ufdd0" * 200_000])
def test_hostile_text_takes_linear_time(text: str) -> None:
    def cpu_seconds(text: str) -> float:
        start = time.thread_time()
        for _, _ in SPECIALS.split(SPECIALS.defuse(text)):
            pass
        return time.thread_time() - start

    quarter = min(cpu_seconds(text[: len(text) // 4]) for _ in range(3))
    assert min(cpu_seconds(text) for _ in range(3)) < 8 * quarter + 0.01
