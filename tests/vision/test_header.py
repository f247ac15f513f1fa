from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mmserve.config import Limits
from mmserve.errors import CorruptPicture, PictureError, PictureTooLarge, UnsupportedPicture
from mmserve.types import ImageHeader
from tests.vision.files import FORMATS, chunk, encode, exif_block, noise, png, with_orientation
from vision.containers import READERS
from vision.header import DECODER_MAX_PIXELS, probe

LIMITS = Limits()


def shown_by_pillow(data: bytes) -> tuple[str | None, tuple[int, int]]:
    with Image.open(io.BytesIO(data)) as image:
        return image.format, ImageOps.exif_transpose(image).size


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_format_and_size_are_pillows(format_: str, mode: str) -> None:
    if (format_, mode) == ("JPEG", "P"):
        mode = "CMYK"
    if format_ == "WEBP" and mode == "1":
        mode = "RGBA"
    data = encode(noise(37, 23).convert(mode), format_)
    assert probe(data, LIMITS) == ImageHeader(format_, 37, 23, 1)
    assert shown_by_pillow(data) == (format_, (37, 23))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 300), st.integers(1, 300))
def test_size_is_pillows_for_any_size(format_: str, width: int, height: int) -> None:
    data = encode(Image.new("RGB", (width, height)), format_)
    assert probe(data, LIMITS) == ImageHeader(format_, width, height)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_as_shown_after_the_exif_orientation(format_: str, orientation: int) -> None:
    data = with_orientation(noise(37, 23), format_, orientation)
    header = probe(data, LIMITS)
    assert header.orientation == orientation
    assert (header.width, header.height) == shown_by_pillow(data)[1]


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": b"", "xmp": b"x"}])
def test_each_kind_of_webp_is_read(options: dict[str, Any]) -> None:
    for mode in ("RGB", "RGBA"):
        data = encode(noise(65, 301).convert(mode), "WEBP", **options)
        assert probe(data, LIMITS) == ImageHeader("WEBP", 65, 301)


def test_progressive_and_multi_picture_jpegs_are_read() -> None:
    assert probe(encode(noise(40, 30), "JPEG", progressive=True), LIMITS) == ImageHeader("JPEG", 40, 30)
    buffer = io.BytesIO()
    noise(40, 30).save(buffer, "MPO", save_all=True, append_images=[noise(20, 10)])
    assert probe(buffer.getvalue(), LIMITS) == ImageHeader("JPEG", 40, 30)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_stands_for_its_first_frame(format_: str) -> None:
    data = encode(noise(40, 30), format_, save_all=True, append_images=[noise(40, 30, 1), noise(40, 30, 2)])
    assert probe(data, LIMITS) == ImageHeader(format_, 40, 30)


def test_a_pngs_exif_is_found_before_and_after_the_pixels() -> None:
    exif = chunk(b"eXIf", exif_block(6))
    rows = bytes(range(12))
    before, after = png(4, 3, 8, 0, rows, before=exif), png(4, 3, 8, 0, rows, after=exif)
    assert probe(before, LIMITS) == probe(after, LIMITS) == ImageHeader("PNG", 3, 4, 6)


def test_xmp_is_no_source_of_orientation() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    with Image.open(io.BytesIO(encode(noise(8, 4), "JPEG", xmp=xmp))) as image:
        assert image.getexif()[274] == 6  # what Pillow falls back to
    for format_ in ("JPEG", "WEBP"):
        assert probe(encode(noise(8, 4), format_, xmp=xmp), LIMITS) == ImageHeader(format_, 8, 4)
    assert probe(encode(noise(8, 4), "TIFF", tiffinfo={700: xmp}), LIMITS) == ImageHeader("TIFF", 8, 4)


def test_a_gifs_first_frame_may_reach_beyond_its_screen() -> None:
    data = bytearray(encode(noise(40, 30).convert("P"), "GIF"))
    data[6:10] = struct.pack("<HH", 10, 31)
    assert probe(bytes(data), LIMITS) == ImageHeader("GIF", 40, 31)
    assert shown_by_pillow(bytes(data)) == ("GIF", (40, 31))


def test_bitmaps_of_os2_and_with_rows_downwards_are_read() -> None:
    os2 = b"BM" + struct.pack("<LLL", 26 + 8, 0, 26) + struct.pack("<LHHHH", 12, 2, 1, 1, 24) + bytes(8)
    assert probe(os2, LIMITS) == ImageHeader("BMP", 2, 1)
    assert shown_by_pillow(os2) == ("BMP", (2, 1))
    data = bytearray(encode(noise(4, 3), "BMP"))
    data[22:26] = struct.pack("<l", -3)
    assert probe(bytes(data), LIMITS) == ImageHeader("BMP", 4, 3)


def test_nothing_is_an_unsupported_picture() -> None:
    with pytest.raises(UnsupportedPicture, match="empty"):
        probe(b"", LIMITS)


def test_bytes_are_counted_first() -> None:
    data = encode(noise(8, 8), "PNG")
    assert probe(data, Limits(max_picture_bytes=len(data))).width == 8
    with pytest.raises(PictureTooLarge, match=f"{len(data)} bytes, more than the {len(data) - 1} bytes"):
        probe(data, Limits(max_picture_bytes=len(data) - 1))
    with pytest.raises(PictureTooLarge, match=r"21\.0 MiB, more than the 20\.0 MiB"):
        probe(bytes(21 * 1024 * 1024), LIMITS)


