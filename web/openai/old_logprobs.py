"""OpenAI's first form of ``logprobs``, that of completions: four lists with an entry for each token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmserve.types import TokenLogprob
from web.generation import bounded


class OldLogprobs:
    """The lists of one choice, handed out piece by piece. Offsets are in characters of the choice's text."""

    def __init__(self, top: int, offset: int = 0) -> None:
        self._top = top
        self._offset = offset
        self._entries: list[tuple[str, float | None, dict[str, float] | None, int]] = []

    def first(self, token: str) -> None:
        """The first token of a prompt, of which no log-probability is known."""
        self._put(token, None, None)

    def add(self, entries: Iterable[TokenLogprob]) -> None:
        for entry in entries:
            # Tokens may look alike, as bytes that are no character do: the best of those is told, and the chosen one
            # where nothing else looks like it.
            best: dict[str, float] = {}
            for _, token, value in entry.top:
                best.setdefault(token, bounded(value))
            best.setdefault(entry.token, bounded(entry.logprob))
            self._put(entry.token, bounded(entry.logprob), best)

    def _put(self, token: str, value: float | None, best: dict[str, float] | None) -> None:
        self._entries.append((token, value, best, self._offset))
        self._offset += len(token)

    def take(self) -> dict[str, Any]:
        """What was added since the last time."""
        entries, self._entries = self._entries, []
        return {
            "tokens": [token for token, _, _, _ in entries],
            "token_logprobs": [value for _, value, _, _ in entries],
            "top_logprobs": [best for _, _, best, _ in entries] if self._top else None,
            "text_offset": [offset for _, _, _, offset in entries],
        }
