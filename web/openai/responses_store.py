"""Answers of the Responses API that callers go on from, or ask for again. In memory, bounded."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmserve.errors import ResponseNotKept

Items = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Kept:
    """An answer as its caller got it, what it answered (``items``), and the response that this went on from."""

    response: Mapping[str, Any] = field(repr=False)
    items: Items = field(repr=False)
    previous: str | None
    size: int
    until: float = 0.0


class ResponseStore:
    """Bounded in bytes and time; the longest unused goes first, and a use of a response is one of all before it.

    An id is random; whoever knows it may use it. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def put(self, identity: str, kept: Kept) -> bool:
        """Keep a response; whether there is room for it at all."""
        if kept.size > self.max_bytes:
            return False
        with self._lock:
            now = self._clock()
            kept.until = now + self._seconds
            self._kept[identity] = kept
            self._size += kept.size
            while self._size > self.max_bytes or next(iter(self._kept.values())).until <= now:
                self._forget(next(iter(self._kept)))
        return True

    def get(self, identity: str, param: str | None = None) -> Mapping[str, Any]:
        """The response. Raises ``ResponseNotKept``, with ``param`` as the field at fault."""
        with self._lock:
            return self._use(identity, param).response

    def conversation(self, identity: str, param: str) -> list[Mapping[str, Any]]:
        """All that was said up to the end of a response: inputs and outputs, the oldest first.

        Raises ``ResponseNotKept`` where it, or one that it went on from, is not kept.
        """
        with self._lock:
            chain: list[Kept] = []
            at: str | None = identity
            while at is not None:
                chain.append(self._use(at, param))
                at = chain[-1].previous
        return [item for kept in reversed(chain) for item in (*kept.items, *kept.response["output"])]

    def drop(self, identity: str) -> None:
        """Forget a response. Raises ``ResponseNotKept``."""
        with self._lock:
            self._use(identity, None)
            self._forget(identity)

    def _use(self, identity: str, param: str | None) -> Kept:
        kept, now = self._kept.get(identity), self._clock()
        if kept is None or kept.until <= now:
            raise ResponseNotKept(
                f"no response called {identity[:64]!r} is kept here, or not any more: send the conversation as input",
                param=param,
            )
        kept.until = now + self._seconds
        self._kept.move_to_end(identity)
        return kept

    def _forget(self, identity: str) -> None:
        self._size -= self._kept.pop(identity).size
