from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, apply_rotary_pos_emb

from kernels.rope import apply_rope, mrope_axes, mrope_cos_sin, rope_inv_freq

SECTION, DIM, THETA = (2, 3, 3), 16, 10000.0


def heads_and_positions(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 5, DIM, generator=generator), torch.randint(0, 8192, (3, 40), generator=generator)


def tables(positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return mrope_cos_sin(positions, rope_inv_freq(DIM, THETA), mrope_axes(SECTION), dtype)


def test_rotates_each_pair_by_its_own_axis() -> None:
    heads, positions = heads_and_positions()
    rotated = apply_rope(heads, *tables(positions))
    for token, head, pair in ((0, 0, 0), (7, 3, 2), (39, 4, 7), (20, 1, 4), (21, 2, 5)):
        axis = 0 if pair < 2 else 1 if pair < 5 else 2
        angle = positions[axis, token].item() * THETA ** (-2 * pair / DIM)
        x, y = heads[token, head, pair].item(), heads[token, head, pair + DIM // 2].item()
        expected = (x * math.cos(angle) - y * math.sin(angle), y * math.cos(angle) + x * math.sin(angle))
        found = rotated[token, head, [pair, pair + DIM // 2]].tolist()
        assert found == pytest.approx(expected, abs=2e-3)  # float32 angles of some thousands of radians


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers(dtype: torch.dtype) -> None:
    parameters = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTION)}
    config = Qwen2VLTextConfig(hidden_size=4 * DIM, num_attention_heads=4, rope_parameters=parameters)
    heads, positions = heads_and_positions()
    heads = heads.to(dtype)
    cos, sin = Qwen2VLRotaryEmbedding(config)(heads, positions.unsqueeze(1))
    q, k = apply_rotary_pos_emb(heads[None, :, :3], heads[None, :, 3:], cos, sin, unsqueeze_dim=2)
    rotated = apply_rope(heads, *tables(positions, dtype))
    tolerance = 0.0 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(rotated, torch.cat((q, k), 2)[0], atol=max(tolerance, 1e-6), rtol=tolerance)


def test_one_section_is_plain_rope() -> None:
    heads, positions = heads_and_positions()
    plain = mrope_cos_sin(positions[:1], rope_inv_freq(DIM, THETA), mrope_axes((DIM // 2,)))
    same = tables(positions[:1].expand(3, -1))
    torch.testing.assert_close(apply_rope(heads, *plain), apply_rope(heads, *same), atol=0.0, rtol=0.0)


def test_rotates_a_slice_of_a_wider_tensor_and_leaves_it_as_it_was() -> None:
    heads, positions = heads_and_positions()
    before = heads.clone()
    rotated = apply_rope(heads[:, :3], *tables(positions))
    torch.testing.assert_close(rotated, apply_rope(heads, *tables(positions))[:, :3], atol=0.0, rtol=0.0)
    assert torch.equal(heads, before)


def test_sections_follow_their_axes_in_turn() -> None:
    assert mrope_axes((2, 1, 1, 3)).tolist() == [0, 0, 1, 2, 0, 0, 0]
