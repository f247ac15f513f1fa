"""From uploaded bytes to a ``Picture``: everything the prompt needs to know, with nothing decoded. Torch-free."""

from __future__ import annotations

from mmserve.config import Limits
from mmserve.types import Detail, Picture
from vision.geometry import Geometry
from vision.header import probe
from vision.identity import content_hash


def read_picture(
    data: bytes,
    *,
    geometry: Geometry,
    fingerprint: bytes,
    limits: Limits,
    cache_salt: str = "",
    detail: Detail = Detail(),  # noqa: B008 (frozen)
) -> Picture:
    """Probe, measure and hash an encoded picture; ``data`` is kept, not copied.

    ``fingerprint`` is :func:`vision.identity.fingerprint`'s; ``geometry``, which it covers, is already that of
    ``detail``. The cost is one SHA-256 pass over ``data`` and some microseconds; it does not depend on the picture's
    size in pixels. Raises ``PictureError``\\ s.
    """
    header = probe(data, limits)
    grid, rows = geometry.measure(header.width, header.height)
    content = content_hash(data, fingerprint, cache_salt)
    return Picture(data, header, content, grid, rows, geometry.resized(grid), detail)
