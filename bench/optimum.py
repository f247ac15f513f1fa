"""What a prefix cache could serve at best: oracles over a plain trie of all prompts and answers of a trace.

They share no code with the radix tree but the keys of positions. A request computes the last token of its prompt
in any case, and no hit ends inside a picture; so it has a *reach*, the longest hit that it may have.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.traces import Query
from mmserve.cache.key import build_key, media_spans
from mmserve.types import IntArray

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A query's way through the trie: one node a position of its prompt and of what is computed of its answer.

    The answer's last token is chosen and never computed. A node's number is larger than its parent's.
    """

    nodes: IntArray
    prompt: int
    reach: int


@dataclass(frozen=True, slots=True)
class Optimum:
    """Totals of a trace, in tokens.

    ``hits`` is the most that prompts can take from a cache in which each distinct prefix is prefilled once, in
    whatever order. ``hits_after_answers`` also lets prompts take over what others' answers computed, which takes
    an order in which the answers come first.
    """

    prompt_tokens: int
    working_set: int
    hits: int
    hits_after_answers: int


def trace_paths(queries: Sequence[Query]) -> dict[str, Path]:
    """The path of each query, by id, in the trie of all of them."""
    children: dict[tuple[int, int], int] = {}
    contents: dict[bytes, int] = {}
    paths = {}
    for one in queries:
        prompt = one.request.prompt
        numbers = [contents.setdefault(picture.content, len(contents)) for picture in prompt.pictures]
        key = [*build_key(prompt, numbers).tolist(), *one.answer[:-1]]
        reach = media_spans(prompt.ranges, numbers).clamp(len(prompt) - 1)
        nodes, at = [], -1
        for symbol in key:
            at = children.setdefault((at, symbol), len(children))
            nodes.append(at)
        paths[one.request.id] = Path(np.array(nodes, dtype=np.int64), len(prompt), reach)
    return paths


def optimum(paths: Iterable[Path]) -> Optimum:
    """The bounds for any order and an unbounded cache."""
    paths = list(paths)
    working_set = 1 + max(int(path.nodes.max()) for path in paths)
    reachable, prefilled, answered = (np.zeros(working_set, dtype=np.bool_) for _ in range(3))
    total = own = 0
    for path in paths:
        reachable[path.nodes[: path.reach]] = True
        prefilled[path.nodes[path.reach : path.prompt]] = True
        answered[path.nodes[path.prompt :]] = True
        total += path.prompt
        own += path.prompt - path.reach
    once = int((reachable & ~prefilled).sum())
    once_after_answers = int((reachable & ~prefilled & ~answered).sum())
    return Optimum(total, working_set, total - own - once, total - own - once_after_answers)


def farthest_next_use(paths: Sequence[Path], capacity: int) -> int:
    """Prompt tokens that a cache of ``capacity`` tokens serves whose eviction knows the future (Belady's rule).

    The paths are served in the given order, one at a time; all of a path's tokens are in the cache while it is served.
    Then those go whose next use as a prompt's prefix is farthest, token by token. Tokens are of equal size and cost, so
    this is the best of all evictions, even of such as keep a token without its prefix or half a picture, which no real
    cache could use; and each path is whole before the next is served, where a scheduler that runs several keeps
    others waiting. So a real cache in this order stays behind.
    """
    upcoming = _next_uses(paths)
    size = 1 + max(int(path.nodes.max()) for path in paths)
    cached = np.zeros(size, dtype=np.bool_)
    next_use = np.full(size, NEVER, dtype=np.int64)
    by_next_use: dict[int, list[IntArray]] = defaultdict(list)
    farthest: list[int] = []
    count = hits = 0
    for path, uses in zip(paths, upcoming, strict=True):
        hits += int(cached[path.nodes[: path.reach]].sum())
        count += len(path.nodes) - int(cached[path.nodes].sum())
        cached[path.nodes] = True
        next_use[path.nodes] = -1  # in use now: not to be evicted
        while count > capacity:
            when = -farthest[0]
            if not by_next_use[when]:
                del by_next_use[when]
                heapq.heappop(farthest)
                continue
            nodes = by_next_use[when].pop()
            nodes = nodes[cached[nodes] & (next_use[nodes] == when)]
            kept, evicted = np.split(nodes, [max(0, len(nodes) - (count - capacity))])
            cached[evicted] = False
            count -= len(evicted)
            if len(kept):
                by_next_use[when].append(kept)
        next_use[path.nodes] = uses
        for when in np.unique(uses).tolist():
            if when not in by_next_use:
                heapq.heappush(farthest, -when)
            by_next_use[when].append(path.nodes[uses == when])
    return hits


def _next_uses(paths: Sequence[Path]) -> list[IntArray]:
    """For each path and position, the index of the path that uses it next as a prefix of its prompt.

    ``NEVER`` also where another path computes it in any case before that, so that nothing is gained by keeping it.
    """
    next_use = np.full(1 + max(int(path.nodes.max()) for path in paths), NEVER, dtype=np.int64)
    found: list[IntArray] = []
    for i in range(len(paths) - 1, -1, -1):
        found.append(next_use[paths[i].nodes])
        next_use[paths[i].nodes] = NEVER
        next_use[paths[i].nodes[: paths[i].reach]] = i
    return found[::-1]
