"""Layers that compute pictures' tokens by other weights than text's (CogVLM's visual expert, arXiv 2311.03079, 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Experts:
    """Which tokens the picture's expert takes; the language model's own weights take the others.

    ``mask`` is bool ``(T,)``. What is derived from it is worked out once for all layers of a step.
    """

    mask: Tensor

    @cached_property
    def picture(self) -> Tensor:
        """The picture's tokens: int64, ascending."""
        return self.mask.nonzero().squeeze(1)

    @cached_property
    def language(self) -> Tensor:
        """The others: int64, ascending."""
        return self.mask.logical_not().nonzero().squeeze(1)

    def select(self, rows: Tensor) -> Experts:
        """Of the tokens ``rows``, int64 ``(B,)``, alone."""
        return Experts(self.mask.index_select(0, rows))


def routed(
    x: Tensor, experts: Experts | None, picture: Callable[[Tensor], Tensor], language: Callable[[Tensor], Tensor]
) -> Tensor:
    """``picture`` of the rows of ``x`` that its expert takes, ``language`` of the others; ``(T, C)`` to ``(T, D)``.

    With no ``experts`` it takes none.
    """
    if experts is None:
        return language(x)
    text = language(x.index_select(0, experts.language))
    out = text.new_empty(len(x), text.shape[1])
    out.index_copy_(0, experts.language, text)
    return out.index_copy_(0, experts.picture, picture(x.index_select(0, experts.picture)))
