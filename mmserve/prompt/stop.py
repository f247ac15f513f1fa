"""Stop strings over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopChecker:
    """Holds back what may be the start of a stop string, and ends the text where one is complete.

    The first stop string to be completed counts, wherever the pieces are cut; of those that one character completes,
    the longest. The text ends before it. Each character costs amortised constant time a stop string, however long the
    strings are: they are followed by Knuth, Morris and Pratt's automaton.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._fallbacks = tuple(map(_fallbacks, self._stops))
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._settled = ""
        self.stopped: str | None = None
        """The stop string that ended the text, once one has."""

    def push(self, text: str, accepts: Callable[[str], bool] | None = None) -> str:
        """The part of the text so far that is settled and was not returned before; nothing after a stop string.

        With ``accepts``, which must be given always or never, a stop string counts only where it is true of the whole
        text before it; elsewhere it is text.
        """
        if self.stopped is not None or not self._stops:
            return "" if self.stopped is not None else text
        held = self._held + text
        for at, character in enumerate(text, len(self._held) + 1):
            self._advance(character)
            complete = [stop for stop, n in zip(self._stops, self._matched, strict=True) if n == len(stop)]
            for stop in sorted(complete, key=len, reverse=True):
                if accepts is None or accepts(self._settled + held[: at - len(stop)]):
                    self.stopped = stop
                    self._held = ""
                    return held[: at - len(stop)]
            if complete:  # and does not count
                whole = zip(self._stops, self._matched, self._fallbacks, strict=True)
                self._matched = [fallbacks[n - 1] if n == len(stop) else n for stop, n, fallbacks in whole]
        keep = max(self._matched)
        self._held = held[len(held) - keep :]
        settled = held[: len(held) - keep]
        if accepts is not None:
            self._settled += settled
        return settled

    def skip(self, text: str) -> None:
        """Text in which no stop string counts, for the ``accepts`` of later ones. Nothing may be held back."""
        self._settled += text

    def flush(self) -> str:
        """What is still held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        for index, stop in enumerate(self._stops):
            n = self._matched[index]
            while n and stop[n] != character:
                n = self._fallbacks[index][n - 1]
            self._matched[index] = n + (stop[n] == character)


def _fallbacks(stop: str) -> list[int]:
    """For each prefix of ``stop``, the length of its longest proper suffix that ``stop`` also starts with."""
    lengths = [0] * len(stop)
    n = 0
    for at in range(1, len(stop)):
        while n and stop[n] != stop[at]:
            n = lengths[n - 1]
        n += stop[n] == stop[at]
        lengths[at] = n
    return lengths
