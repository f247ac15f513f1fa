"""The rule for files that are no still picture, and for what rides along in those that are.

SVG, PDF, videos and archives are refused by their first bytes and are never parsed. Of an animation the first picture
counts. Colour profiles are not applied, XMP is not read, and of EXIF only the orientation is; text, profiles and
metadata that unfold into more than Pillow allows make a picture corrupt.
"""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from mmserve.config import Limits
from mmserve.errors import CorruptPicture, PictureTooLarge, UnsupportedPicture
from vision.decode import decode
from vision.header import probe

LIMITS = Limits()
PIXELS = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3))


def png(*chunks: tuple[bytes, bytes], after: bool = False) -> bytes:
    """``PIXELS``, with chunks before (or ``after``) the pixels."""
    buffer = io.BytesIO()
    PIXELS.save(buffer, "PNG")
    data = buffer.getvalue()
    more = b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body)) for kind, body in chunks
    )
    at = data.index(b"IEND") - 4 if after else 33
    return data[:at] + more + data[at:]


def is_exact(data: bytes) -> bool:
    return decode(data, probe(data, LIMITS)).tobytes() == PIXELS.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><script>alert(1)</script></svg>',
        b'<svg><image href="file:///etc/passwd"/></svg>',
        b'<svg><image href="http://169.254.169.254/"/></svg>',
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><lolz>&b;</lolz>',
        b"%PDF-1.7\n1 0 obj<</JS(app.alert(1))>>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file",
        b"\0\0\0\x20ftypisom" + bytes(64),
        b"\0\0\0\x20ftypmp42" + bytes(64),
        b"\0\0\0\x14ftypqt  " + bytes(64),
        b"\x1a\x45\xdf\xa3" + bytes(64),
        b"RIFF\x40\0\0\0AVI LIST" + bytes(64),
        b"OggS" + bytes(64),
        b"FLV\x01" + bytes(64),
        b"#EXTM3U\nfile:///etc/passwd",
        b"push graphic-context\nfill 'url(https://127.0.0.1/\"|ls)'",
        b"<?xml version='1.0'?><x>" + b"&a;" * 100,
        b"PK\x03\x04" + bytes(64),
        b"GIMP" + bytes(64),
        b"SIMPLE  =                    T" + bytes(64),
        b"P6 8 6 255\n" + bytes(144),
        b"\x76\x2f\x31\x01" + bytes(64),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_still_picture_is_refused_by_its_first_bytes(data: bytes) -> None:
    with pytest.raises(UnsupportedPicture):
        probe(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"<!---->" * 10_000,
        b"<!--x--> " * 10_000,
        b"<?xml" * 10_000,
        b"<?xml?>" + b"<!---->" * 10_000,
        b"<?xml ?>" + b"<!DOCTYPE svg" * 10_000,
        b"<!--" * 10_000,
        b" " * 70_000,
        b"<?xml" + b"<!---->\n" * 10_000 + b"<!DOCTYPE svg" * 100,
        b"\xef\xbb\xbf" * 10_000,
    ],
    ids=lambda data: repr(data[:16]),
)
def test_telling_what_a_file_is_takes_no_time_that_it_could_stretch(data: bytes) -> None:
    """Two hundred bytes of comments once took for ever: each could end at any later one's end."""
    with pytest.raises(UnsupportedPicture):
        probe(data, LIMITS)


def test_what_is_hidden_behind_a_picture_is_not_looked_at() -> None:
    for tail in (b"<svg onload=alert(1)>", b"%PDF-1.7", b"PK\x03\x04", b"<?php system(1)?>", bytes(10_000)):
        assert is_exact(png() + tail)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_counts_and_no_other_is_decoded(format_: str) -> None:
    first = Image.new("RGB", (4, 3), "red")
    buffer = io.BytesIO()
    more = [Image.new("RGB", (4, 3), (i, 0, 255)) for i in range(50)]
    first.save(buffer, format_, save_all=True, append_images=more, **({"lossless": True} if format_ == "WEBP" else {}))
    data = buffer.getvalue()
    header = probe(data, LIMITS)
    assert (header.width, header.height) == (4, 3)
    assert decode(data, header).getpixel((1, 1)) == pytest.approx((255, 0, 0), abs=2)


BOMB = zlib.compress(bytes(100_000_000), 9)
"""100 MB of zeros in 100 kB."""


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iCCP", b"x\0\0" + BOMB),
        (b"zTXt", b"x\0\0" + BOMB),
        (b"iTXt", b"x\0\1\0\0\0" + BOMB),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    ],
    ids=["profile", "text", "international text", "XMP"],
)
@pytest.mark.parametrize("after", [False, True])
def test_metadata_that_unfolds_is_bounded(chunk: tuple[bytes, bytes], after: bool) -> None:
    data = png(chunk, after=after)
    header = probe(data, LIMITS)
    tracemalloc.start()
    try:
        decode(data, header)
    except CorruptPicture:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8_000_000


def test_many_texts_that_unfold_are_bounded_together() -> None:
    one = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK - 1), 9)
    data = png(*[(b"zTXt", b"x\0\0" + one)] * 100)
    with pytest.raises(CorruptPicture):
        decode(data, probe(data, LIMITS))


@pytest.mark.parametrize(
    "xmp",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><x:xmpmeta>&b;</x:xmpmeta>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x:xmpmeta>&a;</x:xmpmeta>',
        b"<" * 10_000,
        b"\xff\xfe" * 100,
    ],
)
def test_xmp_is_never_parsed(xmp: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("XMP was parsed")

    monkeypatch.setattr(Image.Image, "getxmp", parsed)
    assert is_exact(png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)))
    for format_, options in (("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        buffer = io.BytesIO()
        given = {700: xmp} if format_ == "TIFF" else None
        PIXELS.save(buffer, format_, **options, **({"tiffinfo": given} if given else {"xmp": xmp}))
        data = buffer.getvalue()
        assert decode(data, probe(data, LIMITS)).size == (8, 6)


def test_a_colour_profile_changes_nothing_and_a_false_one_harms_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for body in (profile, b"", b"\0" * 1000, b"\xff" * 100_000):
        assert is_exact(png((b"iCCP", b"x\0\0" + zlib.compress(body))))
        buffer = io.BytesIO()
        PIXELS.save(buffer, "WEBP", lossless=True, icc_profile=body)
        assert is_exact(buffer.getvalue())


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3\0\0\0\1\0\x63\0\0" * 50,  # orientation 99
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0\x08\0\0\0",  # a count that is not there
        b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",  # a directory that points at itself
        bytes(60_000),
    ],
)
def test_exif_that_makes_no_sense_turns_nothing(exif: bytes) -> None:
    assert is_exact(png((b"eXIf", exif)))


def test_a_picture_bomb_is_refused_before_anything_is_decoded() -> None:
    """Deflate of zeros: ten megabytes of pixels in ten kilobytes, for a size that the header tells."""
    side = 30_000
    rows = zlib.compressobj(9)
    body = rows.compress(bytes(1_000_000)) + rows.flush()
    head = struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(part)) + kind + part + struct.pack(">L", zlib.crc32(kind + part))
        for kind, part in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    )
    tracemalloc.start()
    try:
        with pytest.raises(PictureTooLarge, match="30000×30000"):
            probe(data, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
