from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import quant
from kernels.quant import quantise_into, quantised_linear

KINDS = [torch.int8, torch.float8_e4m3fn]


def quantise(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values, scales = torch.empty(weight.shape, dtype=dtype), torch.full((len(weight),), torch.nan)
    quantise_into(weight, values, scales)
    return values, scales


@pytest.fixture
def weight() -> Tensor:
    weight = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    return weight * torch.logspace(-4, 2, 37)[:, None]  # channels of very different sizes


def test_int8_is_within_half_a_step_of_each_channel(weight: Tensor) -> None:
    values, scales = quantise(weight, torch.int8)
    torch.testing.assert_close(scales, weight.abs().amax(1) / 127)
    assert ((values * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()
    assert (values.abs().amax(1) == 127).all()


def test_fp8_is_within_its_relative_rounding(weight: Tensor) -> None:
    values, scales = quantise(weight, torch.float8_e4m3fn)
    torch.testing.assert_close(scales, weight.abs().amax(1) / 448)
    error = (values.float() * scales[:, None] - weight).abs()
    # Half of 2^-3 of the number itself, or half a step of the smallest exponent.
    assert (error <= torch.maximum(weight.abs() / 16, scales[:, None] * 2**-10) * 1.0001).all()
    assert torch.isfinite(values.float()).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_what_eight_bits_hold_exactly_stays_exact(dtype: torch.dtype) -> None:
    largest = 127 if dtype is torch.int8 else 448
    weight = torch.tensor([[largest, -1.0, 0.0, 64.0]]) * 0.25
    values, scales = quantise(weight, dtype)
    assert torch.equal(values.float() * scales[:, None], weight)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_channel_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    values, scales = quantise(torch.zeros(3, 8), dtype)
    assert torch.equal(values.float(), torch.zeros(3, 8))
    assert torch.equal(scales, torch.ones(3))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_stored_dtype(dtype: torch.dtype, stored: torch.dtype, weight: Tensor) -> None:
    values, scales = quantise(weight[5:30].to(stored), dtype)
    again, same = quantise(weight[5:30].to(stored).float(), dtype)
    assert torch.equal(values.float(), again.float())
    assert torch.equal(scales, same)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_that_of_the_restored_weights(dtype: torch.dtype, compute: torch.dtype, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(5, 40, generator=generator).to(compute)
    bias = torch.randn(24, generator=generator).to(compute) if has_bias else None
    values, scales = quantise(weight, dtype)
    out = quantised_linear(x, values, scales, bias)
    assert out.dtype is compute
    expected = x.double() @ (values.double() * scales.double()[:, None]).T
    if bias is not None:
        expected += bias.double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}[compute]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", KINDS)
def test_pieces_make_no_difference(dtype: torch.dtype, weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x, bias = torch.randn(3, 64), torch.randn(37)
    values, scales = quantise(weight, dtype)
    whole = quantised_linear(x, values, scales, bias)
    for piece in (1, 64 * 5, 64 * 36):
        monkeypatch.setattr(quant, "_PIECE", piece)
        again, same = quantise(weight, dtype)
        assert torch.equal(again.float(), values.float())
        assert torch.equal(same, scales)
        torch.testing.assert_close(quantised_linear(x, values, scales, bias), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", KINDS)
def test_no_token_at_all(dtype: torch.dtype) -> None:
    values, scales = quantise(torch.ones(4, 8), dtype)
    assert quantised_linear(torch.empty(0, 8), values, scales, None).shape == (0, 4)
