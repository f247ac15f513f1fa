from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import attention
from kernels.attention import GROUP_OVERHEAD, AttentionPlan, group_sequences, paged_attention, plan_attention

SLOTS, DIM, SCALE = 4000, 16, 0.3

Lens = list[tuple[int, int]]
"""(new tokens, context with them) of each sequence."""

CASES: dict[str, Lens] = {
    "one decode": [(1, 37)],
    "first token": [(1, 1)],
    "decodes of one length": [(1, 50)] * 4,
    "decodes of all lengths": [(1, n) for n in (300, 7, 299, 60, 1, 280, 12)],
    "decodes in several groups": [(1, n) for n in (900, 3, 880, 5, 7, 890, 2, 4)],
    "cold prefill": [(33, 33)],
    "cold prefills of one length": [(8, 8), (8, 8)],
    "prefills of one context, one of them cached": [(8, 8), (7, 8)],
    "prefill behind a cached prefix": [(5, 90)],
    "chunks of unlike length": [(20, 60), (3, 64), (19, 19), (20, 55)],
    "prefill and decodes": [(40, 40), (1, 90), (16, 200), (1, 5), (1, 88), (7, 7), (1, 210)],
}


@dataclass
class Step:
    """Sequences at random slots of a shared cache whose other rows are NaN."""

    slots: list[Tensor]
    query_lens: list[int]
    q: Tensor
    k: Tensor
    v: Tensor

    def plan(self) -> AttentionPlan:
        return plan_attention(self.slots, self.query_lens, "cpu", self.q.dtype)

    def attended(self) -> Tensor:
        return paged_attention(self.q, self.k, self.v, self.plan(), SCALE)

    def expected(self) -> Tensor:
        queries = torch.split(self.q, self.query_lens)
        return torch.cat([plain(q, self.k[s], self.v[s]) for q, s in zip(queries, self.slots, strict=True)])


def make_step(
    lens: Lens, *, seed: int = 0, heads: int = 6, kv_heads: int = 2, dtype: torch.dtype = torch.float32
) -> Step:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(SLOTS, generator=generator)
    contexts = [context for _, context in lens]
    slots = list(torch.split(order[: sum(contexts)], contexts))
    q = torch.randn(sum(queries for queries, _ in lens), heads, DIM, generator=generator)
    k, v = torch.full((2, SLOTS, kv_heads, DIM), float("nan"))
    for row in torch.cat(slots):
        k[row], v[row] = torch.randn(2, kv_heads, DIM, generator=generator)
    return Step(slots, [queries for queries, _ in lens], q.to(dtype), k.to(dtype), v.to(dtype))


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(scale q k^T) v of one sequence in float64, query by query."""
    out = torch.empty(q.shape, dtype=torch.float64)
    shared = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        seen = k.shape[0] - q.shape[0] + row + 1
        for head in range(q.shape[1]):
            keys, values = k[:seen, head // shared].double(), v[:seen, head // shared].double()
            out[row, head] = (SCALE * keys @ q[row, head].double()).softmax(0) @ values
    return out


@pytest.mark.parametrize("lens", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (4, 1)])
def test_equals_the_plain_formula(lens: Lens, heads: int, kv_heads: int) -> None:
    step = make_step(lens, heads=heads, kv_heads=kv_heads)
    torch.testing.assert_close(step.attended().double(), step.expected(), atol=2e-6, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 24), st.integers(0, 60)), min_size=1, max_size=9),
    st.integers(0, 2**31),
    st.sampled_from([0, 200, GROUP_OVERHEAD, 10**9]),
)
def test_equals_the_plain_formula_for_any_mix(lens: Lens, seed: int, overhead: int) -> None:
    step = make_step([(queries, queries + cached) for queries, cached in lens], seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "GROUP_OVERHEAD", overhead)
        result = step.attended()
    torch.testing.assert_close(result.double(), step.expected(), atol=2e-6, rtol=1e-5)


def test_neighbours_do_not_change_a_sequence() -> None:
    """Even where a neighbour's keys and values are not finite, which an additive mask alone would let through."""
    step = make_step([(1, 40), (1, 60), (3, 50)])
    alone = paged_attention(
        step.q[:1], step.k, step.v, plan_attention(step.slots[:1], step.query_lens[:1], "cpu"), SCALE
    )
    step.k[step.slots[1]], step.v[step.slots[2]] = float("inf"), float("nan")
    torch.testing.assert_close(step.attended()[:1], alone, atol=1e-6, rtol=1e-5)


def test_bfloat16_stays_close_to_the_formula() -> None:
    step = make_step(CASES["prefill and decodes"], dtype=torch.bfloat16)
    result = step.attended()
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), step.expected(), atol=2e-2, rtol=2e-2)


def test_reads_heads_that_are_a_slice_of_a_wider_tensor() -> None:
    step = make_step(CASES["prefill and decodes"])
    wide = torch.cat((step.q, torch.randn(len(step.q), 4, DIM)), 1)
    result = paged_attention(wide[:, :6], step.k, step.v, step.plan(), SCALE)
    torch.testing.assert_close(result, step.attended())


@pytest.mark.parametrize(
    ("lens", "mask"),
    [
        (CASES["one decode"], False),
        (CASES["decodes of one length"], False),
        (CASES["cold prefill"], False),
        (CASES["cold prefills of one length"], False),
        ([(1, 50), (1, 51)], True),
        (CASES["prefill behind a cached prefix"], True),
    ],
)
def test_masks_only_where_something_is_hidden(lens: Lens, mask: bool) -> None:
    (group,) = make_step(lens).plan().groups
    assert (group.mask is not None) is mask


def test_sequences_in_order_are_neither_gathered_nor_put_back() -> None:
    plan = make_step([(1, 50), (1, 51), (1, 49)]).plan()
    assert plan.restore is None
    assert plan.groups[0].rows == slice(0, 3)


@pytest.mark.parametrize(("queries", "context"), [(0, 4), (5, 4), (1, 0)])
def test_refuses_what_is_no_sequence(queries: int, context: int) -> None:
    with pytest.raises(ValueError, match="1 <= queries <= slots"):
        plan_attention([torch.arange(context)], [queries], "cpu")


def test_refuses_an_empty_step() -> None:
    with pytest.raises(ValueError, match="no sequence"):
        plan_attention([], [], "cpu")


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2000)), min_size=1, max_size=70))
def test_groups_hold_each_sequence_once_and_waste_little(lens: Lens) -> None:
    queries = [count for count, _ in lens]
    contexts = [count + cached for count, cached in lens]
    groups = group_sequences(queries, contexts)
    assert sorted(i for group in groups for i in group) == list(range(len(lens)))
    assert all(group == sorted(group) for group in groups)
    for group in groups:
        used = sum(contexts[i] * (queries[i] + 1) for i in group)
        padded = len(group) * max(contexts[i] for i in group) * (max(queries[i] for i in group) + 1)
        assert padded - used <= GROUP_OVERHEAD


def test_like_decodes_share_one_group() -> None:
    assert group_sequences([1] * 64, [100] * 64) == [list(range(64))]


def test_a_long_sequence_does_not_pad_short_ones() -> None:
    assert group_sequences([1, 1, 1], [20, 8000, 22]) == [[0, 2], [1]]
