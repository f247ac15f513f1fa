"""LocalEngineClient: the engine in a thread of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from mmserve.engine.engine import Engine
from mmserve.engine.loop import EngineLoop
from mmserve.engine.mailboxes import Mailboxes
from mmserve.errors import MMServeError
from mmserve.types import Request, TokenEvent


class LocalEngineClient:
    """An ``EngineClient`` whose engine runs in a thread, which starts at once and ends with ``close``.

    At most ``max_queue`` requests are in the engine at a time; one more raises ``QueueFull``.
    """

    def __init__(self, engine: Engine, *, max_queue: int = 4096) -> None:
        self._engine = engine
        self._mailboxes = Mailboxes(self, max_model_len=engine.max_model_len, max_queue=max_queue)
        self._loop = EngineLoop(engine, self._mailboxes.deliver)

    @property
    def ready(self) -> bool:
        return self._loop.alive

    @property
    def failure(self) -> MMServeError | None:
        """Why nothing is answered any more."""
        return self._loop.failure

    def stats(self) -> Mapping[str, float]:
        return self._engine.stats()

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        return self._mailboxes.generate(request)

    async def submit(self, request: Request, /) -> None:
        """For the mailboxes: a request whose limits are resolved."""
        self._loop.submit(request)

    def abort(self, request_id: str, /) -> None:
        self._loop.abort(request_id)

    async def flush(self) -> int:
        return await asyncio.wrap_future(self._loop.flush())

    async def close(self) -> None:
        self._loop.stop()
        await asyncio.to_thread(self._loop.join)
