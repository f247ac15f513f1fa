"""What travels between the server's process and the engine's. Both ends are ours and of one version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mmserve.engine.process.recipe import Recipe
from mmserve.errors import MMServeError
from mmserve.types import ContentHash, Request, TokenEvent

Stats: TypeAlias = Mapping[str, float]

# -- to the engine ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what the child is to build."""

    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Submit:
    """A request whose limits are resolved. Pictures that are there already come without their bytes (``bytes``)."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Pictures that no request under way has any more: their bytes may go."""

    contents: tuple[ContentHash, ...]


@dataclass(frozen=True, slots=True)
class Flush:
    number: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a ``Pong``, which a thread of its own answers, also while the engine is loaded or computes."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the engine, then the process."""


# -- from the engine --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is loaded. ``max_model_len`` is in tokens, what its memory holds considered."""

    max_model_len: int
    stats: Stats


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: MMServeError


@dataclass(frozen=True, slots=True)
class Stepped:
    """All events of one step, as ``pack`` makes them; and the engine's ``stats()``, not with each."""

    packed: tuple[Packed, ...]
    stats: Stats | None = None


@dataclass(frozen=True, slots=True)
class Flushed:
    number: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Pong:
    """How far the engine is: ``turns`` of its loop, whether it has requests (``busy``), and whether it has completed a
    step that computed (``warm``)."""

    turns: int = 0
    busy: bool = False
    warm: bool = False


ToEngine: TypeAlias = Start | Submit | Abort | Forget | Flush | Ping | Close
FromEngine: TypeAlias = Ready | LoadFailed | Stepped | Flushed | Pong

Packed: TypeAlias = tuple[str, str, tuple[int, ...]] | TokenEvent
"""An event; one that only adds text and tokens as ``(request_id, text, token_ids)``, which pickle does five times as
fast, and most events are of that kind."""


def pack(events: Sequence[TokenEvent]) -> tuple[Packed, ...]:
    return tuple(
        event if event.last or event.logprobs else (event.request_id, event.text, event.token_ids) for event in events
    )


def unpack(packed: Sequence[Packed]) -> list[TokenEvent]:
    return [entry if isinstance(entry, TokenEvent) else TokenEvent(*entry) for entry in packed]
