"""Small random checkpoints in the published Hugging Face layout, for tests on a CPU.

They differ from a real model in size only: same files, same weight names, same tokenizer pipeline and special tokens.
Norms and biases are random too, so that a parameter which is not loaded, or loaded into the wrong place, shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TRAINING_TEXT = (
    "You are a helpful assistant.",
    "system user assistant",
    "What is in this picture? How many red circles are there? Is there a blue square? Yes. No.",
    "The picture shows a green triangle above a yellow rectangle on a white background.",
    'Answer as JSON: {"name": "cat", "count": 3, "colour": "black", "box": [1, 2, 30, 40]}',
    "Describe the picture in one sentence. Where is the dog? To the left of the tree. I don't know, it's hidden.",
    "图片里有什么？有一只黑色的猫。这是什么颜色？红色。有几个圆？三个。",
    "def main():\n    return 0\n\n\nfor i in range(10):\n    print(i)\n",
)


def tiny_tokenizer_json(vocabulary: int = 504) -> str:
    """A byte-level BPE ``tokenizer.json`` with Qwen2-VL's pipeline; its special tokens have the highest ids."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(QWEN_SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in QWEN_SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == vocabulary, tokenizer.get_vocab_size()
    return tokenizer.to_str(pretty=True)


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
    tokenizer = tiny_tokenizer_json()
    ids = {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
    config = qwen2_vl_config(ids, **overrides)
    (path / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _write_json(path / "config.json", config)
    _write_json(path / "tokenizer_config.json", _tokenizer_config(ids))
    _write_json(path / "chat_template.json", {"chat_template": QWEN_CHAT_TEMPLATE})
    _write_json(path / "preprocessor_config.json", _preprocessor_config() | preprocessor)
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    greedy = {"bos_token_id": eos[1], "pad_token_id": eos[1], "do_sample": False, "eos_token_id": eos}
    _write_json(path / "generation_config.json", greedy | generation)
    _write_weights(path, config, seed)
    return path


def _tokenizer_config(ids: Mapping[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id_): {"content": token, **flags} for token, id_ in ids.items()},
        "additional_special_tokens": list(QWEN_SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": QWEN_CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


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


def _write_weights(path: Path, config: dict[str, Any], seed: int) -> None:
    """Random weights under the published names; matrices keep activations near unit size, so logits differ clearly."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(AutoConfig.from_pretrained(path))
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    tensors = {}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            value = noise * 1.5 / parameter[0].numel() ** 0.5
        else:
            value = 0.1 * noise + (1.0 if "norm" in name or "ln_q" in name else 0.0) * name.endswith("weight")
        tensors[_published_name(name)] = value.to(dtype).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _published_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith(("visual.", "lm_head.")):
        return name
    return "model." + name.removeprefix("language_model.")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
