"""How a family's prompts hold pictures: the torch-free half of a family. ``layouts`` has the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmserve.prompt.positions import plain_positions
from mmserve.types import Detail, IntArray, Picture, Prompt
from vision.detail import Adapt, unchanged
from vision.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Rows:
    """So many tokens that stand for a picture's next embedding rows."""

    count: int


Segment = Rows | int | str
"""A part of what a picture's mark expands to: rows, a token id, or text that is encoded with what stands beside it."""


def only_rows(picture: Picture) -> Sequence[Segment]:
    """The mark is replaced by the picture's rows in one run."""
    return (Rows(picture.rows),)


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

    def geometry_among(self, pictures: int, detail: Detail = Detail()) -> Geometry | None:  # noqa: B008 (frozen)
        """What measures each of so many pictures of one prompt, at the ``detail`` that is wanted of it.

        Raises ``InvalidField`` for a wish that the model cannot fulfil.
        """
        geometry = self.among_others if pictures > 1 and self.among_others is not None else self.geometry
        return None if geometry is None else self.adapt(geometry, detail)
