"""Paged attention: queries against keys and values that lie in scattered cache slots.

A step's sequences are arranged once, by :func:`plan_attention`, and every layer then runs :func:`paged_attention`
over that plan. The torch reference gathers the slots of a group of sequences into one padded block and calls
``scaled_dot_product_attention`` on it (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023, arXiv 2305.13245).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_OVERHEAD = 2048
"""Padding, in query-times-context positions, that costs about as much as one more group's calls in a layer."""

_GATHER_COST = 1
"""What gathering one padded context position costs, in the same unit."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionGroup:
    """``batch`` sequences padded to ``queries`` new tokens and ``context`` positions each.

    ``rows`` picks their queries, ``(batch * queries,)``, out of the step's; ``table`` is ``(batch * context,)``
    slots. Padding repeats a query and a slot of the same sequence, whose values are finite and its own.
    ``mask`` is additive, ``(batch, 1, queries, context)``; ``None`` where everything is seen, or ``causal`` says it.
    """

    batch: int
    queries: int
    context: int
    rows: slice | Tensor
    table: Tensor
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """How one step's sequences attend; used by every layer.

    ``restore`` is ``(T,)``: the place of each query's result among the groups' results laid end to end;
    ``None`` where they already are in order.
    """

    groups: tuple[AttentionGroup, ...]
    restore: Tensor | None


def plan_attention(
    context_slots: Sequence[Tensor],
    query_lens: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> AttentionPlan:
    """Arrange one step of causal attention.

    ``context_slots[i]`` is int64 ``(context_i,)``: sequence i's slots in position order, those of its
    ``query_lens[i]`` new tokens last. The tensors may lie on the host or on ``device``, where the plan will lie.
    ``dtype`` is that of the queries. Raises ``ValueError`` where there is no sequence, or one has no query or fewer
    slots than queries.
    """
    if not query_lens:
        raise ValueError("a step with no sequence has no attention")
    context_lens = [slots.shape[0] for slots in context_slots]
    for queries, context in zip(query_lens, context_lens, strict=True):
        if not 0 < queries <= context:
            raise ValueError(f"a sequence has {queries} queries and {context} slots; it needs 1 <= queries <= slots")
    members = group_sequences(query_lens, context_lens)
    starts = [0, *itertools.accumulate(query_lens)]
    groups = tuple(_build_group(group, starts, query_lens, context_slots, device, dtype) for group in members)
    return AttentionPlan(groups, _restore(members, starts, query_lens, device))


def group_sequences(query_lens: Sequence[int], context_lens: Sequence[int]) -> list[list[int]]:
    """Indices of sequences that share a padded block, such that padding never outweighs a block more.

    Each group is ascending, and the padding it adds costs at most ``GROUP_OVERHEAD``.
    """
    order = sorted(range(len(query_lens)), key=lambda i: (query_lens[i], context_lens[i]), reverse=True)
    groups: list[list[int]] = []
    queries = context = used = 0
    for i in order:
        need = context_lens[i] * (query_lens[i] + _GATHER_COST)
        if groups:
            widest = max(context, context_lens[i])
            padded = (len(groups[-1]) + 1) * widest * (queries + _GATHER_COST)
            if padded - used - need <= GROUP_OVERHEAD:
                groups[-1].append(i)
                context, used = widest, used + need
                continue
        groups.append([i])
        queries, context, used = query_lens[i], context_lens[i], need
    groups = [sorted(group) for group in groups]
    return sorted(groups)


def paged_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Causal attention of each query over its own sequence.

    ``q`` is ``(T, H, D)``, the sequences' new tokens one after another; ``k_cache`` and ``v_cache`` are
    ``(S, Hkv, D)`` of the same dtype, with the new tokens already stored; ``H`` is a multiple of ``Hkv``.
    Returns ``(T, H, D)``.
    """
    if len(plan.groups) == 1 and plan.restore is None:
        return _attend(q, k_cache, v_cache, plan.groups[0], scale)
    results = torch.cat([_attend(q, k_cache, v_cache, group, scale) for group in plan.groups])
    return results if plan.restore is None else results.index_select(0, plan.restore)


