"""Requests under way, which their callers may abort by the names they gave them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from mmserve.engine.client import EngineClient
from mmserve.types import Request, TokenEvent
from web.constraints import Wanted, naming
from web.generation import generate
from web.visit import require_admin, visit


class Flight:
    """One prompt on its way through the engine, known by the ``names`` that its caller may abort it by.

    ``owner`` is whose it is, see ``web.visit``: two callers' names have nothing to do with each other.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self.owner = visit().owner
        self.aborted = False
        self._tasks: list[asyncio.Task[None]] = []

    def carry(self, task: asyncio.Task[None]) -> None:
        self._tasks.append(task)

    def abort(self) -> None:
        self.aborted = True
        for task in self._tasks:
            task.cancel()


class Flights:
    """All that are under way on one event loop."""

    def __init__(self) -> None:
        self._under_way: set[Flight] = set()

    @contextmanager
    def under_way(self, flights: Sequence[Flight]) -> Iterator[None]:
        self._under_way.update(flights)
        try:
            yield
        finally:
            self._under_way.difference_update(flights)

    def abort(self, name: str | None) -> int:
        """End the caller's called ``name``, or anybody's for an admin; with ``None`` all, which only admins may.

        Returns how many there were. Raises ``NotAllowed``.
        """
        if name is None:
            require_admin("ending all requests")
        who = visit()
        found = [
            flight
            for flight in self._under_way
            if name is None or (name in flight.names and (who.admin or flight.owner == who.owner))
        ]
        for flight in found:
            flight.abort()
        return len(found)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An engine request for answer ``index`` of a body: to generate, or beside that to score the prompt."""

    index: int
    request: Request
    flight: Flight
    wanted: Wanted | None = None


class Aborted:
    """A job's end, where it was aborted."""


Arrival: TypeAlias = TokenEvent | Aborted


async def follow(engine: EngineClient, jobs: Sequence[Job]) -> AsyncGenerator[tuple[Job, Arrival], None]:
    """Events of all ``jobs`` as they come; the last of each is a last ``TokenEvent`` or ``Aborted``.

    The first error ends them all. Closing this generator aborts what is still running.
    """
    arrivals: asyncio.Queue[tuple[Job, Arrival | BaseException]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(engine, job, arrivals)) for job in jobs]
    try:
        for job, task in zip(jobs, tasks, strict=True):
            job.flight.carry(task)
            task.add_done_callback(partial(_report_end, job, arrivals))
        running = set(jobs)
        while running:
            job, arrival = await arrivals.get()
            if isinstance(arrival, BaseException):
                raise arrival
            if job not in running:  # its end came before the abort
                continue
            if isinstance(arrival, Aborted) or arrival.last:
                running.discard(job)
            yield job, arrival
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(engine: EngineClient, job: Job, arrivals: asyncio.Queue[tuple[Job, Arrival | BaseException]]) -> None:
    with naming(job.wanted):
        async with aclosing(generate(engine, [job.request])) as events:
            async for _, event in events:
                arrivals.put_nowait((job, event))


def _report_end(
    job: Job, arrivals: asyncio.Queue[tuple[Job, Arrival | BaseException]], task: asyncio.Task[None]
) -> None:
    # Not in the task itself: one that is cancelled before its first step never runs.
    if task.cancelled():
        arrivals.put_nowait((job, Aborted()))
    elif (error := task.exception()) is not None:
        arrivals.put_nowait((job, error))
