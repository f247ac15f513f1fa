"""Integer tags of the first directory of a TIFF structure, which is also how EXIF is stored. Torch-free, Pillow-free.

Reading them here keeps one truth about orientation: no decoding (Pillow's ``getexif()`` decodes a PNG whose EXIF
follows its pixels), no fall-back to XMP, no warnings on damaged tags. Layout: TIFF 6.0, section 2; BigTIFF; EXIF 2.32.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

IMAGE_WIDTH = 256
IMAGE_LENGTH = 257
ORIENTATION = 274

_INTEGERS = {1: "B", 3: "H", 4: "L", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
_MAX_ENTRIES = 65_535


def read_tags(tiff: bytes, wanted: Collection[int]) -> dict[int, int]:
    """The first single, unsigned integer value of each ``wanted`` tag in the first directory; absent tags are left out.

    Raises ``ValueError`` if ``tiff`` is not a TIFF structure or its directory lies outside it.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise ValueError("no TIFF byte order mark")
    try:
        big, entries, count = _directory(tiff, order)
        found: dict[int, int] = {}
        size = 20 if big else 12
        for at in range(entries, entries + size * count, size):
            tag, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHL"), tiff, at)
            if tag in wanted and tag not in found and values == 1 and kind in _INTEGERS and (big or kind != 16):
                (found[tag],) = struct.unpack_from(order + _INTEGERS[kind], tiff, at + (12 if big else 8))
        return found
    except struct.error:
        raise ValueError("the first directory lies outside the data") from None


def orientation(exif: bytes) -> int:
    """The EXIF orientation (1..8) of a TIFF structure; 1 where it is absent, damaged or out of range."""
    try:
        value = read_tags(exif, (ORIENTATION,)).get(ORIENTATION, 1)
    except ValueError:
        return 1
    return value if 1 <= value <= 8 else 1


def _directory(tiff: bytes, order: str) -> tuple[bool, int, int]:
    """Whether it is BigTIFF, the offset of the first directory's entries, and their number."""
    (magic,) = struct.unpack_from(order + "H", tiff, 2)
    if magic == 42:
        (offset,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        return False, offset + 2, count
    if magic == 43:
        width, zero, offset = struct.unpack_from(order + "HHQ", tiff, 4)
        if (width, zero) != (8, 0) or offset > len(tiff):
            raise ValueError("not a BigTIFF header")
        (count,) = struct.unpack_from(order + "Q", tiff, offset)
        if count > _MAX_ENTRIES:
            raise ValueError("a directory with too many entries")
        return True, offset + 8, count
    raise ValueError("no TIFF magic number")
