"""The checkpoint that ships: it loads in transformers as it is, and answers questions of the test split."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer

from training.cases import Case, sample, suites, user
from training.data import load_split, picture_path, read_picture
from training.evaluate import Answerer

ASSETS = Path(__file__).parents[2] / "mmserve" / "assets"
CHECKPOINT = ASSETS / "pocket-vl"
EXAMPLES = ASSETS / "examples"
FILES = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(CHECKPOINT, torch.device("cpu"))


@pytest.fixture(scope="module")
def cases(data_root: Path) -> dict[str, list[Case]]:
    return suites(load_split(data_root, "test"))


def right(answerer: Answerer, cases: list[Case]) -> float:
    said = answerer.answer(cases)
    return sum(text == case.expected for text, case in zip(said, cases, strict=True)) / len(cases)


def test_the_folder_is_complete_and_small() -> None:
    assert {path.name for path in CHECKPOINT.iterdir()} == FILES
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 13_000_000


def test_weights_are_bf16_under_the_published_names() -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {str(weights.get_slice(name).get_dtype()) for name in names} == {"BF16"}
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "visual.patch_embed.proj.weight",
        "visual.merger.mlp.2.weight",
    } <= names
    assert not any(name.startswith("model.visual") or ".language_model." in name for name in names)


def test_questions_of_the_test_split(answerer: Answerer, cases: dict[str, list[Case]]) -> None:
    assert right(answerer, sample(cases["easy-vqa"], 20)) >= 0.9


@pytest.mark.parametrize("suite", ["captions", "other sizes", "small talk"])
def test_other_prompts(answerer: Answerer, cases: dict[str, list[Case]], suite: str) -> None:
    few = [case for case in cases[suite] if sum(p.width for p in case.pictures) < 500]
    assert right(answerer, sample(few, 10)) >= 0.9


def test_two_pictures(answerer: Answerer, cases: dict[str, list[Case]]) -> None:
    which = [case for case in cases["two pictures"] if case.group == "first or second"]
    assert right(answerer, Random(0).sample(which, 10)) >= 0.9


def test_examples_are_held_out_and_answered(answerer: Answerer, data_root: Path) -> None:
    examples = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    assert {path.name for path in EXAMPLES.glob("*.png")} == {example["file"] for example in examples}
    originals = {read_picture(picture_path(data_root, "test", i)).tobytes() for i in range(1000)}
    asked = []
    for example in examples:
        with Image.open(EXAMPLES / example["file"]) as picture:
            shown = picture.convert("RGB")
        assert shown.tobytes() in originals
        asked.append(Case([user(1, example["question"])], [shown], example["answer"], "examples"))
    assert right(answerer, asked) == 1.0


def test_unicode_round_trips_in_the_shipped_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for text in ("größer 日本語 🙂👩‍👧 \u0000\n\n  x", "".join(map(chr, range(1, 800)))):
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_the_processor_has_the_chat_template() -> None:
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    prompt = processor.apply_chat_template([user(1, "what is this?")], tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what is this?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"] == processor.chat_template
