from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.norm import add_rms_norm, rms_norm

EPS = 1e-3


def formula(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_rms_norm_equals_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    x, weight = 3 * torch.randn(9, 48).to(dtype), torch.randn(48).to(dtype)
    result = rms_norm(x, weight, EPS)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), formula(x, weight), atol=tolerance, rtol=tolerance)


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(1, 8), torch.ones(8), EPS), torch.zeros(1, 8))


def test_add_rms_norm_gives_the_norm_of_the_sum_and_the_sum() -> None:
    x, residual, weight = torch.randn(9, 48), torch.randn(9, 48), torch.randn(48)
    before = residual.clone()
    normed, total = add_rms_norm(x, residual, weight, EPS)
    torch.testing.assert_close(total, x + residual, atol=0.0, rtol=0.0)
    torch.testing.assert_close(normed.double(), formula(x + residual, weight), atol=2e-6, rtol=2e-6)
    assert torch.equal(residual, before)
