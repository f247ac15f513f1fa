"""What a Hugging Face checkpoint folder says about itself, read once. Torch-free; weights are not loaded here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mmserve.errors import CheckpointError, ConfigError, InvalidField
from mmserve.sampling import SamplingParams
from mmserve.types import MediaKind
from vision.identity import canonical_json, digest

FAMILIES: Mapping[str, str] = {
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "CogVLMForCausalLM": "cogvlm",
    "Qwen2AudioForConditionalGeneration": "qwen2_audio",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Served architectures (``config.json``'s ``architectures``) and the name of their family."""

TEXT_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""The families that read no pictures."""

HEARING_FAMILIES = frozenset({"qwen2_audio"})
"""The families that hear and see nothing: they have an ``audio_config`` and a feature extractor."""

WITHOUT_IMAGE_TOKEN = TEXT_FAMILIES | HEARING_FAMILIES | {"cogvlm"}
"""The families whose ``config.json`` names no token for pictures."""

WITHOUT_PROCESSOR = TEXT_FAMILIES | {"cogvlm"}
"""The families whose files hold no settings of an image processor."""

OWN_TEMPLATE = frozenset({"cogvlm"})
"""The families whose chat template is their layout's: what their files may hold is another model's."""

GENERAL = "general"
"""The family of every other architecture that sees: transformers computes it, if it can be served at all."""

TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 2,
    },
    "mistral": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "eos_token_id": 2,
    },
    "qwen2": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    "gemma3_text": {"vocab_size": 262_208, "max_position_embeddings": 131_072, "eos_token_id": 1},
    "cohere2": {"vocab_size": 256_000, "max_position_embeddings": 8192, "eos_token_id": 255_001},
    "glm4v_text": {"vocab_size": 151_552, "max_position_embeddings": 32_768},
    "qwen3": {"head_dim": 128, "rms_norm_eps": 1e-6, "num_key_value_heads": 32, "use_sliding_window": False},
}
"""Fields of a language model that published files leave out where they are transformers' defaults, by model_type."""

NOT_SERVED: Mapping[str, str] = {
    "CogAgentForCausalLM": "they have a second tower for screens; choose a CogVLM or a CogVLM2",
    "Qwen3VLMoeForConditionalGeneration": "they are mixtures of experts; choose a dense Qwen3-VL (2B, 4B, 8B, 32B)",
}
"""Architectures whose kin are served, and why they themselves are not."""

QUANTIZATIONS = ("int8", "fp8")
"""What the decoder's weights may be rounded to while they are loaded."""

