"""Pictures between two processes: their bytes travel once, however many requests under way have them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from mmserve.types import ContentHash, Picture, Request


class Sent:
    """The sender's half: counts the requests that have a picture, and says when the other side may drop it.

    Exact, since both sides see the same messages in the same order.
    """

    def __init__(self) -> None:
        self._users: Counter[ContentHash] = Counter()

    def lighten(self, request: Request) -> Request:
        """``request``, counted, without the bytes of the pictures that are on the other side."""
        lighter = []
        for picture in request.prompt.pictures:
            lighter.append(replace(picture, data=b"") if self._users[picture.content] else picture)
            self._users[picture.content] += 1
        return _with_pictures(request, lighter)

    def ended(self, request: Request) -> tuple[ContentHash, ...]:
        """The pictures that nobody has any more now that this request is over."""
        gone = []
        for picture in request.prompt.pictures:
            self._users[picture.content] -= 1
            if not self._users[picture.content]:
                del self._users[picture.content]
                gone.append(picture.content)
        return tuple(gone)


class Kept:
    """The receiver's half."""

    def __init__(self) -> None:
        self._bytes: dict[ContentHash, bytes] = {}

    def complete(self, request: Request) -> Request:
        """The request as it was before it was lightened."""
        whole = []
        for picture in request.prompt.pictures:
            if picture.data:
                self._bytes[picture.content] = picture.data
            whole.append(picture if picture.data else replace(picture, data=self._bytes[picture.content]))
        request.prompt.token_ids.setflags(write=False)  # pickle does not carry it
        return _with_pictures(request, whole)

    def forget(self, contents: Iterable[ContentHash]) -> None:
        for content in contents:
            self._bytes.pop(content, None)

    def __len__(self) -> int:
        return len(self._bytes)


def _with_pictures(request: Request, pictures: list[Picture]) -> Request:
    if not pictures:
        return request
    return dataclasses.replace(request, prompt=replace(request.prompt, pictures=tuple(pictures)))
