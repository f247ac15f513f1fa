"""Small trained tokenizers, each with the pipeline and the special tokens of the models that it stands for."""

from __future__ import annotations

import json
from collections.abc import Sequence

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TRAINING_TEXT = (
    "You are a helpful assistant.",
    "system user assistant",
    "What is in this picture? How many red circles are there? Is there a blue square? Yes. No.",
    "The picture shows a green triangle above a yellow rectangle on a white background.",
    'Answer as JSON: {"name": "cat", "count": 3, "colour": "black", "box": [1, 2, 30, 40]}',
    "Describe the picture in one sentence. Where is the dog? To the left of the tree. I don't know, it's hidden.",
    "图片里有什么？有一只黑色的猫。这是什么颜色？红色。有几个圆？三个。",
    "def main():\n    return 0\n\n\nfor i in range(10):\n    print(i)\n",
)


def tiny_tokenizer_json(
    vocabulary: int = 504, special: Sequence[str] = QWEN_SPECIAL_TOKENS, opening: str | None = None
) -> str:
    """A byte-level BPE ``tokenizer.json`` with Qwen2-VL's pipeline; its special tokens have the highest ids.

    ``opening`` is the one that it puts before every text.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    assert tokenizer.get_vocab_size() == vocabulary, tokenizer.get_vocab_size()
    if opening is not None:
        before = processors.TemplateProcessing(
            single=f"{opening} $A", special_tokens=[(opening, tokenizer.token_to_id(opening) or 0)]
        )
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, before])
    return tokenizer.to_str(pretty=True)


def sentencepiece_tokenizer_json(added: Sequence[str] = (), *, legacy: bool = True, vocabulary: int = 490) -> str:
    """A BPE ``tokenizer.json`` with the pipeline of Llama 2, Vicuna and Mistral: blanks as U+2581, one put before each
    text (``legacy``) or before the whole, bytes to fall back to, and ``<s>`` before every prompt. ``added`` are further
    special tokens, at the end.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    own = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(added),
        min_frequency=1,
        special_tokens=[*own, *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for text in _TRAINING_TEXT for word in text.split(" ")] * 2, trainer)
    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [
        token for token in whole["added_tokens"] if token["content"] in own
    ]  # bytes are no specials
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer.to_str(pretty=True)
