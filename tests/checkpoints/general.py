"""Small models of families that the general path serves, in the form of their published files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checkpoints.files import write_generation, write_json, write_tokenizer, write_weights
from tests.checkpoints.llava import VICUNA_TEMPLATE
from tests.checkpoints.text import text_fields
from tests.checkpoints.tokenizer import sentencepiece_tokenizer_json, tiny_tokenizer_json

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_PARTS = (
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
)
IDEFICS_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    + _PARTS.replace("IMAGE", "<image>")
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_TEMPLATE = IDEFICS_TEMPLATE.replace("<|begin_of_text|>", "<|im_start|>")
INTERN_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _PARTS.replace("IMAGE", "<IMG_CONTEXT>\n")
    + "{% endif %}{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
GLM_TEMPLATE = (
    "[gMASK]<sop>\n{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _PARTS.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n<think>' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
AYA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|>' + ('<|USER_TOKEN|>' if message['role'] == 'user' else '<|CHATBOT_TOKEN|>') }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _PARTS.replace("IMAGE", "<image>")
    + "{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
TEKKEN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST]{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _PARTS.replace("IMAGE", "[IMG]")
    + "{% endif %}[/INST]{% else %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _PARTS.replace("IMAGE", "[IMG]")
    + "{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
)

CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
_PIXTRAL = {**CLIP, "model_type": "pixtral", "image_size": 224, "patch_size": 14, "head_dim": 16, "rope_theta": 10000.0}
_CLIP_MEAN = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _as_ours(name: str) -> str:
    return name


def _as_llava(name: str) -> str:
    """As models with LLaVA's build were published."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return f"language_model.{name}" if name == "lm_head.weight" else name


def _as_clip_llava(name: str) -> str:
    name = _as_llava(name)
    bare = name.startswith("vision_tower.") and "vision_model." not in name
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1) if bare else name


@dataclass(frozen=True, slots=True)
class General:
    """A family: its class, the language model's kind, template, special tokens (the opening first, where there is one),
    and what sets its files apart."""

    architecture: str
    kind: str
    text: str
    template: str
    specials: tuple[str, ...]
    end: str
    image_token: str
    vision: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    text_config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    opening: str | None = None
    published: Callable[[str], str] = _as_ours
    token_field: str = "image_token_id"


