"""How long a connection may take over a request's headers, and over a body that nobody wants."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def patient_for(header_seconds: float, rest_seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with limits that it lacks, so that no connection is held for ever by a byte now and then.

    One whose request's headers are not complete after ``header_seconds`` is closed, and one whose request was answered
    early, and whose body, which nobody reads any more, is not at its end ``rest_seconds`` after that.
    """

    class Patient(H11Protocol):
        _waits_for = ""
        _deadline: asyncio.TimerHandle | None = None
        _begun = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            self._begun = True
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_for("")
            super().connection_lost(exc)

        def _watch(self) -> None:
            answered = self.cycle is not None and self.cycle.response_complete
            if self.conn.their_state is h11.IDLE:
                self._wait_for("headers")
            elif answered and self.conn.their_state is h11.SEND_BODY:
                self._wait_for("rest")
            else:
                self._wait_for("")

        def _wait_for(self, what: str) -> None:
            if what == self._waits_for:
                return
            self._waits_for, self._begun = what, False
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            if what and not self.transport.is_closing():
                seconds = header_seconds if what == "headers" else rest_seconds
                self._deadline = self.loop.call_later(seconds, self._give_up)

        def _give_up(self) -> None:
            if self._begun and self._waits_for == "headers":
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    return Patient
