"""The oracles against exhaustive search on traces small enough for it."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, permutations

import numpy as np
import pytest

from bench.optimum import Path, farthest_next_use, optimum, trace_paths
from bench.traces import Part, Query, Writer, query
from mmserve.types import Picture


def path_of(nodes: list[int], prompt: int, reach: int) -> Path:
    return Path(np.array(nodes, dtype=np.int64), prompt, reach)


def small_trace(seed: int, count: int) -> list[Query]:
    writer = Writer(seed)
    pictures = [writer.picture(2, 3) for _ in range(2)]
    queries = []
    for i in range(count):
        parts: list[Part] = [(1,) * writer.random.randint(1, 2)]
        for _ in range(writer.random.randint(0, 2)):
            anything: list[Part] = [*pictures, (2,), (3,)]
            parts.append(writer.random.choice(anything))
        queries.append(query(str(i), tuple(parts), tuple(writer.random.choices((2, 3), k=2))))
    return queries


def symbols(one: Query) -> list[object]:
    """One symbol a position, without the code under test."""
    prompt = one.request.prompt
    found: list[object] = prompt.token_ids.tolist()
    for start, end, at in prompt.ranges:
        found[start:end] = [(prompt.pictures[at].content, row) for row in range(end - start)]
    return found


def hits_in_order(queries: list[Query], *, with_answers: bool) -> int:
    """Serve one after the other with a cache that forgets nothing: a set of all prefixes."""
    cached: set[tuple[object, ...]] = {()}
    hits = 0
    for one in queries:
        key = symbols(one)
        edges = {i for start, end, _ in one.request.prompt.ranges for i in range(start + 1, end)}
        hits += max(n for n in range(len(key)) if tuple(key[:n]) in cached and n not in edges)
        key += one.answer[:-1] if with_answers else ()
        cached.update(tuple(key[:n]) for n in range(1, len(key) + 1))
    return hits


@pytest.mark.parametrize("seed", range(40))
def test_the_optimum_is_the_best_of_all_orders(seed: int) -> None:
    queries = small_trace(seed, 4)
    bound = optimum(trace_paths(queries).values())
    assert bound.prompt_tokens == sum(len(one.request.prompt) for one in queries)
    assert bound.hits == max(hits_in_order(list(p), with_answers=False) for p in permutations(queries))
    assert bound.hits_after_answers >= max(hits_in_order(list(p), with_answers=True) for p in permutations(queries))


def test_equal_prompts_each_compute_their_last_token_and_a_last_picture() -> None:
    picture: Picture = Writer(0).picture(7, 7)
    texts = optimum(trace_paths([query(str(i), ((1, 2, 3),), (9, 9)) for i in range(3)]).values())
    assert (texts.prompt_tokens, texts.hits, texts.working_set) == (9, 4, 4)
    shown = optimum(trace_paths([query(str(i), ((1, 2), picture), (9, 9)) for i in range(3)]).values())
    assert (shown.prompt_tokens, shown.hits, shown.working_set) == (27, 4, 10)


def test_a_follow_up_can_take_over_an_answer() -> None:
    queries = [query("a", ((1, 2),), (3, 4, 5)), query("b", ((1, 2, 3, 4, 5, 6),), (7,))]
    bound = optimum(trace_paths(queries).values())
    assert bound.hits == 2
    assert bound.hits_after_answers == 2 + 2  # the answer's last token is never computed
    assert bound.working_set == 6


def best_eviction(paths: list[Path], capacity: int) -> int:
    """The most hits of any way to evict: all that may be kept is tried."""

    @cache
    def serve(i: int, cached: frozenset[int]) -> int:
        if i == len(paths):
            return 0
        path = paths[i]
        hits = sum(node in cached for node in path.nodes[: path.reach].tolist())
        needed = frozenset(path.nodes.tolist())
        others = sorted(cached - needed)
        room = min(capacity - len(needed), len(others))
        return hits + max(serve(i + 1, needed | set(kept)) for kept in combinations(others, room))

    return serve(0, frozenset())


@pytest.mark.parametrize("seed", range(40))
def test_farthest_next_use_is_the_best_of_all_evictions(seed: int) -> None:
    rng = random.Random(seed)
    keys = [tuple(rng.choices((1, 2), k=rng.randint(1, 4))) for _ in range(6)]
    queries = [query(str(i), (key,), (rng.choice((1, 2)), 0)) for i, key in enumerate(keys)]
    paths = list(trace_paths(queries).values())
    longest = max(len(path.nodes) for path in paths)
    size = optimum(paths).working_set
    for capacity in range(longest, size + 1):
        assert farthest_next_use(paths, capacity) == best_eviction(paths, capacity)


def test_farthest_next_use_keeps_what_comes_first() -> None:
    a, b, c = path_of([0, 1], 2, 2), path_of([2, 3], 2, 2), path_of([4, 5], 2, 2)
    for capacity, hits in ((4, 2), (5, 3), (6, 4)):  # c takes b's place, or half of it
        assert farthest_next_use([a, b, c, a, b], capacity) == hits


def test_what_is_computed_in_any_case_is_not_worth_keeping() -> None:
    a, b, c, d = path_of([0, 1], 2, 1), path_of([0, 2], 1, 0), path_of([3, 4], 1, 0), path_of([5, 6], 2, 1)
    assert farthest_next_use([d, a, c, b, a, d], 3) == 2  # c leaves one place: 5's, since b brings 0 back for a
