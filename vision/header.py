"""What a picture's header says, checked against the limits before anything is decoded. Torch-free, Pillow-free.

Accepted: JPEG, PNG, WebP, GIF, BMP and TIFF, told apart by their signature alone; names and media types are not
looked at. An animated or multi-page file stands for its first picture. Drawings (SVG), documents (PDF) and videos are
refused with a sentence that says what to do, as are HEIC, AVIF, JPEG 2000, JPEG XL and icons.
"""

from __future__ import annotations

import re

from mmserve.config import MIB, Limits
from mmserve.errors import CorruptPicture, PictureTooLarge, UnsupportedPicture
from mmserve.types import ImageHeader
from vision.containers import DAMAGE, READERS, Frame, sniff

DECODER_MAX_PIXELS = 89_478_485
"""Pillow's own guard (``Image.MAX_IMAGE_PIXELS``): part of its decoders apply it, whatever the caller's limit says."""

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP or TIFF"


def probe(data: bytes, limits: Limits) -> ImageHeader:
    """The header of an encoded picture. Microseconds, and in time and memory that do not grow with the picture's size.

    Checked in this order: that there are bytes, their number, the format, the number of pixels; only then EXIF counts.
    No more than ``DECODER_MAX_PIXELS`` are accepted, even where ``limits`` allows them.

    Raises ``UnsupportedPicture`` (not an accepted format), ``PictureTooLarge`` (bytes or pixels) and ``CorruptPicture``
    (an accepted format whose header is damaged). A header that reads well is no promise that the pixels do.
    """
    if not data:
        raise UnsupportedPicture("the picture is empty (0 bytes): send the content of the file")
    if len(data) > limits.max_picture_bytes:
        raise PictureTooLarge(
            f"the picture has {_mib(len(data))}, more than the {_mib(limits.max_picture_bytes)} allowed: "
            "send a smaller or more strongly compressed one"
        )
    format_ = sniff(data)
    if format_ is None:
        raise UnsupportedPicture(_what_it_is(data))
    try:
        frame = READERS[format_](data)
    except DAMAGE as error:
        raise CorruptPicture(
            f"the picture's {format_} header is damaged or cut off ({error}): send the whole file"
        ) from None
    return _checked(format_, frame, limits)


def _checked(format_: str, frame: Frame, limits: Limits) -> ImageHeader:
    width, height, orientation = frame
    if width <= 0 or height <= 0:
        raise CorruptPicture(f"the picture's {format_} header gives its size as {width}×{height}: send the whole file")
    allowed = min(limits.max_picture_pixels, DECODER_MAX_PIXELS)
    if width * height > allowed:
        raise PictureTooLarge(
            f"the picture has {width}×{height} = {width * height:,} pixels, more than the {allowed:,} allowed: "
            "scale it down"
        )
    if orientation >= 5:  # these four lay the picture on its side
        width, height = height, width
    return ImageHeader(format_, width, height, orientation)


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count:,} bytes"


_TO_PNG = "convert it to PNG or JPEG first"
# Declaration and comments each end where they first can, and are not tried again (possessive), or a few hundred bytes
# of comments would be looked at in more ways than there is time for.
_SVG = r"(?s)(\xef\xbb\xbf)?\s*(<\?xml((?!\?>).)*+\?>\s*)?+(<!--((?!-->).)*+-->\s*)*+(<!DOCTYPE svg.*?)?<svg[\s>]"
_SIGNATURES: tuple[tuple[str, str], ...] = (
    (_SVG, f"an SVG drawing: {_TO_PNG}"),
    (r"(?s)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|\?xml)", "a web page or XML, not a picture"),
    (r"%PDF-", "a PDF document: send its pages as pictures"),
    (r"(?s)....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", f"a HEIC/HEIF picture: {_TO_PNG}"),
    (r"(?s)....ftyp(avif|avis)", f"an AVIF picture: {_TO_PNG}"),
    (
        r"(?s)....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI |\x00\x00\x01[\xb3\xba]",
        "a video: send it as a video, or single frames as pictures",
    ),
    (r"(?s)\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", f"a JPEG 2000 picture: {_TO_PNG}"),
    (r"(?s)\x00\x00\x00\x0cJXL \r\n\x87\n|\xff\x0a", f"a JPEG XL picture: {_TO_PNG}"),
    (r"\x00\x00[\x01\x02]\x00", f"an icon: {_TO_PNG}"),
    (r"8BPS", f"a Photoshop document: {_TO_PNG}"),
    (r"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive: send the pictures in it one by one"),
)


def _what_it_is(data: bytes) -> str:
    """A sentence for bytes that no accepted signature begins."""
    head = data[:1024].decode("latin-1")
    for pattern, kind in _SIGNATURES:
        if re.match(pattern, head, re.IGNORECASE):
            return f"the file looks like {kind} (accepted: {ACCEPTED})"
    return f"the file is not a picture in an accepted format: send {ACCEPTED}"
