"""Small worlds for the recipe's tests: everything on the CPU, a handful of conversations, a fresh model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from training.conversations import Author, Conversation, Kind
from training.data import VqaSplit, find_root, load_split
from training.model import make_model
from training.pocket_vl import plain_texts
from training.tokenizer import save_image_processor, save_tokenizer, train_bpe

KINDS: tuple[Kind, ...] = ("one", "two", "text", "long")


@pytest.fixture(scope="session")
def data_root() -> Path:
    pytest.importorskip("easy_vqa")
    return find_root(None)


@pytest.fixture(scope="session")
def train_split(data_root: Path) -> VqaSplit:
    return load_split(data_root, "train")


@pytest.fixture(scope="session")
def conversations(train_split: VqaSplit) -> dict[str, list[Conversation]]:
    author = Author(train_split, frozenset(range(3900, 4000)), seed=1)
    kinds: dict[str, list[Conversation]] = {kind: list(author.write(kind, 300)) for kind in KINDS}
    return {"original": list(author.originals()), **kinds}


@pytest.fixture(scope="session")
def processor(
    conversations: dict[str, list[Conversation]], tmp_path_factory: pytest.TempPathFactory
) -> Qwen2VLProcessor:
    """The processor that a user of the checkpoint gets, around a tokenizer trained on few texts."""
    folder = tmp_path_factory.mktemp("processor")
    save_tokenizer(train_bpe(plain_texts(conversations.values())), folder)
    save_image_processor(folder)
    make_model(0).config.save_pretrained(folder)
    return Qwen2VLProcessor.from_pretrained(folder)


@pytest.fixture(scope="session")
def model() -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    return make_model(0).eval()
