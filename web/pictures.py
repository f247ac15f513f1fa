"""Where the pictures of JSON bodies and forms come from: data URIs, pictures that were sent before and are kept, and
remote addresses where they are allowed."""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmserve.config import Limits
from mmserve.errors import InvalidField, PictureNotKept, PictureTooLarge
from mmserve.types import MediaKind
from web.media import MEDIA
from web.visit import visit

PREFIX = "pic-"
"""What the id of a kept picture begins with."""

_ANY_TYPE: Mapping[MediaKind, tuple[str, ...]] = {
    "image": ("application/octet-stream",),
    "video": ("application/octet-stream",),
    "audio": ("application/octet-stream", "application/ogg"),
}


@dataclass(slots=True)
class _Kept:
    data: bytes = field(repr=False)
    until: float
    owner: str


class PictureShelf:
    """Pictures that callers send once and name afterwards. Bounded in bytes and time; the longest unused goes first,
    of the API key that has the most bytes here.

    An id is random and tells nothing of the picture. Only the key that sent the picture can name or drop it; without
    keys, whoever knows the id. It is an address and no identity: what is asked about is the bytes, and the caches know
    them by these.
    Safe to use from several threads.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return sum(self._sizes.values())

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
            now, owner = self._clock(), visit().owner
            self._kept[identity] = _Kept(data, now + self.limits.kept_seconds, owner)
            self._sizes[owner] = self._sizes.get(owner, 0) + len(data)
            # The oldest use is first, and every use gives the same time, so what is past comes first too.
            while next(iter(self._kept.values())).until <= now:
                self._forget(next(iter(self._kept)))
            while sum(self._sizes.values()) > self.limits.max_kept_bytes:
                most = max(self._sizes, key=lambda owner: self._sizes[owner])
                self._forget(next(name for name, kept in self._kept.items() if kept.owner == most))
        return identity

    def get(self, identity: str, where: str) -> bytes:
        """The bytes called ``identity``. Raises ``PictureNotKept``, with ``where`` as the field at fault."""
        with self._lock:
            found, now = self._kept.get(identity), self._clock()
            if found is not None and found.until > now and found.owner == visit().owner:
                found.until = now + self.limits.kept_seconds
                self._kept.move_to_end(identity)
                return found.data
        raise PictureNotKept(
            f"no picture called {identity[:64]!r} is kept here, or not any more: send it again", param=where
        )

    def drop(self, identity: str) -> bool:
        """Forget a picture; whether there was one."""
        with self._lock:
            found = self._kept.get(identity)
            return found is not None and found.owner == visit().owner and self._forget(identity)

    def read(self, address: str, where: str, kind: MediaKind = "image") -> bytes:
        """The picture (or what ``kind`` says) at ``address``: a data URI, the id of a kept one, or a remote address.

        Counts it for the API key. Raises as these do, and ``RateLimited``; ``PictureWanted`` for a remote picture that
        is not fetched yet, which is what ``web.generation.offload`` then does.
        """
        visit().charge_picture()
        if address.startswith(PREFIX):
            return self.get(address, where)
        if address[:5].lower() != "data:":
            return visit().remote_picture(address, where, kind)
        return decode_data_uri(address, MEDIA[kind].max_bytes(self.limits), where, kind)

    def _forget(self, identity: str) -> bool:
        found = self._kept.pop(identity, None)
        if found is not None:
            self._sizes[found.owner] -= len(found.data)
            if not self._sizes[found.owner]:
                del self._sizes[found.owner]
        return found is not None


def decode_data_uri(uri: str, max_bytes: int, where: str, kind: MediaKind = "image") -> bytes:
    """The bytes of ``data:[type];base64,...``. The size is judged before anything is decoded.

    Raises ``InvalidField``, ``UnsupportedPicture`` or ``PictureTooLarge`` (or their like for another ``kind``), with
    ``where`` as the field at fault.
    """
    medium = MEDIA[kind]
    comma = uri.find(",", 0, 256)
    media_type, semicolon, encoding = uri[5 : max(comma, 5)].lower().rpartition(";")
    if not semicolon or encoding.strip() != "base64":
        example = "data:image/jpeg;base64,..." if kind == "image" else f"data:{medium.types}...;base64,..."
        raise InvalidField(f'the data URI must have the form "{example}"', param=where)
    given = media_type.partition(";")[0].strip()
    if given and not given.startswith(medium.types) and given not in _ANY_TYPE[kind]:
        raise medium.unsupported(f'the data URI holds "{given[:64]}" and not a {medium.name}', param=where)
    payload = uri[comma + 1 :]
    padding = len(payload) - len(payload.rstrip("="))
    size = len(payload) // 4 * 3 - min(padding, 2)
    if size > max_bytes:
        raise medium.too_large(f"the {medium.name} has {size} bytes; at most {max_bytes} are allowed", param=where)
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidField("the data URI is not valid base64 (standard alphabet, padded)", param=where) from None
    if not data:
        raise medium.unsupported(f"the data URI is empty; send a {medium.name}", param=where)
    return data
