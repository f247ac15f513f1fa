"""Damaged pictures and forms for fuzzing: real files and bodies, with seeded damage of the kinds that occur and of the
kinds that attackers try."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

Damage = Callable[[bytes, random.Random], bytes]

_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def originals() -> tuple[bytes, ...]:
    """Small pictures in every accepted format and several of its kinds: modes, animations, EXIF, ICC, XMP."""
    from PIL import ImageCms

    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    alpha = colours.convert("RGBA")
    alpha.putalpha(128)
    exif = Image.Exif()
    exif[274] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    said: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    frames: dict[str, Any] = {"save_all": True, "append_images": [colours.rotate(90), colours.rotate(180)]}
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours, "PNG", said),
        (alpha, "PNG", {}),
        (colours.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)), "PNG", {}),
        (colours.convert("1"), "PNG", {}),
        (colours, "PNG", frames),
        (colours, "JPEG", said | {"xmp": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "comment": b"a comment"}),
        (colours, "JPEG", {"progressive": True}),
        (colours.convert("L"), "JPEG", {}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "WEBP", said),
        (alpha, "WEBP", {"lossless": True}),
        (colours, "WEBP", frames),
        (colours, "GIF", {}),
        (colours, "GIF", frames),
        (colours, "BMP", {}),
        (colours, "TIFF", {"exif": exif}),
        (colours, "TIFF", {"compression": "tiff_lzw"}),
    ]
    files = []
    for image, kind, options in made:
        data = io.BytesIO()
        image.save(data, kind, **options)
        files.append(data.getvalue())
    return tuple(files)


# -- bytes of any kind -------------------------------------------------------------------------------------------------


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwritten(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.choice((1, 2, 4, 32))) + data[at + chance.randrange(8) :]


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def headless(data: bytes, chance: random.Random) -> bytes:
    return data[chance.randrange(1, min(64, len(data))) :]


def repeated(data: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:b] + data[a:b] * chance.choice((1, 2, 50)) + data[b:]


def left_out(data: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:a] + data[b:]


def numbered(data: bytes, chance: random.Random) -> bytes:
    """A number somewhere near the beginning, where sizes and offsets stand, becomes an awkward one."""
    size, order = chance.choice((1, 2, 4)), chance.choice(("big", "little"))
    at = chance.randrange(min(256, len(data)))
    number = (chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "big" if order == "big" else "little")
    return data[:at] + number + data[at + size :]


# -- pictures ----------------------------------------------------------------------------------------------------------


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk, as far as they are whole."""
    found, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + size > len(data):
            break
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png_of(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG whose check sums are right, so that a decoder goes on to what is wrong."""
    body = (struct.pack(">L", len(c)) + kind + c + struct.pack(">L", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


_INFLATES = zlib.compress(bytes(4_000_000))
_EXTRA = (
    (b"iCCP", b"x\0\0" + _INFLATES),
    (b"zTXt", b"Comment\0\0" + _INFLATES),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + _INFLATES),
    (b"eXIf", b"II*\0\xff\xff\xff\xff"),
    (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3\xff\xff\xff\xff" * 40),
    (b"PLTE", bytes(769)),
    (b"tRNS", bytes(300)),
    (b"acTL", struct.pack(">LL", 2**31, 0)),
    (b"IDAT", _INFLATES),
    (b"IHDR", struct.pack(">LLBBBBB", 1, 1, 8, 2, 0, 0, 0)),
    (b"IEND", b""),
)


def rechunked(data: bytes, chance: random.Random) -> bytes:
    """A PNG's chunks changed, dropped, doubled, swapped, or joined by one that lies; others' bytes are overwritten."""
    chunks = png_chunks(data)
    if not data.startswith(b"\x89PNG") or not chunks:
        return overwritten(data, chance)
    at = chance.randrange(len(chunks))
    match chance.randrange(5):
        case 0:
            kind, content = chunks[at]
            chunks[at] = (kind, numbered(content, chance) if content else b"x")
        case 1:
            del chunks[at]
        case 2:
            chunks.insert(chance.randrange(len(chunks)), chunks[at])
        case 3:
            chance.shuffle(chunks)
        case _:
            chunks.insert(chance.randrange(len(chunks) + 1), chance.choice(_EXTRA))
    return png_of(chunks)


def resegmented(data: bytes, chance: random.Random) -> bytes:
    """A JPEG's length or size of a segment lies, or a segment comes twice; of a RIFF, a chunk's length lies."""
    markers = [i for i in range(len(data) - 4) if data[i] == 0xFF and 0xC0 <= data[i + 1] <= 0xFE]
    if data.startswith(b"RIFF"):
        at = chance.choice((4, 16, 24, 30))
        return data[:at] + struct.pack("<L", chance.choice(_NUMBERS)) + data[at + 4 :]
    if not data.startswith(b"\xff\xd8") or not markers:
        return numbered(data, chance)
    at = chance.choice(markers)
    size = int.from_bytes(data[at + 2 : at + 4], "big")
    match chance.randrange(3):
        case 0:
            return data[: at + 2] + struct.pack(">H", chance.choice(_NUMBERS) & 0xFFFF) + data[at + 4 :]
        case 1:
            return data[: at + 2 + size] + data[at:]
        case _:
            return data[:at] + bytes([0xFF, chance.randrange(0xC0, 0xFF)]) + data[at + 2 :]


def spliced(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """The beginning of one picture and the end of another."""
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


DAMAGE: tuple[Damage, ...] = (
    *(flipped, overwritten, cut, headless, repeated, left_out, numbered),
    *(rechunked, rechunked, resegmented, resegmented),
)


def damaged_picture(files: Sequence[bytes], chance: random.Random) -> bytes:
    data = chance.choice(files)
    if chance.random() < 0.1:
        return spliced(data, chance, chance.choice(files))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if 2 <= len(data) <= 200_000:
            data = chance.choice(DAMAGE)(data, chance)
    return data


# -- forms -------------------------------------------------------------------------------------------------------------

_TYPES = (
    "multipart/form-data; boundary={b}",
    "multipart/form-data; boundary={b}",
    'multipart/form-data; boundary="{b}"',
    "Multipart/Form-Data; charset=utf-16; boundary={b}",
    "multipart/form-data; boundary={b}; boundary=other",
    "multipart/form-data; boundary*=utf-8''{b}",
    "multipart/form-data; boundary=",
    "multipart/form-data",
    "multipart/mixed; boundary={b}",
    "application/x-www-form-urlencoded",
    "application/json",
    "multipart/form-data; boundary={b}" + "x" * 4000,
    ";;;===",
    "",
)
_BOUNDARIES = ("XX", "XX", "XX", "-", "--", "a b", "x" * 70, "x" * 300, "'()+_,-./:=?", "ÿ", "\t", "XX--")
_NAMES = (
    "image",
    "question",
    "stop",
    "schema",
    "model",
    "seed",
    "",
    "x" * 5000,
    "image[]",
    'ima\\"ge',
    "ÿ\u0100",
    "\0",
)
_FILES = ("a.png", "", "../../etc/passwd", "C:\\a.png", "x" * 3000, "\0.png", 'a"; name="question', "ü.svg")
_HEADERS = (
    "Content-Type: image/png",
    "Content-Type: multipart/mixed; boundary=inner",
    "Content-Transfer-Encoding: base64",
    "Content-Transfer-Encoding: quoted-printable",
    'Content-Disposition: form-data; name="question"',
    "Content-Length: -1",
    "Content-Length: 99999999999",
    "X-Long: " + "y" * 9000,
    " folded",
    "no colon",
    ": no name",
    "Ünïcode: ÿ",
)
_TEXTS = (
    b"What is this?",
    b"",
    b"\xff\xfe",
    b"\0",
    b"1",
    b"-1",
    b"1e999",
    b"[1",
    b"{}",
    b"true",
    b"x" * 20_000,
    b"\r\n--XX",
)


def _disposition(chance: random.Random, name: str, file: str | None) -> str:
    line = chance.choice(
        (
            'Content-Disposition: form-data; name="{n}"',
            'Content-Disposition: form-data; name="{n}"',
            "content-disposition:form-data;name={n}",
            'Content-Disposition: attachment; name="{n}"',
            "Content-Disposition: form-data; name*=utf-8''{n}",
            'Content-Disposition: form-data; name="{n}"; name="image"',
            "Content-Disposition: form-data",
        )
    ).format(n=name)
    return line if file is None else f'{line}; filename="{file}"'


def _part(chance: random.Random, picture: bytes) -> tuple[str, bytes]:
    """Headers and content of one part, more often right than not."""
    if chance.random() < 0.4:
        return 'Content-Disposition: form-data; name="image"; filename="a.png"', picture
    if chance.random() < 0.5:
        return 'Content-Disposition: form-data; name="question"', b"What is this?"
    file = chance.choice(_FILES) if chance.random() < 0.4 else None
    lines = [_disposition(chance, chance.choice(_NAMES), file)]
    while chance.random() < 0.4:
        lines.insert(chance.randrange(2), chance.choice(_HEADERS))
    content = picture if chance.random() < 0.3 else chance.choice(_TEXTS)
    if chance.random() < 0.1:
        content = b'--inner\r\nContent-Disposition: file; filename="a"\r\n\r\n' + content + b"\r\n--inner--"
    return "\r\n".join(lines), content


def damaged_form(files: Sequence[bytes], chance: random.Random) -> tuple[bytes, str]:
    """A body and its content type."""
    boundary = chance.choice(_BOUNDARIES)
    end = "\n" if chance.random() < 0.05 else "\r\n"
    body = b"preamble\r\n" if chance.random() < 0.05 else b""
    for _ in range(chance.choice((0, 1, 2, 2, 2, 3, 5, 40))):
        headers, content = _part(chance, chance.choice(files))
        body += f"--{boundary}{end}{headers}{end}{end}".encode("utf-8", "surrogatepass") + content + end.encode()
    if chance.random() < 0.9:
        body += f"--{boundary}--{end}".encode()
    if chance.random() < 0.05:
        body += b"epilogue" * chance.choice((1, 1000))
    if chance.random() < 0.3 and len(body) >= 2:
        body = chance.choice((flipped, overwritten, cut, headless, repeated, left_out))(body, chance)
    kind = _TYPES[0] if chance.random() < 0.7 else chance.choice(_TYPES)
    return body, kind.format(b=boundary)
