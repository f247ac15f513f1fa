from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.mask import apply_token_bitmask


@given(
    vocabulary=st.integers(1, 100),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_only_allowed_tokens_of_the_named_rows_are_left(
    vocabulary: int, batch: int, seed: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(batch)[: rng.integers(0, batch + 1)]
    allowed = rng.random((len(rows), vocabulary)) < 0.5
    padded = np.zeros((len(rows), -(-vocabulary // 32) * 32), dtype=bool)
    padded[:, :vocabulary] = allowed
    words = np.packbits(padded, axis=1, bitorder="little").view(np.int32).reshape(len(rows), padded.shape[1] // 32)
    logits = torch.from_numpy(rng.normal(size=(batch, vocabulary))).to(dtype)
    expected = logits.clone()
    for row, mask in zip(rows, allowed, strict=True):
        expected[row, torch.from_numpy(~mask)] = float("-inf")
    found = apply_token_bitmask(logits, torch.from_numpy(words), torch.from_numpy(rows.astype(np.int64)))
    assert found is logits
    assert torch.equal(found, expected)


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    logits = torch.randn(8, 1000)
    bits = torch.randint(-(2**31), 2**31 - 1, (3, 32), dtype=torch.int32)
    rows = torch.tensor([6, 0, 3])
    expected = apply_token_bitmask(logits.clone(), bits, rows)
    assert torch.equal(apply_token_bitmask(logits.cuda(), bits.cuda(), rows.cuda()).cpu(), expected)
