"""How a family's prompts hold media: the torch-free half of a family. ``layouts`` has the table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mmserve.config import Limits
from mmserve.errors import ConfigError
from mmserve.prompt.positions import plain_positions
from mmserve.types import Detail, IntArray, MediaItem, MediaKind, Picture, Prompt
from vision.detail import Adapt, unchanged
from vision.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Rows:
    """So many tokens that stand for the next embedding rows of the ``item``-th of what a mark stands for."""

    count: int
    item: int = 0


Segment = Rows | int | str
"""A part of what a picture's mark expands to: rows, a token id, or text that is encoded with what stands beside it."""


def only_rows(picture: Picture) -> Sequence[Segment]:
    """The mark is replaced by the picture's rows in one run."""
    return (Rows(picture.rows),)


class ReadMedia(Protocol):
    """What measures and hashes a message's part of one kind, in the order in which its rows stand in the prompt."""

    def __call__(self, part: Any, /, *, limits: Limits, cache_salt: str) -> tuple[MediaItem, ...]:
        """The items that the part is; a video is several. Thread safe. Raises ``MediaError`` and ``InvalidField``."""


@dataclass(frozen=True, slots=True)
class Medium:
    """How prompts hold videos, or sounds: the template writes the token ``pad_id`` for each, and as many of them as
    its items have rows take that one's place. A prompt may have ``most`` of them (``None``: as many as limits allow).
    """

    pad_id: int
    read: ReadMedia
    most: int | None = None


def rows_of(items: Sequence[MediaItem]) -> Sequence[Segment]:
    """The mark is replaced by the rows of all items, one run each."""
    return tuple(Rows(item.rows, number) for number, item in enumerate(items))


@dataclass(frozen=True, slots=True)
class Layout:
    """What prompts of one checkpoint need to know of its family.

    ``geometry`` measures pictures, and is ``None`` where the model reads text only; ``among_others`` measures those
    that share a prompt, where the family cuts them differently; ``adapt`` changes either as a caller wishes. The chat
    template writes ``mark`` for each picture: a special token of the tokenizer's, or else text that callers' text is
    kept from spelling; ``None`` is the token ``pad_id``. ``expand`` says what takes the mark's place, and ``pad_id`` is
    the id that stands at each row.

    ``positions`` gives int64 ``(axes, len(prompt))`` and the position of the first generated token, from the whole
    prompt. With ``opens`` a prompt begins with what the tokenizer itself puts before a text (``<s>``), if the template
    has not written it. ``template`` is the chat template, where the family has its own and does not read it from the
    checkpoint's files; ``most_pictures`` is how many a prompt may have (``None``: no limit of the family's). With
    ``apart`` the text behind a picture is encoded as if nothing stood before it. With
    ``whole_pictures`` a picture's tokens see each other both ways, so that prefill never cuts a picture.

    ``others`` are the kinds of media that the model takes besides pictures.
    """

    geometry: Geometry | None = None
    pad_id: int = 0
    mark: str | None = None
    among_others: Geometry | None = None
    expand: Callable[[Picture], Sequence[Segment]] = only_rows
    positions: Callable[[Prompt], tuple[IntArray, int]] = plain_positions
    opens: bool = False
    template: str | None = None
    most_pictures: int | None = None
    apart: bool = False
    adapt: Adapt = unchanged
    whole_pictures: bool = False
    others: Mapping[MediaKind, Medium] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """The kinds of media that the model takes."""
        return (*(("image",) if self.geometry is not None else ()), *self.others)

    def limited(self, kinds: tuple[MediaKind, ...] | None) -> Layout:
        """This for a model that is to take these kinds only. Raises ``ConfigError`` for one that it does not know."""
        if kinds is None:
            return self
        unknown = sorted(set(kinds) - set(self.kinds))
        if unknown:
            raise ConfigError(
                f"the model takes {', '.join(self.kinds) or 'no media'}, so media cannot name {unknown[0]}"
            )
        others = {kind: medium for kind, medium in self.others.items() if kind in kinds}
        return replace(self, others=others, geometry=self.geometry if "image" in kinds else None)

    def geometry_among(self, pictures: int, detail: Detail = Detail()) -> Geometry | None:  # noqa: B008 (frozen)
        """What measures each of so many pictures of one prompt, at the ``detail`` that is wanted of it.

        Raises ``InvalidField`` for a wish that the model cannot fulfil.
        """
        geometry = self.among_others if pictures > 1 and self.among_others is not None else self.geometry
        return None if geometry is None else self.adapt(geometry, detail)
