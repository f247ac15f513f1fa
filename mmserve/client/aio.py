"""``AsyncClient``: carries out the flows with ``httpx.AsyncClient`` and asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from mmserve.client import calls, flow, settings
from mmserve.client.answer import Answer, CaptionResult
from mmserve.client.calls import DEFAULT_CAPTION_PROMPT, AllOptions, Call, Looking, Options
from mmserve.client.decision import Decision
from mmserve.client.drive import carry_out
from mmserve.client.kept import Kept
from mmserve.client.pictures import PictureHandle, PictureLike, read_handle
from mmserve.client.refusals import about_picture
from mmserve.client.sounds import SoundFile, SoundLike, read_sound
from mmserve.client.stream import AsyncAnswerStream

T = TypeVar("T")
M = TypeVar("M")


class AsyncClient:
    """``Client`` for asyncio: the same methods and errors, to be awaited. Belongs to one event loop.

    Pictures are read and encoded in a thread. Cancelling a task closes its connection, which makes the server stop.
    """

    def __init__(
        self,
        base_url: str = settings.DEFAULT_BASE_URL,
        *,
        api_key: str | None = None,
        timeout: float = settings.DEFAULT_TIMEOUT,
        retries: int = settings.DEFAULT_RETRIES,
        backoff: Callable[[int], float] = flow.backoff,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        url = settings.server_url(base_url)
        self.base_url = str(url)
        self._retries = flow.Retries(retries, backoff)
        self._kept = Kept()
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.AsyncClient(transport=transport, **settings.http_settings(url, api_key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        await self._http.aclose()

    async def image(self, picture: PictureLike) -> PictureHandle:
        """A picture to ask about often; see :meth:`mmserve.client.Client.image`."""
        return await asyncio.to_thread(read_handle, picture)

    async def sound(self, sound: SoundLike) -> SoundFile:
        """A sound for messages of :meth:`chat`; see :meth:`mmserve.client.Client.sound`."""
        return await asyncio.to_thread(read_sound, sound)

    @overload
    async def ask(
        self,
        pictures: PictureLike | Sequence[PictureLike] | None,
        question: str,
        *,
        schema: type[M],
        strict: bool | None = None,
        audio: SoundLike | Sequence[SoundLike] | None = None,
        system: str | None = None,
        model: str | None = None,
        **options: Unpack[Options],
    ) -> Answer[M]: ...

    @overload
    async def ask(
        self,
        pictures: PictureLike | Sequence[PictureLike] | None,
        question: str,
        *,
        audio: SoundLike | Sequence[SoundLike] | None = None,
        system: str | None = None,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> Answer: ...

    async def ask(
        self,
        pictures: PictureLike | Sequence[PictureLike] | None,
        question: str,
        *,
        audio: SoundLike | Sequence[SoundLike] | None = None,
        system: str | None = None,
        model: str | None = None,
        **options: Any,
    ) -> Answer[Any]:
        """Ask about one or several pictures, or about ``video`` or ``audio``: one or a list, and ``pictures`` an
        empty one.

        ``Answer.parsed`` is an instance of ``schema`` where that is a type."""
        call = partial(calls.ask, pictures, question, audio=audio, system=system, model=model, options=options)
        return await self._fetch(await asyncio.to_thread(call))

    def stream(
        self,
        pictures: PictureLike | Sequence[PictureLike] | None,
        question: str,
        *,
        audio: SoundLike | Sequence[SoundLike] | None = None,
        system: str | None = None,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> AsyncAnswerStream:
        """Ask, and iterate over the answer while it is written; see :class:`AsyncAnswerStream`."""
        plain, shape = calls.split(options)

        async def open_() -> httpx.Response:
            call = await asyncio.to_thread(
                calls.stream, pictures, question, audio=audio, system=system, model=model, options=plain, shape=shape
            )
            return await self._open(call)

        return AsyncAnswerStream(open_, self.base_url, shape)

    async def chat(
        self, messages: Iterable[Mapping[str, Any]], *, model: str | None = None, **options: Unpack[AllOptions]
    ) -> Answer:
        """The next turn of a conversation; messages as :meth:`mmserve.client.Client.chat` takes them."""
        return await self._fetch(await asyncio.to_thread(calls.chat, messages, model=model, options=options))

    def stream_chat(
        self, messages: Iterable[Mapping[str, Any]], *, model: str | None = None, **options: Unpack[AllOptions]
    ) -> AsyncAnswerStream:
        """The next turn of a conversation, while it is written; messages as :meth:`chat` takes them."""
        plain, shape = calls.split(options)

        async def open_() -> httpx.Response:
            call = await asyncio.to_thread(calls.stream_chat, messages, model=model, options=plain, shape=shape)
            return await self._open(call)

        return AsyncAnswerStream(open_, self.base_url, shape, chat=True)

    async def caption(
        self,
        picture: PictureLike,
        *,
        prompt: str = DEFAULT_CAPTION_PROMPT,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> Answer:
        """Describe a picture."""
        return await self.ask([picture], prompt, model=model, **options)

    async def caption_many(
        self,
        pictures: Iterable[PictureLike],
        *,
        concurrency: int = 8,
        prompt: str | Callable[[PictureLike], str] = DEFAULT_CAPTION_PROMPT,
        on_result: Callable[[CaptionResult], None] | None = None,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> AsyncGenerator[CaptionResult, None]:
        """:meth:`mmserve.client.Client.caption_many`; leaving early cancels the requests in flight."""

        async def caption(index: int, picture: PictureLike) -> CaptionResult:
            asked = prompt if isinstance(prompt, str) else prompt(picture)
            try:
                answer = await self.caption(picture, prompt=asked, model=model, **options)
                return CaptionResult(index, picture, answer)
            except Exception as error:
                if not about_picture(error):
                    raise
                return CaptionResult(index, picture, error=error)

        calls.check_concurrency(concurrency)
        todo = enumerate(pictures)
        finished: set[asyncio.Task[CaptionResult]] = set()
        pending = {asyncio.create_task(caption(*item)) for item in islice(todo, concurrency)}
        try:
            while pending:
                finished, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                pending |= {asyncio.create_task(caption(*item)) for item in islice(todo, len(finished))}
                for task in finished:
                    result = task.result()
                    if on_result is not None:
                        on_result(result)
                    yield result
        finally:
            for task in pending:
                task.cancel()
            # Those finished are gathered too: asyncio complains about an exception that nobody looked at.
            await asyncio.gather(*pending, *finished, return_exceptions=True)

    async def decide(
        self,
        pictures: PictureLike | Sequence[PictureLike],
        question: str,
        choices: Any = None,
        *,
        levels: range | Sequence[str] | None = None,
        model: str | None = None,
        temperature: float | None = None,
        cache_salt: str | None = None,
        **looking: Unpack[Looking],
    ) -> Decision:
        """The probability of each choice; see :meth:`mmserve.client.Client.decide`."""
        return await self._fetch(
            await asyncio.to_thread(
                calls.decide,
                pictures,
                question,
                choices,
                levels=levels,
                model=model,
                temperature=temperature,
                cache_salt=cache_salt,
                looking=looking,
            )
        )

    async def models(self) -> list[str]:
        """Names of the models that the server serves."""
        return await self._fetch(calls.models())

    async def health(self) -> dict[str, Any]:
        """The server's own report; raises EngineUnavailable when it is not ready. Never retried."""
        return await self._run(flow.fetch(calls.health(), flow.Retries(0), self.base_url))

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Return once the server is ready; raises EngineUnavailable if it is not within ``timeout`` seconds."""
        await self._run(flow.wait_ready(timeout, self._clock, self.base_url))

    async def _fetch(self, call: Call[T]) -> T:
        return await self._run(flow.fetch(call, self._retries, self.base_url, self._kept))

    async def _open(self, call: Call[None]) -> httpx.Response:
        response = await self._run(flow.exchange(call, self._retries, self.base_url, self._kept))
        try:
            call.read(response)
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _run(self, steps: flow.Flow[T]) -> T:
        return await carry_out(self._http, steps, self._sleep)
