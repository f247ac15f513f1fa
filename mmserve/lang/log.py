"""Log: values that one thread adds and others follow, by blocking or by asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Log(Generic[T]):
    """Append-only and thread safe. Each iteration starts with the first value and ends once the log is closed."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._closed = False
        self._changed = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()

    def append(self, item: T) -> None:
        with self._changed:
            self._items.append(item)
            self._tell()

    def close(self) -> None:
        """Nothing more comes. May be called again."""
        with self._changed:
            self._closed = True
            self._tell()

    def snapshot(self) -> tuple[T, ...]:
        return tuple(self._items)

    def __iter__(self) -> Iterator[T]:
        at = 0
        while True:
            with self._changed:
                while len(self._items) <= at and not self._closed:
                    self._changed.wait()
                if len(self._items) <= at:
                    return
                item = self._items[at]
            yield item
            at += 1

    async def follow(self) -> AsyncGenerator[T, None]:
        """Iterate in an event loop, any one."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody follows any more
                loop.call_soon_threadsafe(event.set)

        with self._changed:
            self._wakers.add(wake)
        try:
            at = 0
            while True:
                event.clear()
                closed = self._closed  # before the items are counted: what is added in between comes in the next turn
                while at < len(self._items):
                    yield self._items[at]
                    at += 1
                if closed:
                    return
                await event.wait()
        finally:
            with self._changed:
                self._wakers.discard(wake)

    def _tell(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()
