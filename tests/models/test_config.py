"""Language models' shapes from published files, and what those leave out."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from mmserve.checkpoint import TEXT_DEFAULTS, text_config
from mmserve.errors import CheckpointError
from mmserve.models.config import KINDS, check_axes, check_row_width, decoder_config, decoder_name

VICUNA_IN_LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
}
"""As llava-1.5-7b was published."""


@pytest.mark.parametrize("kind", TEXT_DEFAULTS)
def test_defaults_are_those_of_transformers(kind: str) -> None:
    theirs = AutoConfig.for_model(kind)
    for name, value in TEXT_DEFAULTS[kind].items():
        if name in ("sliding_window", "eos_token_id") and getattr(theirs, name) is None:
            continue  # what is off there has no value
        assert getattr(theirs, name) == value, name


def test_a_published_llava_leaves_most_of_its_language_model_out() -> None:
    config = decoder_config(VICUNA_IN_LLAVA)
    theirs = AutoConfig.for_model(**VICUNA_IN_LLAVA["text_config"])
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (
        theirs.hidden_size,
        theirs.intermediate_size,
        theirs.num_hidden_layers,
    )
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 32, 128)
    assert (config.vocab_size, config.rms_norm_eps, config.rope.theta) == (32064, 1e-5, 10_000.0)
    assert (config.qkv_bias, config.qk_norm, config.tie_word_embeddings) == (False, False, False)
    assert text_config(VICUNA_IN_LLAVA)["eos_token_id"] == 2


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_newer_files_say_the_same(kind: str) -> None:
    sizes = {
        "model_type": kind,
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "tie_word_embeddings": True,
    }
    written = AutoConfig.for_model(**sizes).to_dict()
    assert "rope_theta" not in written
    assert decoder_config(written) == decoder_config(sizes)


def test_biases_norms_and_head_sizes() -> None:
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 64)
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}

    def made(**fields: Any) -> tuple[Any, ...]:
        config = decoder_config({**sizes, "sliding_window": None, **fields})
        return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm, config.head_dim

    assert made(model_type="llama") == (False, False, False, False, 16)
    assert made(model_type="llama", attention_bias=True, mlp_bias=True) == (True, True, True, False, 16)
    assert made(model_type="mistral", head_dim=8) == (False, False, False, False, 8)
    assert made(model_type="qwen2") == (True, False, False, False, 16)
    assert made(model_type="qwen3", attention_bias=True) == (True, True, False, True, 128)


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.model.embed_tokens.weight", "embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "norm.weight"),
        ("model.layers.0.self_attn.q_norm.weight", "layers.0.self_attn.q_norm.weight"),
        ("model.vision_tower.vision_model.post_layernorm.bias", None),
        ("vision_tower.vision_model.post_layernorm.bias", None),
        ("model.multi_modal_projector.linear_1.bias", None),
        ("image_newline", None),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
    ],
)
def test_names(published: str, ours: str | None) -> None:
    assert decoder_name(published, tied=False) == ours


def test_a_window_that_is_no_shorter_than_the_context_is_no_obstacle() -> None:
    config = {**VICUNA_IN_LLAVA["text_config"], "model_type": "mistral", "sliding_window": 4096}
    assert decoder_config(config, context=4096).num_layers == 32
    for context in (4097, None):
        with pytest.raises(CheckpointError, match="over 4096 tokens"):
            decoder_config(config, context=context)
    listed = {"layer_types": ["full_attention", "sliding_attention"]}
    with pytest.raises(CheckpointError, match="sliding-window"):
        decoder_config({**VICUNA_IN_LLAVA["text_config"], "sliding_window": 16, **listed})


def test_others_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="a language model of type 'gpt2'; served are llama"):
        decoder_config({"model_type": "gpt2"})
    with pytest.raises(CheckpointError, match="rows of width 8, but the decoder takes 16"):
        check_row_width(8, 16)
    with pytest.raises(CheckpointError, match="mrope_section with 3 parts"):
        check_axes(decoder_config(VICUNA_IN_LLAVA), 3)
    assert TEXT_DEFAULTS.keys() - KINDS.keys() == {"cohere2", "gemma3_text", "glm4v_text"}  # transformers computes them
