"""RadixCache: computed prefixes by content, in a radix tree over KV slots.

=====================  ========================================================================
Owns                   the slots of cached tokens, the references to the pictures in them
Does not own           slots of tokens that a sequence computed and has not given to the tree yet
Shared                 nothing: a slot is in exactly one of free, tree, one sequence
=====================  ========================================================================

``match`` is a query and changes nothing. ``acquire`` splits and locks and returns a handle, ``extend`` gives
newly computed slots to the tree and moves the handle, ``release`` is idempotent. Eviction takes the least
recently used leaves that no handle locks. A node holds whole pictures only, since hits and insertions
are clamped to picture edges; a split therefore never cuts one.

The idea is RadixAttention's (arXiv 2312.07104, section 3), with content-addressed pictures.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mmserve.cache.key import Interner, Spans, common_prefix
from mmserve.cache.pages import SlotPool
from mmserve.types import IntArray

_EMPTY: IntArray = np.empty(0, dtype=np.int64)
_EMPTY.setflags(write=False)


@dataclass(slots=True, eq=False)
class Node:
    """An edge of the tree with the node at its end.

    ``locks`` counts the handles that end here plus the children with locks, so a lock walks up only as far as the
    first node that was locked already.
    """

    key: IntArray
    slots: IntArray
    spans: Spans
    parent: Node | None
    salt: str
    children: dict[int, Node] = field(default_factory=dict)
    locks: int = 0
    last_used: int = 0

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A prefix that is in the tree: its ``length``, and where it ends (``depth`` positions into ``node``)."""

    length: int
    node: Node
    depth: int
    version: int


@dataclass(slots=True, eq=False)
class Handle:
    """A locked prefix of ``length`` tokens that ends at ``node``; only the cache changes it.

    The slots of the prefix stay the tree's and stay valid until ``release``.
    """

    node: Node
    length: int
    released: bool = False


