"""The memory that models.yaml gives for published checkpoints, against their shapes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmserve.cache.kv import KVCache
from mmserve.memory import kv_bytes_per_token
from mmserve.models import cogvlm
from mmserve.models.config import decoder_config
from mmserve.models.layers import DecoderStack
from mmserve.models.qwen3_vl import qwen3_vl_config
from mmserve.registry import load_registry
from mmserve.sounds.encoder import SoundEncoder
from tests.checkpoints.cogvlm import PUBLISHED, tiny_cogvlm
from tests.models.equality import resolve
from vision.encoder import Qwen2VLEncoder
from vision.llava import LlavaEncoder
from vision.qwen2_5_vl import Qwen25VLEncoder
from vision.qwen3_vl import Qwen3VLEncoder
from vision.tiles import AnyResGeometry


def text(
    kind: str, layers: int, hidden: int, heads: int, kv: int, inter: int, vocab: int, **more: Any
) -> dict[str, Any]:
    """As published in ``config.json``."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inter,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **more,
    }


TIED = {"tie_word_embeddings": True}
WHOLE = {"sliding_window": None}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
VICUNA_7B = text("llama", 32, 4096, 32, 32, 11_008, 32_064)
VICUNA_13B = text("llama", 40, 5120, 40, 40, 13_824, 32_064)
TEXTS = {
    "llama-3.1-8b": text("llama", 32, 4096, 32, 8, 14_336, 128_256),
    "llama-3.2-1b": text("llama", 16, 2048, 32, 8, 8192, 128_256, **TIED),
    "mistral-7b": text("mistral", 32, 4096, 32, 8, 14_336, 32_768, **WHOLE),
    "qwen2.5-0.5b": text("qwen2", 24, 896, 14, 2, 4864, 151_936, **TIED),
    "qwen2.5-7b": text("qwen2", 28, 3584, 28, 4, 18_944, 152_064),
    "qwen3-0.6b": text("qwen3", 28, 1024, 16, 8, 3072, 151_936, **TIED),
    "qwen3-8b": text("qwen3", 36, 4096, 32, 8, 12_288, 151_936),
}
LLAVAS = {
    "llava-1.5-7b": (VICUNA_7B, CLIP, -2),
    "llava-1.5-13b": (VICUNA_13B, CLIP, -2),
    "llava-1.6-mistral-7b": (text("mistral", 32, 4096, 32, 8, 14_336, 32_064, **WHOLE), CLIP, -2),
    "llava-1.6-vicuna-7b": (VICUNA_7B, CLIP, -2),
    "llava-1.6-vicuna-13b": (VICUNA_13B, CLIP, -2),
    "llava-next-llama3-8b": (text("llama", 32, 4096, 32, 8, 14_336, 128_320), CLIP, -2),
    "llava-onevision-0.5b": (text("qwen2", 24, 896, 14, 2, 4864, 152_000, **TIED), SIGLIP, -1),
    "llava-onevision-7b": (text("qwen2", 28, 3584, 28, 4, 18_944, 152_128), SIGLIP, -1),
}
QWENS = {
    "qwen2-vl-2b": text("qwen2_vl", 28, 1536, 12, 2, 8960, 151_936, **TIED, **MROPE),
    "qwen2-vl-7b": text("qwen2_vl", 28, 3584, 28, 4, 18_944, 152_064, **MROPE),
}
SEEING_2_5: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
SEEING_3: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
    "hidden_act": "gelu_pytorch_tanh",
}
SEEING_3_8B = {
    **SEEING_3,
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
AXES = {"head_dim": 128, "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]}}
NEWER_QWENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2.5-vl-3b": (text("qwen2_5_vl", 36, 2048, 16, 2, 11_008, 151_936, **TIED, **MROPE), SEEING_2_5),
    "qwen2.5-vl-7b": (text("qwen2_5_vl", 28, 3584, 28, 4, 18_944, 152_064, **MROPE), SEEING_2_5),
    "qwen3-vl-2b": (text("qwen3_vl_text", 28, 2048, 16, 8, 6144, 151_936, **TIED, **AXES), SEEING_3),
    "qwen3-vl-4b": (text("qwen3_vl_text", 36, 2560, 32, 8, 9728, 151_936, **TIED, **AXES), SEEING_3),
    "qwen3-vl-8b": (text("qwen3_vl_text", 36, 4096, 32, 8, 12_288, 151_936, **AXES), SEEING_3_8B),
}
HEARING: dict[str, Any] = {
    "text_config": {
        "intermediate_size": 11_008,
        "max_position_embeddings": 8192,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10_000,
        "sliding_window": 32_768,
        "use_mrope": False,
        "vocab_size": 156_032,
    },
    "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120, "num_mel_bins": 128},
}
COGS = {"cogvlm-chat": "cogvlm", "cogvlm2-chat": "cogvlm2", "cogvlm2-chinese-chat": "cogvlm2"}


def parameters(*modules: nn.Module | None) -> int:
    return sum(each.numel() for module in modules if module is not None for each in module.parameters())


def decoder_of(config: dict[str, Any]) -> DecoderStack:
    return DecoderStack(decoder_config(config, context=4096))


def counted(name: str) -> tuple[int, dict[str, Any]]:
    """Parameters that are loaded, and the configuration."""
    if name in TEXTS:
        return parameters(decoder_of(TEXTS[name])), TEXTS[name]
    if name in QWENS:
        seeing = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
        encoder = Qwen2VLEncoder({**seeing, "hidden_size": QWENS[name]["hidden_size"], "spatial_merge_size": 2})
        return parameters(decoder_of(QWENS[name]), encoder), QWENS[name]
    if name in NEWER_QWENS:
        language, vision = NEWER_QWENS[name]
        seeing = {**vision, "out_hidden_size": language["hidden_size"]}
        tied = language["tie_word_embeddings"]
        config = {"text_config": language, "vision_config": seeing, "tie_word_embeddings": tied}
        if name.startswith("qwen3"):
            return parameters(DecoderStack(qwen3_vl_config(config, context=4096)), Qwen3VLEncoder(seeing)), config
        return parameters(decoder_of(config), Qwen25VLEncoder(seeing)), config
    language, vision, layer = LLAVAS[name]
    config = {"text_config": language, "vision_config": vision, "vision_feature_layer": layer}
    tiles = (
        None if name.startswith("llava-1.5") else AnyResGeometry(vision["image_size"], 24, ((384 * 336, 384 * 336),))
    )
    encoder_ = LlavaEncoder(config, language["hidden_size"], drops_first=layer == -2, geometry=tiles)
    return parameters(decoder_of(config), encoder_), config


@pytest.mark.parametrize("name", [*TEXTS, *LLAVAS, *QWENS, *NEWER_QWENS])
def test_the_memory_given_is_that_of_the_published_shape(name: str) -> None:
    entry = load_registry().entries[name]
    assert entry.dtype in ("bfloat16", "float16")
    loaded, config = counted(name)
    assert entry.memory["weights"] == 2 * loaded
    shape = decoder_config(config, context=4096)
    per_token = KVCache.bytes_per_slot(shape.num_layers, shape.num_kv_heads, shape.head_dim, torch.float16)
    assert entry.memory["kv_per_token"] == per_token == kv_bytes_per_token(config, "float16")


def test_the_memory_given_for_qwen2_audio() -> None:
    entry, decoder = load_registry().entries["qwen2-audio-7b"], decoder_of(HEARING)
    encoder = SoundEncoder(HEARING["audio_config"], decoder.hidden_size)
    assert entry.memory["weights"] == 2 * parameters(decoder, encoder)
    assert entry.memory["kv_per_token"] == kv_bytes_per_token(HEARING, "bfloat16")


@pytest.mark.parametrize("name", COGS)
def test_the_memory_given_for_cogvlms(name: str, tmp_path: Path) -> None:
    entry, config = load_registry().entries[name], PUBLISHED[COGS[name]]
    small = resolve(tiny_cogvlm(tmp_path, COGS[name]))
    decoder, encoder = cogvlm.modules(dataclasses.replace(small, config=config, max_model_len=2048))
    assert entry.memory["weights"] == 2 * parameters(decoder, encoder)
    per_token = KVCache.bytes_per_slot(decoder.num_layers, decoder.num_kv_heads, decoder.head_dim, torch.bfloat16)
    assert entry.memory["kv_per_token"] == per_token == kv_bytes_per_token(config, "bfloat16")


def test_every_entry_that_is_fetched_says_what_it_needs() -> None:
    entries = load_registry().entries
    assert not [name for name, entry in entries.items() if "package:" not in entry.weights and not entry.memory]
