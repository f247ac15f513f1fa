"""What makes two pictures the same picture to a cache: exact, full-width digests. Torch-free.

Every digest here is SHA-256 over parts that are each preceded by their length, under a tag that names the kind of
thing hashed. So no two different lists of parts, and no two kinds, give the same input to the hash: equality of
digests is equality of pictures *and* of everything that turns them into embedding rows. Digests are never truncated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmserve.errors import UnsupportedPicture
from mmserve.types import ContentHash

Part = bytes | bytearray | memoryview


def digest(tag: str, *parts: Part) -> bytes:
    """SHA-256 (32 bytes) over ``tag`` and ``parts``, each framed by its length as 8 little-endian bytes."""
    hasher = hashlib.sha256()
    for part in (tag.encode(), *parts):
        view = memoryview(part)
        hasher.update(view.nbytes.to_bytes(8, "little"))
        hasher.update(view)
    return hasher.digest()


def fingerprint(
    *,
    weights: bytes,
    vision_config: Mapping[str, Any],
    processor: Mapping[str, Any],
    geometry: object,
    decoder: str,
) -> bytes:
    """Digest of everything besides the file that shapes a picture's embedding rows.

    ``weights`` identifies the model's parameters (``Checkpoint.fingerprint``), ``vision_config`` and ``processor``
    are its configuration as read from disk, ``geometry`` is the dataclass that holds the pixel limits in force,
    and ``decoder`` names the decoding rules and their implementation (``vision.decode.decoder_id``).
    """
    if not dataclasses.is_dataclass(geometry) or isinstance(geometry, type):
        raise TypeError("geometry must be a dataclass instance, so that all its fields are known")
    settings = {"kind": type(geometry).__name__, **dataclasses.asdict(geometry)}
    parts = (canonical_json(vision_config), canonical_json(processor), canonical_json(settings), decoder.encode())
    return digest("mmserve/picture-settings/1", weights, *parts)


def content_hash(data: bytes, fingerprint: bytes, cache_salt: str = "") -> ContentHash:
    """Identity of an encoded picture: its bytes as uploaded, the settings and the tenant's ``cache_salt``.

    One pass over ``data``, which is neither copied nor decoded; the GIL is released meanwhile. File names, URLs and
    metadata given beside the file are no part of it.
    """
    return ContentHash(digest("mmserve/picture-file/1", fingerprint, _utf8(cache_salt), data))


def pixels_hash(picture: Image.Image | npt.NDArray[Any], fingerprint: bytes, cache_salt: str = "") -> ContentHash:
    """Identity of pixels that never were a file: mode or dtype, shape, palette and transparency, and the pixels.

    Its tags differ from :func:`content_hash`'s, so a picture given as pixels never shares an entry with a file.
    Metadata that a PIL image carries (EXIF among it) is no part of it: the pixels are taken as they are. Raises
    ``UnsupportedPicture`` for an array of anything but numbers.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype.kind not in "biuf":
            raise UnsupportedPicture(f"an array of {picture.dtype} holds no pixels: give integers or real numbers")
        shape = ",".join(map(str, picture.shape))
        parts: tuple[bytes, ...] = (picture.dtype.str.encode(), shape.encode(), np.ascontiguousarray(picture).tobytes())
        return ContentHash(digest("mmserve/picture-array/1", fingerprint, _utf8(cache_salt), *parts))
    picture.load()
    shape = f"{picture.width},{picture.height}"
    parts = (picture.mode.encode(), shape.encode(), *_palette(picture), picture.tobytes())
    return ContentHash(digest("mmserve/picture-pixels/1", fingerprint, _utf8(cache_salt), *parts))


def canonical_json(value: object) -> bytes:
    """One byte string for equal JSON values: sorted keys, no white space, ASCII. Tuples become lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _palette(picture: Image.Image) -> tuple[bytes, bytes, bytes]:
    """Palette mode, palette entries and transparency: two palette pictures may differ in nothing else."""
    transparency = repr(picture.info.get("transparency")).encode()
    if picture.palette is None:
        return b"", b"", transparency
    return picture.palette.mode.encode(), bytes(picture.getpalette("RGBA") or ()), transparency


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
