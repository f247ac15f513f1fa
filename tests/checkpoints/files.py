"""Writing a checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, model_class: Any, seed: int, published_name: Callable[[str], str]) -> None:
    """Random weights for the model that ``path``'s ``config.json`` describes, under ``published_name``'s names.

    Matrices keep activations near unit size, so logits differ clearly.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    given = json.loads((path / "config.json").read_text())
    fields = {**given, **given.get("text_config", {})}
    dtype = getattr(torch, fields.get("torch_dtype") or fields["dtype"])
    tensors = {}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            value = noise * 1.5 / parameter[0].numel() ** 0.5
        else:
            value = 0.1 * noise + (1.0 if "norm" in name or "ln_q" in name else 0.0) * name.endswith("weight")
        tensors[published_name(name)] = value.to(dtype).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(path: Path, tokenizer: str, template: str, **settings: Any) -> dict[str, int]:
    """``tokenizer.json`` and its settings; returns the added tokens' ids by name."""
    ids = {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
    (path / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(id_): {"content": token, **flags} for token, id_ in ids.items()},
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(path / "tokenizer_config.json", config | settings)
    return ids


def write_generation(path: Path, ids: Mapping[str, int | list[int]]) -> None:
    write_json(path / "generation_config.json", {"do_sample": False, **ids})
