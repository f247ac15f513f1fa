"""Whether the engine still gets anywhere."""

from __future__ import annotations

from mmserve.engine.process.messages import Pong

WARM_UP = 4
"""A first step may take so many times as long: kernels are compiled and graphs captured in it."""


class Watchdog:
    """Told of every pong, it says what is wrong when the engine stands still for ``seconds``.

    That is: its process answers no ping, or it has requests and its loop makes no turn. Before the first step that
    computes is done, the loop has ``WARM_UP`` times as long. Times are in seconds of any one clock.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._last = Pong()
        self._heard = self._moved = now

    def heard(self, pong: Pong, now: float) -> None:
        self._heard = now
        if not pong.busy or not self._last.busy or pong.turns != self._last.turns:
            self._moved = now
        self._last = pong

    def pardon(self, now: float) -> None:
        """Forget how long ago anything was: nobody listened meanwhile."""
        self._heard = self._moved = now

    def verdict(self, now: float) -> str | None:
        """What is wrong, if anything is."""
        if now - self._heard > self._seconds:
            return f"it has not answered for {now - self._heard:.0f} s"
        patience = self._seconds if self._last.warm else self._seconds * WARM_UP
        if self._last.busy and now - self._moved > patience:
            return f"it has requests and has done no step for {now - self._moved:.0f} s"
        return None
