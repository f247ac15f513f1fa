"""Who may use the service, and what it may reach."""

from __future__ import annotations

from dataclasses import dataclass

from web.access.ring import KeyRing
from web.remote import RemotePictures


@dataclass(frozen=True, slots=True)
class Safety:
    """``None`` for ``keys`` lets everybody in; for ``remote`` it fetches no picture. ``origins`` are the other sites
    whose pages may use the API from a browser, as ``https://example.org``; ``*`` is all of them."""

    keys: KeyRing | None = None
    remote: RemotePictures | None = None
    origins: tuple[str, ...] = ()
