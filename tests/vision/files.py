"""Picture files for tests: ordinary ones by Pillow, and ones it cannot write, byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without symmetry, so that each of the eight orientations looks different."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def exif_block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF structure with one tag, the orientation; ``kind`` is 3 (SHORT) or 4 (LONG)."""
    mark = {"<": b"II", ">": b"MM"}[order]
    value = struct.pack(order + {3: "HH", 4: "L"}[kind], *((orientation, 0) if kind == 3 else (orientation,)))
    entry = struct.pack(order + "HHL", 274, kind, 1) + value
    return mark + struct.pack(order + "HLH", 42, 8, 1) + entry + bytes(4)


def with_orientation(image: Image.Image, format_: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encode(image, format_, exif=exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of any depth and colour type, of packed samples; ``before`` and ``after`` are whole chunks around IDAT."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0))
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    body = chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + after + chunk(b"IEND", b"")


def tiff(width: int, height: int, samples: bytes, tags: dict[int, tuple[int, int]], order: str = "<") -> bytes:
    """An uncompressed one-strip greyscale TIFF; ``tags`` adds or replaces ``tag: (type, value)``."""
    base = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1)}
    entries = sorted((base | {278: (4, height), 279: (4, len(samples))} | tags).items())
    body = struct.pack(order + "H", len(entries))
    for tag, (kind, value) in entries:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "L", value)
        body += struct.pack(order + "HHL", tag, kind, 1) + packed
    padded = samples + bytes(len(samples) % 2)
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(order + "HL", 42, 8 + len(padded)) + padded + body + bytes(4)
