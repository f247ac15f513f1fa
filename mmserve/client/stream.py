"""Streamed answers: a reader that does no I/O, and a sync and an async iterator that feed it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Self

import httpx

from mmserve.client.answer import Answer, answer_from_vqa
from mmserve.client.constraints import Shape
from mmserve.client.refusals import NOT_OURS, error_from_body, error_from_transport, not_an_answer
from mmserve.client.sse import SSEParser
from mmserve.errors import EngineUnavailable, MMServeError


class StreamReader:
    """Bytes of an event stream -> pieces of text, and the whole answer, or what went wrong, at the end.

    ``shape`` is the constraint that was asked for, which says what the text stands for. ``chat`` says that the events
    are OpenAI's chunks, of which the last has the usage, and not those of ``/v1/vqa``.
    """

    def __init__(self, shape: Shape | None = None, *, chat: bool = False) -> None:
        self._shape = shape or Shape()
        self._chat = chat
        self._events = SSEParser()
        self._pieces: list[str] = []
        self._fields: dict[str, Any] = {}
        self._logprobs: list[Any] = []
        self._failure: Exception | None = None
        self.done = False
        """Whether the last event has come (``[DONE]`` or an error); what follows it is not read."""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def feed(self, chunk: bytes) -> list[str]:
        """The pieces of text that ``chunk`` completes. Raises nothing, so that text before an error is not lost."""
        found = []
        for event in self._events.feed(chunk):
            if self.done:
                break
            try:
                found.append(self._take(event))
            except (MMServeError, *NOT_OURS) as failure:
                self._failure = failure
                self.done = True
        pieces = [piece for piece in found if piece]
        self._pieces += pieces
        return pieces

    def finish(self) -> Answer:
        """The answer. Raises the typed error that the server put into the stream, EngineUnavailable if the stream
        ended without its last event, AnswerNotValid for a text that is not of the shape asked for, and one of
        ``NOT_OURS`` for a stream that is not ours."""
        if self._failure is not None:
            raise self._failure
        if "finish_reason" not in self._fields or (self._chat and "usage" not in self._fields):
            raise EngineUnavailable("the stream ended before the answer was complete")
        logprobs = {"content": self._logprobs} if self._logprobs else None
        return self._shape.finish(answer_from_vqa({**self._fields, "answer": self.text, "logprobs": logprobs}))

    def _take(self, event: str) -> str:
        if event == "[DONE]":
            self.done = True
            return ""
        fields: dict[str, Any] = json.loads(event)
        error = fields.get("error")
        if error is not None:
            raise error_from_body(error)
        if self._chat:
            fields = _flat(fields, constrained=bool(self._shape.body))
        piece = fields.pop("delta", None) or ""
        if not isinstance(piece, str):
            raise TypeError("a delta is text")
        logprobs = fields.pop("logprobs", None)
        if logprobs is not None:
            self._logprobs += logprobs["content"]
        self._fields |= {name: value for name, value in fields.items() if value is not None}
        return piece


def _flat(chunk: dict[str, Any], *, constrained: bool) -> dict[str, Any]:
    """A chunk of a chat answer with the fields of one of ``/v1/vqa``. Raises as reading JSON of another shape does."""
    [choice] = chunk.pop("choices") or [{}]
    said = {**(chunk.pop("constraint", None) or {}), **{k: choice[k] for k in ("closed_early", "valid") if k in choice}}
    return {
        **chunk,
        "delta": (choice.get("delta") or {}).get("content"),
        "finish_reason": choice.get("finish_reason"),
        "logprobs": choice.get("logprobs"),
        "constraint": said if constrained and choice.get("finish_reason") else None,
    }


class AnswerStream:
    """An answer as it is written: iterate for the pieces of text, then look at :attr:`answer`.

    ::

        with client.stream("cat.jpg", "What is this?") as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(pieces.answer.usage)

    The request is sent by the first iteration, or on entering ``with``, whichever comes first; pictures are read then
    too. Leaving the ``with`` block early closes the connection, which makes the server stop. Iteration raises
    the errors of ``mmserve.errors``.
    """

    def __init__(
        self, open_: Callable[[], httpx.Response], base_url: str, shape: Shape | None = None, *, chat: bool = False
    ) -> None:
        self._result = _Result(StreamReader(shape, chat=chat))
        self._pieces = _pieces(open_, self._result, base_url)

    def __enter__(self) -> Self:
        if not self._result.opened:
            next(self._pieces, None)  # runs to the mark that says "open"
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        return piece if piece is not None else next(self)

    def close(self) -> None:
        """Close the connection; nothing more comes. May be called again."""
        self._pieces.close()

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._result.reader.text

    @property
    def answer(self) -> Answer:
        """The whole answer; raises RuntimeError before its end has come."""
        return self._result.get()


class AsyncAnswerStream:
    """:class:`AnswerStream` with ``async with`` and ``async for``."""

    def __init__(
        self,
        open_: Callable[[], Awaitable[httpx.Response]],
        base_url: str,
        shape: Shape | None = None,
        *,
        chat: bool = False,
    ) -> None:
        self._result = _Result(StreamReader(shape, chat=chat))
        self._pieces = _apieces(open_, self._result, base_url)

    async def __aenter__(self) -> Self:
        if not self._result.opened:
            await anext(self._pieces, None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        piece = await anext(self._pieces)
        return piece if piece is not None else await anext(self)

    async def aclose(self) -> None:
        """Close the connection; nothing more comes. May be called again."""
        await self._pieces.aclose()

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._result.reader.text

    @property
    def answer(self) -> Answer:
        """The whole answer; raises RuntimeError before its end has come."""
        return self._result.get()


class _Result:
    """What an iterator leaves for its owner. It knows no owner, so one that is dropped takes the iterator along."""

    def __init__(self, reader: StreamReader) -> None:
        self.reader = reader
        self.opened = False
        self.answer: Answer | None = None

    def get(self) -> Answer:
        if self.answer is None:
            raise RuntimeError("the answer is not complete: read the stream to its end first")
        return self.answer


@contextlib.contextmanager
def _typed_errors(response: httpx.Response, base_url: str) -> Iterator[None]:
    try:
        yield
    except httpx.RequestError as error:
        raise error_from_transport(error, base_url) from error
    except NOT_OURS as error:
        raise not_an_answer(response.request.url) from error


def _pieces(open_: Callable[[], httpx.Response], result: _Result, base_url: str) -> Generator[str | None, None, None]:
    """First None, once the reply has begun; then the text."""
    result.opened = True
    with contextlib.closing(open_()) as response:
        yield None
        chunks = response.iter_bytes()
        while not result.reader.done:
            with _typed_errors(response, base_url):
                chunk = next(chunks, None)
            if chunk is None:
                break
            yield from result.reader.feed(chunk)
        with contextlib.suppress(httpx.RequestError):  # read to its end, a connection can serve again
            for _ in chunks:
                pass
        with _typed_errors(response, base_url):
            result.answer = result.reader.finish()


async def _apieces(
    open_: Callable[[], Awaitable[httpx.Response]], result: _Result, base_url: str
) -> AsyncGenerator[str | None, None]:
    """First None, once the reply has begun; then the text."""
    result.opened = True
    async with contextlib.aclosing(await open_()) as response:
        yield None
        chunks = response.aiter_bytes()
        while not result.reader.done:
            with _typed_errors(response, base_url):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            for piece in result.reader.feed(chunk):
                yield piece
        with contextlib.suppress(httpx.RequestError):  # read to its end, a connection can serve again
            async for _ in chunks:
                pass
        with _typed_errors(response, base_url):
            result.answer = result.reader.finish()