_SAMPLE_BYTES = 256


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk. The mappings are the files' content as read; nothing in here changes.

    ``config`` is ``config.json``, ``processor`` the image processor's or feature extractor's settings,
    ``video_processor`` those for videos (the former where there are none of their own), ``generation``
    ``generation_config.json`` (empty where there is none), ``template`` the chat template's source (empty where the
    family's layout has it). ``dtype`` is a torch dtype's name, ``max_model_len`` is in tokens; ``image_token_id`` is
    ``None`` where no token of the vocabulary is for pictures. ``sampling`` is what the model's makers recommend.

    ``fingerprint`` (32 bytes) identifies the weights and configuration. It covers each safetensors file's name,
    size and header (names, types, shapes and offsets of the tensors), the first and last 256 bytes of every tensor,
    ``config.json`` and the image processor's settings. So it is read in milliseconds and tells fine-tunes of one model
    apart, but it is no digest of every weight: someone who edits the middle of a tensor by hand keeps it.

    ``json_style`` says how it writes JSON under a constraint: ``"compact"``, or ``"spaced"`` behind commas and colons.
    ``tokenizer`` is the folder of the tokenizer, where it is not beside the weights.
    ``quantization`` is one of ``QUANTIZATIONS``, or ``None`` where weights stay of ``dtype``. ``media`` are the only
    kinds of media to take, ``None`` for all that the family does.
    """

    name: str
    path: Path
    family: str
    config: Mapping[str, Any] = field(repr=False)
    processor: Mapping[str, Any] = field(repr=False)
    generation: Mapping[str, Any] = field(repr=False)
    template: str = field(repr=False)
    dtype: str
    eos_token_ids: tuple[int, ...]
    image_token_id: int | None
    max_model_len: int
    fingerprint: bytes = field(repr=False)
    sampling: SamplingParams = field(repr=False)
    description: str = ""
    licence: str = ""
    json_style: str = "compact"
    quantization: str | None = None
    tokenizer: Path | None = None
    video_processor: Mapping[str, Any] = field(default_factory=dict, repr=False)
    media: tuple[MediaKind, ...] | None = None

    @property
    def tokenizer_path(self) -> Path:
        """The folder that holds ``tokenizer.json``."""
        return self.tokenizer or self.path

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """That part of ``config.json``; empty where the model reads text only."""
        vision: Mapping[str, Any] = self.config.get("vision_config") or {}
        return vision

    @property
    def audio_config(self) -> Mapping[str, Any]:
        """That part of ``config.json``; empty where the model does not hear."""
        audio: Mapping[str, Any] = self.config.get("audio_config") or {}
        return audio

    def require_audio_token(self) -> int:
        """The token that stands for sounds. Raises ``CheckpointError`` where there is none."""
        return _positive(self.config, _token_name(self.config, "audio"))

    def require_image_token(self) -> int:
        """The token that stands for pictures. Raises ``CheckpointError`` where there is none."""
        if self.image_token_id is None:
            raise CheckpointError(f"config.json of {self.name} names no image_token_id, but its family needs one")
        return self.image_token_id


def read_checkpoint(
    path: Path,
    *,
    name: str,
    dtype: str | None = None,
    template: str | None = None,
    max_model_len: int | None = None,
    description: str = "",
    licence: str = "",
    json_style: str = "compact",
    tokenizer: Path | None = None,
    quantization: str | None = None,
    media: tuple[MediaKind, ...] | None = None,
) -> Checkpoint:
    """Read a checkpoint folder; ``dtype``, ``template`` (source) and ``max_model_len`` override what it says.

    Raises ``CheckpointError`` for missing, damaged or contradictory files, and ``ConfigError`` for a model that is not
    served.
    """
    config = read_json(path / "config.json")
    family = _family(config)
    processor = {} if family in WITHOUT_PROCESSOR else _processor(path, family)
    generation = read_json(path / "generation_config.json", missing_ok=True)
    part = "audio_config" if family in HEARING_FAMILIES else "vision_config"
    if family not in TEXT_FAMILIES and not isinstance(config.get(part), dict):
        raise CheckpointError(f"{path / 'config.json'} has no {part}: this is not a whole {family} checkpoint")
    text = text_config(config)
    own_length = _positive(text, "max_position_embeddings")
    if max_model_len is not None and max_model_len > own_length:
        raise ConfigError(f"{name} was made for {own_length} tokens; max_model_len {max_model_len} is more than that")
    return Checkpoint(
        name=name,
        path=path,
        family=family,
        config=config,
        processor=processor,
        generation=generation,
        template=template or ("" if family in OWN_TEMPLATE else _template(path)),
        dtype=dtype or str(config.get("dtype") or config.get("torch_dtype") or _text_dtype(text)),
        eos_token_ids=_eos_token_ids(path, generation, text),
        image_token_id=None if family in WITHOUT_IMAGE_TOKEN else _image_token_id(config, family),
        max_model_len=max_model_len or own_length,
        fingerprint=weights_fingerprint(path, config, processor),
        sampling=default_sampling(generation),
        description=description,
        licence=licence,
        json_style=json_style,
        tokenizer=tokenizer,
        quantization=quantization,
        video_processor=processor and _video_processor(path, processor),
        media=media,
    )


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's fields, flat in ``config.json`` or under ``text_config``; defaults where both are silent."""
    given = {**config, **(config.get("text_config") or {})}
    return {**TEXT_DEFAULTS.get(str(given.get("model_type")), {}), **given}


def default_sampling(generation: Mapping[str, Any]) -> SamplingParams:
    """Sampling as ``generation_config.json`` asks for it: greedy unless ``do_sample`` is true.

    What the file leaves out stays off. Raises ``CheckpointError`` for values out of range.
    """
    names = ["repetition_penalty"]
    fields: dict[str, Any] = {}
    if generation.get("do_sample"):
        names += ["top_p", "top_k", "min_p"]
        fields["temperature"] = _given(generation, "temperature", 1.0)
    fields |= {name: generation[name] for name in names if generation.get(name) is not None}
    try:
        return SamplingParams(**fields)
    except (InvalidField, TypeError) as error:
        raise CheckpointError(f"generation_config.json holds unusable sampling settings: {error}") from None


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a file, empty if there is no file and ``missing_ok``. Raises ``CheckpointError``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise CheckpointError(f"{path} is missing: this is not a whole Hugging Face checkpoint folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, not a JSON object")
    return value


