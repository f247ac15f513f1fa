"""How much memory a checkpoint will need, from its headers and its configuration. Torch-free; nothing is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmserve.checkpoint import text_config
from mmserve.errors import CheckpointError, ConfigError

DTYPE_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

_MATRIX = re.compile(r"(model\.)?((language|text)_model\.)?(model\.)?layers\.\d+\..*\.weight")
"""A published name of a weight in the decoder's layers: what quantisation rounds, where it has two axes."""

_VOCABULARY = re.compile(r".*(embed_tokens|lm_head)\.weight")
"""A published name of what has a row for each token."""

_NOT_LOADED = ("rotary_emb.inv_freq", "position_ids")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes: of all weights, and of one token's keys and values in all layers."""

    weights: int
    kv_per_token: int


def memory_of(
    folder: Path, config: Mapping[str, Any], dtype: str, quantization: str | None = None, ranks: int = 1
) -> MemoryNeed:
    """What a checkpoint's ``folder`` will need in ``dtype``, on each of the ``ranks`` that share it.

    Raises ``CheckpointError`` and ``ConfigError``.
    """
    weights = weight_bytes(folder, config, dtype, quantization, ranks)
    return MemoryNeed(weights, kv_bytes_per_token(config, dtype, ranks))


def weight_bytes(
    folder: Path, config: Mapping[str, Any], dtype: str, quantization: str | None = None, ranks: int = 1
) -> int:
    """Bytes of the weights in ``dtype``, the decoder's matrices at one byte a weight with a ``quantization``.

    ``ranks`` share the decoder's matrices, its embedding and LM head. From the headers of the safetensors files; where
    not all files that the index names are there, from its ``total_size``, as if nothing were shared. Raises
    ``CheckpointError`` where neither can be read.
    """
    size = _itemsize(dtype)
    files = _weight_files(folder)
    if files is None:
        return _indexed_bytes(folder, config, size)
    tied = bool(config.get("tie_word_embeddings") or text_config(config).get("tie_word_embeddings"))
    total = 0
    for name, shape in (pair for file in files for pair in _shapes(file)):
        if name.endswith(_NOT_LOADED) or (tied and name.endswith("lm_head.weight")):
            continue
        matrix = len(shape) == 2 and _MATRIX.fullmatch(name)
        count = math.prod(shape) + 4 * shape[0] if matrix and quantization is not None else math.prod(shape) * size
        total += -(-count // _sharers(name, config, ranks)) if matrix or _VOCABULARY.fullmatch(name) else count
    return total


def _sharers(name: str, config: Mapping[str, Any], ranks: int) -> int:
    """How many ranks have parts of their own of a matrix: no more than there are key heads, of a projection to them."""
    of_keys = ranks > 1 and name.endswith((".k_proj.weight", ".v_proj.weight"))
    return min(ranks, head_counts(config)[1]) if of_keys else ranks


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """The language model's attention heads, and those of its keys and values. Raises ``CheckpointError``."""
    try:
        return _heads(text_config(config))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json does not say how many attention heads there are ({error!r})") from None


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str, ranks: int = 1) -> int:
    """Bytes of one token's keys and values over all layers, on each of the ``ranks`` that share their heads.

    Raises ``CheckpointError`` where a field is missing.
    """
    text = text_config(config)
    try:
        heads, kv_heads = _heads(text)
        kv_heads = max(1, kv_heads // ranks)
        head_dim = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
        return 2 * int(text["num_hidden_layers"]) * kv_heads * head_dim * _itemsize(dtype)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json does not say how large keys and values are ({error!r})") from None


def _heads(text: Mapping[str, Any]) -> tuple[int, int]:
    heads = int(text["num_attention_heads"])
    return heads, int(text.get("num_key_value_heads") or text.get("num_multi_query_heads") or heads)


def _itemsize(dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPE_BYTES)}, not {dtype!r}", param="dtype")
    return DTYPE_BYTES[dtype]


def _weight_files(folder: Path) -> list[Path] | None:
    """The files, each once; ``None`` where not all are there."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    files = [folder / name for name in sorted(set(map(str, _index(folder)["weight_map"].values())))]
    return files if all(file.is_file() for file in files) else None


def _indexed_bytes(folder: Path, config: Mapping[str, Any], size: int) -> int:
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    total = (_index(folder).get("metadata") or {}).get("total_size")
    if not isinstance(total, int):
        raise CheckpointError(f"{folder} has neither its weights nor their total_size; fetch it again")
    return total * size // _itemsize(stored)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model.safetensors.index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_bytes())
        index["weight_map"].values()
        return index
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder} has neither model.safetensors nor a readable index of its parts") from None


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length) if length < 100_000_000 else b"")
            yield from [(name, each["shape"]) for name, each in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}); fetch it again") from None
