"""What the kinds of media differ in on the wire: what people call them, how much is allowed, how one is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmserve.config import Limits
from mmserve.errors import (
    AudioNotFetched,
    AudioTooLarge,
    MediaError,
    PictureNotFetched,
    PictureTooLarge,
    RequestError,
    TooManyMedia,
    TooManyPictures,
    UnsupportedAudio,
    UnsupportedPicture,
)
from mmserve.sounds.sound import Sound
from mmserve.types import AudioPart, Detail, ImagePart, MediaKind, MediaPart, Prompt


@dataclass(frozen=True, slots=True)
class Medium:
    """``name`` is what people call one. ``types`` is how the media types begin that a data URI may give; ``field`` is
    the file part of a form. The limits are by the names that they have in ``Limits``."""

    name: str
    types: str
    field: str
    bytes_limit: str
    number_limit: str
    unsupported: type[MediaError]
    too_large: type[MediaError]
    not_fetched: type[MediaError]
    too_many: type[RequestError]

    def max_bytes(self, limits: Limits) -> int:
        return int(getattr(limits, self.bytes_limit))

    def most(self, limits: Limits) -> int:
        return int(getattr(limits, self.number_limit))


MEDIA: Mapping[MediaKind, Medium] = {
    "image": Medium(
        "picture",
        "image/",
        "image",
        "max_picture_bytes",
        "max_pictures",
        UnsupportedPicture,
        PictureTooLarge,
        PictureNotFetched,
        TooManyPictures,
    ),
    "audio": Medium(
        "sound",
        "audio/",
        "audio",
        "max_sound_bytes",
        "max_sounds",
        UnsupportedAudio,
        AudioTooLarge,
        AudioNotFetched,
        TooManyMedia,
    ),
}


def check_number(kind: MediaKind, number: int, limits: Limits, where: str) -> None:
    """Raise ``TooManyPictures`` or ``TooManyMedia`` where a request has more of a kind than it may."""
    medium = MEDIA[kind]
    if number > medium.most(limits):
        raise medium.too_many(f"a request may have at most {medium.most(limits)} {medium.name}s", param=where)


def part_of(kind: MediaKind, data: bytes, detail: Detail) -> MediaPart:
    """A file as a part of a message; ``detail`` is for pictures."""
    return AudioPart(data) if kind == "audio" else ImagePart(data, detail)


def sounds_json(prompt: Prompt) -> dict[str, Any]:
    """``sounds``, where the prompt has any: how many seconds the model hears of each, rate, channels and tokens."""
    sounds: Sequence[Sound] = [item for item in prompt.media if isinstance(item, Sound)]
    return {"sounds": [sound_json(sound) for sound in sounds]} if sounds else {}


def sound_json(sound: Sound) -> dict[str, Any]:
    header = sound.header
    return {
        "format": header.format,
        "rate": header.rate,
        "channels": header.channels,
        "heard_seconds": round(sound.seconds, 3),
        "tokens": sound.rows,
    }
