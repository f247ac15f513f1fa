from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2VLForConditionalGeneration

from mmserve.checkpoint import Checkpoint
from mmserve.types import Grid
from tests.vision.files import noise
from vision.encoder import Qwen2VLEncoder, rename_qwen2_vl
from vision.geometry import QwenGeometry
from vision.pixels import Pixels, QwenPixels
from vision.projectors import PatchMerger

SIZES = [(50, 90), (200, 30), (28, 28), (120, 120)]


def loaded(weights: dict[str, torch.Tensor], vision_config: Any) -> Qwen2VLEncoder:
    encoder = Qwen2VLEncoder(vision_config)
    ours = {ours: tensor for name, tensor in weights.items() if (ours := rename_qwen2_vl(name)) is not None}
    encoder.load_state_dict(ours, strict=True, assign=True)
    return encoder


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> Qwen2VLEncoder:
    return loaded(load_file(checkpoint.path / "model.safetensors"), checkpoint.vision_config)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> nn.Module:
    model: nn.Module = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint.path)
    return model.eval()


@pytest.fixture(scope="module")
def pictures(checkpoint: Checkpoint) -> list[Pixels]:
    geometry = QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor)
    pixels = QwenPixels(checkpoint.path, geometry)
    return [pixels(noise(*size, seed=seed), geometry.grid(*size)) for seed, size in enumerate(SIZES)]


def features(reference: Any, pictures: list[Pixels]) -> list[torch.Tensor]:
    patches, grids = torch.cat([picture.values for picture in pictures]), [picture.grid for picture in pictures]
    with torch.inference_mode():
        return list(reference.get_image_features(patches, torch.tensor(grids)).pooler_output)


def test_rows_are_those_of_transformers(encoder: Qwen2VLEncoder, reference: nn.Module, pictures: list[Pixels]) -> None:
    rows = encoder.encode(pictures)
    expected = features(reference, pictures)
    assert [part.shape for part in rows] == [(each.grid.h * each.grid.w // 4, 64) for each in pictures]
    assert encoder.row_width == 64
    for ours, theirs in zip(rows, expected, strict=True):
        assert ours.std() > 0.1  # the weights are such that a wrong one would show
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_picture_gives_the_same_rows_alone_and_among_others(encoder: Qwen2VLEncoder, pictures: list[Pixels]) -> None:
    together = encoder.encode(pictures)
    for picture, rows in zip(pictures, together, strict=True):
        (alone,) = encoder.encode([picture])
        torch.testing.assert_close(alone, rows, atol=1e-5, rtol=0)


def test_equal_patches_with_other_grids_give_other_rows(encoder: Qwen2VLEncoder) -> None:
    tiles = torch.randn(16 * 4, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    rows = [encoder.encode([Pixels(tiles, Grid(1, *shape))])[0] for shape in ((4, 16), (8, 8), (16, 4))]
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in pairwise(rows))


def test_each_pictures_rows_own_their_memory(encoder: Qwen2VLEncoder, pictures: list[Pixels]) -> None:
    for chosen in (pictures, pictures[:1]):
        rows = encoder.encode(chosen)
        assert [part.untyped_storage().nbytes() for part in rows] == [part.nbytes for part in rows]


def test_nothing_in_nothing_out_and_counts_must_agree(encoder: Qwen2VLEncoder) -> None:
    assert encoder.encode([]) == []
    with pytest.raises(ValueError, match="16 patches, but 12 were given"):
        encoder.encode([Pixels(torch.zeros(12, 1176), Grid(1, 4, 4))])


def test_every_parameter_is_filled_by_the_published_names(checkpoint: Checkpoint) -> None:
    names = load_file(checkpoint.path / "model.safetensors")
    ours = [ours for name in names if (ours := rename_qwen2_vl(name)) is not None]
    wanted = [name for name, _ in Qwen2VLEncoder(checkpoint.vision_config).named_parameters()]
    assert sorted(ours) == sorted(wanted)


def test_weights_saved_by_newer_transformers_are_named_too() -> None:
    assert rename_qwen2_vl("model.visual.blocks.0.attn.qkv.weight") == "tower.blocks.0.attn.qkv.weight"
    assert rename_qwen2_vl("model.visual.merger.mlp.2.bias") == "projector.fc2.bias"
    assert rename_qwen2_vl("visual.merger.ln_q.weight") == "projector.norm.weight"
    assert rename_qwen2_vl("visual.patch_embed.proj.weight") == "tower.patch_embed.proj.weight"
    assert rename_qwen2_vl("model.language_model.norm.weight") is None
    assert rename_qwen2_vl("model.layers.0.mlp.up_proj.weight") is None
    assert rename_qwen2_vl("lm_head.weight") is None


def test_a_checkpoint_saved_by_transformers_gives_the_same_rows(
    reference: Any, pictures: list[Pixels], tmp_path: Path
) -> None:
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in config
    encoder = loaded(load_file(tmp_path / "model.safetensors"), config["vision_config"])
    torch.testing.assert_close(encoder.encode(pictures[:1]), features(reference, pictures[:1]), atol=1e-5, rtol=0)


def test_parameters_are_made_without_memory_and_the_merger_only_once(checkpoint: Checkpoint) -> None:
    encoder = Qwen2VLEncoder(checkpoint.vision_config)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    assert not any("merger" in name for name, _ in encoder.named_parameters())
    assert {(buffer.device.type, buffer.dtype) for buffer in encoder.buffers()} == {("cpu", torch.float32)}
    assert not encoder.training


def test_bfloat16_weights_keep_exact_rotary_frequencies(
    checkpoint: Checkpoint, encoder: Qwen2VLEncoder, pictures: list[Pixels]
) -> None:
    weights = load_file(checkpoint.path / "model.safetensors")
    half = loaded({name: tensor.bfloat16() for name, tensor in weights.items()}, checkpoint.vision_config)
    (rows,) = half.encode(pictures[:1])
    (exact,) = encoder.encode(pictures[:1])
    assert rows.dtype == torch.bfloat16
    assert (rows.float() - exact).abs().mean() < 0.05 * exact.std()
    assert half.tower.rotary_pos_emb.inv_freq.dtype == torch.float32


def test_the_patch_merger_puts_neighbouring_patches_side_by_side() -> None:
    merger = PatchMerger(patch_dim=2, hidden_size=3, merge_size=2)
    features_ = torch.randn(8, 2)
    normed = merger.norm(features_)
    expected = [merger.fc2(merger.act(merger.fc1(normed[at : at + 4].flatten()))) for at in (0, 4)]
    torch.testing.assert_close(merger(features_), torch.stack(expected))
