"""Reading Qwen2-VL's configuration and weight names, as published and as newer transformers write them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from mmserve.checkpoint import FAMILIES, GENERAL, Checkpoint
from mmserve.errors import CheckpointError
from mmserve.models.config import decoder_config, decoder_name
from mmserve.models.families import BUILDERS, build_model
from mmserve.registry import load_registry
from tests.checkpoints import tiny_qwen2_vl
from tests.models.reference import Paged, Progress, Transformers
from vision.encoder import Qwen2VLEncoder

PUBLISHED_2B: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def resolve(path: Path) -> Checkpoint:
    return load_registry().resolve(str(path))


def edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


class TestConfig:
    def test_published_form(self) -> None:
        config = decoder_config(PUBLISHED_2B)
        assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (28, 12, 2, 128)
        assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (1536, 8960, 151936)
        assert (config.rms_norm_eps, config.rope.theta, config.rope.section) == (1e-6, 1e6, (16, 24, 24))
        assert config.qkv_bias
        assert config.tie_word_embeddings

    @pytest.mark.parametrize("tied", [True, False])
    def test_form_of_newer_transformers_says_the_same(self, tmp_path: Path, tied: bool) -> None:
        published = PUBLISHED_2B | {"tie_word_embeddings": tied, "rope_theta": 12345.0}
        (tmp_path / "config.json").write_text(json.dumps(published))
        AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
        rewritten = json.loads((tmp_path / "config.json").read_text())
        assert "text_config" in rewritten
        assert "hidden_size" not in rewritten
        assert decoder_config(rewritten) == decoder_config(published)

    def test_tying_may_stand_under_the_text_fields_alone(self) -> None:
        nested = {"text_config": {**PUBLISHED_2B, "tie_word_embeddings": True}}
        assert decoder_config(nested).tie_word_embeddings
        assert decoder_config({**nested, "tie_word_embeddings": False}).tie_word_embeddings

    def test_without_kv_heads_every_head_has_its_own(self) -> None:
        assert decoder_config(PUBLISHED_2B | {"num_key_value_heads": None}).num_kv_heads == 12

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_size": None}, "hidden_size as a positive integer, got None"),
            ({"num_hidden_layers": "28"}, "num_hidden_layers as a positive integer, got '28'"),
            ({"num_attention_heads": 7}, "1536 into 7 heads over 2 unevenly"),
            ({"num_key_value_heads": 5}, "12 heads over 5 unevenly"),
            (
                {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}},
                r"\[16, 24\] does not fill half a head of 128",
            ),
            (
                {"rope_scaling": {"type": "yarn", "factor": 4, "mrope_section": [16, 24, 24]}},
                "rope scaling of type 'yarn'",
            ),
            ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
            ({"use_sliding_window": True, "max_window_layers": 20}, "sliding-window"),
        ],
    )
    def test_what_cannot_be_served_is_refused_by_name(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            decoder_config(PUBLISHED_2B | changes)

    def test_a_window_that_no_layer_uses_is_no_obstacle(self) -> None:
        config = decoder_config(PUBLISHED_2B | {"use_sliding_window": True})
        assert dataclasses.replace(config) == decoder_config(PUBLISHED_2B)


class TestNames:
    @pytest.mark.parametrize(
        ("published", "ours"),
        [
            ("model.embed_tokens.weight", "embed_tokens.weight"),
            ("model.layers.3.self_attn.q_proj.bias", "layers.3.self_attn.q_proj.bias"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"),
            ("model.language_model.norm.weight", "norm.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("visual.blocks.0.norm1.weight", None),
            ("model.visual.patch_embed.proj.weight", None),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ],
    )
    def test_both_ways_of_naming(self, published: str, ours: str | None) -> None:
        assert decoder_name(published, tied=False) == ours

    def test_a_tied_head_is_not_loaded(self) -> None:
        assert decoder_name("lm_head.weight", tied=True) is None


class TestBuild:
    def test_every_served_architecture_has_a_builder(self) -> None:
        assert {*FAMILIES.values(), GENERAL} == set(BUILDERS)

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("layout", ["published", "saved again", "sharded", "new names"])
    def test_every_layout_gives_the_logits_of_transformers(self, tmp_path: Path, tied: bool, layout: str) -> None:
        path = tiny_qwen2_vl(tmp_path / "tiny", tie_word_embeddings=tied, num_key_value_heads=1, num_hidden_layers=3)
        transformers = Transformers(path)
        reference = transformers.answer(1, seed=1, new_tokens=1)
        if layout in ("saved again", "sharded"):
            (path / "model.safetensors").unlink()
            size = "100KB" if layout == "sharded" else "1GB"
            transformers.model.save_pretrained(path, max_shard_size=size)
            assert len(list(path.glob("*.safetensors"))) > 1 or layout == "saved again"
        if layout == "new names":
            tensors = load_file(path / "model.safetensors")
            save_file({newer_name(name): value for name, value in tensors.items()}, path / "model.safetensors")
        model = build_model(resolve(path), torch.float32, torch.device("cpu"))
        decoder, encoder = model.decoder, model.encoder
        assert isinstance(encoder, Qwen2VLEncoder)
        assert torch.equal(
            encoder.state_dict()["projector.fc2.bias"], transformers.model.model.visual.merger.mlp[2].bias
        )
        progress = Progress(reference)
        (logits,) = Paged(decoder).step([(progress, progress.left)], every_row=True)
        torch.testing.assert_close(logits, reference.logits, atol=5e-5, rtol=0)

    def test_a_bfloat16_checkpoint_in_float32(self, tmp_path: Path) -> None:
        path = tiny_qwen2_vl(tmp_path / "tiny", torch_dtype="bfloat16")
        reference = Transformers(path).answer(0, new_tokens=1)
        decoder = build_model(resolve(path), torch.float32, torch.device("cpu")).decoder
        progress = Progress(reference)
        (logits,) = Paged(decoder).step([(progress, progress.left)], every_row=True)
        torch.testing.assert_close(logits, reference.logits, atol=5e-5, rtol=0)

    def test_a_decoder_knows_its_shape(self, checkpoint: Checkpoint) -> None:
        decoder = build_model(checkpoint, torch.float32, torch.device("cpu")).decoder
        shape = (decoder.num_layers, decoder.num_kv_heads, decoder.head_dim, decoder.hidden_size, decoder.vocab_size)
        assert shape == (2, 2, 16, 64, 512)

    @pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj.bias", "visual.merger.mlp.0.weight"])
    @pytest.mark.parametrize("fault", ["missing", "misshapen"])
    def test_a_faulty_tensor_is_named(self, tmp_path: Path, name: str, fault: str) -> None:
        path = tiny_qwen2_vl(tmp_path / "tiny")
        tensors: dict[str, Tensor] = load_file(path / "model.safetensors")
        value = tensors.pop(name)
        if fault == "misshapen":
            tensors[name] = torch.cat((value, value))
        save_file(tensors, path / "model.safetensors")
        checkpoint = resolve(path)
        stem = {"missing": r"layers\.1\.self_attn\.v_proj\.bias|projector\.fc1\.weight", "misshapen": name}[fault]
        with pytest.raises(CheckpointError, match=stem):
            build_model(checkpoint, torch.float32, torch.device("cpu"))

    def test_a_tensor_that_no_part_knows_is_named(self, tmp_path: Path) -> None:
        path = tiny_qwen2_vl(tmp_path / "tiny")
        tensors = load_file(path / "model.safetensors") | {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}
        save_file(tensors, path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.q_norm\.weight in .* has no place"):
            build_model(resolve(path), torch.float32, torch.device("cpu"))

    def test_rows_of_another_width_than_the_decoders_are_refused(self, tmp_path: Path) -> None:
        path = tiny_qwen2_vl(tmp_path / "tiny")
        vision = json.loads((path / "config.json").read_text())["vision_config"]
        edit(path, vision_config={**vision, "hidden_size": 32})
        with pytest.raises(CheckpointError, match="rows of width 32, but the decoder takes 64"):
            build_model(resolve(path), torch.float32, torch.device("cpu"))

    def test_an_unknown_family_is_refused(self, checkpoint: Checkpoint) -> None:
        other = dataclasses.replace(checkpoint, family="gpt5_vl")
        with pytest.raises(CheckpointError, match="of family gpt5_vl; served are qwen2_vl"):
            build_model(other, torch.float32, torch.device("cpu"))


def newer_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name if name == "lm_head.weight" else name.replace("model.", "model.language_model.", 1)
