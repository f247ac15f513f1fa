"""Server-sent events, read from bytes as they come (WHATWG HTML, 9.2 Server-sent events)."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SSEParser:
    """Cuts a byte stream into events, wherever its chunks are split.

    Only ``data`` is kept: event types, ids and retry times do not occur in our protocol. Bytes are decoded a whole line
    at a time, so a character split between chunks needs no care.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[str] = []
        self._first_line = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[str]:
        """The ``data`` of each event that this chunk completes. An event that is never completed never comes."""
        if not chunk:
            return []
        if self._after_cr:  # the two halves of a CRLF came in two chunks
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        *lines, self._tail = _LINE_END.split(self._tail + chunk)
        return [event for line in lines for event in self._take(line)]

    def _take(self, line: bytes) -> list[str]:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            event, self._data = self._data, []
            return ["\n".join(event)] if event else []
        name, _, value = line.decode("utf-8", "replace").partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return []
