"""ProcessEngineClient: the engine in a supervised process of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Self

from mmserve.engine.process.link import EngineLink
from mmserve.engine.process.recipe import Recipe
from mmserve.engine.process.supervisor import BackOff, Supervisor
from mmserve.errors import EngineUnavailable, MMServeError
from mmserve.types import Request, TokenEvent


class ProcessEngineClient:
    """An ``EngineClient`` that belongs to the event loop in which it was started.

    While the process is started again ``ready`` is False, and requests get ``EngineUnavailable`` at once.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        """Made by ``start``."""
        self._supervisor = supervisor
        self._closed = False

    @classmethod
    async def start(
        cls,
        recipe: Recipe,
        *,
        max_queue: int = 4096,
        watchdog_seconds: float = 300.0,
        back_off: BackOff | None = None,
    ) -> Self:
        """A client whose engine is loaded. Raises ``ConfigError`` and ``CheckpointError`` as ``build_engine`` does, and
        ``EngineUnavailable`` where the process ends meanwhile.

        At most ``max_queue`` requests are in the engine at a time. An engine that stands still for
        ``watchdog_seconds`` is started again; with 0 it is waited for.
        """
        starter = partial(EngineLink.start, recipe, max_queue=max_queue, watchdog_seconds=watchdog_seconds)
        return cls(await Supervisor.start(starter, back_off))

    @property
    def max_model_len(self) -> int:
        """In tokens, what the engine's memory holds considered."""
        return self._supervisor.max_model_len

    @property
    def pid(self) -> int | None:
        """The engine's process; ``None`` while there is none that answers."""
        link = self._supervisor.link
        return None if link is None else link.pid

    @property
    def ready(self) -> bool:
        link = self._supervisor.link
        return link is not None and link.failure is None

    def stats(self) -> Mapping[str, float]:
        return self._supervisor.stats()

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        link = self._supervisor.link
        return _refused(self._missing()) if link is None else link.generate(request)

    async def flush(self) -> int:
        link = self._supervisor.link
        if link is None:
            raise self._missing()
        return await link.flush()

    async def close(self) -> None:
        self._closed = True
        await self._supervisor.close()

    def _missing(self) -> EngineUnavailable:
        if self._closed:
            return EngineUnavailable("the engine has stopped")
        return EngineUnavailable("the engine is being started again; ask again in a moment")


async def _refused(error: MMServeError) -> AsyncGenerator[TokenEvent, None]:
    raise error
    yield  # which makes this a generator
