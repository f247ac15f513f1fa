"""A small Qwen2.5-VL and a small Qwen3-VL, in the form of their published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer, write_weights
from tests.checkpoints.tokenizer import QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS, tiny_tokenizer_json

QWEN_VLS = ("qwen2.5-vl", "qwen3-vl")

QWEN3_VL_TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for part in messages[0].content %}{%- if 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {%- if add_vision_id %}Picture: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def _special(ids: Mapping[str, int]) -> dict[str, int]:
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    return {f"{name}_token_id": ids[f"<|{token}|>"] for name, token in names.items()}


def qwen2_5_vl_config(ids: Mapping[str, int]) -> dict[str, Any]:
    """The ``config.json`` of a tiny Qwen2.5-VL, its text fields flat; ``ids`` maps special tokens."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        **_special(ids),
        "vision_token_id": ids["<|vision_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "max_window_layers": 3,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 3,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 84,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": 512,
    }


def qwen3_vl_config(ids: Mapping[str, int]) -> dict[str, Any]:
    """The ``config.json`` of a tiny Qwen3-VL; ``ids`` maps special tokens."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **_special(ids),
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "dtype": "float32",
            "eos_token_id": ids["<|im_end|>"],
            "head_dim": 32,
            "hidden_act": "silu",
            "hidden_size": 64,
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "max_position_embeddings": 2048,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": 512,
        },
        "tie_word_embeddings": True,
        "vision_config": {
            "deepstack_visual_indexes": [0, 2],
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 64,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            "num_position_embeddings": 36,
            "out_hidden_size": 64,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def tiny_qwen_vl(path: Path, kind: str, *, seed: int = 0, new_names: bool = False, **overrides: Any) -> Path:
    """Write a random model of one of ``QWEN_VLS`` into ``path`` (made if missing) and return it.

    ``overrides`` replace fields of ``config.json``; ``text_config`` and ``vision_config`` are merged into their own
    parts. Pictures take 4 to 64 rows. ``new_names`` names Qwen2.5-VL's weights as newer transformers does; Qwen3-VL's
    are published under those, and get older ones.
    """
    import transformers

    path.mkdir(parents=True, exist_ok=True)
    newer = kind == "qwen3-vl"
    template = QWEN3_VL_TEMPLATE if newer else QWEN_CHAT_TEMPLATE
    tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    ids = write_tokenizer(
        path,
        tiny_tokenizer_json(),
        template,
        additional_special_tokens=list(QWEN_SPECIAL_TOKENS[1:]),
        tokenizer_class="Qwen2Tokenizer",
        **tokens,
    )
    config = qwen3_vl_config(ids) if newer else qwen2_5_vl_config(ids)
    for part in ("text_config", "vision_config"):
        if part in overrides:
            overrides[part] = {**config[part], **overrides[part]}
    write_json(path / "config.json", config | overrides)
    write_json(path / "chat_template.json", {"chat_template": template})
    write_json(path / "preprocessor_config.json", _preprocessor(newer))
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    write_generation(path, {"bos_token_id": eos[1], "pad_token_id": eos[1], "eos_token_id": eos})
    model_class = getattr(transformers, config["architectures"][0])
    write_weights(path, model_class, seed, _same if newer != new_names else _older_name)
    return path


def _preprocessor(newer: bool) -> dict[str, Any]:
    common = {"temporal_patch_size": 2, "merge_size": 2}
    if newer:
        return common | {
            "size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32},
            "patch_size": 16,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
    return common | {
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
        "patch_size": 14,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _same(name: str) -> str:
    return name


def _older_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith(("visual.", "lm_head.")):
        return name
    return "model." + name.removeprefix("language_model.")
