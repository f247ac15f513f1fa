"""The tokenizer: any text survives, and the recipe's prompts are the chat template's."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLProcessor

from training.conversations import Conversation, segments
from training.model import token_id
from training.questions import Scene
from training.tokenizer import MAX_PIXELS, MIN_PIXELS, SPECIAL_TOKENS, VOCAB_SIZE

TEXTS = ["", "a\u0000b\n\n\tc  ", "größer, čeština", "日本語 한국어 العربية", "🙂👩‍👩‍👧 ½ ﬁ", "don't  STOP!?\r\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_unicode_round_trips(processor: Qwen2VLProcessor, text: str) -> None:
    ids = processor.tokenizer.encode(text)
    assert processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_any_text_round_trips(processor: Qwen2VLProcessor) -> None:
    @given(st.text())
    def check(text: str) -> None:
        assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == unicodedata.normalize("NFC", text)

    check()


def test_special_tokens_have_the_last_ids_in_order(processor: Qwen2VLProcessor) -> None:
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == [token_id(token) for token in SPECIAL_TOKENS]
    assert ids[-1] == VOCAB_SIZE - 1
    assert processor.tokenizer.eos_token == "<|im_end|>"


def test_pixel_limits_are_read_back(processor: Qwen2VLProcessor) -> None:
    size = processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (MIN_PIXELS, MAX_PIXELS)


def test_pieces_tokenize_like_the_chat_template(
    processor: Qwen2VLProcessor, conversations: dict[str, list[Conversation]]
) -> None:
    tokenizer = processor.tokenizer
    checked = [c for rows in conversations.values() for c in rows[:200] if c.system is not None]
    for conversation in checked:
        pieces = [id for text, _ in segments(conversation) for id in tokenizer.encode(text)]
        whole = processor.apply_chat_template(as_messages(conversation), tokenize=False)
        assert tokenizer.decode(pieces) == whole.removesuffix("\n")
        assert pieces == tokenizer.encode(whole.removesuffix("\n"))


def as_messages(conversation: Conversation) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": conversation.system}]
    for turn in conversation.turns:
        content = [{"type": "image"} if isinstance(p, Scene) else {"type": "text", "text": p} for p in turn.parts]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages
