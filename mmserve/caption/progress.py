"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. Of ``total`` pictures ``skipped`` had their caption from an earlier run, ``captioned`` got
    one in this (``copied`` of them from a picture with the same bytes), and ``failed`` could not be used.
    ``seconds`` is how long this run has been captioning. Of the ``prompt_tokens`` of this run the server had
    ``cached_tokens`` in its cache, and it knew ``cached_pictures`` already."""

    total: int
    skipped: int = 0
    captioned: int = 0
    copied: int = 0
    failed: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cached_pictures: int = 0

    @property
    def left(self) -> int:
        return self.total - self.skipped - self.captioned - self.failed

    @property
    def rate(self) -> float:
        """Pictures a second, in this run."""
        return (self.captioned + self.failed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until the end at this rate; None while there is no telling."""
        if self.left == 0:
            return 0.0
        return self.left / self.rate if self.rate > 0 else None
