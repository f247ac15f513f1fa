"""Text between special tokens, for tokenizers that put a blank before it."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmserve.prompt.text import TextEncoder

TEXT = ["Hello world, what is in this picture? ### USER: ASSISTANT: a cat and a dog\n", "ab abc bcd"]


def tokenizer(way: str) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if way == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = {"first": "first", "always": "always", "never": "never"}[way]
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        TEXT * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    made.add_special_tokens([AddedToken("<image>", normalized=False)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


@pytest.mark.parametrize("way", ["prepend", "first", "always", "never"])
@pytest.mark.parametrize("text", ["Hello world<image> what<image>\na cat", "<image>a cat", "a", "  a b<image> "])
def test_pieces_are_encoded_as_inside_the_whole(way: str, text: str) -> None:
    whole = tokenizer(way)
    expected = whole.encode(text).ids
    whole.encode_special_tokens = True
    encoder = TextEncoder(whole)
    assert encoder.opening == (1,)
    ids, first = list(encoder.opening), True
    for i, run in enumerate(text.split("<image>")):
        if i:
            ids.append(whole.token_to_id("<image>") or 0)
            first = False
        if run:
            ids += encoder.encode(run, first=first)
            first = False
    assert ids == expected


@pytest.mark.parametrize("way", ["prepend", "first", "always", "never"])
def test_what_goes_on_has_no_blank_of_its_own(way: str) -> None:
    whole = tokenizer(way)
    encoder = TextEncoder(whole)
    assert whole.decode(encoder.encode("a cat", first=True) + encoder.continue_("bcd")).strip() == "a catbcd"
    assert whole.decode(encoder.continue_(" dog")) == " dog"


def test_a_tokenizer_without_such_habits_is_used_as_it_is() -> None:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    plain.train_from_iterator(TEXT, trainer)
    encoder = TextEncoder(plain)
    assert encoder.opening == ()
    assert encoder.encode("a cat", first=False) == encoder.continue_("a cat") == plain.encode("a cat").ids
