"""Size and EXIF orientation from the first bytes of a picture file, format by format. Torch-free, Pillow-free.

Each reader takes the whole file and returns ``Frame``: width and height in pixels as stored, and the orientation (1..8)
that its EXIF asks for. It looks at headers only, in time that hostile files cannot stretch (the number of segments it
walks is bounded), and allocates nothing of the picture's size. Damage raises one of ``DAMAGE``. Of an animated or
multi-page file it describes the first picture, which is the one that :mod:`vision.decode` decodes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vision import exif

DAMAGE = (ValueError, IndexError, struct.error)
_MAX_SEGMENTS = 65_536


class Frame(NamedTuple):
    width: int
    height: int
    orientation: int = 1


def read_jpeg(data: bytes) -> Frame:
    """The frame header (SOFn) and the first EXIF segment (APP1), both of which precede the scan (ITU-T T.81, B.2)."""
    size: tuple[int, int] | None = None
    orientation: int | None = None
    for marker, start, end in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">xHH", data, start)
            size = width, height
        elif marker == 0xE1 and orientation is None and data.startswith(b"Exif\0\0", start):
            orientation = exif.orientation(data[start + 6 : end])
    if size is None:
        raise ValueError("no frame header before the pixels")
    return Frame(*size, orientation or 1)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """``(marker, start, end)`` of each segment's payload, up to the start of the first scan."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return
        marker = data[at + 1]
        if marker == 0xDA or marker == 0xD9:  # start of scan, end of image
            return
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif marker == 0x00 or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no payload
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            yield marker, at + 4, at + 2 + length
            at += 2 + max(length, 2)
    raise ValueError("too many segments before the pixels")


def read_png(data: bytes) -> Frame:
    """IHDR, and the eXIf chunk wherever it stands (PNG third edition, 11.3.4.5)."""
    if data[12:16] != b"IHDR":
        raise ValueError("the first chunk is not IHDR")
    width, height = struct.unpack_from(">LL", data, 16)
    at = 8
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > len(data):
            break
        (length,) = struct.unpack_from(">L", data, at)
        kind = data[at + 4 : at + 8]
        if kind == b"eXIf":
            return Frame(width, height, exif.orientation(data[at + 8 : at + 8 + length]))
        if kind == b"IEND":
            break
        at += 12 + length
    else:
        raise ValueError("too many chunks")
    return Frame(width, height)


def read_webp(data: bytes) -> Frame:
    """The first chunk (VP8, VP8L or VP8X) and, where VP8X announces it, the EXIF chunk (RFC 9649, section 2)."""
    kind = data[12:16]
    if kind == b"VP8X":
        flags, width, height = data[20], _uint24(data, 24) + 1, _uint24(data, 27) + 1
        return Frame(width, height, _webp_orientation(data) if flags & 0x08 else 1)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<L", data, 21)
        return Frame((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Frame(width & 0x3FFF, height & 0x3FFF)
    raise ValueError("no VP8, VP8L or VP8X header")


def _webp_orientation(data: bytes) -> int:
    at = 12
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > len(data):
            return 1
        (length,) = struct.unpack_from("<L", data, at + 4)
        if data[at : at + 4] == b"EXIF":
            return exif.orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    raise ValueError("too many chunks")


def read_gif(data: bytes) -> Frame:
    """The logical screen, grown to hold the first image where that reaches beyond it (GIF89a, sections 18 and 20)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(_MAX_SEGMENTS):
        kind = data[at]
        if in_extension:  # sub-blocks, each after its length; one of length zero ends them
            at += 1 + kind
            in_extension = kind > 0
        elif kind == 0x2C:
            left, top, columns, rows = struct.unpack_from("<HHHH", data, at + 1)
            return Frame(max(width, left + columns), max(height, top + rows))
        elif kind == 0x3B:
            break
        else:
            in_extension = kind == 0x21
            at += 2 if in_extension else 1
    raise ValueError("no image")


def read_bmp(data: bytes) -> Frame:
    """The DIB header: OS/2 1.x's 12 bytes, or one that begins like BITMAPINFOHEADER (rows may run downwards)."""
    (size,) = struct.unpack_from("<L", data, 14)
    if size == 12:
        return Frame(*struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ll", data, 18)
    return Frame(width, abs(height))


def read_tiff(data: bytes) -> Frame:
    """Width, length and orientation from the first directory."""
    tags = exif.read_tags(data, (exif.IMAGE_WIDTH, exif.IMAGE_LENGTH, exif.ORIENTATION))
    orientation = tags.get(exif.ORIENTATION, 1)
    if exif.IMAGE_WIDTH not in tags or exif.IMAGE_LENGTH not in tags:
        raise ValueError("no width or length in the first directory")
    return Frame(tags[exif.IMAGE_WIDTH], tags[exif.IMAGE_LENGTH], orientation if 1 <= orientation <= 8 else 1)


def _uint24(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16


READERS: Mapping[str, Callable[[bytes], Frame]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "GIF": read_gif,
    "BMP": read_bmp,
    "TIFF": read_tiff,
}
"""Reader by Pillow's name of the format."""


def sniff(data: bytes) -> str | None:
    """Which accepted format the signature announces, by Pillow's name, or ``None``."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    return None
