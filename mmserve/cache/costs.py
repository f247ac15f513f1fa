"""FetchCosts: whether bringing a prefix back from the second tier is cheaper than computing it again.

A small model on a fast GPU recomputes text faster than any memory gives it back; the same model on a CPU does not, and
a picture that must be decoded and encoded again is worth fetching on both. So it is measured on the steps that run.
"""

from __future__ import annotations

from dataclasses import dataclass

_FADE = 0.999
"""What is left of the estimated price of a fetch after each step without one, so that a stale one cannot last."""

_WEIGHT = 0.2
_ENOUGH_TOKENS = 16


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What one step did and how long it took, in seconds. ``computed_tokens`` counts prefill and decodes."""

    seconds: float
    computed_tokens: int
    fetch_seconds: float = 0.0
    fetched_tokens: int = 0
    encode_seconds: float = 0.0
    encoded_rows: int = 0


class FetchCosts:
    """Running estimates, in seconds: of a step at least, a computed token, an encoded picture row, a fetched token.

    Until all that a decision needs has been seen, gains of ``min_tokens`` and more are worth a fetch; smaller ones
    never are.
    """

    def __init__(self, min_tokens: int) -> None:
        self._min_tokens = min_tokens
        self._step: float | None = None
        self._token: float | None = None
        self._row: float | None = None
        self._fetch: float | None = None

    def observe(self, times: StepTimes) -> None:
        """Learn from a step that ran."""
        if times.encoded_rows:
            self._row = _blend(self._row, times.encode_seconds / times.encoded_rows)
        if times.fetched_tokens:
            self._fetch = _blend(self._fetch, times.fetch_seconds / times.fetched_tokens)
        elif self._fetch is not None:
            self._fetch *= _FADE
        rest = times.seconds - times.fetch_seconds - times.encode_seconds
        if times.computed_tokens >= _ENOUGH_TOKENS:
            self._token = _blend(self._token, max(0.0, rest - (self._step or 0.0)) / times.computed_tokens)
        elif times.computed_tokens:
            self._step = _blend(self._step, rest)

    def worth(self, tokens: int, rows: int) -> bool:
        """Whether fetching ``tokens``, ``rows`` of them of pictures, is cheaper than computing them; a query."""
        if tokens < self._min_tokens:
            return False
        if self._step is None or self._token is None or self._fetch is None or (rows and self._row is None):
            return True
        compute = tokens * self._token + rows * (self._row or 0.0)
        return compute > self._step + tokens * self._fetch  # a fetch takes a step of its own


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - _WEIGHT) * old + _WEIGHT * new
