"""Rotary settings as transformers reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from kernels.rope import mrope_axes, mrope_cos_sin
from mmserve.errors import CheckpointError
from mmserve.models.rope import read_rope

TEXT = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096, "rope_theta": 500_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.5},
        LLAMA3,
        LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
        YARN,
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        YARN | {"attention_factor": 0.7},
        YARN | {"mscale": 0.8, "mscale_all_dim": 0.5},
    ],
)
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    ours = read_rope({**TEXT, "rope_scaling": scaling}, 64)
    theirs = AutoConfig.for_model("llama", **TEXT, rope_scaling=dict(scaling))
    frequencies, scale = ROPE_INIT_FUNCTIONS[ours.kind](theirs, torch.device("cpu"))
    torch.testing.assert_close(ours.inv_freq(), frequencies, atol=0, rtol=1e-6)
    assert ours.scale == pytest.approx(scale)
    newer = {"max_position_embeddings": 4096, "rope_parameters": theirs.rope_parameters}
    assert read_rope(newer, 64) == ours


def test_without_scaling_only_theta_counts() -> None:
    assert read_rope({"rope_theta": 1e6}, 64) == read_rope({"rope_parameters": {"rope_theta": 1e6}}, 64)
    assert read_rope({}, 64).theta == 10_000
    assert read_rope({}, 64).section == (32,)


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope'"),
        ({"rope_type": "llama3", "factor": 2.0}, "not complete.*low_freq_factor"),
        ({"rope_type": "linear"}, "not complete.*factor"),
        ({"rope_type": "yarn", "factor": 2.0, "mrope_section": [8, 12, 12]}, "with mrope_section"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "a part of each head"),
        ({"mrope_section": [1, 2, 3]}, "does not fill half a head"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(scaling: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_rope({**TEXT, "rope_scaling": scaling}, 64)


@pytest.mark.parametrize("section", [(24, 20, 20), (3, 3, 2), (4, 2, 2)])
def test_interleaved_axes_are_those_of_qwen3_vl(section: tuple[int, int, int]) -> None:
    dim = 2 * sum(section)
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section), "mrope_interleaved": True}
    config = Qwen3VLTextConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, rope_parameters=parameters)
    ours = read_rope({"rope_parameters": parameters}, dim)
    positions = torch.randint(0, 500, (3, 20), generator=torch.Generator().manual_seed(0))
    expected, _ = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1), positions.unsqueeze(1))
    axes = mrope_axes(ours.section, interleaved=ours.interleaved)
    cos, _ = mrope_cos_sin(positions, ours.inv_freq(), axes)
    torch.testing.assert_close(cos[:, 0], expected[0], atol=1e-6, rtol=0)
