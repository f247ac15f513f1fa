"""Small models that read text only, in the form of each family's published files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer, write_weights
from tests.checkpoints.tokenizer import (
    QWEN_CHAT_TEMPLATE,
    QWEN_SPECIAL_TOKENS,
    sentencepiece_tokenizer_json,
    tiny_tokenizer_json,
)

LLAMA3_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)

LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A family: its architecture, a template in its style, its tokenizer, and what sets its ``config.json`` apart."""

    architecture: str
    template: str
    tokenizer: str
    opening: str | None
    end: str
    config: Mapping[str, Any] = field(default_factory=dict)


TEXT_MODELS: Mapping[str, TextModel] = {
    "llama": TextModel(
        "LlamaForCausalLM",
        LLAMA3_TEMPLATE,
        "llama3",
        "<|begin_of_text|>",
        "<|eot_id|>",
        {
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
        },
    ),
    "mistral": TextModel(
        "MistralForCausalLM",
        MISTRAL_TEMPLATE,
        "sentencepiece",
        "<s>",
        "</s>",
        {"rope_theta": 1_000_000.0, "sliding_window": None, "head_dim": 24, "tie_word_embeddings": False},
    ),
    "qwen2": TextModel(
        "Qwen2ForCausalLM",
        QWEN_CHAT_TEMPLATE,
        "qwen",
        None,
        "<|im_end|>",
        {
            "rope_theta": 1_000_000.0,
            "sliding_window": 128,
            "max_window_layers": 3,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": TextModel(
        "Qwen3ForCausalLM",
        QWEN_CHAT_TEMPLATE,
        "qwen",
        None,
        "<|im_end|>",
        {
            "rope_theta": 1_000_000.0,
            "head_dim": 32,
            "attention_bias": False,
            "sliding_window": None,
            "max_window_layers": 3,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
    ),
}


def text_fields(kind: str) -> dict[str, Any]:
    """A language model's fields of ``config.json``, but for its tokens."""
    return {
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "vocab_size": 512,
        **TEXT_MODELS[kind].config,
    }


def tiny_text(path: Path, kind: str, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random model of a text-only family into ``path``; ``overrides`` replace fields of ``config.json``."""
    import transformers

    path.mkdir(parents=True, exist_ok=True)
    family = TEXT_MODELS[kind]
    pad = {"llama3": "<|end_of_text|>", "sentencepiece": "</s>", "qwen": "<|endoftext|>"}[family.tokenizer]
    tokens = {"bos_token": family.opening, "eos_token": family.end, "pad_token": pad, "unk_token": None}
    if family.tokenizer == "qwen":
        tokens["tokenizer_class"] = "Qwen2Tokenizer"
    ids = write_tokenizer(path, _tokenizer(family.tokenizer), family.template, **tokens)
    ends = {
        "bos_token_id": ids.get(family.opening or "", ids[pad]),
        "eos_token_id": ids[family.end],
        "pad_token_id": ids[pad],
    }
    config = {"architectures": [family.architecture], "torch_dtype": "float32", **text_fields(kind), **ends}
    write_json(path / "config.json", config | overrides)
    write_generation(path, ends)
    write_weights(path, getattr(transformers, family.architecture), seed, lambda name: name)
    return path


def _tokenizer(name: str) -> str:
    if name == "sentencepiece":
        return sentencepiece_tokenizer_json()
    if name == "llama3":
        return tiny_tokenizer_json(special=LLAMA3_SPECIAL_TOKENS, opening=LLAMA3_SPECIAL_TOKENS[0], vocabulary=495)
    return tiny_tokenizer_json(special=QWEN_SPECIAL_TOKENS)
