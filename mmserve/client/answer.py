"""What comes back: an answer, read from the server's JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from typing_extensions import TypeVar

from mmserve.errors import MMServeError
from mmserve.types import Usage

if TYPE_CHECKING:
    from mmserve.client.pictures import PictureLike


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from the end of the upload, as the server saw it, to the first token and to the end of the answer."""

    time_to_first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A picture as the server saw it: size in pixels as shown, the prompt tokens it took, and the size (width, height)
    at which the model saw the whole of it, in whose pixels some models say where things are."""

    width: int
    height: int
    tokens: int
    resized: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video as the server saw it: size in pixels as shown, length and the times of the frames that the model saw, in
    seconds, and the prompt tokens it took."""

    width: int
    height: int
    duration: float
    frames: tuple[float, ...]
    tokens: int


T = TypeVar("T", default=Any)


@dataclass(frozen=True, slots=True)
class ConstraintKept:
    """How a constraint was kept; see ``mmserve.types.ConstraintReport``.

    ``valid`` says whether the text is what was asked for: always so where ``step`` is ``"strict"`` and the answer is
    complete, otherwise as the server judged it; None where it could not tell.
    """

    step: str = "strict"
    relaxed: tuple[str, ...] = ()
    closed_early: bool = False
    forced_tokens: int = 0
    valid: bool | None = True


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """An answer; ``str(answer)`` is its text.

    ``finish_reason`` is ``"stop"``, or ``"length"`` when ``max_tokens`` or the context ended it. ``timing`` is None
    where the server does not tell it. ``logprobs``, where asked for, are as the server sent them (decoded JSON).
    ``parsed`` is what the text stands for where a ``schema``, ``json`` or ``choices`` was given, else None, and
    ``constraint`` says how such a constraint was kept.
    """

    text: str
    finish_reason: str
    usage: Usage
    model: str
    id: str = ""
    created: int = 0
    timing: Timing | None = None
    pictures: tuple[PictureInfo, ...] = ()
    logprobs: Any = field(default=None, repr=False)
    parsed: T = None  # type: ignore[assignment]  # None is what T is where nothing is to be parsed
    constraint: ConstraintKept | None = None
    videos: tuple[VideoInfo, ...] = ()

    def __str__(self) -> str:
        return self.text

    def with_parsed(self, parsed: Any) -> Answer[Any]:
        return dataclasses.replace(self, parsed=parsed)


class AnswerNotValid(MMServeError):
    """An answer's text is not what was asked for; ``answer`` has it, with all that the server said.

    This is so where a schema had to be relaxed, where ``max_tokens`` cut the text short, and where a type checks more
    than a JSON Schema can say (pydantic's validators); ``__cause__`` is what parsing it raised.
    """

    code: ClassVar[str] = "answer_not_valid"

    def __init__(self, message: str, *, param: str | None = None, answer: Answer | None = None) -> None:
        super().__init__(message, param=param)
        self.answer = answer

    @property
    def text(self) -> str:
        return self.answer.text if self.answer is not None else ""

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), param=self.param, answer=self.answer), (self.message,)


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """One of many captions: ``index`` and ``picture`` as they were given, and either an answer or what was wrong."""

    index: int
    picture: PictureLike = field(repr=False)
    answer: Answer | None = None
    error: Exception | None = None

    @property
    def caption(self) -> str | None:
        return self.answer.text if self.answer is not None else None


def answer_from_vqa(wire: Mapping[str, Any]) -> Answer:
    """Read the JSON of ``/v1/vqa``. Raises KeyError, TypeError or ValueError when it is something else."""
    timing = wire.get("timing")
    return Answer(
        text=_text(wire["answer"]),
        finish_reason=_text(wire["finish_reason"]),
        usage=usage_from(wire["usage"]),
        model=wire.get("model", ""),
        id=wire.get("id", ""),
        created=wire.get("created", 0),
        timing=None if timing is None else Timing(timing["time_to_first_token"], timing["total"]),
        pictures=tuple(map(_picture, wire.get("images") or ())),
        videos=tuple(VideoInfo(**{**each, "frames": tuple(each["frames"])}) for each in wire.get("videos") or ()),
        logprobs=wire.get("logprobs"),
        constraint=_constraint(wire.get("constraint")),
    )


def answer_from_chat(wire: Mapping[str, Any], *, constrained: bool = False) -> Answer:
    """Read the JSON of ``/v1/chat/completions``. Raises as :func:`answer_from_vqa` does, or IndexError.

    A chat answer says only what is out of the ordinary about its constraint, so ``constrained`` says if there was one.
    """
    choice = wire["choices"][0]
    said = {**(wire.get("constraint") or {}), **{k: choice[k] for k in ("closed_early", "valid") if k in choice}}
    return answer_from_vqa(
        {
            **wire,
            "answer": choice["message"]["content"] or "",
            "finish_reason": choice["finish_reason"],
            "logprobs": choice.get("logprobs"),
            "constraint": said if constrained else None,
        }
    )


def _picture(wire: Mapping[str, Any]) -> PictureInfo:
    resized = wire.get("resized")
    if resized is not None:
        width, height = resized
        resized = (width, height)
    return PictureInfo(wire["width"], wire["height"], wire["tokens"], resized)


def _constraint(wire: Mapping[str, Any] | None) -> ConstraintKept | None:
    if wire is None:
        return None
    return ConstraintKept(
        step=wire.get("step", "strict"),
        relaxed=tuple(wire.get("relaxed") or ()),
        closed_early=wire.get("closed_early", False),
        forced_tokens=wire.get("forced_tokens", 0),
        valid=wire.get("valid", True),
    )


def usage_from(wire: Mapping[str, Any]) -> Usage:
    """Token counts from OpenAI's ``usage``."""
    details = wire.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=wire["prompt_tokens"],
        completion_tokens=wire["completion_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        image_tokens=details.get("image_tokens") or 0,
        cached_pictures=details.get("cached_images") or 0,
        system_tokens=details.get("system_tokens") or 0,
        cached_system_tokens=details.get("cached_system_tokens") or 0,
        video_tokens=details.get("video_tokens") or 0,
        audio_tokens=details.get("audio_tokens") or 0,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value
