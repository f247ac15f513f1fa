"""Windows and runs that see each other, against plain sums over the positions that they show."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import paged_attention, plan_attention
from kernels.window import reshaped

HEADS, KV_HEADS, DIM = 4, 2, 8


@pytest.mark.parametrize("window", [None, 1, 2, 5, 13, 40])
@pytest.mark.parametrize("marked", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("queries", "contexts"),
    [([7], [7]), ([1], [20]), ([1, 1, 1], [3, 20, 9]), ([4, 1, 9], [11, 20, 9]), ([5, 5], [5, 5]), ([3, 3], [12, 12])],
)
def test_every_query_sees_what_it_should(
    window: int | None, marked: float, queries: list[int], contexts: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    slots = list(torch.split(torch.randperm(sum(contexts), generator=generator), contexts))
    k, v = (torch.randn(sum(contexts), KV_HEADS, DIM, generator=generator) for _ in range(2))
    q = torch.randn(sum(queries), HEADS, DIM, generator=generator)
    together = torch.rand(sum(queries), generator=generator) < marked
    plan = reshaped(plan_attention(slots, queries, "cpu"), window, together)
    made = paged_attention(q, k, v, plan, 0.5)
    at = 0
    for own, count, context in zip(slots, queries, contexts, strict=True):
        for i in range(count):
            position = last = context - count + i
            while together[at] and last + 1 < context and together[at + last + 1 - position]:
                last += 1
            first = 0 if window is None else max(0, position + 1 - window)
            seen = own[first : last + 1]
            for head in range(HEADS):
                weights = torch.softmax(k[seen, head // 2] @ q[at, head] * 0.5, 0)
                torch.testing.assert_close(made[at, head], weights @ v[seen, head // 2])
            at += 1


def test_a_window_that_is_long_enough_changes_nothing() -> None:
    plan = plan_attention([torch.arange(9), torch.arange(9, 14)], [2, 1], "cpu")
    assert reshaped(plan, 9) is plan
    assert reshaped(plan, None, torch.zeros(3, dtype=torch.bool)) is plan
    assert reshaped(plan, 8) is not plan


def test_masks_are_of_the_dtype_of_the_queries() -> None:
    plan = reshaped(plan_attention([torch.arange(9)], [1], "cpu", torch.bfloat16), 4, dtype=torch.bfloat16)
    assert plan.groups[0].mask is not None
    assert plan.groups[0].mask.dtype == torch.bfloat16


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="hides everything"):
        reshaped(plan_attention([torch.arange(9)], [1], "cpu"), 0)
