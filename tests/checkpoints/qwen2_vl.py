"""A small Qwen2-VL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer, write_weights
from tests.checkpoints.tokenizer import QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS, tiny_tokenizer_json


def qwen2_vl_config(ids: Mapping[str, int], **overrides: Any) -> dict[str, Any]:
    """The ``config.json`` of a tiny Qwen2-VL, its text fields flat as published; ``ids`` maps special tokens."""
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "mlp_ratio": 4,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    vision |= overrides.pop("vision_config", {})
    config: dict[str, Any] = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "sliding_window": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 512,
    }
    config |= overrides
    config["vision_config"] = {**vision, "hidden_size": config["hidden_size"]}
    return config


def tiny_qwen2_vl(path: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random Qwen2-VL checkpoint into ``path`` (made if missing) and return it.

    ``overrides`` replace fields of ``config.json`` (for example ``num_hidden_layers=3``,
    ``tie_word_embeddings=False``, ``torch_dtype="bfloat16"``); ``vision_config``, ``preprocessor`` and
    ``generation`` are merged into their own parts. The vocabulary has 504 tokens in 512 rows: as in the
    published models, the last rows belong to no token. Pictures take 4 to 64 rows (``preprocessor`` changes it).
    """
    path.mkdir(parents=True, exist_ok=True)
    preprocessor = overrides.pop("preprocessor", {})
    generation = overrides.pop("generation", {})
    from transformers import Qwen2VLForConditionalGeneration

    ids = write_tokenizer(
        path,
        tiny_tokenizer_json(),
        QWEN_CHAT_TEMPLATE,
        add_prefix_space=False,
        additional_special_tokens=list(QWEN_SPECIAL_TOKENS[1:]),
        bos_token=None,
        eos_token="<|im_end|>",
        errors="replace",
        pad_token="<|endoftext|>",
        split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer",
        unk_token=None,
    )
    config = qwen2_vl_config(ids, **overrides)
    write_json(path / "config.json", config)
    write_json(path / "chat_template.json", {"chat_template": QWEN_CHAT_TEMPLATE})
    write_json(path / "preprocessor_config.json", _preprocessor_config() | preprocessor)
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    write_generation(path, {"bos_token_id": eos[1], "pad_token_id": eos[1], "eos_token_id": eos} | generation)
    write_weights(path, Qwen2VLForConditionalGeneration, seed, _published_name)
    return path


def _preprocessor_config() -> dict[str, Any]:
    return {
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }


def _published_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith(("visual.", "lm_head.")):
        return name
    return "model." + name.removeprefix("language_model.")
