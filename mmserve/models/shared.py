"""Media encoded side by side: each rank has the whole of every encoder and makes the rows of some of a step's media."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mmserve.models.batch import MediaEncoder
from mmserve.models.ranks import Ranks

log = logging.getLogger(__name__)

Made = TypeVar("Made")


class EncodingFailed(Exception):
    """Some rank could not encode its media; all ranks raise it together, and can go on with another step."""


class SharedEncoder(Generic[Made]):
    """A ``mmserve.models.batch.MediaEncoder`` over the same encoder on several ranks.

    Each gets all of a step's media, but needs the values of its own alone (:func:`shares`): those of the others may
    be :func:`blank`. Every rank ends up with the rows of all, since the decoder's stream is the same on each.
    """

    def __init__(
        self, encoder: MediaEncoder[Made], row_width: int, ranks: Ranks, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """``dtype`` and ``device`` are those of the encoder's rows."""
        self.row_width = row_width
        self._encoder, self._ranks = encoder, ranks
        self._dtype, self._device = dtype, device

    @torch.inference_mode()
    def encode(self, media: Sequence[Made]) -> list[Tensor]:
        """As ``MediaEncoder.encode`` says. Raises ``EncodingFailed`` on every rank where one of them fails."""
        if not media:
            return []
        given = shares(media, self._ranks.size)
        mine = [i for i, rank in enumerate(given) if rank == self._ranks.rank]
        made = self._own([media[i] for i in mine])
        counts = self._counts(len(media), dict(zip(mine, made, strict=True)) if made is not None else None)
        places = [[i for i, rank in enumerate(given) if rank == each] for each in range(self._ranks.size)]
        most = max(sum(counts[i] for i in its) for its in places)
        own = torch.cat([torch.empty((0, self.row_width), dtype=self._dtype, device=self._device), *(made or ())])
        gathered = self._ranks.gather(F.pad(own, (0, 0, 0, most - len(own))))
        rows: dict[int, Tensor] = {}
        for its, part in zip(places, gathered, strict=True):
            lengths = [counts[i] for i in its]
            rows |= zip(its, torch.split(part[: sum(lengths)], lengths), strict=True)
        return [rows[i].clone() for i in range(len(media))]

    def _own(self, media: Sequence[Made]) -> list[Tensor] | None:
        """Rows of this rank's media; ``None`` where that failed: the other ranks must still be told."""
        try:
            return self._encoder.encode(media) if media else []
        except Exception:
            log.exception("media could not be encoded")
            return None

    def _counts(self, total: int, made: Mapping[int, Tensor] | None) -> list[int]:
        """The number of rows of each item, whoever made them."""
        told = torch.zeros(total + 1, dtype=torch.int64)
        for i, rows in (made or {}).items():
            told[i] = len(rows)
        told[total] = made is None
        *counts, failed = self._ranks.sum(told.to(self._device)).tolist()
        if failed:
            raise EncodingFailed(f"{failed} of {self._ranks.size} processes could not encode their media")
        return counts


def shares(media: Sequence[object], size: int) -> list[int]:
    """The rank that encodes each, of media that go into one encoder: the largest first, each to the rank that has the
    least.

    Depends on shapes alone, so that every rank comes to the same.
    """
    weights = [_elements(each) for each in media]
    load = [0] * size
    ranks = [0] * len(media)
    for i in sorted(range(len(media)), key=lambda i: -weights[i]):
        ranks[i] = load.index(min(load))
        load[ranks[i]] += weights[i]
    return ranks


def blank(made: Made) -> Made:
    """What an encoder takes, ``vision.pixels.Pixels`` for one, without its values: its tensors on the meta device."""
    found: Any = made
    if isinstance(found, Tensor):
        found = found.to("meta")
    elif isinstance(found, Mapping):
        found = {name: blank(value) for name, value in found.items()}
    elif dataclasses.is_dataclass(found) and not isinstance(found, type):
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        found = dataclasses.replace(found, **{name: blank(value) for name, value in fields.items() if _elements(value)})
    return cast(Made, found)


def _elements(made: object) -> int:
    """Of all tensors in it."""
    if isinstance(made, Tensor):
        return made.numel()
    if isinstance(made, Mapping):
        return sum(map(_elements, made.values()))
    if dataclasses.is_dataclass(made):
        return sum(_elements(getattr(made, field.name)) for field in dataclasses.fields(made))
    return 0
