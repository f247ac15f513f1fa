"""What a program adds to its state: expressions, which ``+`` joins. Plain values; nothing is computed by making one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from mmserve.lang.calls import Options, Shown, Watched
from mmserve.lang.errors import Place

if TYPE_CHECKING:
    from mmserve.grammar.spec import Constraint
    from mmserve.lang.state import ProgramGroup
    from mmserve.types import Detail, MediaKind

ROLES = ("system", "user", "assistant")


class Expr:
    """Anything that ``s += …`` takes; joins with text and other expressions by ``+``."""

    __slots__ = ()

    def __add__(self, other: ExprLike) -> Expr:
        return Joint((self, as_expr(other)))

    def __radd__(self, other: ExprLike) -> Expr:
        return Joint((as_expr(other), self))


ExprLike: TypeAlias = Expr | str


@dataclass(frozen=True, slots=True)
class Text(Expr):
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Image(Expr):
    """A picture: the bytes of its file, or an address to fetch it from; ``detail`` is ``None`` for the model's own."""

    source: bytes | str = field(repr=False)
    place: Place
    detail: Detail | None = None

    kind: ClassVar[MediaKind] = "image"

    def shown(self, data: bytes) -> Shown:
        """It, once its bytes are here."""
        return Shown(data, self.detail)


@dataclass(frozen=True, slots=True, eq=False)
class Audio(Expr):
    """A sound: the bytes of its file, or an address to fetch it from."""

    source: bytes | str = field(repr=False)
    place: Place

    kind: ClassVar[MediaKind] = "audio"

    def shown(self, data: bytes) -> Shown:
        """It, once its bytes are here."""
        return Shown(data, kind="audio")


@dataclass(frozen=True, slots=True, eq=False)
class Video(Expr):
    """A video: the bytes of its file, or an address to fetch it from, and which of its frames the model sees."""

    source: bytes | str = field(repr=False)
    place: Place
    watched: Watched

    kind: ClassVar[MediaKind] = "video"

    def shown(self, data: bytes) -> Shown:
        """It, once its bytes are here."""
        return Shown(data, kind="video", watched=self.watched)


Media: TypeAlias = Image | Video | Audio
"""What a program shows a model besides text."""


@dataclass(frozen=True, slots=True, eq=False)
class Gen(Expr):
    """Text that the model writes. ``constraint`` is what it must look like."""

    name: str | None
    options: Options
    constraint: Constraint | None
    place: Place


@dataclass(frozen=True, slots=True, eq=False)
class Select(Expr):
    """One of ``choices``, as the model finds them likely; ``temperature`` 0 takes the likeliest."""

    name: str | None
    choices: tuple[str, ...]
    temperature: float
    seed: int | None
    place: Place


@dataclass(frozen=True, slots=True)
class Begin(Expr):
    role: str


@dataclass(frozen=True, slots=True)
class End(Expr):
    role: str


@dataclass(frozen=True, slots=True)
class Joint(Expr):
    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Turned(Expr):
    """A whole turn of ``role``."""

    role: str
    body: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Joined(Expr):
    """What the branches of a fork generated, by name."""

    group: ProgramGroup


def as_expr(value: ExprLike) -> Expr:
    """Raises TypeError for what is neither text nor an expression."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return Text(value)
    hint = "; a picture goes through image(...)" if isinstance(value, bytes) or hasattr(value, "size") else ""
    raise TypeError(f"a program's state takes text and expressions, not {type(value).__name__}{hint}")


def leaves(expr: Expr) -> Iterator[Expr]:
    """The expression in the order of its text, turns as their beginnings and ends."""
    match expr:
        case Joint(parts):
            for part in parts:
                yield from leaves(part)
        case Turned(role, body):
            yield Begin(role)
            yield from leaves(body)
            yield End(role)
        case _:
            yield expr
