"""Checkpoints that cannot be served end in one sentence, which names what is wrong, before serving starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmserve.config import EngineConfig
from mmserve.engine.build import build_engine
from mmserve.errors import ConfigError
from mmserve.models import loader
from tests.checkpoints import tiny_llava, tiny_text
from tests.models.equality import resolve

CONFIG = EngineConfig(device="cpu", dtype="float32", kv_slots=256)
LAYER = "language_model.model.layers.2.mlp.up_proj.weight"
TOWER = "vision_tower.vision_model.encoder.layers.1.self_attn.k_proj.bias"


def start(path: Path) -> None:
    build_engine(resolve(path), CONFIG).close()


def llava(path: Path) -> Path:
    return tiny_llava(path, "llava-next-mistral")


def refused(path: Path, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        start(path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", [LAYER, TOWER, "multi_modal_projector.linear_2.weight", "image_newline"])
def test_a_tensor_is_missing(name: str, tmp_path: Path) -> None:
    path = llava(tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors, path / "model.safetensors")
    tail = name.removeprefix("language_model.model.").rpartition("layers.")[2].replace(".", r"\.")
    refused(path, "lack .*" + tail.replace("multi_modal_projector", "projector"))


@pytest.mark.parametrize("name", [LAYER, TOWER, "multi_modal_projector.linear_2.weight", "image_newline"])
def test_a_tensor_has_another_shape(name: str, tmp_path: Path) -> None:
    path = llava(tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors[name] = torch.cat((tensors[name], tensors[name]))
    save_file(tensors, path / "model.safetensors")
    refused(path, f"tensor {name.replace('.', r'[.]')} in .* has shape .*, but config.json asks for")


def test_a_tensor_belongs_to_nothing(tmp_path: Path) -> None:
    path = llava(tmp_path)
    save_file({**load_file(path / "model.safetensors"), "audio_tower.w": torch.ones(1)}, path / "model.safetensors")
    refused(path, r"tensor audio_tower\.w in .* has no place")


def test_a_file_is_cut_off(tmp_path: Path) -> None:
    path = llava(tmp_path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged or cut off .* fetch it again")


def test_there_are_pickles_only(tmp_path: Path) -> None:
    path = tiny_text(tmp_path, "llama")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    refused(path, r"no \.safetensors file")


def test_there_is_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_text(tmp_path, "llama")
    monkeypatch.setattr(loader, "room_on", lambda _device: 1000)
    refused(path, r"the weights take 0\.0 GiB, but cpu has 0\.0 GiB for them: choose a smaller model or dtype")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="tokens of keys and values fit in the memory left"):
        build_engine(resolve(path), EngineConfig(device="cpu", kv_bytes=1000))


def edited(path: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads((path / file).read_text())
    change(content)
    (path / file).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(architectures=["LlavaLlamaForCausalLM"]), "LlavaLlamaForCausalLM are not served"),
        (lambda c: c["text_config"].update(model_type="mamba"), "a language model of type 'mamba'"),
        (lambda c: c["text_config"].update(sliding_window=64), "sliding-window .*max_model_len: 64"),
        (lambda c: c["text_config"].update(hidden_act="relu"), "hidden_act 'relu'"),
        (lambda c: c["text_config"].update(hidden_size=32), "has shape .*, but config.json asks for"),
        (lambda c: c["vision_config"].update(model_type="dinov2"), "vision tower of type 'dinov2'"),
        (lambda c: c["vision_config"].update(hidden_act="elu"), "the activation 'elu'"),
        (lambda c: c["vision_config"].update(image_size=56), "of size .*, but the vision tower takes 56 a side"),
        (lambda c: c["vision_config"].update(patch_size="14"), "in patches of '14'"),
        (lambda c: c["vision_config"].update(num_attention_heads=5), "32 into 5 heads unevenly"),
        (lambda c: c["vision_config"].pop("hidden_size"), "vision_config must give hidden_size"),
        (lambda c: c.update(vision_feature_layer=9), r"vision_feature_layer \[9\] is not among the tower's 3 layers"),
        (lambda c: c.update(vision_feature_select_strategy="cls"), "must be default or full, not 'cls'"),
        (lambda c: c.update(vision_feature_select_strategy="full"), "must leave a row for each patch"),
        (lambda c: c.update(projector_hidden_act="elu"), "the activation 'elu'"),
        (lambda c: c.update(image_grid_pinpoints=[[42, 42]]), "must give the same image_grid_pinpoints"),
        (lambda c: c.update(vision_aspect_ratio="square"), "must be anyres or anyres_max_N, not 'square'"),
        (lambda c: c.pop("image_token_index"), "image_token_id as a positive integer, got None"),
        (lambda c: c.pop("vision_config"), "has no vision_config"),
    ],
)
def test_a_config_asks_for_what_is_not_served(
    change: Callable[[dict[str, Any]], object], says: str, tmp_path: Path
) -> None:
    refused(edited(llava(tmp_path), "config.json", change), says)


def test_tiles_are_no_whole_ones(tmp_path: Path) -> None:
    path = tiny_llava(tmp_path, "llava-next-mistral", image_grid_pinpoints=[[42, 50]])
    refused(path, "must be whole tiles of 42 pixels")


def test_an_image_processor_is_unknown(tmp_path: Path) -> None:
    path = edited(llava(tmp_path), "preprocessor_config.json", lambda c: c.update(image_processor_type="Nothing"))
    refused(path, "the image processor in .* cannot be read")


def test_a_window_shorter_than_the_context_is_refused_and_one_that_no_layer_uses_is_not(tmp_path: Path) -> None:
    refused(tiny_text(tmp_path / "a", "mistral", sliding_window=128), "over 128 tokens, which is not served")
    refused(
        tiny_text(tmp_path / "b", "qwen3", use_sliding_window=True, sliding_window=128, max_window_layers=1),
        "sliding-window",
    )
    start(tiny_text(tmp_path / "c", "qwen3", use_sliding_window=True, sliding_window=128, max_window_layers=3))
