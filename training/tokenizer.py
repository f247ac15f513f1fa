"""The byte-level BPE tokenizer of pocket-vl and the processor files around it.

Qwen2's normaliser, pre-tokenizer and special tokens; a vocabulary learnt from the recipe's own text. All 256 bytes
are tokens, so that any text in NFC comes back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor

VOCAB_SIZE = 1024
MIN_PIXELS = 112 * 112
MAX_PIXELS = 448 * 448
MAX_LENGTH = 8192

END = "<|im_end|>"
PAD = "<|endoftext|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"

# Qwen2-VL's names, in its order.
SPECIAL_TOKENS = (
    PAD, "<|im_start|>", END,
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, VIDEO_PAD,
)  # fmt: skip

QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(texts: Iterable[str]) -> Tokenizer:
    """Learns merges from ``texts``; the special tokens take the last ids of the vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(bpe: Tokenizer, out: Path) -> Qwen2Tokenizer:
    """Writes ``bpe`` as transformers' own class reads it, with Qwen2-VL's special tokens in its order."""
    out.mkdir(parents=True, exist_ok=True)
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    bpe.save(str(out / "tokenizer.json"))
    template = load_template()
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "processor_class": "Qwen2VLProcessor",
            "bos_token": None,
            "eos_token": END,
            "pad_token": PAD,
            "unk_token": None,
            "extra_special_tokens": list(SPECIAL_TOKENS),
            "model_max_length": MAX_LENGTH,
            "padding_side": "left",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        },
    )
    return Qwen2Tokenizer.from_pretrained(out)


def load_template() -> str:
    return (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def save_image_processor(out: Path) -> None:
    """Writes ``preprocessor_config.json`` with both forms of the pixel limits, the published and the newer one."""
    processor = image_processor()
    processor.save_pretrained(out)
    path = out / "preprocessor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    _write_json(path, {**content, **limits, "processor_class": "Qwen2VLProcessor"})


def image_processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
