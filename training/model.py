"""pocket-vl's shape, and the forward pass for batches of equally large pictures.

transformers' own vision forward loops over the pictures of a batch; here all pictures of a call share one grid, so
that one batched attention does. Both give the same numbers (tests/training/test_model.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from training.tokenizer import (
    END,
    IMAGE_PAD,
    MAX_LENGTH,
    PAD,
    SPECIAL_TOKENS,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    VOCAB_SIZE,
)

# transformers' modules say nothing of their parts' types.
Module = Any

PATCH = 14
MERGE = 2
TEMPORAL = 2


def token_id(token: str) -> int:
    """The id of a special token: they take the last ids of the vocabulary, in order."""
    return VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(token)


def make_config() -> Qwen2VLConfig:
    """5.7 million parameters: four layers to see, four to speak."""
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": token_id(PAD),
        "eos_token_id": token_id(END),
        "pad_token_id": token_id(PAD),
    }
    vision = {
        "depth": 4,
        "embed_dim": 192,
        "hidden_size": 256,
        "num_heads": 6,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=token_id(IMAGE_PAD),
        video_token_id=token_id(VIDEO_PAD),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
    )


def make_model(seed: int) -> Qwen2VLForConditionalGeneration:
    """A fresh float32 model; generation is greedy and stops at the end of the turn."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config())
    model.generation_config = GenerationConfig(
        bos_token_id=token_id(PAD),
        eos_token_id=[token_id(END), token_id(PAD)],
        pad_token_id=token_id(PAD),
        do_sample=False,
    )
    return model


def load_model(checkpoint: Path) -> Qwen2VLForConditionalGeneration:
    """A saved checkpoint in float32."""
    return Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


def encode_pictures(visual: Module, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The vision encoder over pictures of one size.

    Args:
        patches: ``[batch, h * w, channels * 2 * 14 * 14]`` in the processor's order.
        grid: ``(h, w)`` in patches.

    Returns:
        ``[batch, h * w / 4, hidden]``, one row for each placeholder token.
    """
    batch, count, _ = patches.shape
    x = F.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    cos, sin = _rotary(visual.rotary_pos_emb.inv_freq.to(patches.device), grid)
    for block in visual.blocks:
        x = x + _attend(block.attn, block.norm1(x), cos, sin)
        x = x + block.mlp(block.norm2(x))
    merged: Tensor = visual.merger(x.reshape(batch * count, -1))
    return merged.view(batch, count // MERGE**2, -1)


def _attend(attention: Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, count, _ = x.shape
    qkv = attention.qkv(x).view(batch, count, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    mixed = F.scaled_dot_product_attention(query, key, value)
    projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, count, -1))
    return projected


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


def _rotary(frequencies: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[h * w, head]`` of the axial rotary embedding, patches in merge order."""
    height, width = grid
    rows, columns = torch.meshgrid(
        torch.arange(height, device=frequencies.device),
        torch.arange(width, device=frequencies.device),
        indexing="ij",
    )
    angles = torch.cat([_merge_order(axis)[:, None] * frequencies for axis in (rows, columns)], dim=-1)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _merge_order(axis: Tensor) -> Tensor:
    """``[h, w]`` flattened so that the four patches of one token are neighbours."""
    height, width = axis.shape
    blocks = axis.view(height // MERGE, MERGE, width // MERGE, MERGE)
    return blocks.transpose(1, 2).flatten()


def predict(model: Qwen2VLForConditionalGeneration, ids: Tensor, positions: Tensor, pictures: list[Tensor]) -> Tensor:
    """The last hidden states ``[batch, length, hidden]`` of right-padded rows.

    No attention mask: padding follows the text, and a causal row never looks ahead.

    Args:
        ids: ``[batch, length]``, placeholders already repeated.
        positions: M-RoPE positions ``[3, batch, length]``.
        pictures: for each picture slot, embeddings ``[batch, tokens, hidden]``; every row has every slot.
    """
    embeddings: Tensor = model.get_input_embeddings()(ids)
    if pictures:
        rows = torch.cat(pictures, dim=1).flatten(0, 1)
        is_image = (ids == token_id(IMAGE_PAD)).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(is_image, rows.to(embeddings.dtype))
    output = model.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden
