"""What comes back: an answer, read from the server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    """A picture as the server saw it: size in pixels as shown, and the prompt tokens it took."""

    width: int
    height: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; ``str(answer)`` is its text.

    ``finish_reason`` is ``"stop"``, or ``"length"`` when ``max_tokens`` or the context ended it. ``timing`` is None
    where the server does not tell it. ``logprobs``, where asked for, are as the server sent them (decoded JSON).
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

    def __str__(self) -> str:
        return self.text


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
        usage=_usage(wire["usage"]),
        model=wire.get("model", ""),
        id=wire.get("id", ""),
        created=wire.get("created", 0),
        timing=None if timing is None else Timing(timing["time_to_first_token"], timing["total"]),
        pictures=tuple(PictureInfo(i["width"], i["height"], i["tokens"]) for i in wire.get("images") or ()),
        logprobs=wire.get("logprobs"),
    )


def answer_from_chat(wire: Mapping[str, Any]) -> Answer:
    """Read the JSON of ``/v1/chat/completions``. Raises as :func:`answer_from_vqa` does, or IndexError."""
    choice = wire["choices"][0]
    return answer_from_vqa(
        {
            **wire,
            "answer": choice["message"]["content"] or "",
            "finish_reason": choice["finish_reason"],
            "logprobs": choice.get("logprobs"),
        }
    )


def _usage(wire: Mapping[str, Any]) -> Usage:
    details = wire.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=wire["prompt_tokens"],
        completion_tokens=wire["completion_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        image_tokens=details.get("image_tokens") or 0,
        cached_pictures=details.get("cached_images") or 0,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value
