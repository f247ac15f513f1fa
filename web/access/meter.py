"""How much a key has asked for: an exact count over the last minute, and what runs now."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SECONDS = 60.0


@dataclass(slots=True, eq=False)
class Entry:
    at: float
    count: int


class Window:
    """What was taken in the last minute. At most ``limit`` in any 60 seconds is kept exactly, not on average.

    Its memory is bounded by the limit. Not safe for threads by itself: :class:`Meter` locks.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._total = 0

    def wait(self, count: int, limit: int, now: float) -> float:
        """Seconds until ``count`` more fit: 0 where they do, infinity where they never will."""
        if count > limit:
            return math.inf
        self._forget(now)
        over = self._total + count - limit
        for entry in self._entries:
            if over <= 0:
                break
            over -= entry.count
            if over <= 0:
                return entry.at + SECONDS - now
        return 0.0

    def take(self, count: int, now: float) -> Entry:
        entry = Entry(now, count)
        self._entries.append(entry)
        self._total += count
        return entry

    def give_back(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry in self._entries:  # by identity; one that is past is not counted any more
                self._entries.remove(entry)
                self._total -= entry.count

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0].at + SECONDS <= now:
            self._total -= self._entries.popleft().count


class Meter:
    """One key's counters. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._requests = Window()
        self._pictures = Window()
        self.running = 0

    def enter(self, concurrency: int, per_minute: int, counted: bool) -> float:
        """Begin a request, ``counted`` among those of the minute or not; 0 where it may begin, and else the seconds
        to wait. A limit of 0 is none. One that began ends with :meth:`leave`."""
        with self._lock:
            if concurrency and self.running >= concurrency:
                return 1.0
            now = self._clock()
            if counted and per_minute:
                wait = self._requests.wait(1, per_minute, now)
                if wait > 0:
                    return wait
                self._requests.take(1, now)
            self.running += 1
            return 0.0

    def leave(self) -> None:
        with self._lock:
            self.running -= 1

    def take_picture(self, taken: list[Entry], limit: int) -> float:
        """Count a picture beside those in ``taken``, which gets it too; 0, or where it does not fit the seconds until
        all of them and this one would, and then those in ``taken`` are given back."""
        if not limit:
            return 0.0
        with self._lock:
            now = self._clock()
            if self._pictures.wait(1, limit, now) == 0:
                taken.append(self._pictures.take(1, now))
                return 0.0
            count = sum(entry.count for entry in taken)
            self._pictures.give_back(taken)
            taken.clear()
            return self._pictures.wait(count + 1, limit, now)

    def give_back(self, taken: list[Entry]) -> None:
        with self._lock:
            self._pictures.give_back(taken)