@pytest.mark.parametrize("format_", FORMATS)
def test_pixels_are_counted_from_the_header(format_: str) -> None:
    data = encode(noise(8, 6), format_)
    assert probe(data, Limits(max_picture_pixels=48)).width == 8
    with pytest.raises(PictureTooLarge, match="8×6 = 48 pixels, more than the 47 allowed"):
        probe(data, Limits(max_picture_pixels=47))


def test_the_pixel_limit_comes_before_exif() -> None:
    huge = png(1, 1, 8, 0, b"\0", before=chunk(b"eXIf", exif_block(6)))
    huge = huge[:16] + struct.pack(">LL", 2**31 - 1, 2**31 - 1) + huge[24:]
    with pytest.raises(PictureTooLarge, match="scale it down"):
        probe(huge, LIMITS)


@pytest.mark.parametrize("side", [9_460, 20_000, 65_500])
def test_pillows_own_limit_neither_warns_nor_raises(side: int) -> None:
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureTooLarge, match=f"{DECODER_MAX_PIXELS:,} allowed"):
            probe(data, Limits(max_picture_pixels=10**12))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_size_of_zero_is_corrupt(size: tuple[int, int]) -> None:
    header = struct.pack(">LLBBBBB", *size, 8, 2, 0, 0, 0)
    with pytest.raises(CorruptPicture, match=f"{size[0]}×{size[1]}"):
        probe(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header), LIMITS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing: convert it"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<svg >", "SVG"),
        (b"<?xml version='1.0'?><!DOCTYPE svg PUBLIC ''>\n<svg\n", "SVG"),
        (b"<?xml version='1.0'?><feed/>", "web page or XML"),
        (b"<!DOCTYPE html><html><body><svg>", "web page"),
        (b"%PDF-1.7\n", "PDF document: send its pages"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypmif1", "HEIC"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x20ftypisom", "video: send it as a video, or single frames"),
        (b"\x1a\x45\xdf\xa3 webm", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a jxl", "JPEG XL"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"8BPS", "Photoshop"),
        (b"PK\x03\x04", "archive"),
        (b"a text file named .png", "not a picture in an accepted format: send JPEG, PNG"),
        (b"\xff\xd8", "not a picture"),
        (b"RIFF\0\0\0\0WAVE", "not a picture"),
    ],
)
def test_other_files_are_named_and_refused(data: bytes, says: str) -> None:
    with pytest.raises(UnsupportedPicture, match=says):
        probe(data, LIMITS)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_cut_header_is_corrupt_and_a_cut_body_is_not_the_headers_business(format_: str) -> None:
    data = encode(noise(9, 7), format_)
    whole = probe(data, LIMITS)
    seen = set()
    for length in range(16, len(data)):
        try:
            assert probe(data[:length], LIMITS) == whole
            seen.add("header")
        except PictureError as error:
            seen.add(type(error).__name__)
    assert seen >= {"CorruptPicture"}
    assert seen <= {"CorruptPicture", "header"}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_mutated_headers_give_a_header_or_a_picture_error(format_: str, draw: st.DataObject) -> None:
    data = bytearray(
        with_orientation(noise(9, 7), format_, 6) if format_ not in ("GIF", "BMP") else encode(noise(9, 7), format_)
    )
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, min(len(data), 200) - 1))] = draw.draw(st.integers(0, 255))
    try:
        header = probe(bytes(data), LIMITS)
    except PictureError:
        return
    assert 0 < header.width * header.height <= LIMITS.max_picture_pixels


SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBP",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*SIGNATURES, b""]), st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_picture_error(signature: bytes, data: bytes) -> None:
    with contextlib.suppress(PictureError):
        probe(signature + data, LIMITS)


ENDLESS = {
    "JPEG": b"\xff\xd8\xff" + b"\xff\xfe\0\2" * 2_000_000,
    "PNG": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">LLBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"teSt", b"") * 600_000,
    "WEBP": b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08" + bytes(9) + (b"XXXX" + bytes(4)) * 1_000_000,
    "GIF": b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe" + b"\1x" * 4_000_000,
    "TIFF": b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535),
}


@pytest.mark.parametrize("format_", ENDLESS)
def test_endless_headers_end(format_: str) -> None:
    with pytest.raises(CorruptPicture):
        probe(ENDLESS[format_], LIMITS)
    assert min(_cpu_seconds(ENDLESS[format_]) for _ in range(3)) < 0.5


def _cpu_seconds(data: bytes) -> float:
    start = time.thread_time()
    with contextlib.suppress(CorruptPicture):
        probe(data, LIMITS)
    return time.thread_time() - start


def test_every_accepted_format_has_a_reader() -> None:
    assert set(READERS) == set(FORMATS)


def test_probing_a_large_picture_takes_no_longer() -> None:
    data = encode(Image.new("RGB", (6000, 5000), "red"), "PNG")
    assert min(_cpu_seconds(data) for _ in range(20)) < 0.001


def test_what_the_http_side_imports_brings_in_neither_torch_nor_a_decoder() -> None:
    code = (
        "import sys, vision.header, vision.geometry; assert not {'torch', 'PIL', 'transformers'} & set(sys.modules);"
        "import vision.identity, vision.picture, vision.decode;"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
