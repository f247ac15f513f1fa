"""The training forward pass gives transformers' own numbers."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from training.conversations import Conversation
from training.model import MERGE, encode_pictures, make_config, predict, token_id
from training.pool import expand, make_pool
from training.tokenizer import IMAGE_PAD, PAD
from training.train import TrainConfig, learning_rate

GRIDS = [(4, 4), (3, 6), (2, 9)]
PROMPTS = [("one", [(3, 5)]), ("two", [(4, 4), (6, 2)]), ("text", []), ("long", [(4, 4)])]


def test_size_and_shape() -> None:
    config = make_config()
    text = config.text_config
    assert sum(text.rope_parameters["mrope_section"]) * 2 == text.hidden_size // text.num_attention_heads
    assert text.max_position_embeddings == 8192


def test_parameters(model: Qwen2VLForConditionalGeneration) -> None:
    assert 4_000_000 < sum(p.numel() for p in model.parameters()) < 6_000_000


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_vision_equals_transformers(model: Qwen2VLForConditionalGeneration, grid: tuple[int, int]) -> None:
    height, width = grid[0] * MERGE, grid[1] * MERGE
    patches = torch.randn(3, height * width, 1176)

    expected = model.model.get_image_features(patches.flatten(0, 1), torch.tensor([[1, height, width]] * 3))
    actual = encode_pictures(model.model.visual, patches, (height, width))

    torch.testing.assert_close(actual, torch.stack(list(expected.pooler_output)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "grids"), PROMPTS)
@torch.no_grad()
def test_whole_forward_equals_transformers(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    conversations: dict[str, list[Conversation]],
    kind: str,
    grids: list[tuple[int, int]],
) -> None:
    pool = make_pool(conversations[kind][:6], processor.tokenizer)
    batch = expand(pool, grids)
    patches = [torch.randn(6, h * w * MERGE**2, 1176) for h, w in grids]
    seen = [
        encode_pictures(model.model.visual, p, (h * MERGE, w * MERGE)) for p, (h, w) in zip(patches, grids, strict=True)
    ]

    hidden = predict(model, batch.ids, batch.positions, seen)

    mask = batch.ids != token_id(PAD)
    inputs = {"input_ids": batch.ids, "attention_mask": mask.long()}
    if grids:
        inputs["mm_token_type_ids"] = (batch.ids == token_id(IMAGE_PAD)).int()
        inputs["pixel_values"] = torch.cat(patches, dim=1).flatten(0, 1)
        inputs["image_grid_thw"] = torch.tensor([[1, h * MERGE, w * MERGE] for _ in range(6) for h, w in grids])
    expected = model(**inputs).logits
    torch.testing.assert_close(model.lm_head(hidden)[mask], expected[mask], atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_learnt_tokens_are_the_answers(
    processor: Qwen2VLProcessor, conversations: dict[str, list[Conversation]]
) -> None:
    rows = conversations["two"][:50]
    batch = expand(make_pool(rows, processor.tokenizer), [(4, 4), (3, 5)])
    for conversation, ids, learnt in zip(rows, batch.ids, batch.learnt, strict=True):
        said = processor.tokenizer.decode(ids[learnt])
        assert said == "".join(f"{turn.answer}<|im_end|>" for turn in conversation.turns)


def test_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(steps=100, warmup=10, peak_rate=1.0, seed=0, mix=())
    rates = [learning_rate(config, step) for step in range(100)]
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates[99] < 0.01
