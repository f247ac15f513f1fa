"""What the kinds of media differ in on the wire: what people call them, how much is allowed, how one is refused."""

from __future__ import annotations

from collections import Counter
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
    UnsupportedVideo,
    VideoNotFetched,
    VideoTooLarge,
)
from mmserve.sounds.sound import Sound
from mmserve.types import AudioPart, Detail, ImagePart, MediaKind, MediaPart, Prompt
from vision.video import Video, VideoBlock


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
    "video": Medium(
        "video",
        "video/",
        "video",
        "max_video_bytes",
        "max_videos",
        UnsupportedVideo,
        VideoTooLarge,
        VideoNotFetched,
        TooManyMedia,
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
    """A picture or sound as a part of a message; ``detail`` is for pictures."""
    return AudioPart(data) if kind == "audio" else ImagePart(data, detail)


def media_json(prompt: Prompt) -> dict[str, Any]:
    """What an answer says of the media that are no pictures; nothing where there are none."""
    return {**videos_json(prompt), **sounds_json(prompt)}


def videos_json(prompt: Prompt) -> dict[str, Any]:
    """``videos``, where the prompt has any: size in pixels as shown, length and the times of the frames that the model
    saw, in seconds, and tokens."""
    tokens: Counter[int] = Counter()
    videos: dict[int, Video] = {}
    for item in prompt.media:
        if isinstance(item, VideoBlock):
            videos[id(item.video)] = item.video
            tokens[id(item.video)] += item.rows
    found = [
        {
            "width": video.width,
            "height": video.height,
            "duration": round(video.header.duration, 3),
            "frames": [round(time, 3) for time in video.sampling.times],
            "tokens": tokens[key],
        }
        for key, video in videos.items()
    ]
    return {"videos": found} if found else {}


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
