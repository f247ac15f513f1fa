"""Small LLaVA models: one square, tiles, and tiles of many shapes, in the form of the published files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer, write_weights
from tests.checkpoints.text import LLAMA3_SPECIAL_TOKENS, text_fields
from tests.checkpoints.tokenizer import sentencepiece_tokenizer_json, tiny_tokenizer_json

TILE = 42
PATCH = 14

_IMAGES = (
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
)
_TEXTS = (
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
)
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    + _IMAGES
    + _TEXTS
    + "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INST_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    + _IMAGES
    + _TEXTS
    + "{{ ' [/INST]' }}{% else %}{{ ' ' }}"
    + _TEXTS
    + "{{ '</s> ' }}{% endif %}{% endfor %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _IMAGES
    + _TEXTS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS_TEMPLATE = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    + _IMAGES
    + _TEXTS
    + "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


@dataclass(frozen=True, slots=True)
class Llava:
    """One of the published designs: architecture, language model, and the tokenizer's and the template's style."""

    architecture: str
    text: str
    style: str


LLAVAS: Mapping[str, Llava] = {
    "llava-vicuna": Llava("LlavaForConditionalGeneration", "llama", "vicuna"),
    "llava-next-mistral": Llava("LlavaNextForConditionalGeneration", "mistral", "inst"),
    "llava-next-vicuna": Llava("LlavaNextForConditionalGeneration", "llama", "vicuna"),
    "llava-next-llama3": Llava("LlavaNextForConditionalGeneration", "llama", "headers"),
    "llava-next-qwen": Llava("LlavaNextForConditionalGeneration", "qwen2", "chatml"),
    "llava-onevision": Llava("LlavaOnevisionForConditionalGeneration", "qwen2", "chatml"),
}

_TEMPLATES = {"vicuna": VICUNA_TEMPLATE, "inst": INST_TEMPLATE, "chatml": CHATML_TEMPLATE, "headers": HEADERS_TEMPLATE}


def tiny_llava(path: Path, kind: str, *, seed: int = 0, new_names: bool = False, **overrides: Any) -> Path:
    """Write a random model of :data:`LLAVAS` into ``path``.

    ``overrides`` replace fields of ``config.json``; ``vision_config``, ``text_config`` and ``preprocessor`` are merged
    into their own parts. ``new_names`` writes the weights' names as newer transformers do.
    """
    import transformers

    path.mkdir(parents=True, exist_ok=True)
    family = LLAVAS[kind]
    ids, ends = _write_tokenizer(path, family.style)
    config = _config(kind, family, ids["<image>"])
    for part in ("vision_config", "text_config"):
        config[part] |= overrides.pop(part, {})
    changes = overrides.pop("preprocessor", {})
    config |= overrides
    preprocessor = _preprocessor(family, config) | changes
    write_json(path / "config.json", config)
    write_json(path / "preprocessor_config.json", preprocessor)
    write_json(path / "processor_config.json", _processor(family, config))
    write_generation(path, ends)
    name = _newer_name if new_names else _published_name
    write_weights(path, getattr(transformers, family.architecture), seed, name)
    return path


def _write_tokenizer(path: Path, style: str) -> tuple[dict[str, int], dict[str, int]]:
    template = _TEMPLATES[style]
    write_json(path / "chat_template.json", {"chat_template": template})
    if style == "chatml":
        tokenizer = tiny_tokenizer_json(special=CHATML_SPECIAL_TOKENS)
        tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    elif style == "headers":
        special = (*LLAMA3_SPECIAL_TOKENS, "<image>", "<pad>")
        tokenizer = tiny_tokenizer_json(special=special, opening=special[0])
        tokens = {"bos_token": special[0], "eos_token": "<|eot_id|>", "pad_token": "<pad>"}
    else:
        tokenizer = sentencepiece_tokenizer_json(("<image>", "<pad>"), legacy=style == "vicuna")
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    ids = write_tokenizer(path, tokenizer, template, **tokens)
    return ids, {"eos_token_id": ids[tokens["eos_token"]], "pad_token_id": ids[tokens["pad_token"]]}


def _config(kind: str, family: Llava, image_token: int) -> dict[str, Any]:
    anyres, onevision = "next" in kind, kind == "llava-onevision"
    text = text_fields(family.text) | {"torch_dtype": "float32", "tie_word_embeddings": False}
    for left_out in ("hidden_act", "initializer_range", "sliding_window", "rope_scaling"):
        text.pop(left_out, None)
    if family.text == "mistral":
        text["sliding_window"] = None
    vision = {
        "hidden_size": 32,
        "image_size": TILE,
        "intermediate_size": 48,
        "model_type": "siglip_vision_model" if onevision else "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": PATCH,
    }
    vision |= {"vision_use_head": False} if onevision else {"projection_dim": 16, "vocab_size": 100}
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "ignore_index": -100,
        "image_token_index": image_token,
        "model_type": {"v": "llava", "n": "llava_next", "o": "llava_onevision"}[(kind + "-v").split("-")[1][0]],
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": vision,
        "vision_feature_layer": -1 if onevision else -2,
        "vision_feature_select_strategy": "full" if onevision else "default",
    }
    if anyres:
        config["image_grid_pinpoints"] = [[TILE * h, TILE * w] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    if onevision:
        config["image_grid_pinpoints"] = [[TILE * h, TILE * w] for h in range(1, 5) for w in range(1, 5)]
        config |= {"video_token_index": image_token + 1, "vision_aspect_ratio": "anyres_max_9"}
    return config


def _preprocessor(family: Llava, config: Mapping[str, Any]) -> dict[str, Any]:
    tile = config["vision_config"]["image_size"]
    settings: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": family.architecture.replace("ForConditionalGeneration", "Processor"),
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
    }
    if "image_grid_pinpoints" in config:
        settings |= {"image_grid_pinpoints": config["image_grid_pinpoints"], "do_pad": True}
    if "Onevision" in family.architecture:
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": tile, "width": tile}}
        return settings | {"image_processor_type": "LlavaOnevisionImageProcessor"}
    kind = "LlavaNextImageProcessor" if "Next" in family.architecture else "CLIPImageProcessor"
    settings |= {"do_center_crop": True, "crop_size": {"height": tile, "width": tile}, "size": {"shortest_edge": tile}}
    return settings | {"image_processor_type": kind}


def _processor(family: Llava, config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        "image_token": "<image>",
        "processor_class": family.architecture.replace("ForConditionalGeneration", "Processor"),
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    if "Onevision" in family.architecture:
        side = config["vision_config"]["image_size"] // PATCH
        settings |= {"num_image_tokens": side**2, "video_token": "<video>"}
        return settings | {"vision_aspect_ratio": config["vision_aspect_ratio"]}
    return settings | {"patch_size": PATCH, "num_additional_image_tokens": 1}


def _newer_name(name: str) -> str:
    if name.startswith("model.vision_tower.") and "vision_model." not in name:
        return name.replace("model.vision_tower.", "model.vision_tower.vision_model.", 1)
    return name


def _published_name(name: str) -> str:
    name = _newer_name(name).removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return f"language_model.{name}" if name == "lm_head.weight" else name
