from __future__ import annotations

import dataclasses
import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from mmserve.config import Limits
from mmserve.errors import CorruptPicture, PictureError, UnsupportedPicture
from tests.vision.files import FORMATS, LOSSLESS, chunk, encode, exif_block, noise, png, tiff, with_orientation
from vision.decode import decode, decoder_id
from vision.header import probe


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    image = decode(data, probe(data, Limits()))
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(data: bytes) -> list[list[int]]:
    """Grey levels of a picture that is grey."""
    rgb = pixels(data)
    assert (rgb == rgb[..., :1]).all()
    levels: list[list[int]] = rgb[..., 0].tolist()
    return levels


@pytest.mark.parametrize("format_", LOSSLESS)
def test_pixels_come_back_exactly(format_: str) -> None:
    image = noise(37, 23)
    assert (pixels(encode(image, format_, **LOSSLESS[format_])) == np.asarray(image)).all()


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_as_exif_says(format_: str, orientation: int) -> None:
    data = with_orientation(noise(37, 23), format_, orientation, **LOSSLESS.get(format_, {}))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (pixels(data) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_after_the_pixels_of_a_png_counts(orientation: int) -> None:
    rows = bytes(range(0, 240, 20))
    plain = Image.fromarray(np.frombuffer(rows, np.uint8).reshape(3, 4))
    plain.getexif()[274] = orientation
    data = png(4, 3, 8, 0, rows, after=chunk(b"eXIf", exif_block(orientation, ">")))
    assert grey(data) == np.asarray(ImageOps.exif_transpose(plain)).tolist()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", [3, 6])
def test_xmp_turns_nothing(orientation: int) -> None:
    image = noise(8, 4)
    xmp = XMP % orientation
    itxt = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    with_xmp = {
        "PNG": png(8, 4, 8, 2, np.asarray(image).tobytes(), before=chunk(b"iTXt", itxt)),
        "WEBP": encode(image, "WEBP", lossless=True, xmp=xmp),
        "TIFF": encode(image, "TIFF", tiffinfo={700: xmp}),
    }
    for format_, data in with_xmp.items():
        assert xmp in data, format_
        assert (pixels(data) == np.asarray(image)).all(), format_


def test_exif_wins_where_xmp_disagrees() -> None:
    image = noise(8, 4)
    data = with_orientation(image, "TIFF", 8, tiffinfo={700: XMP % 3, 274: 8})
    assert (pixels(data) == np.asarray(image.transpose(Image.Transpose.ROTATE_90))).all()


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(format_: str) -> None:
    image = Image.new("RGBA", (4, 1))
    for x, alpha in enumerate((0, 51, 204, 255)):
        image.putpixel((x, 0), (100, 0, 255, alpha))
    options = {"WEBP": {"lossless": True, "exact": True}}.get(format_, {})
    assert pixels(encode(image, format_, **options)).tolist() == [
        [[255, 255, 255], [224, 204, 255], [131, 51, 255], [100, 0, 255]]
    ]


def test_grey_with_alpha_is_laid_over_white() -> None:
    image = Image.new("LA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (0, alpha))
    assert grey(encode(image, "PNG")) == [[255, 204, 0]]


def test_transparent_palette_entries_are_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 0])
    for x in range(3):
        image.putpixel((x, 0), x)
    one = pixels(encode(image, "PNG", transparency=1))
    assert one.tolist() == [[[0, 0, 0], [255, 255, 255], [200, 100, 0]]]
    several = pixels(encode(image, "PNG", transparency=b"\xff\x00\x66"))
    assert several.tolist() == [[[0, 0, 0], [255, 255, 255], [233, 193, 153]]]
    assert pixels(encode(image, "GIF", transparency=2)).tolist() == [[[0, 0, 0], [10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("depth", "rows", "key", "expected"),
    [
        (1, b"\x40", 1, [[0, 255]]),  # samples 0, 1: the key makes 1 white, which it is
        (1, b"\x40", 0, [[255, 255]]),
        (2, b"\x18", 1, [[0, 255]]),  # samples 0, 1 (85 of 255)
        (4, b"\x36", 3, [[255, 102]]),
        (4, b"\x36", 6, [[51, 255]]),
        (8, b"\x33\x66", 0x33, [[255, 102]]),
        (16, b"\x33\x01\x33\x02", 0x3302, [[51, 255]]),
    ],
)
def test_a_grey_colour_key_is_white_at_any_depth(depth: int, rows: bytes, key: int, expected: list[list[int]]) -> None:
    data = png(2, 1, depth, 0, rows, before=chunk(b"tRNS", struct.pack(">H", key)))
    assert grey(data) == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_key_is_white_at_any_depth(depth: int) -> None:
    samples = [10, 20, 30, 40, 50, 60]
    if depth == 16:
        samples = [256 * sample + 7 for sample in samples]
    rows = struct.pack(">6H" if depth == 16 else ">6B", *samples)
    data = png(2, 1, depth, 2, rows, before=chunk(b"tRNS", struct.pack(">3H", *samples[:3])))
    assert pixels(data).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_not_clipped(order: str) -> None:
    samples = struct.pack(order + "4H", 0, 255, 0x80FF, 0xFFFF)
    assert grey(tiff(4, 1, samples, {258: (3, 16)}, order)) == [[0, 0, 128, 255]]
    assert grey(png(4, 1, 16, 0, struct.pack(">4H", 0, 255, 0x80FF, 0xFFFF))) == [[0, 0, 128, 255]]
    array = np.array([[0, 255, 0x80FF, 0xFFFF]], np.uint16)
    assert grey(encode(Image.fromarray(array), "PNG")) == [[0, 0, 128, 255]]


def test_16_bit_grey_and_16_bit_colour_agree() -> None:
    values = (0, 0x1234, 0x80FF, 0xFFFF)
    colour = png(4, 1, 16, 2, b"".join(struct.pack(">3H", v, v, v) for v in values))
    alpha = png(4, 1, 16, 6, b"".join(struct.pack(">4H", v, v, v, 0xFFFF) for v in values))
    assert grey(colour) == grey(alpha) == grey(png(4, 1, 16, 0, struct.pack(">4H", *values))) == [[0, 0x12, 128, 255]]


def test_a_tiff_that_counts_from_white_is_inverted() -> None:
    assert grey(tiff(2, 1, struct.pack("<2H", 0, 0xFFFF), {258: (3, 16), 262: (3, 0)})) == [[255, 0]]
    assert grey(tiff(2, 1, b"\x00\xff", {262: (3, 0)})) == [[255, 0]]


def test_12_bit_grey_is_scaled() -> None:
    assert grey(tiff(2, 1, b"\x00\x0f\xff", {258: (3, 12)})) == [[0, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    image.paste((20, 160, 60), (0, 0, 8, 16))
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        assert converted is not None
    else:
        converted = image.convert(mode, palette=Image.Palette.ADAPTIVE)
    data = encode(converted, "TIFF")
    expected = np.asarray(image if mode in ("P", "CMYK", "YCbCr", "LAB") else converted.convert("RGB"), int)
    assert np.abs(pixels(data).astype(int) - expected).max() <= (8 if mode == "LAB" else 2)


def test_adobe_cmyk_jpegs_are_not_inverted() -> None:
    image = Image.new("RGB", (16, 16), (250, 250, 250)).convert("CMYK")
    assert pixels(encode(image, "JPEG", quality=95)).min() > 230


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_shown(format_: str) -> None:
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == (255, 0, 0)).all()


def test_of_a_multi_picture_jpeg_the_main_one_is_shown() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), "white").save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert pixels(buffer.getvalue()).shape == (8, 16, 3)


def test_a_gifs_first_frame_beyond_its_screen_is_whole() -> None:
    data = bytearray(encode(noise(40, 30).convert("P"), "GIF"))
    data[6:10] = struct.pack("<HH", 10, 31)
    assert pixels(bytes(data)).shape == (31, 40, 3)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_cut_picture_is_corrupt(format_: str) -> None:
    data = encode(noise(64, 64), format_)
    header = probe(data, Limits())
    for share in (0.5, 0.9):
        with pytest.raises(CorruptPicture, match="could not be decoded"):
            decode(data[: int(len(data) * share)], header)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("format_", FORMATS)
def test_a_picture_that_is_not_what_its_header_says_is_corrupt(format_: str) -> None:
    data = encode(noise(20, 10), format_)
    header = probe(data, Limits())
    for width, height in ((10, 20), (21, 10), (20, 9)):
        with pytest.raises(CorruptPicture, match="20×10"):
            decode(data, dataclasses.replace(header, width=width, height=height))


@pytest.mark.parametrize(
    "image", [Image.fromarray(np.ones((4, 4), np.float32)), Image.fromarray(np.ones((4, 4), np.int32))]
)
def test_samples_without_an_agreed_scale_are_refused(image: Image.Image) -> None:
    data = encode(image, "TIFF")
    with pytest.raises(UnsupportedPicture, match="convert it to 8 or 16 bits"):
        decode(data, probe(data, Limits()))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_mutated_files_decode_to_their_headers_size_or_raise_a_picture_error(format_: str, draw: st.DataObject) -> None:
    turned = format_ not in ("GIF", "BMP")
    data = bytearray(with_orientation(noise(9, 7), format_, 6) if turned else encode(noise(9, 7), format_))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        header = probe(bytes(data), Limits(max_picture_pixels=100_000))
        image = decode(bytes(data), header)
    except PictureError:
        pass
    else:
        assert (image.mode, image.size) == ("RGB", (header.width, header.height))


def test_threads_do_not_disturb_each_other() -> None:
    files = [with_orientation(noise(200, 100, seed), "JPEG", 1 + seed % 8) for seed in range(16)]
    alone = [pixels(file) for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels, files * 4))
    for index, array in enumerate(together):
        assert (array == alone[index % 16]).all()


def test_the_decoder_names_itself() -> None:
    assert decoder_id().startswith("rules 1, pillow ")
    assert "None" not in decoder_id()
