"""A small Qwen2-Audio, in the form of the published Qwen2-Audio-7B-Instruct."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer, write_weights
from tests.checkpoints.tokenizer import tiny_tokenizer_json

QWEN2_AUDIO_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

QWEN2_AUDIO_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if 'audio' in content or 'audio_url' in content or message['type'] == 'audio' %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "Audio {{ audio_count.value }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_AUDIO = {
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "attention_dropout": 0.0,
    "d_model": 32,
    "dropout": 0.0,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 2,
    "init_std": 0.02,
    "max_source_positions": 1500,
    "model_type": "qwen2_audio_encoder",
    "num_mel_bins": 16,
    "scale_embedding": False,
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000,
    "sliding_window": 32768,
    "torch_dtype": "float32",
    "use_mrope": False,
    "vocab_size": 512,
}


def tiny_qwen2_audio(
    path: Path, *, seed: int = 0, seconds: int = 30, new_names: bool = False, **overrides: Any
) -> Path:
    """Write a random Qwen2-Audio checkpoint into ``path`` (made if missing) and return it.

    It hears ``seconds`` of each sound, in the published models 30. ``new_names`` names weights as newer transformers
    do. ``overrides`` replace fields of ``config.json``; ``audio_config``, ``text_config`` and ``preprocessor`` are
    merged into their own parts.
    """
    from transformers import Qwen2AudioForConditionalGeneration

    path.mkdir(parents=True, exist_ok=True)
    audio = {**_AUDIO, "max_source_positions": 50 * seconds, **overrides.pop("audio_config", {})}
    text, preprocessor = {**_TEXT, **overrides.pop("text_config", {})}, overrides.pop("preprocessor", {})
    ids = write_tokenizer(
        path,
        tiny_tokenizer_json(special=QWEN2_AUDIO_SPECIAL_TOKENS),
        QWEN2_AUDIO_TEMPLATE,
        add_prefix_space=False,
        additional_special_tokens=list(QWEN2_AUDIO_SPECIAL_TOKENS[1:]),
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        processor_class="Qwen2AudioProcessor",
        tokenizer_class="Qwen2Tokenizer",
        unk_token=None,
    )
    end = ids["<|im_end|>"]
    config: dict[str, Any] = {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_config": audio,
        "audio_token_index": ids["<|AUDIO|>"],
        "ignore_index": -100,
        "model_type": "qwen2_audio",
        "text_config": {**text, "bos_token_id": ids["<|endoftext|>"], "eos_token_id": end},
        "torch_dtype": "float32",
        "vocab_size": text["vocab_size"],
    }
    write_json(path / "config.json", config | overrides)
    write_json(path / "chat_template.json", {"chat_template": QWEN2_AUDIO_TEMPLATE})
    write_json(path / "preprocessor_config.json", _preprocessor(audio["num_mel_bins"], seconds) | preprocessor)
    write_generation(path, {"pad_token_id": ids["<|endoftext|>"], "eos_token_id": [end, ids["<|endoftext|>"]]})
    write_weights(path, Qwen2AudioForConditionalGeneration, seed, (lambda name: name) if new_names else published_name)
    return path


def _preprocessor(bins: int, seconds: int) -> Mapping[str, Any]:
    return {
        "chunk_length": seconds,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": bins,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": seconds * 16_000,
        "nb_max_frames": seconds * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "Qwen2AudioProcessor",
        "return_attention_mask": True,
        "sampling_rate": 16_000,
    }


def published_name(name: str) -> str:
    """From a parameter's name in newer transformers to the published one."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language_model.") else name
