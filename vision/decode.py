"""Encoded picture to RGB pixels, as a person would see it. Torch-free.

The rules, which are part of every picture's identity (:func:`decoder_id`):

- of an animated or multi-page file, the first picture; of a JPEG with further pictures appended, the main one;
- turned as its EXIF orientation says (what :func:`vision.header.probe` read, nothing else: XMP is not consulted);
- transparency, in alpha channels, palettes and colour keys alike, is laid over white;
- 16-bit samples keep their high byte, so that dark stays dark and light stays light;
- CMYK, YCbCr, Lab, grey and bilevel become RGB by Pillow's conversions; colour profiles are not applied.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import PIL
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from mmserve.errors import CorruptPicture, UnsupportedPicture
from mmserve.types import ImageHeader

RULES = 1
"""Raised by one whenever the rules above change."""

# Opening by class, not by Image.open: the decoder then depends on the signature alone, and Pillow's process-wide pixel
# limit, which warns or raises there, does not act beside ours.
_PLUGINS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

_TURNS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From EXIF orientation to what makes the picture upright (EXIF 2.32, 4.6.4.A)."""


def decoder_id() -> str:
    """Name of the rules and of the libraries that carry them out, for the fingerprint."""
    codecs = (f"{name} {features.version(name)}" for name in ("jpg", "zlib", "webp", "libtiff"))
    return ", ".join((f"rules {RULES}", f"pillow {PIL.__version__}", *codecs))


def decode(data: bytes, header: ImageHeader) -> Image.Image:
    """The picture that ``header`` (from :func:`vision.header.probe` of the same bytes) describes, in mode ``"RGB"``.

    Its size is the header's. A new image, owned by the caller. Safe to call from several threads at once.

    Raises ``CorruptPicture`` if the data is damaged, cut off or disagrees with the header, and ``UnsupportedPicture``
    if its samples are floating-point numbers or 32-bit integers, for which no scale to 8 bits is agreed on.
    """
    try:
        stored = _load(data, header)
        _require_size(stored.size, header)
        return _turned(_rgb(stored), header)
    except (CorruptPicture, UnsupportedPicture):
        raise
    except Exception as error:  # on hostile bytes Pillow raises whatever its parsers happen to run into
        reason = str(error)[:200] or type(error).__name__
        raise CorruptPicture(
            f"the {header.format} picture could not be decoded ({reason}): send the whole, undamaged file"
        ) from error


def _load(data: bytes, header: ImageHeader) -> Image.Image:
    image = _PLUGINS[header.format](io.BytesIO(data))
    if header.format == "TIFF":
        # This plugin turns the picture itself while loading, as EXIF or else XMP says: our answer goes first.
        image.getexif()[ExifTags.Base.Orientation] = header.orientation
    elif header.format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = _colour_key(image.info["transparency"], image.mode, bits=data[24])
    image.load()
    return image


def _colour_key(key: object, mode: str, bits: int) -> object:
    """A PNG's transparent colour on the scale of the decoded samples: Pillow leaves it on that of the stored ones."""
    if isinstance(key, int) and mode in ("1", "L") and bits < 8:
        return key * 255 // (2**bits - 1)
    if isinstance(key, tuple) and bits == 16:
        return tuple(sample >> 8 for sample in key)
    return key


def _require_size(size: tuple[int, int], header: ImageHeader) -> None:
    shown = (header.width, header.height)
    on_its_side = header.orientation >= 5 and header.format != "TIFF"
    if size != (shown[::-1] if on_its_side else shown):
        raise CorruptPicture(
            f"the {header.format} picture decodes to {size[0]}×{size[1]} pixels, which is not what its header says: "
            "save it again with an image editor"
        )


def _turned(image: Image.Image, header: ImageHeader) -> Image.Image:
    turn = _TURNS.get(header.orientation)
    return image if turn is None or header.format == "TIFF" else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise UnsupportedPicture(
            "the picture's samples are 32-bit or floating-point numbers: convert it to 8 or 16 bits a channel"
        )
    if image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 (in TIFF also 12) bits; a TIFF may count from white, and a PNG name one transparent value."""
    samples = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = 12 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 16
    grey = (samples >> (bits - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[samples == key] = 255
    return Image.fromarray(grey).convert("RGB")
