"""Requests to the server as plain values, and how the reply to each is read. No I/O but reading pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar, cast

import httpx

from mmserve.client.answer import Answer, answer_from_chat, answer_from_vqa
from mmserve.client.constraints import Constraints, Shape, shape_of
from mmserve.client.decision import Decision, decision_question
from mmserve.client.pictures import PictureFile, PictureHandle, PictureLike, read_picture, read_pictures
from mmserve.client.refusals import NOT_OURS, not_an_answer
from mmserve.client.sounds import SoundFile, SoundLike, read_sounds
from mmserve.client.videos import VideoFile, VideoLike, read_videos
from mmserve.errors import InvalidField
from mmserve.template import DEFAULT_CAPTION_PROMPT as DEFAULT_CAPTION_PROMPT

T = TypeVar("T")


class Looking(TypedDict, total=False):
    """How closely the model looks at pictures: ``detail`` is ``"auto"``, ``"low"`` or ``"high"``; ``min_pixels`` and
    ``max_pixels`` bound what a picture is resized to, where the model's family can choose."""

    detail: str | None
    min_pixels: int | None
    max_pixels: int | None


class Watching(TypedDict, total=False):
    """Videos to ask about beside the pictures, or instead of them (``pictures`` an empty list), and which of their
    frames the model sees: ``fps`` frames a second, at most ``max_frames``; or ``num_frames`` over the whole length. For
    ``ask`` and ``stream``."""

    video: VideoLike | Sequence[VideoLike] | None
    fps: float | None
    num_frames: int | None
    max_frames: int | None


class Options(Looking, Watching, total=False):
    """What may be said about how an answer is made; the server's defaults hold for what is left out or None.

    ``temperature=0`` is greedy. ``logprobs`` asks for the log-probability of each token and ``top_logprobs`` for
    that many alternatives. ``skip_special_tokens=False`` leaves in the text what Qwen-VL puts around a box. Requests of
    different ``cache_salt`` share nothing in the caches.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    skip_special_tokens: bool | None
    logprobs: bool | None
    top_logprobs: int | None
    cache_salt: str | None


class AllOptions(Options, Constraints, total=False):
    """How an answer is made, and what it must look like."""


Refer: TypeAlias = Callable[[PictureFile], str | None]
"""What stands for a picture's bytes in a request; None where they go themselves."""

