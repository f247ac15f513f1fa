"""What programs ask of a backend, as plain values, and the protocol that backends fulfil."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from mmserve.grammar.spec import Constraint
    from mmserve.types import Detail, MediaKind, TokenEvent, Usage

DEFAULT_MAX_TOKENS = 128
"""What a ``gen`` that says nothing may write; one with a constraint gets what is left of the context instead."""


@dataclass(frozen=True, slots=True)
class Options:
    """How text is chosen; ``None`` leaves it to whoever is asked next: the run, then the backend.

    ``logprobs`` asks for the log-probability of each token, and for that many alternatives.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None

    def said(self) -> Mapping[str, Any]:
        """The fields that are set."""
        pairs = ((each.name, getattr(self, each.name)) for each in dataclasses.fields(self))
        return {name: value for name, value in pairs if value is not None}

    def over(self, defaults: Options) -> Options:
        """These, and ``defaults`` where they say nothing."""
        return dataclasses.replace(defaults, **self.said())


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of text; with the ``token_ids`` that a model wrote it as, where they are known and spell it exactly."""

    text: str
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """Which frames of a video the model sees: see ``mmserve.types.VideoPart``."""

    num_frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None

    def said(self) -> dict[str, int | float]:
        """What was asked for, by its name on the wire."""
        wishes = {"num_frames": self.num_frames, "fps": self.fps, "max_frames": self.max_frames}
        return {name: value for name, value in wishes.items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture, a video or a sound: the bytes of its file, and how closely to look at it."""

    data: bytes = field(repr=False)
    detail: Detail | None = None
    kind: MediaKind = "image"
    watched: Watched = Watched()


Part: TypeAlias = Said | Shown


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Said))


@dataclass(frozen=True, slots=True)
class Context:
    """What stands before an answer: finished ``turns``, and the assistant's turn as far as it is written."""

    turns: tuple[Turn, ...]
    opening: tuple[Said, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateCall:
    context: Context
    options: Options
    constraint: Constraint | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """How likely is each of ``choices`` as what comes next? ``ends_turn`` counts the end of the turn behind it too, so
    that the beginning of a longer choice does not have that one's probability."""

    context: Context
    choices: tuple[str, ...]
    ends_turn: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """Natural logarithms of the choices' probabilities, in their order."""

    logprobs: tuple[float, ...]
    usage: Usage | None = None


@runtime_checkable
class Backend(Protocol):
    """Where text is generated. Methods but ``close`` are used in the event loop of ``mmserve.lang.loop``.

    ``generate`` yields events as ``EngineClient.generate`` does: the last has ``finish_reason`` and, where the backend
    counts, ``usage``. Errors are raised, typed. Closing the generator ends the request. Only ``PromptTooLong`` with
    ``param="max_tokens"`` may be raised to say that the prompt fits but not together with ``max_tokens``.
    """

    def generate(self, call: GenerateCall) -> AsyncGenerator[TokenEvent, None]: ...

    async def score(self, call: ScoreCall) -> Scores: ...

    def close(self) -> None:
        """Give back what the backend holds; requests in flight fail."""
