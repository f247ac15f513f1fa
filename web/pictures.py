"""Where the pictures of JSON bodies and forms come from: data URIs, and pictures that were sent before and are kept."""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mmserve.config import Limits
from mmserve.errors import InvalidField, PictureNotKept, PictureTooLarge, UnsupportedPicture

PREFIX = "pic-"
"""What the id of a kept picture begins with."""


@dataclass(slots=True)
class _Kept:
    data: bytes = field(repr=False)
    until: float


class PictureShelf:
    """Pictures that callers send once and name afterwards. Bounded in bytes and time; the longest unused goes first.

    An id is random and tells nothing of the picture; whoever sent the picture knows it, and it is all that is needed to
    ask about it. It is an address and no identity: what is asked about is the bytes, and the caches know them by these.
    Safe to use from several threads.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def put(self, data: bytes) -> str:
        """The id of ``data`` from now on. Raises ``PictureTooLarge`` for more than is kept altogether."""
        if len(data) > self.limits.max_kept_bytes:
            raise PictureTooLarge(
                f"the picture has {len(data)} bytes and this server keeps at most {self.limits.max_kept_bytes}: "
                "send it with each question",
                param="image",
            )
        identity = PREFIX + secrets.token_urlsafe(18)
        with self._lock:
            now = self._clock()
            self._kept[identity] = _Kept(data, now + self.limits.kept_seconds)
            self._size += len(data)
            # The oldest use is first, and every use gives the same time, so what is past comes first too.
            while self._size > self.limits.max_kept_bytes or next(iter(self._kept.values())).until <= now:
                self._forget(next(iter(self._kept)))
        return identity

    def get(self, identity: str, where: str) -> bytes:
        """The bytes called ``identity``. Raises ``PictureNotKept``, with ``where`` as the field at fault."""
        with self._lock:
            found, now = self._kept.get(identity), self._clock()
            if found is not None and found.until > now:
                found.until = now + self.limits.kept_seconds
                self._kept.move_to_end(identity)
                return found.data
        raise PictureNotKept(
            f"no picture called {identity[:64]!r} is kept here, or not any more: send it again", param=where
        )

    def drop(self, identity: str) -> bool:
        """Forget a picture; whether there was one."""
        with self._lock:
            return self._forget(identity)

    def read(self, address: str, where: str) -> bytes:
        """The picture at ``address``, a data URI or the id of a kept one. Raises as these do."""
        if address.startswith(PREFIX):
            return self.get(address, where)
        return decode_data_uri(address, self.limits.max_picture_bytes, where)

    def _forget(self, identity: str) -> bool:
        found = self._kept.pop(identity, None)
        if found is not None:
            self._size -= len(found.data)
        return found is not None


def decode_data_uri(uri: str, max_bytes: int, where: str) -> bytes:
    """The bytes of ``data:[type];base64,...``. The size is judged before anything is decoded.

    Raises ``InvalidField``, ``UnsupportedPicture`` or ``PictureTooLarge``, with ``where`` as the field at fault.
    """
    if uri[:5].lower() != "data:":
        raise InvalidField(
            "pictures at remote addresses are off on this server; send the picture itself as a data URI, "
            '"data:image/jpeg;base64,..."',
            param=where,
        )
    comma = uri.find(",", 0, 256)
    media_type, semicolon, encoding = uri[5 : max(comma, 5)].lower().rpartition(";")
    if not semicolon or encoding.strip() != "base64":
        raise InvalidField('the data URI must have the form "data:image/jpeg;base64,..."', param=where)
    kind = media_type.partition(";")[0].strip()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise UnsupportedPicture(f'the data URI holds "{kind[:64]}" and not a picture', param=where)
    payload = uri[comma + 1 :]
    padding = len(payload) - len(payload.rstrip("="))
    size = len(payload) // 4 * 3 - min(padding, 2)
    if size > max_bytes:
        raise PictureTooLarge(f"the picture has {size} bytes; at most {max_bytes} are allowed", param=where)
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidField("the data URI is not valid base64 (standard alphabet, padded)", param=where) from None
    if not data:
        raise UnsupportedPicture("the data URI is empty; send a picture", param=where)
    return data