_GRID = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_TEKKEN = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>")
_COHERE = (
    "<BOS_TOKEN>",
    "<PAD>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
)
_COHERE_TEXT = {
    "model_type": "cohere2",
    "rope_scaling": None,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.25,
    "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}

GENERALS: Mapping[str, General] = {
    "idefics3": General(
        "Idefics3ForConditionalGeneration",
        "idefics3",
        "llama",
        IDEFICS_TEMPLATE,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *_GRID,
        ),
        "<end_of_utterance>",
        "<image>",
        {**CLIP, "model_type": "idefics3_vision", "image_size": 56, "patch_size": 14},
        {"scale_factor": 2},
        {"rope_scaling": None},
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": True,
            "max_image_size": {"longest_edge": 56},
            "size": {"longest_edge": 4 * 56},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 1,
        },
        {"image_seq_len": 4},
        opening="<|begin_of_text|>",
    ),
    "internvl": General(
        "InternVLForConditionalGeneration",
        "internvl",
        "qwen2",
        INTERN_TEMPLATE,
        (*CHATML_SPECIALS, "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        "<|im_end|>",
        "<IMG_CONTEXT>",
        {
            **CLIP,
            "model_type": "internvl_vision",
            "attention_bias": True,
            "image_size": [56, 56],
            "layer_scale_init_value": 0.1,
            "norm_type": "layer_norm",
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": True,
        },
        {
            "downsample_ratio": 0.5,
            "image_seq_length": 4,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        },
        {"tie_word_embeddings": False},
        {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "crop_to_patches": False,
            "max_patches": 12,
            "min_patches": 1,
            "size": {"height": 56, "width": 56},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
        {"image_seq_length": 4},
        {
            "extra_special_tokens": {
                "context_image_token": "<IMG_CONTEXT>",
                "end_image_token": "</img>",
                "start_image_token": "<img>",
                "video_token": "<video>",
            }
        },
        published=_as_llava,
    ),
    "glm4v": General(
        "Glm4vForConditionalGeneration",
        "glm4v",
        "llama",
        GLM_TEMPLATE,
        (
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
            "<|image|>",
            "<|video|>",
        ),
        "<|user|>",
        "<|image|>",
        {
            "model_type": "glm4v",
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "image_size": 112,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "attention_bias": False,
            "hidden_act": "silu",
            "in_channels": 3,
            "rms_norm_eps": 1e-5,
        },
        {},
        {
            "model_type": "glm4v_text",
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]},
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        {
            "image_processor_type": "Glm4vImageProcessor",
            "size": {"shortest_edge": 4 * 28 * 28 * 2, "longest_edge": 48 * 28 * 28 * 2},
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **_CLIP_MEAN,
        },
    ),
    "aya_vision": General(
        "AyaVisionForConditionalGeneration",
        "aya_vision",
        "llama",
        AYA_TEMPLATE,
        _COHERE,
        "<|END_OF_TURN_TOKEN|>",
        "<|IMG_PATCH|>",
        {**CLIP, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        {
            "adapter_layer_norm_eps": 1e-6,
            "alignment_intermediate_size": 96,
            "downsample_factor": 2,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        _COHERE_TEXT,
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "max_patches": 12,
            "min_patches": 1,
            "size": {"height": 56, "width": 56},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        {"patch_size": 14, "downsample_factor": 2, "img_size": 56},
        opening="<BOS_TOKEN>",
        published=_as_clip_llava,
        token_field="image_token_index",
    ),
    "mistral3": General(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        "mistral",
        TEKKEN_TEMPLATE,
        _TEKKEN,
        "</s>",
        "[IMG]",
        {**_PIXTRAL, "image_size": 112, "patch_size": 7},
        {
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
        {"sliding_window": None},
        {
            "image_processor_type": "PixtralImageProcessorFast",
            "patch_size": 7,
            "size": {"longest_edge": 112},
            **_CLIP_MEAN,
        },
        {"patch_size": 7, "spatial_merge_size": 2},
        opening="<s>",
        published=_as_llava,
        token_field="image_token_index",
    ),
    "pixtral": General(
        "LlavaForConditionalGeneration",
        "llava",
        "mistral",
        TEKKEN_TEMPLATE,
        _TEKKEN,
        "</s>",
        "[IMG]",
        _PIXTRAL,
        {"projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        {"sliding_window": None},
        {
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": {"height": 14, "width": 14},
            "size": {"longest_edge": 224},
            **_CLIP_MEAN,
        },
        {"patch_size": 14},
        opening="<s>",
        published=_as_llava,
        token_field="image_token_index",
    ),
    "vipllava": General(
        "VipLlavaForConditionalGeneration",
        "vipllava",
        "llama",
        VICUNA_TEMPLATE,
        ("<image>", "<pad>"),
        "</s>",
        "<image>",
        {**CLIP, "model_type": "clip_vision_model", "image_size": 42, "patch_size": 14, "projection_dim": 16},
        {"projector_hidden_act": "gelu", "projector_layernorm_eps": 1e-5, "vision_feature_layers": [-2, -1, 1]},
        {"rope_scaling": None},
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": 42, "width": 42},
            "do_center_crop": True,
            "size": {"shortest_edge": 42},
            **_CLIP_MEAN,
        },
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        opening="<s>",
        published=_as_clip_llava,
        token_field="image_token_index",
    ),
    "smolvlm": General(
        "SmolVLMForConditionalGeneration",
        "smolvlm",
        "llama",
        SMOLVLM_TEMPLATE,
        (
            "<|im_start|>",
            "<|endoftext|>",
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *_GRID,
        ),
        "<end_of_utterance>",
        "<image>",
        {**CLIP, "model_type": "smolvlm_vision", "image_size": 56, "patch_size": 14},
        {"scale_factor": 2},
        {"rope_scaling": None},
        {
            "image_processor_type": "SmolVLMImageProcessor",
            "do_image_splitting": True,
            "max_image_size": {"longest_edge": 56},
            "size": {"longest_edge": 4 * 56},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 1,
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 56}},
        },
        {"image_seq_len": 4},
    ),
    "lighton_ocr": General(
        "LightOnOcrForConditionalGeneration",
        "lighton_ocr",
        "qwen3",
        INTERN_TEMPLATE.replace("<IMG_CONTEXT>\n", "<|image_pad|>"),
        (*CHATML_SPECIALS, "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"),
        "<|im_end|>",
        "<|image_pad|>",
        {**_PIXTRAL, "image_size": 112, "patch_size": 7},
        {"spatial_merge_size": 2, "tie_word_embeddings": True},
        {},
        {
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": 14,
            "size": {"longest_edge": 112},
            **_CLIP_MEAN,
        },
        {"patch_size": 7, "spatial_merge_size": 2},
        {
            "extra_special_tokens": {
                "image_token": "<|image_pad|>",
                "image_break_token": "<|vision_pad|>",
                "image_end_token": "<|vision_end|>",
            }
        },
    ),
    "cohere2_vision": General(
        "Cohere2VisionForConditionalGeneration",
        "cohere2_vision",
        "llama",
        AYA_TEMPLATE.replace("<image>", "<|IMG_PATCH|>"),
        _COHERE,
        "<|END_OF_TURN_TOKEN|>",
        "<|IMG_PATCH|>",
        {**CLIP, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        {"alignment_intermediate_size": 96, "downsample_factor": 2},
        _COHERE_TEXT,
        {
            "image_processor_type": "Cohere2VisionImageProcessorFast",
            "crop_to_patches": True,
            "max_patches": 12,
            "min_patches": 1,
            "patch_size": 2,
            "size": {"height": 56, "width": 56},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        tokenizer={
            "extra_special_tokens": {
                "boi_token": "<|START_OF_IMG|>",
                "eoi_token": "<|END_OF_IMG|>",
                "image_token": "<|IMG_PATCH|>",
                "img_line_break_token": "<|IMG_LINE_BREAK|>",
            }
        },
        opening="<BOS_TOKEN>",
    ),
    "gemma3": General(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        "llama",
        GEMMA_TEMPLATE,
        (
            "<bos>",
            "<pad>",
            "<eos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        "<end_of_turn>",
        "<image_soft_token>",
        {**CLIP, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        {"mm_tokens_per_image": 16, "tie_word_embeddings": True},
        {
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 24,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window": 12,
            "sliding_window_pattern": 2,
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
        },
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "do_pan_and_scan": None,
            "size": {"height": 56, "width": 56},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        {"image_seq_length": 16},
        {
            "extra_special_tokens": {
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        opening="<bos>",
        published=_as_clip_llava,
        token_field="image_token_index",
    ),
}


def tiny_general(path: Path, kind: str, *, seed: int = 0, new_names: bool = False, **overrides: Any) -> Path:
    """Write a random model of :data:`GENERALS` into ``path``.

    ``overrides`` replace fields of ``config.json``; ``vision_config``, ``text_config`` and ``preprocessor`` are merged
    into their own parts. ``new_names`` writes the weights' names as newer transformers do.
    """
    import transformers

    path.mkdir(parents=True, exist_ok=True)
    family = GENERALS[kind]
    ids = _write_tokenizer(path, family)
    text = {**text_fields(family.text), "torch_dtype": "float32", **family.text_config}
    ends = {"eos_token_id": ids[family.end], "pad_token_id": ids[family.end]}
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.kind,
        "torch_dtype": "float32",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
        family.token_field: ids[family.image_token],
        **family.config,
        "text_config": text | ends | overrides.pop("text_config", {}),
        "vision_config": {**family.vision, **overrides.pop("vision_config", {})},
    }
    if kind == "gemma3":
        config |= {"boi_token_index": ids["<start_of_image>"], "eoi_token_index": ids["<end_of_image>"]}
    named = {"video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>"}
    config |= {name: ids[token] for name, token in named.items() if kind == "glm4v"}
    preprocessor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        **family.preprocessor,
        **overrides.pop("preprocessor", {}),
    }
    name = family.architecture.replace("ForConditionalGeneration", "Processor")
    known = {"Mistral3Processor": "PixtralProcessor", "VipLlavaProcessor": "LlavaProcessor"}
    processor = "PixtralProcessor" if kind == "pixtral" else known.get(name, name)
    write_json(path / "config.json", config | overrides)
    write_json(path / "preprocessor_config.json", preprocessor | {"processor_class": processor})
    write_json(path / "processor_config.json", {"processor_class": processor, **family.processor})
    write_generation(path, ends)
    write_weights(path, getattr(transformers, family.architecture), seed, _as_ours if new_names else family.published)
    return path


def _write_tokenizer(path: Path, family: General) -> dict[str, int]:
    write_json(path / "chat_template.json", {"chat_template": family.template})
    if family.template == VICUNA_TEMPLATE:
        tokenizer = sentencepiece_tokenizer_json(family.specials, legacy=True)
        pad = "<pad>"
    else:
        tokenizer = tiny_tokenizer_json(special=family.specials, opening=family.opening)
        pad = family.specials[-1] if family.specials[-1] == "<pad>" else family.specials[0]
    tokens = {"bos_token": family.opening, "eos_token": family.end, "pad_token": pad}
    return write_tokenizer(path, tokenizer, family.template, **tokens, **family.tokenizer)
