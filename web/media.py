"""The kinds of media that requests carry: what each is called on the wire, and what a request may have of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.config import Limits
from mmserve.errors import (
    AudioTooLarge,
    MediaError,
    MediaNotFetched,
    PictureNotFetched,
    PictureTooLarge,
    RequestError,
    TooManyMedia,
    TooManyPictures,
    UnsupportedAudio,
    UnsupportedPicture,
    UnsupportedVideo,
    VideoTooLarge,
)
from mmserve.sounds.sound import Sound
from mmserve.types import MediaKind, Prompt
from vision.video import Video, VideoBlock


@dataclass(frozen=True, slots=True)
class WireMedia:
    """One kind. ``name`` is what people call one; ``types`` is how its media types begin, ``example`` one of them."""

    kind: MediaKind
    name: str
    types: str
    example: str
    most: Callable[[Limits], int]
    max_bytes: Callable[[Limits], int]
    unsupported: type[MediaError]
    too_large: type[MediaError]
    not_fetched: type[MediaError]
    too_many: type[RequestError]

    def check_count(self, count: int, limits: Limits, where: str) -> None:
        """Raises ``too_many`` where a request carries more of the kind than it may."""
        most = self.most(limits)
        if count > most:
            raise self.too_many(f"a request may have at most {most} {self.name}s", param=where)


MEDIA: Mapping[MediaKind, WireMedia] = {
    "image": WireMedia(
        kind="image",
        name="picture",
        types="image/",
        example="image/jpeg",
        most=lambda limits: limits.max_pictures,
        max_bytes=lambda limits: limits.max_picture_bytes,
        unsupported=UnsupportedPicture,
        too_large=PictureTooLarge,
        not_fetched=PictureNotFetched,
        too_many=TooManyPictures,
    ),
    "video": WireMedia(
        kind="video",
        name="video",
        types="video/",
        example="video/mp4",
        most=lambda limits: limits.max_videos,
        max_bytes=lambda limits: limits.max_video_bytes,
        unsupported=UnsupportedVideo,
        too_large=VideoTooLarge,
        not_fetched=MediaNotFetched,
        too_many=TooManyMedia,
    ),
    "audio": WireMedia(
        kind="audio",
        name="sound",
        types="audio/",
        example="audio/wav",
        most=lambda limits: limits.max_sounds,
        max_bytes=lambda limits: limits.max_sound_bytes,
        unsupported=UnsupportedAudio,
        too_large=AudioTooLarge,
        not_fetched=MediaNotFetched,
        too_many=TooManyMedia,
    ),
}


def videos_json(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt's videos: size in pixels as shown, length and the times of the frames that the model saw, in seconds,
    and tokens."""
    tokens: dict[int, int] = {}
    videos: dict[int, Video] = {}
    for item in prompt.media:
        if isinstance(item, VideoBlock):
            videos[id(item.video)] = item.video
            tokens[id(item.video)] = tokens.get(id(item.video), 0) + item.rows
    return [
        {
            "width": video.width,
            "height": video.height,
            "duration": round(video.header.duration, 3),
            "frames": [round(time, 3) for time in video.sampling.times],
            "tokens": tokens[key],
        }
        for key, video in videos.items()
    ]


def sounds_json(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt's sounds: format, rate in Hz and channels, how many seconds the model hears of each, and tokens."""
    return [
        {
            "format": sound.header.format,
            "rate": sound.header.rate,
            "channels": sound.header.channels,
            "heard_seconds": round(sound.seconds, 3),
            "tokens": sound.rows,
        }
        for sound in prompt.media
        if isinstance(sound, Sound)
    ]


def media_json(prompt: Prompt) -> dict[str, Any]:
    """What an answer says of the media that are no pictures; nothing where there are none."""
    others = {"videos": videos_json(prompt), "sounds": sounds_json(prompt)}
    return {name: media for name, media in others.items() if media}
