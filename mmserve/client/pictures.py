"""Whatever a caller calls a picture -> the bytes of a picture file.

Files and bytes go to the server as they are: it names a picture by its raw bytes, so re-encoding one here would
make the server see another picture. Only what has no file behind it (PIL images, arrays) is encoded, as PNG.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from mmserve.errors import InvalidField

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

PictureLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image | npt.NDArray[Any] | PictureFile"
)
"""A path, the bytes of a picture file, a binary file object, a PIL image, an array
(height x width [x channels] of uint8, as ``PIL.Image.fromarray`` takes it), or what ``Client.image`` made of one."""


@dataclass(frozen=True)  # no slots: what is computed once is kept in the instance
class PictureFile:
    """The bytes of one picture file. The name is a courtesy to whoever reads the server's log."""

    name: str
    data: bytes = field(repr=False)

    @cached_property
    def data_uri(self) -> str:
        """The bytes as chat messages carry them."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"

    @property
    def media_type(self) -> str:
        """By the first bytes; ``application/octet-stream`` for what is not known here (the server decides)."""
        for offset, magic, media_type in _MAGIC:
            if self.data.startswith(magic, offset):
                return media_type
        return "application/octet-stream"


@dataclass(frozen=True)
class PictureHandle(PictureFile):
    """A picture to ask about often, as ``Client.image`` hands it out: read once, and sent to each server once.

    The first request that asks about it sends it, and those that follow name it by the id that the server gave it. A
    server that does not keep it, or keeps it no longer, gets the bytes again. May be used with several clients.
    """


_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyphei", "image/heic"),
)


def read_pictures(pictures: PictureLike | Sequence[PictureLike]) -> tuple[PictureFile, ...]:
    """Read one picture, or each of a list or tuple. Raises as :func:`read_picture` does, or InvalidField for none."""
    if isinstance(pictures, (list, tuple)):
        files = tuple(read_picture(picture) for picture in pictures)
    else:
        files = (read_picture(cast("PictureLike", pictures)),)
    if not files:
        raise InvalidField("give at least one picture", param="image")
    return files


def read_picture(picture: PictureLike) -> PictureFile:
    """Read one picture; raises OSError (``FileNotFoundError``) for a file that cannot be read, TypeError otherwise."""
    if isinstance(picture, PictureFile):
        return picture
    if isinstance(picture, (str, os.PathLike)):
        with open(picture, "rb") as file:
            return PictureFile(PurePath(picture).name, file.read())
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return PictureFile("image", bytes(picture))
    if hasattr(picture, "read"):
        return _read_file_object(cast("BinaryIO", picture))
    return PictureFile("image.png", _encode_png(picture))


def read_handle(picture: PictureLike) -> PictureHandle:
    """:func:`read_picture`, for asking about it often."""
    if isinstance(picture, PictureHandle):
        return picture
    file = read_picture(picture)
    return PictureHandle(file.name, file.data)


def _read_file_object(file: BinaryIO) -> PictureFile:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError("a picture's file object must be open in binary mode ('rb')")
    name = getattr(file, "name", None)  # an int for some file objects, absent for others
    return PictureFile(PurePath(name).name if isinstance(name, str) else "image", data)


def _encode_png(picture: object) -> bytes:
    from PIL import Image

    if not isinstance(picture, Image.Image):
        if not hasattr(picture, "__array_interface__"):
            raise TypeError(
                "a picture is a path, bytes, a binary file object, a PIL image or an array,"
                f" not {type(picture).__name__}"
            )
        picture = Image.fromarray(cast("Any", picture))
    if picture.mode not in _PNG_MODES:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # the wire is fast; zlib at its usual level is not
    return buffer.getvalue()


_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
