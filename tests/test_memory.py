"""What a checkpoint needs, told from its headers, is what it takes once it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.quantised import load
from mmserve.cache.kv import KVCache
from mmserve.checkpoint import Checkpoint
from mmserve.errors import CheckpointError, ConfigError
from mmserve.memory import head_counts, kv_bytes_per_token, memory_of, weight_bytes
from mmserve.models.batch import Model
from mmserve.models.families import build_model
from mmserve.models.quantised import QuantisedLinear
from mmserve.models.shared import SharedEncoder
from tests.checkpoints import LLAVAS, TEXT_MODELS
from tests.models.equality import resolve
from tests.models.ranks import Numbered
from tests.models.test_families import tiny

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def loaded_bytes(model: Model) -> int:
    """Of parameters and scales; tables of a few hundred bytes besides are no weights."""
    encoder = model.encoder._encoder if isinstance(model.encoder, SharedEncoder) else model.encoder
    halves: tuple[object, ...] = (model.decoder, encoder)
    modules = [each for each in halves if isinstance(each, nn.Module)]
    scales = [each.scales for module in modules for each in module.modules() if isinstance(each, QuantisedLinear)]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return sum(each.numel() * each.element_size() for each in (*parameters, *scales))


def unused(checkpoint: Checkpoint, size: int) -> int:
    """Bytes of what a CLIP or SigLIP tower has behind the layer that is looked at; it is not loaded."""
    shapes = {name: tensor.numel() for name, tensor in load_file(checkpoint.path / "model.safetensors").items()}
    layers = checkpoint.vision_config.get("num_hidden_layers", 0)
    last = f"layers.{layers - 1}." if checkpoint.config.get("vision_feature_layer") == -2 else "no layer"
    return size * sum(
        count for name, count in shapes.items() if "vision_tower" in name and (last in name or "post_layernorm" in name)
    )


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["qwen2-vl", *LLAVAS, *TEXT_MODELS])
def test_the_need_told_is_the_need_met(kind: str, dtype: str, quantization: str | None, tmp_path: Path) -> None:
    checkpoint = resolve(tiny(tmp_path, kind))
    model = load(checkpoint, quantization, DTYPES[dtype])
    need = memory_of(checkpoint.path, checkpoint.config, dtype, quantization)
    assert need.weights - unused(checkpoint, DTYPES[dtype].itemsize) == loaded_bytes(model)
    decoder = model.decoder
    per_slot = KVCache.bytes_per_slot(decoder.num_layers, decoder.num_kv_heads, decoder.head_dim, DTYPES[dtype])
    assert need.kv_per_token == per_slot


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["qwen2-vl", "llava-vicuna", "llama", "qwen3"])
def test_what_each_of_several_ranks_needs(kind: str, size: int, tmp_path: Path) -> None:
    checkpoint = resolve(tiny(tmp_path, kind))
    models = [build_model(checkpoint, torch.float32, torch.device("cpu"), Numbered(rank, size)) for rank in range(size)]
    need = memory_of(checkpoint.path, checkpoint.config, "float32", None, size)
    told = need.weights - unused(checkpoint, 4)
    # Norms and biases, a few, are told as if each rank had all of them.
    assert all(0.9 * told < loaded_bytes(model) <= told for model in models)
    decoder = models[0].decoder
    per_slot = KVCache.bytes_per_slot(decoder.num_layers, decoder.num_kv_heads, decoder.head_dim, torch.float32)
    assert need.kv_per_token == per_slot


def test_what_is_not_loaded_is_not_counted(tmp_path: Path) -> None:
    path = tiny(tmp_path, "qwen2")
    config = json.loads((path / "config.json").read_text())
    before = weight_bytes(path, config, "float32")
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path / "model.safetensors")
    assert weight_bytes(path, config, "float32") == before
    untied = config | {"tie_word_embeddings": False}
    assert weight_bytes(path, untied, "float32") == before + 4 * tensors["lm_head.weight"].numel()


class TestSharded:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        path = tiny(tmp_path, "llama")
        tensors = load_file(path / "model.safetensors")
        where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
        for file in set(where.values()):
            save_file({name: tensors[name] for name in tensors if where[name] == file}, path / file)
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        (path / "model.safetensors").unlink()
        return path

    def config(self, folder: Path) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return config

    def test_headers_count_where_all_files_are_here(self, folder: Path) -> None:
        tensors = [load_file(file) for file in folder.glob("*.safetensors")]
        count = sum(tensor.numel() for each in tensors for tensor in each.values())
        assert weight_bytes(folder, self.config(folder), "bfloat16") == 2 * count

    def test_the_index_counts_where_they_are_not(self, folder: Path) -> None:
        config = self.config(folder)
        whole = {dtype: weight_bytes(folder, config, dtype) for dtype in DTYPES}
        (folder / "model-00002-of-00002.safetensors").unlink()
        assert {dtype: weight_bytes(folder, config, dtype) for dtype in DTYPES} == whole

    @pytest.mark.parametrize(
        "index", ["", "{}", "[]", '{"weight_map": {"a": "none.safetensors"}}', '{"weight_map": 1}']
    )
    def test_an_index_that_does_not_say_is_named(self, folder: Path, index: str) -> None:
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(CheckpointError, match=str(folder)):
            weight_bytes(folder, self.config(folder), "bfloat16")


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"])
def test_a_damaged_file_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut off"):
        weight_bytes(tmp_path, {}, "bfloat16")


def test_keys_and_values_of_other_configurations() -> None:
    flat = {"num_attention_heads": 8, "hidden_size": 64, "num_hidden_layers": 3}
    assert kv_bytes_per_token(flat, "float32") == 2 * 3 * 8 * 8 * 4
    assert kv_bytes_per_token({**flat, "num_multi_query_heads": 2}, "bfloat16") == 2 * 3 * 2 * 8 * 2
    assert kv_bytes_per_token({"text_config": {**flat, "head_dim": 16}}, "float16") == 2 * 3 * 8 * 16 * 2
    for wrong in ({}, {**flat, "num_hidden_layers": None}, {**flat, "num_attention_heads": 0}):
        with pytest.raises(CheckpointError, match="how large keys and values are"):
            kv_bytes_per_token(wrong, "float16")
    with pytest.raises(ConfigError, match="dtype must be one of float64, float32"):
        kv_bytes_per_token(flat, "int3")


def test_heads_are_counted_or_missed() -> None:
    assert head_counts({"num_attention_heads": 8}) == (8, 8)
    assert head_counts({"text_config": {"num_attention_heads": 8, "num_key_value_heads": 2}}) == (8, 2)
    with pytest.raises(CheckpointError, match="how many attention heads there are"):
        head_counts({"num_attention_heads": None})
