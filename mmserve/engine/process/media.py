"""Media between two processes: a file's bytes travel once, however many items and requests under way have them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mmserve.types import MediaItem, Request


class Sent:
    """The sender's half: counts the items that have a file, and says when the other side may drop it.

    Exact, since both sides see the same messages in the same order.
    """

    def __init__(self) -> None:
        self._users: Counter[bytes] = Counter()

    def lighten(self, request: Request) -> Request:
        """``request``, counted, without the bytes of the files that are on the other side."""
        lighter = []
        for item in request.prompt.media:
            lighter.append(item.with_data(b"") if self._users[item.source] else item)
            self._users[item.source] += 1
        return _with_media(request, lighter)

    def ended(self, request: Request) -> tuple[bytes, ...]:
        """The sources that nobody has any more now that this request is over."""
        gone = []
        for item in request.prompt.media:
            self._users[item.source] -= 1
            if not self._users[item.source]:
                del self._users[item.source]
                gone.append(item.source)
        return tuple(gone)


class Kept:
    """The receiver's half."""

    def __init__(self) -> None:
        self._bytes: dict[bytes, bytes] = {}

    def complete(self, request: Request) -> Request:
        """The request as it was before it was lightened."""
        whole = []
        for item in request.prompt.media:
            if item.data:
                self._bytes[item.source] = item.data
            whole.append(item if item.data else item.with_data(self._bytes[item.source]))
        request.prompt.token_ids.setflags(write=False)  # pickle does not carry it
        return _with_media(request, whole)

    def forget(self, sources: Iterable[bytes]) -> None:
        for source in sources:
            self._bytes.pop(source, None)

    def __len__(self) -> int:
        return len(self._bytes)


def _with_media(request: Request, media: Sequence[MediaItem]) -> Request:
    if not media:
        return request
    return dataclasses.replace(request, prompt=replace(request.prompt, media=tuple(media)))