def weights_fingerprint(path: Path, config: Mapping[str, Any], processor: Mapping[str, Any]) -> bytes:
    """See :class:`Checkpoint`. Raises ``CheckpointError`` where a safetensors file is missing or cut off."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{path} holds no .safetensors file; other weight formats (pickles among them) are not read"
        )
    parts = [canonical_json(config), canonical_json(processor)]
    for file in files:
        parts += [file.name.encode(), *_weight_samples(file)]
    return digest("mmserve/weights/1", *parts)


def _weight_samples(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if length < 100_000_000 else b""
            tensors: dict[str, Any] = json.loads(header)
            tensors.pop("__metadata__", None)
            yield header
            spans = sorted(tuple(tensor["data_offsets"]) for tensor in tensors.values())
            yield from _samples(stream, 8 + length, spans)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}); fetch it again") from None


def _samples(stream: BinaryIO, base: int, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    size = stream.seek(0, 2)
    if spans and base + spans[-1][1] != size:
        raise ValueError(f"it has {size} bytes where its header promises {base + spans[-1][1]}")
    yield size.to_bytes(8, "little")
    for start, end in spans:
        for at in (start, max(start, end - _SAMPLE_BYTES)):
            stream.seek(base + at)
            yield stream.read(min(_SAMPLE_BYTES, end - at))


def _family(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures") or ["(none named)"]
    for architecture in architectures:
        if architecture in FAMILIES and not _is_pixtral(config):
            return FAMILIES[architecture]
        if architecture in NOT_SERVED:
            raise ConfigError(f"models of architecture {architecture} are not served: {NOT_SERVED[architecture]}")
    if config.get("architectures") and isinstance(config.get("vision_config"), dict):
        return GENERAL
    served = ", ".join(sorted(FAMILIES))
    raise ConfigError(f"models of architecture {', '.join(map(str, architectures))} are not served; served: {served}")


def _is_pixtral(config: Mapping[str, Any]) -> bool:
    """Pixtral calls itself a LLaVA, but its tower takes pictures of every size."""
    return bool((config.get("vision_config") or {}).get("model_type") == "pixtral")


def _processor(path: Path, family: str) -> dict[str, Any]:
    """Settings of the image processor or feature extractor: ``processor_config.json``'s, where newer files keep them,
    else the classic file's."""
    part = "feature_extractor" if family in HEARING_FAMILIES else "image_processor"
    nested = read_json(path / "processor_config.json", missing_ok=True).get(part)
    return nested if isinstance(nested, dict) else read_json(path / "preprocessor_config.json")


def _video_processor(path: Path, processor: dict[str, Any]) -> dict[str, Any]:
    """Video processor settings, from where transformers takes them; ``processor`` where there are no others."""
    nested = read_json(path / "processor_config.json", missing_ok=True).get("video_processor")
    if isinstance(nested, dict):
        return nested
    return read_json(path / "video_preprocessor_config.json", missing_ok=True) or processor


def _template(path: Path) -> str:
    """The chat template's source, looked for where transformers looks, in its order."""
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(path / file, missing_ok=True).get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if isinstance(found, str):
            return found
    raise CheckpointError(f"{path} has no chat template; give one as `template` in models.yaml")


def _eos_token_ids(path: Path, generation: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[int, ...]:
    given = _given(generation, "eos_token_id", text.get("eos_token_id"))
    ids = tuple(given if isinstance(given, list) else [given])
    vocabulary = _positive(text, "vocab_size")
    if not ids or not all(isinstance(id_, int) and 0 <= id_ < vocabulary for id_ in ids):
        raise CheckpointError(f"eos_token_id {given} in {path} is not within its vocabulary of {vocabulary} tokens")
    return ids


def _image_token_id(config: Mapping[str, Any], family: str) -> int | None:
    """Under the name that was used before transformers 4.50 too; ``None`` where a processor of its own knows."""
    name = _token_name(config, "image")
    return None if family == GENERAL and name not in config else _positive(config, name)


def _token_name(config: Mapping[str, Any], kind: str) -> str:
    older, newer = f"{kind}_token_index", f"{kind}_token_id"
    return older if newer not in config and older in config else newer


def _text_dtype(text: Mapping[str, Any]) -> str:
    return str(text.get("dtype") or text.get("torch_dtype") or "float32")


def _given(values: Mapping[str, Any], name: str, default: Any) -> Any:
    return default if values.get(name) is None else values[name]


def _positive(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json must give {name} as a positive integer, got {value!r}")
    return value