def _attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, group: AttentionGroup, scale: float) -> Tensor:
    """The group's results ``(batch * queries, H, D)``, those of padding included.

    Measured on two AVX2 cores in float32 for 64 sequences of 60 to 300 positions (8 heads over 2, of 32): one SDPA
    over a gathered block takes 0.6 ms with the heads of a group as query rows, 1.6 ms with ``enable_gqa``, 1.5 ms as
    matmul and softmax, 4.2 ms with expanded heads; one call a sequence takes 4.3 ms. With many queries the
    rows would need a mask for each head, and ``enable_gqa`` is as fast.
    """
    heads, dim = q.shape[1], q.shape[2]
    kv_heads = k_cache.shape[1]
    shared = heads // kv_heads
    block = (group.batch, group.context, kv_heads, dim)
    # index_select copies whole rows, five times as fast as indexing with a tensor.
    k = k_cache.index_select(0, group.table).view(block).transpose(1, 2)
    v = v_cache.index_select(0, group.table).view(block).transpose(1, 2)
    q = q[group.rows] if isinstance(group.rows, slice) else q.index_select(0, group.rows)
    if group.queries == 1:
        q = q.reshape(group.batch, kv_heads, shared, dim)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scale)
        return out.reshape(group.batch, heads, dim)
    q = q.reshape(group.batch, group.queries, heads, dim).transpose(1, 2)
    grouped = shared > 1
    if grouped and q.device.type != "cpu":
        # Off the CPU enable_gqa with a mask takes the unfused path, whose scores fill the memory.
        k, v, grouped = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), False
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=group.mask, is_causal=group.causal, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).reshape(group.batch * group.queries, heads, dim)


def _build_group(
    group: list[int],
    starts: list[int],
    query_lens: Sequence[int],
    context_slots: Sequence[Tensor],
    device: torch.device | str,
    dtype: torch.dtype,
) -> AttentionGroup:
    counts = [query_lens[i] for i in group]
    lengths = [context_slots[i].shape[0] for i in group]
    queries, context = max(counts), max(lengths)
    rows: slice | Tensor
    if min(counts) == queries and group[-1] - group[0] + 1 == len(group):
        rows = slice(starts[group[0]], starts[group[-1] + 1])
    else:
        offsets = torch.minimum(torch.arange(queries), torch.tensor(counts).unsqueeze(1) - 1)
        rows = (torch.tensor([starts[i] for i in group]).unsqueeze(1) + offsets).view(-1).to(device)
    table = torch.cat([context_slots[i] for i in group])
    equal = min(lengths) == context
    if not equal:
        positions = torch.minimum(torch.arange(context), torch.tensor(lengths).unsqueeze(1) - 1)
        begins = torch.tensor([0, *itertools.accumulate(lengths[:-1])]).unsqueeze(1)
        table = table.index_select(0, (begins + positions).view(-1).to(table.device))
    causal = equal and queries == context == min(counts)
    everything = causal or (equal and queries == 1)
    mask = None if everything else _mask(counts, lengths, queries, context).to(device=device, dtype=dtype)
    return AttentionGroup(len(group), queries, context, rows, table.to(device), mask, causal)


def _mask(counts: list[int], lengths: list[int], queries: int, context: int) -> Tensor:
    """0 where query j of a sequence sees a position, else -inf; padding queries see what the last one sees."""
    taken = torch.tensor(counts).unsqueeze(1)
    last_seen = torch.tensor(lengths).unsqueeze(1) - taken + torch.minimum(torch.arange(queries), taken - 1)
    hidden = torch.arange(context) > last_seen.unsqueeze(-1)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")).unsqueeze(1)


def _restore(
    members: list[list[int]], starts: list[int], query_lens: Sequence[int], device: torch.device | str
) -> Tensor | None:
    order = [i for group in members for i in group]
    padded = [width for group in members for width in [max(query_lens[i] for i in group)] * len(group)]
    if order == list(range(len(order))) and padded == list(query_lens):
        return None
    # Query j of sequence i is row starts[i] + j of the step and lies at shift[i] further on in the results.
    shift = [0] * len(order)
    for i, place in zip(order, itertools.accumulate(padded, initial=0), strict=False):
        shift[i] = place - starts[i]
    counts = torch.tensor(query_lens)
    return (torch.arange(starts[-1]) + torch.tensor(shift).repeat_interleave(counts)).to(device)
