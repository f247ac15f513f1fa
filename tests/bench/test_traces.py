"""The workloads are what they say, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from bench.optimum import optimum, trace_paths
from bench.traces import PLACEHOLDER, WORKLOADS, Query

SCALE = 0.05


def content(queries: list[Query]) -> list[object]:
    return [
        (q.request.id, q.request.prompt.token_ids.tolist(), [p.content for p in q.request.prompt.pictures], q.answer)
        for q in queries
    ]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_seed_gives_one_trace(workload: str) -> None:
    make = WORKLOADS[workload]
    assert content(make(3, SCALE)) == content(make(3, SCALE))
    assert content(make(3, SCALE)) != content(make(4, SCALE))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_trace_can_be_served(workload: str) -> None:
    queries = WORKLOADS[workload](0, SCALE)
    assert len({q.request.id for q in queries}) == len(queries)
    for q in queries:
        prompt = q.request.prompt
        shown = np.zeros(len(prompt), dtype=np.bool_)
        for start, end, at in prompt.ranges:
            assert end - start == prompt.pictures[at].rows
            shown[start:end] = True
        assert np.array_equal(prompt.token_ids == PLACEHOLDER, shown)
        assert q.request.sampling.max_tokens == len(q.answer) > 0


@pytest.mark.parametrize("workload", ["conversations", "agents"])
def test_a_follow_up_quotes_what_came_before(workload: str) -> None:
    seen: dict[str, Query] = {}
    follow_ups = 0
    for q in WORKLOADS[workload](0, SCALE):
        if q.after is not None:
            before = seen[q.after]
            quoted = [*before.request.prompt.token_ids.tolist(), *before.answer]
            assert q.request.prompt.token_ids[: len(quoted)].tolist() == quoted
            pictures = before.request.prompt.pictures
            assert q.request.prompt.pictures[: len(pictures)] == pictures
            follow_ups += 1
        seen[q.request.id] = q
    assert follow_ups > len(seen) / 2


@pytest.mark.parametrize("workload", WORKLOADS)
def test_there_is_much_to_reuse_and_half_the_working_set_cannot_hold_it(workload: str) -> None:
    queries = WORKLOADS[workload](0, 1.0)
    paths = trace_paths(queries)
    bound = optimum(paths.values())
    assert 300 <= len(queries) <= 3000
    assert bound.hits > bound.prompt_tokens / 2
    times_used = np.zeros(bound.working_set, dtype=np.int64)
    for path in paths.values():
        times_used[path.nodes[: path.reach]] += 1
    assert (times_used > 1).sum() > bound.working_set / 4
