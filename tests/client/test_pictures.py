"""Whatever is called a picture becomes the bytes of a picture file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmserve.client.pictures import PictureFile, read_picture, read_pictures
from mmserve.errors import InvalidField


def jpeg(tmp_path: Path, name: str = "photo.jpg") -> Path:
    path = tmp_path / name
    Image.new("RGB", (4, 3), "red").save(path, "JPEG")
    return path


def decode(file: PictureFile) -> Image.Image:
    return Image.open(io.BytesIO(file.data))


class TestFilesGoAsTheyAre:
    def test_paths(self, tmp_path: Path) -> None:
        path = jpeg(tmp_path, "Fötö 1.jpg")
        for given in (path, str(path)):
            assert read_picture(given) == PictureFile("Fötö 1.jpg", path.read_bytes())

    @pytest.mark.parametrize("cls", [bytes, bytearray, memoryview])
    def test_bytes(self, tmp_path: Path, cls: Any) -> None:
        data = jpeg(tmp_path).read_bytes()
        file = read_picture(cls(data))
        assert (file.data, type(file.data)) == (data, bytes)

    def test_file_objects(self, tmp_path: Path) -> None:
        path = jpeg(tmp_path)
        with path.open("rb") as opened:
            assert read_picture(opened) == PictureFile("photo.jpg", path.read_bytes())
        assert read_picture(io.BytesIO(b"abc")) == PictureFile("image", b"abc")

    def test_a_file_object_opened_by_descriptor(self, tmp_path: Path) -> None:
        import os

        descriptor = os.open(jpeg(tmp_path), os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as opened:
            assert read_picture(opened).name == "image"

    def test_broken_files_are_for_the_server_to_judge(self) -> None:
        assert read_picture(b"").data == b""
        assert read_picture(b"not a picture").data == b"not a picture"


class TestEncodedHere:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
    def test_pil_images_lose_nothing(self, mode: str) -> None:
        image = Image.effect_noise((8, 6), 64).convert("RGB" if mode == "P" else "L")
        image = image.convert(mode) if mode != "I;16" else Image.new("I;16", (8, 6), 40_000)
        back = decode(read_picture(image))
        assert (back.mode, back.size) == (mode, (8, 6))
        assert back.tobytes() == image.tobytes()

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "F", "I", "RGBX"])
    def test_modes_that_png_lacks_become_rgb(self, mode: str) -> None:
        file = read_picture(Image.new(mode, (5, 4)))
        assert (decode(file).mode, decode(file).size, file.media_type) == ("RGB", (5, 4), "image/png")

    def test_premultiplied_alpha_keeps_its_alpha(self) -> None:
        assert decode(read_picture(Image.new("RGBa", (2, 2)))).mode == "RGBA"

    @pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3), (6, 8, 4)])
    def test_arrays(self, shape: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(np.asarray(decode(read_picture(array))), array)

    def test_the_same_pixels_are_the_same_bytes(self) -> None:
        array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        assert read_picture(array).data == read_picture(Image.fromarray(array)).data

    def test_a_floating_point_array_is_refused_by_name(self) -> None:
        with pytest.raises(TypeError):
            read_picture(np.zeros((4, 4, 3), dtype=np.float64))


class TestRefused:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_picture(tmp_path / "missing.jpg")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises((IsADirectoryError, PermissionError)):
            read_picture(tmp_path)

    def test_a_text_file_object(self) -> None:
        with pytest.raises(TypeError, match="binary mode"):
            read_picture(io.StringIO("abc"))  # type: ignore[arg-type]

    @pytest.mark.parametrize("thing", [None, 3, {"a": 1}, iter([b"x"])])
    def test_other_things(self, thing: Any) -> None:
        with pytest.raises(
            TypeError, match="a picture is a path, bytes, a binary file object, a PIL image or an array"
        ):
            read_picture(thing)


class TestSeveral:
    def test_one_a_list_or_a_tuple(self) -> None:
        assert [f.data for f in read_pictures(b"a")] == [b"a"]
        assert [f.data for f in read_pictures([b"a", b"b"])] == [b"a", b"b"]
        assert [f.data for f in read_pictures((b"a", io.BytesIO(b"b")))] == [b"a", b"b"]

    def test_an_array_is_one_picture(self) -> None:
        assert len(read_pictures(np.zeros((4, 4, 3), dtype=np.uint8))) == 1

    @pytest.mark.parametrize("none", [[], ()])
    def test_none(self, none: Any) -> None:
        with pytest.raises(InvalidField):
            read_pictures(none)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_media_types_by_the_first_bytes(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    assert PictureFile("x", buffer.getvalue()).media_type == f"image/{kind.lower()}"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"MM\x00*....", "image/tiff"),
        (b"\x00\x00\x00\x1cftypavif", "image/avif"),
        (b"\x00\x00\x00\x1cftypheic", "image/heic"),
        (b"RIFF....WAVE", "application/octet-stream"),
        (b"hello", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_media_types_of_other_bytes(data: bytes, media_type: str) -> None:
    assert PictureFile("x", data).media_type == media_type
