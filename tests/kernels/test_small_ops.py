"""The key-value store, the scatter of picture rows and the SwiGLU gate."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.activation import silu_and_mul
from kernels.embedding import scatter_rows
from kernels.kv import store_kv


def test_store_kv_writes_the_given_slots_only() -> None:
    generator = torch.Generator().manual_seed(0)
    k_cache, v_cache = torch.randn(2, 30, 2, 4, generator=generator)
    before = k_cache.clone(), v_cache.clone()
    heads = torch.randn(5, 7, 4, generator=generator)
    slots = torch.tensor([29, 3, 0, 17, 4])
    store_kv(heads[:, :2], heads[:, 5:], k_cache, v_cache, slots)
    others = [slot for slot in range(30) if slot not in slots.tolist()]
    for cache, old, new in zip((k_cache, v_cache), before, (heads[:, :2], heads[:, 5:]), strict=True):
        assert torch.equal(cache[slots], new)
        assert torch.equal(cache[others], old[others])


def test_scatter_rows_replaces_the_given_rows_in_place() -> None:
    hidden, rows = torch.zeros(6, 3), torch.arange(6.0).view(2, 3) + 1
    result = scatter_rows(hidden, rows, torch.tensor([4, 1]))
    assert result is hidden
    assert hidden.tolist() == [[0.0] * 3, [4.0, 5.0, 6.0], [0.0] * 3, [0.0] * 3, [1.0, 2.0, 3.0], [0.0] * 3]


def test_scatter_rows_rounds_to_the_hidden_dtype() -> None:
    hidden = scatter_rows(torch.zeros(2, 1, dtype=torch.bfloat16), torch.tensor([[1.001]]), torch.tensor([1]))
    assert hidden.tolist() == [[0.0], [1.0]]


def test_scatter_rows_of_no_picture_changes_nothing() -> None:
    hidden = scatter_rows(torch.ones(2, 3), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert torch.equal(hidden, torch.ones(2, 3))


def test_silu_and_mul_equals_the_formula() -> None:
    gate_up = torch.tensor([[-2.0, 0.0, 1.5, 3.0, 4.0, -5.0], [30.0, -30.0, 0.1, 1.0, 1.0, 1.0]])
    before = gate_up.clone()
    expected = [[g / (1 + math.exp(-g)) * u for g, u in zip(row[:3], row[3:], strict=True)] for row in gate_up.tolist()]
    for found, row in zip(silu_and_mul(gate_up).tolist(), expected, strict=True):
        assert found == pytest.approx(row, rel=1e-6, abs=1e-9)
    assert torch.equal(gate_up, before)
