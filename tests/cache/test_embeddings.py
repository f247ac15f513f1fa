"""The encoder cache: bounded, least recently used first, never what somebody holds."""

from __future__ import annotations

import pytest

from mmserve.cache.embeddings import EncoderCache
from mmserve.types import ContentHash


def c(name: str) -> ContentHash:
    return ContentHash(name.encode())


def test_the_least_recently_held_is_dropped_first() -> None:
    cache = EncoderCache(20)
    for name in "abc":
        cache.put(c(name), 10)
    cache.hold(c("a"))
    cache.release(c("a"))
    cache.shrink()
    assert cache.take_dropped() == (c("b"),)
    assert c("a") in cache
    assert c("c") in cache
    assert cache.take_dropped() == ()
    assert cache.evicted_pictures == 1
    cache.check()


def test_held_rows_stay_even_over_the_bound() -> None:
    cache = EncoderCache(10)
    cache.put(c("a"), 30)
    cache.hold(c("a"))
    cache.hold(c("a"))
    cache.shrink()
    cache.release(c("a"))
    cache.shrink()
    assert c("a") in cache
    assert cache.bytes_held == 30
    cache.release(c("a"))
    cache.shrink()
    assert c("a") not in cache
    assert (cache.bytes_used, cache.bytes_held) == (0, 0)
    cache.check()


def test_misuse_is_refused() -> None:
    cache = EncoderCache(10)
    with pytest.raises(KeyError):
        cache.hold(c("a"))
    cache.put(c("a"), 1)
    with pytest.raises(ValueError, match="cached"):
        cache.put(c("a"), 1)
    cache.hold(c("a"))
    with pytest.raises(ValueError, match="holds"):
        cache.discard(c("a"))
