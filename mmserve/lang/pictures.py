"""Whatever a program calls a picture, a video or a sound -> the bytes of its file.

Addresses are fetched by the program's own process, within limits; a server never fetches for it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING

from mmserve.config import Limits
from mmserve.errors import (
    AudioTooLarge,
    MediaError,
    PictureTooLarge,
    UnsupportedAudio,
    UnsupportedPicture,
    UnsupportedVideo,
    VideoTooLarge,
)

if TYPE_CHECKING:
    import httpx

    from mmserve.client.pictures import PictureLike
    from mmserve.client.sounds import SoundLike
    from mmserve.client.videos import VideoLike

FETCH_SECONDS = 30.0
FETCH_REDIRECTS = 5


def video_source(video: VideoLike) -> bytes | str:
    """The bytes, read now, or the address of what is to be fetched.

    Raises OSError for a file that cannot be read, TypeError for what is no video, ``UnsupportedVideo`` for a data URI
    that is not one.
    """
    if isinstance(video, str):
        scheme = video[:8].lower()
        if scheme.startswith(("http://", "https://")):
            return video
        if scheme.startswith("data:"):
            return _from_data_uri(video, "video", "video/mp4", UnsupportedVideo)
    from mmserve.client.videos import read_video

    return read_video(video).data


def sound_source(sound: SoundLike) -> bytes | str:
    """The bytes, read now, or the address of what is to be fetched.

    Raises OSError for a file that cannot be read, TypeError for what is no sound, ``UnsupportedAudio`` for a data URI
    that is not one.
    """
    if isinstance(sound, str):
        scheme = sound[:8].lower()
        if scheme.startswith(("http://", "https://")):
            return sound
        if scheme.startswith("data:"):
            return _from_data_uri(sound, "sound", "audio/wav", UnsupportedAudio)
    from mmserve.client.sounds import read_sound

    return read_sound(sound).data


def picture_source(picture: PictureLike) -> bytes | str:
    """The bytes, read now, or the address of what is to be fetched.

    Raises OSError for a file that cannot be read, TypeError for what is no picture, ``UnsupportedPicture`` for a data
    URI that is not one.
    """
    if isinstance(picture, str):
        scheme = picture[:8].lower()
        if scheme.startswith(("http://", "https://")):
            return picture
        if scheme.startswith("data:"):
            return _from_data_uri(picture, "picture", "image/jpeg", UnsupportedPicture)
    from mmserve.client.pictures import read_picture

    return read_picture(picture).data


def _from_data_uri(uri: str, name: str, example: str, cannot: type[MediaError]) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise cannot(f'a data URI of a {name} has the form "data:{example};base64,..."')
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise cannot("the data URI is not valid base64 (standard alphabet, padded)") from None


async def fetch_picture(
    url: str,
    *,
    max_bytes: int = Limits().max_picture_bytes,
    seconds: float = FETCH_SECONDS,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """What ``url`` has. Raises ``UnsupportedPicture`` where it cannot be had, ``PictureTooLarge``."""
    return await _fetch(url, "picture", max_bytes, seconds, transport, UnsupportedPicture, PictureTooLarge)


async def fetch_video(
    url: str,
    *,
    max_bytes: int = Limits().max_video_bytes,
    seconds: float = FETCH_SECONDS,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """What ``url`` has. Raises ``UnsupportedVideo`` where it cannot be had, ``VideoTooLarge``."""
    return await _fetch(url, "video", max_bytes, seconds, transport, UnsupportedVideo, VideoTooLarge)


async def fetch_sound(
    url: str,
    *,
    max_bytes: int = Limits().max_sound_bytes,
    seconds: float = FETCH_SECONDS,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """What ``url`` has. Raises ``UnsupportedAudio`` where it cannot be had, ``AudioTooLarge``."""
    return await _fetch(url, "sound", max_bytes, seconds, transport, UnsupportedAudio, AudioTooLarge)


async def _fetch(
    url: str,
    name: str,
    max_bytes: int,
    seconds: float,
    transport: httpx.AsyncBaseTransport | None,
    cannot: type[MediaError],
    too_large: type[MediaError],
) -> bytes:
    import httpx

    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                follow_redirects=True, max_redirects=FETCH_REDIRECTS, timeout=seconds, transport=transport
            ) as client,
            client.stream("GET", url) as response,
        ):
            if not response.is_success:
                raise cannot(f"the {name} at {url} cannot be had: the server replied {response.status_code}")
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise too_large(f"the {name} at {url} has more than {max_bytes} bytes")
            return bytes(data)
    except TimeoutError:
        raise cannot(f"the {name} at {url} did not come within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise cannot(f"the {name} at {url} cannot be had: {error or type(error).__name__}") from error