class RadixCache:
    """The tree over one slot pool. Not thread safe: the engine's thread owns it."""

    def __init__(self, pool: SlotPool, interner: Interner) -> None:
        self._pool = pool
        self._interner = interner
        self.on_evict: Callable[[IntArray, IntArray, Spans, str], object] | None = None
        """Called with key, slots, spans and salt of the path that an evicted leaf ends, before its slots are freed."""
        self._roots: dict[str, Node] = {}
        self._version = 0
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []
        self._pushes = 0
        self._nodes = 0
        self._tokens = 0
        self._evictable = 0
        self.evicted_tokens = 0

    @property
    def cached_tokens(self) -> int:
        return self._tokens

    @property
    def evictable_tokens(self) -> int:
        """Cached tokens whose slots ``evict`` could free now."""
        return self._evictable

    # -- queries ------------------------------------------------------------------------------------------------

    def match(self, key: IntArray, spans: Spans, *, salt: str = "", limit: int | None = None) -> Match | None:
        """The longest cached prefix of ``key``, at most ``limit`` long, that ends inside no picture.

        ``None`` when nothing matches. O(length) in compares, one dictionary look-up a node.
        """
        root = self._roots.get(salt)
        if root is None:
            return None
        limit = len(key) if limit is None else min(limit, len(key))
        node, start, length = root, 0, 0
        firsts, data, width = key.data, key.tobytes(), key.itemsize
        while length < limit:
            child = node.children.get(firsts[length])
            if child is None:
                break
            node, start = child, length
            # One call compares an edge that matches whole, where NumPy's several take several µs.
            if not data.startswith(child.key.data, length * width, limit * width):
                length += common_prefix(child.key, key[length:limit])
                break
            length += len(child.key)
        length = spans.clamp(length)
        while length <= start and node.parent is not None:
            node = node.parent
            start -= len(node.key)
        if length == 0:
            return None
        return Match(length, node, length - start, self._version)

    # -- handles ------------------------------------------------------------------------------------------------

    def acquire(self, match: Match | None, *, salt: str = "") -> Handle:
        """Lock a match, of the tree as it is now, or the empty prefix under ``salt``."""
        if match is None:
            node, length = self._root(salt), 0
        else:
            if match.version != self._version:
                raise ValueError("the tree changed since the match")
            node = match.node if match.depth == len(match.node) else self._split(match.node, match.depth)
            length = match.length
        self._lock(node)
        return Handle(node, length)

    def slots(self, handle: Handle) -> IntArray:
        """The slots of a handle's prefix in position order, int64 ``(handle.length,)``."""
        pieces = [node.slots for node in _upwards(handle.node)]
        return np.concatenate(pieces[::-1]) if pieces else _EMPTY

    def extend(self, handle: Handle, key: IntArray, slots: IntArray, spans: Spans) -> IntArray:
        """Give the tree what a sequence computed behind its handle, and move the handle to the new end.

        ``key`` and ``slots`` are the sequence's own, from position 0; the slots behind ``handle.length`` are the
        sequence's until now. What would end inside a picture stays the sequence's. Where the tree has
        a position already, the tree's slot wins and the sequence's is freed. Returns the slots of the
        handle's new prefix; the sequence owns what lies behind ``handle.length``.
        """
        stop = spans.clamp(len(slots))
        node, length = handle.node, handle.length
        while length < stop:
            child = node.children.get(int(key[length]))
            if child is None:
                node = self._add(node, key[length:stop], slots[length:stop], spans.within(length, stop))
                length = stop
                break
            shared = common_prefix(child.key, key[length:stop])
            if shared < len(child):
                child = self._split(child, shared)
            self._pool.free(slots[length : length + shared])
            node, length = child, length + shared
        if node is not handle.node:
            self._lock(node)
            self._unlock(handle.node)
            handle.node, handle.length = node, length
        return self.slots(handle)

    def release(self, handle: Handle) -> None:
        if not handle.released:
            handle.released = True
            self._unlock(handle.node)

    # -- eviction -----------------------------------------------------------------------------------------------

    def evict(self, wanted: int) -> int:
        """Free the slots of least recently used leaves until ``wanted`` are freed; returns how many were."""
        freed = 0
        while freed < wanted and self._leaves:
            last_used, _, node = heapq.heappop(self._leaves)
            if node.last_used == last_used and self._is_free_leaf(node):
                freed += len(node)
                if self.on_evict is not None:
                    self.on_evict(*_path(node), node.salt)
                self._remove(node)
        self.evicted_tokens += freed
        return freed

    def flush(self) -> int:
        """Drop everything that no handle locks, without ``on_evict``; returns the number of tokens."""
        on_evict, self.on_evict = self.on_evict, None
        try:
            return self.evict(self._evictable)
        finally:
            self.on_evict = on_evict

    # -- structure ----------------------------------------------------------------------------------------------

    def _root(self, salt: str) -> Node:
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = Node(_EMPTY, _EMPTY, Spans(), None, salt)
        return root

    def _add(self, parent: Node, key: IntArray, slots: IntArray, spans: Spans) -> Node:
        node = Node(key.copy(), slots.copy(), spans, parent, parent.salt)
        parent.children[int(key[0])] = node
        self._interner.refer(spans.numbers)
        self._nodes += 1
        self._tokens += len(node)
        self._evictable += len(node)
        self._version += 1
        self._touch(node)
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut ``node`` at ``at`` and return the new upper half: ``node`` stays the lower, so handles stay valid."""
        parent = node.parent
        assert parent is not None
        assert 0 < at < len(node)
        upper = Node(node.key[:at].copy(), node.slots[:at].copy(), node.spans.within(0, at), parent, node.salt)
        upper.children[int(node.key[at])] = node
        upper.locks = 1 if node.locks else 0
        upper.last_used = node.last_used
        parent.children[int(node.key[0])] = upper
        node.spans = node.spans.within(at, len(node))
        node.key, node.slots, node.parent = node.key[at:].copy(), node.slots[at:].copy(), upper
        self._nodes += 1
        self._version += 1
        return upper

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[int(leaf.key[0])]
        self._pool.free(leaf.slots)
        self._interner.release(leaf.spans.numbers)
        self._nodes -= 1
        self._tokens -= len(leaf)
        self._evictable -= len(leaf)
        self._version += 1
        parent.last_used = max(parent.last_used, leaf.last_used)  # whoever used the leaf used its prefix too
        self._offer(parent)

    def _lock(self, node: Node) -> None:
        at: Node | None = node
        while at is not None:
            at.locks += 1
            if at.locks > 1:
                break
            self._evictable -= len(at.key)
            at = at.parent
        self._touch(node)

    def _unlock(self, node: Node) -> None:
        at: Node | None = node
        while at is not None:
            at.locks -= 1
            assert at.locks >= 0, "a node was unlocked more often than locked"
            if at.locks > 0:
                break
            self._evictable += len(at.key)
            at = at.parent
        self._touch(node)

    def _touch(self, node: Node) -> None:
        self._clock += 1
        node.last_used = self._clock
        self._offer(node)

    def _is_free_leaf(self, node: Node) -> bool:
        if node.children or node.locks or node.parent is None:
            return False
        return node.parent.children.get(int(node.key[0])) is node

    def _offer(self, node: Node) -> None:
        """Put a leaf that may be evicted in the queue, or drop a root that nothing hangs on."""
        if node.parent is None:
            if not node.children and not node.locks:
                self._roots.pop(node.salt, None)
            return
        if not self._is_free_leaf(node):
            return
        self._pushes += 1
        heapq.heappush(self._leaves, (node.last_used, self._pushes, node))
        if len(self._leaves) > 1024 + 2 * self._nodes:
            self._compact()

    def _compact(self) -> None:
        """Drop the queue's outdated entries, which every later use of a leaf leaves behind."""
        live = {id(n): (t, k, n) for t, k, n in self._leaves if t == n.last_used and self._is_free_leaf(n)}
        self._leaves = sorted(live.values(), key=lambda entry: entry[:2])

    # -- proof --------------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def check(self) -> IntArray:
        """Prove the tree's invariants and return all its slots. Raises ``AssertionError``."""
        tokens = evictable = 0
        queued = {(entry[0], id(entry[2])) for entry in self._leaves}
        for node in self.nodes():
            assert len(node.key) == len(node.slots)
            locked_children = sum(1 for child in node.children.values() if child.locks)
            assert node.locks >= locked_children
            for first, child in node.children.items():
                assert first == int(child.key[0])
                assert child.parent is node
            if node.parent is None:
                assert node.children or node.locks, "an empty root was kept"
                continue
            tokens += len(node)
            evictable += 0 if node.locks else len(node)
            assert len(node) > 0
            assert all(0 <= s < e <= len(node) for s, e in zip(node.spans.starts, node.spans.ends, strict=True))
            if self._is_free_leaf(node):
                assert (node.last_used, id(node)) in queued, "a free leaf is not in the eviction queue"
        assert (tokens, evictable) == (self._tokens, self._evictable)
        pieces = [node.slots for node in self.nodes()]
        assert self._nodes == len(pieces) - len(self._roots)
        return np.concatenate(pieces) if pieces else _EMPTY


def _path(node: Node) -> tuple[IntArray, IntArray, Spans]:
    """Key, slots and spans from the root to the end of ``node``."""
    nodes = list(_upwards(node))[::-1]
    starts: list[int] = []
    ends: list[int] = []
    numbers: list[int] = []
    at = 0
    for each in nodes:
        starts += [at + start for start in each.spans.starts]
        ends += [at + end for end in each.spans.ends]
        numbers += each.spans.numbers
        at += len(each)
    key = np.concatenate([each.key for each in nodes])
    return key, np.concatenate([each.slots for each in nodes]), Spans(tuple(starts), tuple(ends), tuple(numbers))


def _upwards(node: Node) -> Iterator[Node]:
    at: Node | None = node
    while at is not None:
        yield at
        at = at.parent
