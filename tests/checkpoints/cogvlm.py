"""Small CogVLMs: the first (Vicuna) and the second (Llama 3), in the form of the published files.

The published repositories hold code, which must never run: here it leaves a trace where it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer
from tests.checkpoints.text import LLAMA3_SPECIAL_TOKENS, LLAMA3_TEMPLATE
from tests.checkpoints.tokenizer import sentencepiece_tokenizer_json, tiny_tokenizer_json

COGVLMS = ("cogvlm", "cogvlm2")

_VISION = {
    "dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1792,
    "image_size": 490,
    "in_channels": 3,
    "intermediate_size": 15360,
    "layer_norm_eps": 1e-06,
    "num_heads": 16,
    "num_hidden_layers": 63,
    "num_positions": 1226,
    "patch_size": 14,
}
_COMMON = {
    "architectures": ["CogVLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_cogvlm.CogVLMConfig",
        "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
    },
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "template_version": "chat",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "cogvlm": {
        **_COMMON,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "vision_config": _VISION,
        "vocab_size": 32000,
    },
    "cogvlm2": {
        **_COMMON,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "num_multi_query_heads": 8,
        "pad_token_id": 128002,
        "vision_config": {**_VISION, "image_size": 1344, "num_positions": 9217},
        "vocab_size": 128256,
    },
}
"""``config.json`` of cogvlm-chat-hf and of cogvlm2-llama3-chat-19B."""

_TINY_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_hidden_layers": 3, "num_positions": 26}
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "torch_dtype": "float32",
    "vocab_size": 512,
}
_CODE = """import pathlib
pathlib.Path(__file__).with_name("remote-code-ran").touch()
raise RuntimeError("code that came with a model ran")
"""


def tiny_cogvlm(path: Path, kind: str, *, seed: int = 0, tokenizer: Path | None = None, **overrides: Any) -> Path:
    """Write a random model of :data:`COGVLMS` into ``path``; its tokenizer into another folder, if one is given.

    ``overrides`` replace fields of ``config.json``; ``vision_config`` is merged into its own part.
    """
    beside = tokenizer or path
    for folder in (path, beside):
        folder.mkdir(parents=True, exist_ok=True)
    if kind == "cogvlm":
        ids = write_tokenizer(beside, sentencepiece_tokenizer_json(), "", bos_token="<s>", eos_token="</s>")
        tokens = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["<unk>"]}
        vision = {**_TINY_VISION, "image_size": 70}
    else:
        opening, end, pad = LLAMA3_SPECIAL_TOKENS[0], "<|end_of_text|>", "<|reserved_special_token_0|>"
        special = (*LLAMA3_SPECIAL_TOKENS, pad)
        text = tiny_tokenizer_json(special=special, opening=opening, vocabulary=496)
        # The tokenizer carries the template of the language model that this model was made from.
        ids = write_tokenizer(beside, text, LLAMA3_TEMPLATE, bos_token=opening, eos_token=end)
        tokens = {"bos_token_id": ids[opening], "eos_token_id": ids[end], "pad_token_id": ids[pad]}
        tokens["num_multi_query_heads"] = 2
        vision = {**_TINY_VISION, "image_size": 140, "num_positions": 101}
    published = PUBLISHED[kind]
    vision = {**published["vision_config"], **vision, **overrides.pop("vision_config", {})}
    config = {**published, **_TINY, **tokens, **overrides, "vision_config": vision}
    write_json(path / "config.json", config)
    write_generation(path, {name: id_ for name, id_ in tokens.items() if name.endswith("token_id")})
    for name in ("configuration_cogvlm", "modeling_cogvlm", "visual", "util"):
        (path / f"{name}.py").write_text(_CODE)
    _write_weights(path, config, seed)
    return path


def published_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a published checkpoint with this ``config.json``."""
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for i in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in _layer(config)}
    return found | {f"model.vision.{name}": shape for name, shape in _vision(config)}


def _layer(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    merged = hidden + 2 * head * config.get("num_multi_query_heads", config["num_attention_heads"])
    yield from ((f"{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention"))
    yield "self_attn.rotary_emb.inv_freq", (head // 2,)
    if "num_multi_query_heads" in config:
        yield "self_attn.vision_expert_query_key_value.bias", (merged,)
    for kind in ("vision", "language"):
        yield f"self_attn.{kind}_expert_query_key_value.weight", (merged, hidden)
        yield f"self_attn.{kind}_expert_dense.weight", (hidden, hidden)
        yield f"mlp.{kind}_mlp.gate_proj.weight", (inner, hidden)
        yield f"mlp.{kind}_mlp.up_proj.weight", (inner, hidden)
        yield f"mlp.{kind}_mlp.down_proj.weight", (hidden, inner)


def _vision(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    vision, hidden, inner = config["vision_config"], config["hidden_size"], config["intermediate_size"]
    width, wide, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    yield "patch_embedding.cls_embedding", (1, width)
    yield "patch_embedding.position_embedding.weight", (vision["num_positions"], width)
    yield "patch_embedding.proj.weight", (width, 3, patch, patch)
    yield "patch_embedding.proj.bias", (width,)
    matrices = {
        "attention.query_key_value": (3 * width, width),
        "attention.dense": (width, width),
        "mlp.fc1": (wide, width),
        "mlp.fc2": (width, wide),
    }
    for i in range(vision["num_hidden_layers"]):
        for name, shape in matrices.items():
            yield f"transformer.layers.{i}.{name}.weight", shape
            yield f"transformer.layers.{i}.{name}.bias", shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"transformer.layers.{i}.{name}.weight", (width,)
            yield f"transformer.layers.{i}.{name}.bias", (width,)
    if "num_multi_query_heads" in config:
        yield "conv.weight", (width, width, 2, 2)
        yield "conv.bias", (width,)
    yield "linear_proj.linear_proj.weight", (hidden, width)
    yield "linear_proj.norm1.weight", (hidden,)
    yield "linear_proj.norm1.bias", (hidden,)
    yield "linear_proj.dense_h_to_4h.weight", (inner, hidden)
    yield "linear_proj.gate_proj.weight", (inner, hidden)
    yield "linear_proj.dense_4h_to_h.weight", (hidden, inner)
    yield from ((name, (1, 1, hidden)) for name in ("boi", "eoi"))


def _write_weights(path: Path, config: Mapping[str, Any], seed: int) -> None:
    """Matrices keep activations near unit size, so logits differ clearly. The rotation tables are not what is computed:
    published ones are rounded to bfloat16, and nothing may use them."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in sorted(published_tensors(config).items()):
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("boi", "eoi", "cls_embedding", "position_embedding.weight")):
            value = noise
        elif len(shape) > 1:
            value = noise * 1.5 / noise[0].numel() ** 0.5
        else:
            value = 0.1 * noise + ("norm" in name and name.endswith("weight"))
        tensors[name] = value.contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