Write: TypeAlias = Callable[[Refer], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its reply is read.

    ``body`` holds the keyword arguments of ``httpx.Client.build_request`` for it. ``parse`` raises one of
    ``refusals.NOT_OURS`` when the reply is not what this call expects. ``handles`` are the pictures in the body that
    the server may keep; :meth:`referring` names them instead.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    body: Mapping[str, Any]
    streamed: bool = False
    handles: tuple[PictureHandle, ...] = ()
    write: Write | None = None

    def referring(self, refer: Refer) -> Call[T]:
        """The same request, with ids for the pictures that have one."""
        return self if self.write is None else dataclasses.replace(self, body=self.write(refer))

    def read(self, response: httpx.Response) -> T:
        """The value in a complete 2xx reply; raises MMServeError when it is something else."""
        try:
            return self.parse(response)
        except NOT_OURS as error:
            raise not_an_answer(response.request.url) from error


def split(options: Mapping[str, Any]) -> tuple[Options, Shape]:
    """Options and constraints apart. Raises TypeError for a name that does not exist, as Python does for named
    parameters, and what :func:`mmserve.client.constraints.shape_of` raises."""
    known = Options.__annotations__.keys() | Constraints.__annotations__.keys()
    for name in options:
        if name not in known:
            raise TypeError(f"{name!r} is not an option; there are: {', '.join(sorted(known))}")
    wanted = {name: value for name, value in options.items() if name in Constraints.__annotations__}
    plain = {name: value for name, value in options.items() if name in Options.__annotations__}
    return cast("Options", plain), shape_of(wanted)


def ask(
    pictures: PictureLike | Sequence[PictureLike] | None,
    question: str,
    *,
    audio: SoundLike | Sequence[SoundLike] | None,
    system: str | None,
    model: str | None,
    options: Mapping[str, Any],
) -> Call[Answer]:
    plain, shape = split(options)
    fields = {"question": question, "system": system, "model": model, **shape.form}
    files, others = _read_media(pictures, plain.get("video"), audio)

    def write(refer: Refer) -> Mapping[str, Any]:
        return _vqa_body(files, others, fields, plain, refer)

    return _asking("/v1/vqa", lambda response: shape.finish(answer_from_vqa(response.json())), write, files)


def stream(
    pictures: PictureLike | Sequence[PictureLike] | None,
    question: str,
    *,
    audio: SoundLike | Sequence[SoundLike] | None,
    system: str | None,
    model: str | None,
    options: Options,
    shape: Shape,
) -> Call[None]:
    """Like :func:`ask`, with the reply streamed; ``mmserve.client.stream`` reads it."""
    fields = {"question": question, "system": system, "model": model, "stream": True, **shape.form}
    files, others = _read_media(pictures, options.get("video"), audio)

    def write(refer: Refer) -> Mapping[str, Any]:
        return _vqa_body(files, others, fields, options, refer)

    return _asking("/v1/vqa", _check_event_stream, write, files, streamed=True)


def chat(messages: Iterable[Mapping[str, Any]], *, model: str | None, options: Mapping[str, Any]) -> Call[Answer]:
    """``content`` of a message is text, a picture, a sound, or a list that mixes them.

    In a list a ``str`` is text, a dict is a part of the OpenAI form and goes as it is, a ``SoundFile`` is a sound, and
    anything else is a picture (so a picture's path must be a ``Path``).
    """
    plain, shape = split(options)
    said, files = _read_messages(messages)

    def write(refer: Refer) -> Mapping[str, Any]:
        return {"json": _chat_body(said, model, plain, shape, refer)}

    def read(response: httpx.Response) -> Answer:
        return shape.finish(answer_from_chat(response.json(), constrained=bool(shape.body)))

    return _asking("/v1/chat/completions", read, write, files)


def stream_chat(
    messages: Iterable[Mapping[str, Any]], *, model: str | None, options: Options, shape: Shape
) -> Call[None]:
    """Like :func:`chat`, with the reply streamed; ``mmserve.client.stream`` reads it."""
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    said, files = _read_messages(messages)

    def write(refer: Refer) -> Mapping[str, Any]:
        return {"json": {**_chat_body(said, model, options, shape, refer), **streamed}}

    return _asking("/v1/chat/completions", _check_event_stream, write, files, streamed=True)


def decide(
    pictures: PictureLike | Sequence[PictureLike],
    question: str,
    choices: Any,
    *,
    levels: Any,
    model: str | None,
    temperature: float | None,
    cache_salt: str | None,
    looking: Looking,
) -> Call[Decision]:
    """One question of ``/v1/decisions``: about ``choices``, on a scale of ``levels``, or else yes or no."""
    asked, read = decision_question(question, choices, levels)
    files = () if isinstance(pictures, list | tuple) and not pictures else read_pictures(pictures)
    fields = {"model": model, "temperature": temperature, "cache_salt": cache_salt}
    given = {name: value for name, value in fields.items() if value is not None}

    def write(refer: Refer) -> Mapping[str, Any]:
        images = [{"url": refer(file) or file.data_uri, **_looking(looking)} for file in files]
        return {"json": {**given, "images": images, "questions": [asked]}}

    return _asking("/v1/decisions", lambda response: read(response.json()), write, files)


def keep(file: PictureFile) -> Call[str]:
    """The id under which the server keeps a picture from now on."""
    return Call("POST", "/v1/pictures", _read_identity, {"files": [_file_part(file)]})


def models() -> Call[list[str]]:
    return Call("GET", "/v1/models", lambda response: [model["id"] for model in response.json()["data"]], {})


def health(timeout: float | None = None) -> Call[dict[str, Any]]:
    return Call("GET", "/health", _read_health, {} if timeout is None else {"timeout": timeout})


def check_concurrency(concurrency: int) -> None:
    """Raises InvalidField unless at least one request may run."""
    if concurrency < 1:
        raise InvalidField(f"concurrency must be at least 1, got {concurrency}", param="concurrency")


def _asking(
    path: str,
    parse: Callable[[httpx.Response], T],
    write: Write,
    files: Iterable[PictureFile],
    *,
    streamed: bool = False,
) -> Call[T]:
    handles = tuple(file for file in files if isinstance(file, PictureHandle))
    return Call("POST", path, parse, write(lambda _: None), streamed, handles, write if handles else None)


def _file_part(file: PictureFile) -> tuple[str, tuple[str, bytes, str]]:
    return "image", (file.name, file.data, file.media_type)


def _read_media(
    pictures: PictureLike | Sequence[PictureLike] | None,
    video: VideoLike | Sequence[VideoLike] | None,
    audio: SoundLike | Sequence[SoundLike] | None,
) -> tuple[tuple[PictureFile, ...], tuple[VideoFile | SoundFile, ...]]:
    """The pictures, and other files: of pictures there may be none (an empty list, or ``None``) beside these. Raises as
    ``read_pictures`` and its like do."""
    others: tuple[VideoFile | SoundFile, ...] = (*read_videos(video), *read_sounds(audio))
    none = pictures is None or (isinstance(pictures, list | tuple) and not pictures)
    if none and others:
        return (), others
    return read_pictures(() if pictures is None else pictures), others


def _vqa_body(
    files: tuple[PictureFile, ...],
    others: tuple[VideoFile | SoundFile, ...],
    fields: Mapping[str, Any],
    options: Options,
    refer: Refer,
) -> dict[str, Any]:
    given = {**fields, **{name: value for name, value in options.items() if name != "video"}}
    # A part without a file name is text.
    images = [_file_part(file) if (kept := refer(file)) is None else ("image", (None, kept)) for file in files]
    return {
        "files": [*images, *((other.kind, (other.name, other.data, other.media_type)) for other in others)],
        "data": {name: _form_value(value) for name, value in given.items() if value is not None},
    }


def _form_value(value: object) -> str | list[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Iterable):
        return [str(item) for item in value]
    return str(value)


def _read_messages(messages: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[PictureFile]]:
    """The messages in OpenAI's form, but for pictures, which are read; and these in order."""
    said = [_message(message) for message in messages]
    contents = [message.get("content") for message in said]
    files = [part for content in contents if isinstance(content, list) for part in content]
    return said, [part for part in files if isinstance(part, PictureFile)]


def _chat_body(
    said: Sequence[dict[str, Any]], model: str | None, options: Options, shape: Shape, refer: Refer
) -> dict[str, Any]:
    """OpenAI's clients say of each picture how closely to look at it; ours say it once for all that they encode."""
    if any(options.get(name) is not None for name in Watching.__annotations__):
        raise InvalidField(
            'in a conversation a video is a part of a message, {"type": "video_url", "video_url": {"url": …}}',
            param="video",
        )
    messages = [_written(message, refer, _looking(options)) for message in said]
    plain = {name: value for name, value in options.items() if name not in Looking.__annotations__}
    body = {"model": model, "messages": messages, **plain, **shape.body}
    return {name: value for name, value in body.items() if value is not None}


def _looking(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in Looking.__annotations__ if options.get(name) is not None}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    parts = content if isinstance(content, (list, tuple)) else [content]
    return {**message, "content": [_part(part) for part in parts]}


def _part(part: str | Mapping[str, Any] | SoundFile | PictureLike) -> dict[str, Any] | PictureFile:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, SoundFile):
        return part.part()
    return dict(part) if isinstance(part, Mapping) else read_picture(part)


def _written(message: dict[str, Any], refer: Refer, looking: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_image_part(part, refer, looking) if isinstance(part, PictureFile) else part for part in content]
    return {**message, "content": parts}


def _image_part(file: PictureFile, refer: Refer, looking: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": refer(file) or file.data_uri, **looking}}


def _read_identity(response: httpx.Response) -> str:
    [kept] = response.json()["data"]
    if not isinstance(kept["id"], str):
        raise TypeError("an id is text")
    return kept["id"]


def _read_health(response: httpx.Response) -> dict[str, Any]:
    if not response.content.strip():
        return {}
    report = json.loads(response.content)
    if not isinstance(report, dict):
        raise TypeError("a health report is an object")
    return report


def _check_event_stream(response: httpx.Response) -> None:
    if response.headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
        raise ValueError("not an event stream")
