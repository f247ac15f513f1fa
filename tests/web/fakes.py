"""Small stand-ins for what is below the web layer, and a real server to put over them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from mmserve.engine.limits import resolve_limits
from mmserve.errors import InvalidField, UnsupportedPicture
from mmserve.types import (
    ConstraintReport,
    ContentHash,
    Grid,
    ImageHeader,
    ImagePart,
    Message,
    Picture,
    PictureRange,
    Prompt,
    Request,
    TextPart,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from web.app import create_app
from web.service import Service

Step = TokenEvent | Exception | float
"""A scripted step: an event to yield, an error to raise, or seconds to wait."""

ROWS = 4

END = 3
"""The fake tokenizer's end of turn."""


class FakePrompts:
    """One token a word, ``ROWS`` a picture; records the messages. A picture is what begins like a PNG."""

    def __init__(self) -> None:
        self.built: list[Sequence[Message]] = []
        self.salts: list[str] = []
        self.threads: list[int] = []
        self.failure: Exception | None = None

    def build(self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True) -> Prompt:
        assert add_generation_prompt
        if self.failure is not None:
            raise self.failure
        self.built.append(messages)
        self.salts.append(cache_salt)
        self.threads.append(threading.get_ident())
        pictures: list[Picture] = []
        ranges: list[PictureRange] = []
        length = 0
        for part in (part for message in messages for part in message.parts):
            if isinstance(part, TextPart):
                length += len(part.text.split())
                continue
            ranges.append(PictureRange(length, length + ROWS, len(pictures)))
            length += ROWS
            pictures.append(_picture(part))
        system = sum(words for message in messages if message.role == "system" for words in _words(message))
        return Prompt(np.zeros(length, dtype=np.int64), tuple(pictures), tuple(ranges), system)

    def append_text(self, prompt: Prompt, text: str, *, end: bool = False) -> Prompt:
        """One token a character, its code point; ``END`` ends the turn."""
        ids = [ord(character) for character in text] + [END] * end
        return dataclasses.replace(prompt, token_ids=np.concatenate([prompt.token_ids, np.array(ids, dtype=np.int64)]))

    def append_choices(
        self, prompt: Prompt, opening: str, choices: Sequence[str], *, end: bool = False
    ) -> tuple[list[Prompt], int]:
        """Characters are never encoded together, so what is scored begins with the choice."""
        said = [self.append_text(prompt, opening + choice, end=end) for choice in choices]
        return said, len(prompt) + len(opening)

    def build_text(self, text: str, pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        """One token a character, its code point; ``PLACEHOLDER`` takes the next picture."""
        return self._raw([ord(character) for character in text], pictures, cache_salt, "text")

    def build_ids(self, ids: Sequence[int], pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        if not all(0 <= id_ <= 0x10FFFF for id_ in ids):
            raise InvalidField("there is no such token", param="input_ids")
        return self._raw(ids, pictures, cache_salt, "input_ids")

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return "".join(("<end>" if special else "") if id_ == END else chr(id_) for id_ in ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The last byte of the code point's UTF-8."""
        return chr(token_id).encode()[-1:] if token_id <= 0x10FFFF else b""

    def _raw(self, given: Sequence[int], pictures: Sequence[bytes], cache_salt: str, where: str) -> Prompt:
        if self.failure is not None:
            raise self.failure
        self.salts.append(cache_salt)
        self.threads.append(threading.get_ident())
        read = tuple(_picture(ImagePart(data), f"images[{k}]") for k, data in enumerate(pictures))
        if list(given).count(ord(PLACEHOLDER)) != len(read) or not given:
            raise InvalidField("placeholders and pictures differ, or nothing was sent", param=where)
        ids: list[int] = []
        ranges: list[PictureRange] = []
        for id_ in given:
            if id_ == ord(PLACEHOLDER):
                ranges.append(PictureRange(len(ids), len(ids) + ROWS, len(ranges)))
            ids += [id_] * (ROWS if id_ == ord(PLACEHOLDER) else 1)
        return Prompt(np.array(ids, dtype=np.int64), read, tuple(ranges))


PLACEHOLDER = "\ufffc"
"""What stands for a picture in the fake tokenizer's text."""


def _words(message: Message) -> Iterator[int]:
    return (len(part.text.split()) for part in message.parts if isinstance(part, TextPart))


def _picture(part: ImagePart, where: str = "image") -> Picture:
    if not part.data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UnsupportedPicture("this file is not a picture that can be read; send a PNG", param=where)
    width, height = (int.from_bytes(part.data[at : at + 4], "big") for at in (16, 20))
    content = ContentHash(hashlib.sha256(part.data).digest())
    # The fake model sees pictures at twice their size.
    return Picture(part.data, ImageHeader("PNG", width, height), content, Grid(1, 4, 4), ROWS, (2 * width, 2 * height))


CONTEXT = 512
"""The fake model's context in tokens."""


class FakeEngine:
    """Plays ``script(request)``; records what was asked, what runs, and what was given up before its last event."""

    def __init__(self, script: Callable[[Request], Iterable[Step]] | None = None) -> None:
        self.script = script or (lambda request: say("It", " is", " a cat.", request=request))
        self.requests: list[Request] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.ready = True
        self.flushed = 0

    async def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        resolve_limits(request, CONTEXT)
        self.requests.append(request)
        self.running.add(request.id)
        complete = False
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    complete = True
                    raise step
                if isinstance(step, TokenEvent):
                    complete = step.last
                    yield step
                else:
                    await asyncio.sleep(step)
        finally:
            self.running.discard(request.id)
            if not complete:
                self.aborted.append(request.id)

    def stats(self) -> Mapping[str, float]:
        return {"requests_total": float(len(self.requests))}

    async def flush(self) -> int:
        self.flushed += 1
        return 7

    async def close(self) -> None:
        self.ready = False


def say(
    *words: str,
    request: Request,
    finish: str = "stop",
    logprobs: bool = False,
    wait: float | None = None,
    report: ConstraintReport | None = None,
) -> Iterator[Step]:
    """Steps that answer with ``words``, one event each, ``wait`` seconds between; the last carries the usage, and for
    a request with a constraint how it was kept: strictly, where ``report`` does not say otherwise."""
    kept = (report or ConstraintReport()) if request.constraint is not None else None
    for i, word in enumerate(words, start=1):
        last = i == len(words)
        if wait is not None and i > 1:
            yield wait
        yield TokenEvent(
            request.id,
            text=word,
            token_ids=(i,),
            logprobs=(TokenLogprob(i, word, -0.5, ((i, word, -0.5), (0, "�", float("-inf")))),) if logprobs else (),
            finish_reason=finish if last else None,
            usage=usage_of(request, len(words)) if last else None,
            constraint=kept if last else None,
        )


def scored(request: Request, logprob: Callable[[str], float], cached: int = 2) -> Iterator[Step]:
    """The one event of a request with ``score_from``: ``logprob(text)`` for the answer that its prompt ends with, all
    of it on the first token."""
    assert request.score_from is not None
    *ids, end = request.prompt.token_ids[request.score_from :].tolist()
    assert end == END
    text = "".join(map(chr, ids))
    entries = [TokenLogprob(END, "", 0.0)] * (len(text) + 1)
    entries[0] = TokenLogprob(ids[0], text[0], logprob(text))
    usage = usage_of(request, 0, cached)
    yield TokenEvent(request.id, logprobs=tuple(entries), finish_reason="stop", usage=usage)


def usage_of(request: Request, completion: int, cached: int = 2) -> Usage:
    prompt = request.prompt
    system = prompt.system_tokens
    return Usage(len(prompt), completion, cached, prompt.picture_tokens, 1, system, min(cached, system))


def forever(request: Request) -> Iterator[Step]:
    """An answer that does not end by itself."""
    for i in range(10**9):
        yield TokenEvent(request.id, text=f"w{i} ", token_ids=(i,))
        yield 0.005


def silence(request: Request) -> Iterator[Step]:  # noqa: ARG001
    """An answer whose first token does not come."""
    yield 3600.0


def png(width: int = 8, height: int = 6, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def sse(body: bytes) -> list[Any]:
    """The events of a stream: decoded JSON, and ``"[DONE]"`` as it is."""
    text = body.decode()
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event[6:] if event[6:] == "[DONE]" else json.loads(event[6:]) for event in events]


@contextlib.contextmanager
def serve(service: Service) -> Iterator[str]:
    """A uvicorn of its own thread on a free port of the loopback; yields the base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(service), log_level="warning", ws="none", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until ``condition()`` holds; fails the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
