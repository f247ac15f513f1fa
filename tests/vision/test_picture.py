from __future__ import annotations

import io

import pytest
from PIL import Image

from mmserve.config import Limits
from mmserve.errors import PictureTooLarge, UnsupportedPicture
from mmserve.types import Grid, ImageHeader, Picture
from tests.vision.files import encode, noise, with_orientation
from vision.geometry import QwenGeometry
from vision.identity import content_hash
from vision.picture import read_picture

GEOMETRY = QwenGeometry(14, 2, 4 * 784, 64 * 784)
PRINT = b"p" * 32


def read(data: bytes, limits: Limits | None = None, cache_salt: str = "") -> Picture:
    return read_picture(data, geometry=GEOMETRY, fingerprint=PRINT, limits=limits or Limits(), cache_salt=cache_salt)


def test_a_picture_knows_its_header_identity_grid_and_rows() -> None:
    data = encode(noise(112, 56), "PNG")
    picture = read(data)
    assert picture.data is data
    assert picture.header == ImageHeader("PNG", 112, 56)
    assert picture.content == content_hash(data, PRINT)
    assert (picture.grid, picture.rows) == (Grid(1, 4, 8), 8)


def test_the_grid_is_that_of_the_picture_as_shown() -> None:
    assert read(with_orientation(noise(112, 56), "JPEG", 6)).grid == Grid(1, 8, 4)


def test_the_same_pixels_turned_by_exif_are_another_picture() -> None:
    copies = [with_orientation(noise(56, 56), "PNG", orientation) for orientation in range(1, 9)]
    assert len({read(copy).content for copy in copies}) == 8


def test_equal_pixels_in_other_encodings_are_other_pictures() -> None:
    image = noise(56, 56)
    files = [encode(image, "PNG"), encode(image, "BMP"), encode(image.convert("RGBA"), "PNG"), encode(image, "TIFF")]
    assert len({read(file).content for file in files}) == 4


def test_salt_and_settings_enter_the_identity() -> None:
    data = encode(noise(56, 56), "PNG")
    other = read_picture(data, geometry=GEOMETRY, fingerprint=b"q" * 32, limits=Limits())
    assert len({read(data).content, read(data, cache_salt="tenant").content, other.content}) == 3


def test_nothing_is_decoded() -> None:
    data = encode(noise(56, 56), "PNG")
    cut = data[:200]
    assert read(cut).grid == Grid(1, 4, 4)
    with pytest.raises(OSError, match="truncated"), Image.open(io.BytesIO(cut)) as image:
        image.load()


def test_limits_and_refusals_come_through() -> None:
    with pytest.raises(PictureTooLarge):
        read(encode(noise(56, 56), "PNG"), Limits(max_picture_pixels=100))
    with pytest.raises(UnsupportedPicture, match="200 times"):
        read(encode(noise(402, 2), "PNG"))
    with pytest.raises(UnsupportedPicture, match="not a picture"):
        read(b"hello")
