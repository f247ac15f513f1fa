"""Replicas in this process, each the whole application over stand-ins, behind the front's protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing

from mmserve.config import Limits
from mmserve.deploy.calls import Call, Piece, Whole
from mmserve.deploy.replica import Answering
from mmserve.deploy.routing import Bound, Rendezvous
from mmserve.errors import EngineUnavailable
from mmserve.types import Request
from tests.web.fakes import FakeEngine, FakePrompts, Step
from web.app import create_app
from web.service import ServedModel, Service

LIMITS = Limits(max_picture_bytes=600_000, max_pictures=3, max_body_bytes=2_000_000)


class LocalReplicas:
    """``lost`` are replicas that die when they have sent that many pieces."""

    def __init__(self, names: Iterable[str], script: Callable[[Request], Iterable[Step]] | None = None) -> None:
        self.engines = {name: FakeEngine(script) for name in names}
        self.lost: dict[str, int] = {}
        self.asked: list[str] = []
        self.open = dict.fromkeys(self.engines, 0)
        self._answering: Mapping[str, Answering] = {
            name: Answering(create_app(_service(engine)), name) for name, engine in self.engines.items()
        }
        self._rendezvous = Rendezvous(self.engines)

    async def answer(self, call: Call, /) -> AsyncGenerator[Piece, None]:
        choices = self._rendezvous.choices(call.key, self.open, Bound(), call.avoid)
        if not choices:
            raise EngineUnavailable("there is no replica")
        name = choices[0]
        self.asked.append(name)
        left = self.lost.get(name)
        self.open[name] += 1
        try:
            async with aclosing(self._answering[name].answer(call)) as pieces:
                async for piece in pieces:
                    if left is not None:
                        left -= 1
                        if left < 0:
                            raise EngineUnavailable("the replica that worked on this request was lost; ask again")
                    yield piece
        finally:
            self.open[name] -= 1

    async def ask_all(self, call: Call, /) -> list[Whole]:
        return [await answering.whole(call) for answering in self._answering.values()]


def _service(engine: FakeEngine) -> Service:
    return Service(ServedModel("pocket-vl"), FakePrompts(), engine, 512, limits=LIMITS, judge=lambda *_: True)
