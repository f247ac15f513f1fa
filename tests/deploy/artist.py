"""A captioner without a model for workers on Ray: says what the bytes say, and leaves a trace of what it was asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mmserve.client import Answer
from mmserve.errors import CorruptPicture
from mmserve.types import Usage


class TracedArtist:
    """Writes a line for each picture, "PID what", to ``trace``; a picture of "bad" bytes cannot be used."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    async def ask(self, data: bytes, _prompt: str, /) -> Answer:
        with open(self._trace, "ab", buffering=0) as trace:
            trace.write(f"{os.getpid()} {data.decode()}\n".encode())
        await asyncio.sleep(0.01)
        if data.startswith(b"bad"):
            raise CorruptPicture("the picture's data is damaged; send another")
        return Answer(f" a caption of {data.decode()}\n", "stop", Usage(90, 3, 80, 64), "pocket-vl")


class OpenArtist:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[TracedArtist]:
        yield TracedArtist(self._trace)
