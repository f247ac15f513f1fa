"""What makes two sounds the same sound to a cache. Torch-free; ``vision.identity`` says how digests are framed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmserve.sounds.geometry import SoundGeometry
from mmserve.types import ContentHash
from vision.identity import Part, canonical_json, digest


def sound_fingerprint(
    *,
    weights: bytes,
    audio_config: Mapping[str, Any],
    processor: Mapping[str, Any],
    geometry: SoundGeometry,
    decoder: str,
) -> bytes:
    """Digest of everything besides the file that shapes a sound's embedding rows.

    As ``vision.identity.fingerprint``; ``decoder`` is ``mmserve.sounds.decode.decoder_id``'s.
    """
    settings = canonical_json(dataclasses.asdict(geometry))
    parts = (canonical_json(audio_config), canonical_json(processor), settings, decoder.encode())
    return digest("mmserve/sound-settings/1", weights, *parts)


def sound_hash(data: Part, fingerprint: bytes, cache_salt: str = "") -> ContentHash:
    """Identity of an encoded sound: its bytes as uploaded, the settings and the tenant's ``cache_salt``.

    The tag is its own, so that a file which also is a picture never shares an entry with it.
    """
    return ContentHash(digest("mmserve/sound-file/1", fingerprint, cache_salt.encode("utf-8", "surrogatepass"), data))
