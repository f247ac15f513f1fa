"""How long a connection may take over a request's headers."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def patient_for(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, with the limit that it lacks: a connection whose request's headers are not complete after
    ``seconds`` is closed, so that one that sends a byte now and then is not held for ever."""

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _begun = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            self._begun = True
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._unwatch()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._give_up)

        def _unwatch(self) -> None:
            self._begun = False
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            if self._begun:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    return Patient
