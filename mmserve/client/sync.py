"""``Client``: carries out the flows with ``httpx.Client`` and threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from mmserve.client import calls, flow, settings
from mmserve.client.answer import Answer, CaptionResult
from mmserve.client.calls import DEFAULT_CAPTION_PROMPT, AllOptions, Call, Looking, Options
from mmserve.client.decision import Decision
from mmserve.client.kept import Kept
from mmserve.client.pictures import PictureHandle, PictureLike, read_handle
from mmserve.client.refusals import about_picture
from mmserve.client.sounds import SoundFile, SoundLike, read_sound
from mmserve.client.stream import AnswerStream

T = TypeVar("T")
M = TypeVar("M")


class Client:
    """Questions about pictures, asked of a server over HTTP. May be shared between threads.

    A picture is a path, bytes, a binary file object, a PIL image or an array; ``pictures`` is one or a list of
    them. A file that cannot be read is an OSError (``FileNotFoundError``) before anything is sent. What the
    server refuses is raised as the class of ``mmserve.errors`` that it names; no reply, or only a part of one, is
    ``EngineUnavailable``, and so is silence for ``timeout`` seconds.

    ``retries`` and ``backoff`` (seconds to wait after failed attempt 0, 1, 2, …): see ``mmserve.client.flow.Retries``.
    ``transport``, ``sleep`` and ``clock`` are for tests.
    """

    def __init__(
        self,
        base_url: str = settings.DEFAULT_BASE_URL,
        *,
        api_key: str | None = None,
        timeout: float = settings.DEFAULT_TIMEOUT,
        retries: int = settings.DEFAULT_RETRIES,
        backoff: Callable[[int], float] = flow.backoff,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        url = settings.server_url(base_url)
        self.base_url = str(url)
        self._retries = flow.Retries(retries, backoff)
        self._kept = Kept()
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.Client(transport=transport, **settings.http_settings(url, api_key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._http.close()

    def image(self, picture: PictureLike) -> PictureHandle:
        """A picture to ask about often: read now, sent to the server by the first request that asks about it, and named
        by those that follow. Raises OSError for a file that cannot be read."""
        return read_handle(picture)

    def sound(self, sound: SoundLike) -> SoundFile:
        """A sound, read now, for messages of :meth:`chat`. Raises OSError for a file that cannot be read."""
        return read_sound(sound)

    @overload
    def ask(
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
    def ask(
        self,
        pictures: PictureLike | Sequence[PictureLike] | None,
        question: str,
        *,
        audio: SoundLike | Sequence[SoundLike] | None = None,
        system: str | None = None,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> Answer: ...

    def ask(
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
        return self._fetch(calls.ask(pictures, question, audio=audio, system=system, model=model, options=options))

    def stream(
        self,
        pictures: PictureLike | Sequence[PictureLike] | None,
        question: str,
        *,
        audio: SoundLike | Sequence[SoundLike] | None = None,
        system: str | None = None,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> AnswerStream:
        """Ask, and iterate over the answer while it is written; see :class:`AnswerStream`."""
        plain, shape = calls.split(options)

        def open_() -> httpx.Response:
            call = calls.stream(pictures, question, audio=audio, system=system, model=model, options=plain, shape=shape)
            return self._open(call)

        return AnswerStream(open_, self.base_url, shape)

    def chat(
        self, messages: Iterable[Mapping[str, Any]], *, model: str | None = None, **options: Unpack[AllOptions]
    ) -> Answer:
        """The next turn of a conversation.

        Each message is ``{"role": …, "content": …}``, its content text, a picture, a sound, or a list that mixes them;
        in a list a ``str`` is text, so a picture's path is a ``Path``, and a sound is what :meth:`sound` made.
        """
        return self._fetch(calls.chat(messages, model=model, options=options))

    def stream_chat(
        self, messages: Iterable[Mapping[str, Any]], *, model: str | None = None, **options: Unpack[AllOptions]
    ) -> AnswerStream:
        """The next turn of a conversation, while it is written; messages as :meth:`chat` takes them."""
        plain, shape = calls.split(options)

        def open_() -> httpx.Response:
            call = calls.stream_chat(messages, model=model, options=plain, shape=shape)
            return self._open(call)

        return AnswerStream(open_, self.base_url, shape, chat=True)

    def caption(
        self,
        picture: PictureLike,
        *,
        prompt: str = DEFAULT_CAPTION_PROMPT,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> Answer:
        """Describe a picture."""
        return self.ask([picture], prompt, model=model, **options)

    def caption_many(
        self,
        pictures: Iterable[PictureLike],
        *,
        concurrency: int = 8,
        prompt: str | Callable[[PictureLike], str] = DEFAULT_CAPTION_PROMPT,
        on_result: Callable[[CaptionResult], None] | None = None,
        model: str | None = None,
        **options: Unpack[AllOptions],
    ) -> Generator[CaptionResult, None, None]:
        """Describe many pictures, ``concurrency`` at a time; each result comes as soon as it is there.

        ``pictures`` is read as it is needed, and ``prompt`` may say for each what is asked. A picture that cannot be
        used has its error in its result; an error that would meet every picture (the server is gone, the model is not
        served) is raised. ``on_result`` is called, in the caller's thread, with each result before it is handed out.
        Leaving early waits for the requests in flight.
        """

        def caption(index: int, picture: PictureLike) -> CaptionResult:
            asked = prompt if isinstance(prompt, str) else prompt(picture)
            try:
                return CaptionResult(index, picture, self.caption(picture, prompt=asked, model=model, **options))
            except Exception as error:
                if not about_picture(error):
                    raise
                return CaptionResult(index, picture, error=error)

        calls.check_concurrency(concurrency)
        todo = enumerate(pictures)
        pending: set[Future[CaptionResult]] = set()
        with ThreadPoolExecutor(concurrency, "mmserve-caption") as pool:
            try:
                pending |= {pool.submit(caption, *item) for item in islice(todo, concurrency)}
                while pending:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    pending |= {pool.submit(caption, *item) for item in islice(todo, len(finished))}
                    for future in finished:
                        result = future.result()
                        if on_result is not None:
                            on_result(result)
                        yield result
            finally:
                for future in pending:
                    future.cancel()

    def decide(
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
        """The probability of each of ``choices`` (a list of strings, an Enum class or a Literal), read from the model.

        Without choices the question is one of yes or no; with ``levels`` it is answered on a scale: a range of whole
        numbers, or descriptions of the levels from the lowest up. ``pictures`` may be an empty list.
        """
        return self._fetch(
            calls.decide(
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

    def models(self) -> list[str]:
        """Names of the models that the server serves."""
        return self._fetch(calls.models())

    def health(self) -> dict[str, Any]:
        """The server's own report; raises EngineUnavailable when it is not ready. Never retried."""
        return self._run(flow.fetch(calls.health(), flow.Retries(0), self.base_url))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return once the server is ready; raises EngineUnavailable if it is not within ``timeout`` seconds."""
        self._run(flow.wait_ready(timeout, self._clock, self.base_url))

    def _fetch(self, call: Call[T]) -> T:
        return self._run(flow.fetch(call, self._retries, self.base_url, self._kept))

    def _open(self, call: Call[None]) -> httpx.Response:
        response = self._run(flow.exchange(call, self._retries, self.base_url, self._kept))
        try:
            call.read(response)
        except BaseException:
            response.close()
            raise
        return response

    def _run(self, steps: flow.Flow[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = self._carry_out(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            value: T = end.value
            return value

    def _carry_out(self, step: flow.Step) -> httpx.Response | None:
        match step:
            case flow.Send(call):
                request = self._http.build_request(call.method, call.path, **call.body)
                return self._http.send(request, stream=True)
            case flow.Read(response):
                try:
                    response.read()
                finally:
                    response.close()
            case flow.Sleep(seconds):
                self._sleep(seconds)
        return None
