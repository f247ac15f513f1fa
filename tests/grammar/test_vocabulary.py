from __future__ import annotations

import pytest

from mmserve.errors import CheckpointError
from mmserve.grammar.vocabulary import Vocabulary
from mmserve.registry import load_registry


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    checkpoint = load_registry().resolve("pocket-vl")
    return Vocabulary(checkpoint.path, size=2000, eos_ids=checkpoint.eos_token_ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "<|im_end|>",
        "x<|im_end|><|image_pad|>y",
        "\u732b\U0001f408",
        "e\u0301",
        "\U0002f800",
        "\u212b \x00",
    ],
)
def test_tokens_of_text_spell_it_and_none_is_special(vocabulary: Vocabulary, text: str) -> None:
    data = text.encode()
    for piece in (data, data[1:], data[:-1]):
        ids = vocabulary.tokenize(piece)
        assert vocabulary.bytes_of(ids) == piece
        assert not any(vocabulary.tokenizer.is_special_token(id_) for id_ in ids)


def test_ids_behind_the_tokenizers_own_belong_to_the_mask(vocabulary: Vocabulary) -> None:
    assert vocabulary.mask_words == 63
    assert vocabulary.tokenizer.vocab_size == 2000


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: object) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        Vocabulary(tmp_path, size=10, eos_ids=[0])  # type: ignore[arg-type]
