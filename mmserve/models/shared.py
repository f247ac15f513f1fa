"""Pictures encoded side by side: each rank has the whole picture encoder and makes the rows of some of a step's."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmserve.models.ranks import Ranks
from vision.encoder import PictureEncoder
from vision.pixels import Pixels

log = logging.getLogger(__name__)


class EncodingFailed(Exception):
    """Some rank could not encode its pictures; all ranks raise it together, and can go on with another step."""


class SharedEncoder:
    """A ``vision.encoder.PictureEncoder`` over the same encoder on several ranks.

    Each gets all of a step's pictures, but needs the values of its own alone (:func:`shares`): those of the others may
    be :func:`blank`. Every rank ends up with the rows of all, since the decoder's stream is the same on each.
    """

    def __init__(
        self, encoder: PictureEncoder, row_width: int, ranks: Ranks, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """``dtype`` and ``device`` are those of the encoder's rows."""
        self.row_width = row_width
        self._encoder, self._ranks = encoder, ranks
        self._dtype, self._device = dtype, device

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        """As ``PictureEncoder.encode`` says. Raises ``EncodingFailed`` on every rank where one of them fails."""
        if not pictures:
            return []
        given = shares(pictures, self._ranks.size)
        mine = [i for i, rank in enumerate(given) if rank == self._ranks.rank]
        made = self._own([pictures[i] for i in mine])
        counts = self._counts(len(pictures), dict(zip(mine, made, strict=True)) if made is not None else None)
        places = [[i for i, rank in enumerate(given) if rank == each] for each in range(self._ranks.size)]
        most = max(sum(counts[i] for i in its) for its in places)
        own = torch.cat([torch.empty((0, self.row_width), dtype=self._dtype, device=self._device), *(made or ())])
        gathered = self._ranks.gather(F.pad(own, (0, 0, 0, most - len(own))))
        rows: dict[int, Tensor] = {}
        for its, part in zip(places, gathered, strict=True):
            lengths = [counts[i] for i in its]
            rows |= zip(its, torch.split(part[: sum(lengths)], lengths), strict=True)
        return [rows[i].clone() for i in range(len(pictures))]

    def _own(self, pictures: Sequence[Pixels]) -> list[Tensor] | None:
        """Rows of this rank's pictures; ``None`` where that failed: the other ranks must still be told."""
        try:
            return self._encoder.encode(pictures) if pictures else []
        except Exception:
            log.exception("pictures could not be encoded")
            return None

    def _counts(self, total: int, made: Mapping[int, Tensor] | None) -> list[int]:
        """The number of rows of each picture, whoever made them."""
        told = torch.zeros(total + 1, dtype=torch.int64)
        for i, rows in (made or {}).items():
            told[i] = len(rows)
        told[total] = made is None
        *counts, failed = self._ranks.sum(told.to(self._device)).tolist()
        if failed:
            raise EncodingFailed(f"{failed} of {self._ranks.size} processes could not encode their pictures")
        return counts


def shares(pictures: Sequence[Pixels], size: int) -> list[int]:
    """The rank that encodes each picture: the largest first, each to the rank that has the least.

    Depends on shapes alone, so that every rank comes to the same.
    """
    load = [0] * size
    ranks = [0] * len(pictures)
    for i in sorted(range(len(pictures)), key=lambda i: -pictures[i].values.numel()):
        ranks[i] = load.index(min(load))
        load[ranks[i]] += pictures[i].values.numel()
    return ranks


def blank(picture: Pixels) -> Pixels:
    """The same shapes without the values: tensors on the meta device."""
    extras = {name: value.to("meta") for name, value in picture.extras.items()}
    return dataclasses.replace(picture, values=picture.values.to("meta"), extras=extras)
