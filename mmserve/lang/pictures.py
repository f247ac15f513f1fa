"""Whatever a program calls a picture -> the bytes of a picture file.

Addresses are fetched by the program's own process, within limits; a server never fetches for it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING

from mmserve.config import Limits
from mmserve.errors import PictureTooLarge, UnsupportedPicture

if TYPE_CHECKING:
    import httpx

    from mmserve.client.pictures import PictureLike

FETCH_SECONDS = 30.0
FETCH_REDIRECTS = 5


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
            return _from_data_uri(picture)
    from mmserve.client.pictures import read_picture

    return read_picture(picture).data


def _from_data_uri(uri: str) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UnsupportedPicture('a data URI of a picture has the form "data:image/jpeg;base64,..."')
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise UnsupportedPicture("the data URI is not valid base64 (standard alphabet, padded)") from None


async def fetch_picture(
    url: str,
    *,
    max_bytes: int = Limits().max_picture_bytes,
    seconds: float = FETCH_SECONDS,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """What ``url`` has. Raises ``UnsupportedPicture`` where it cannot be had, ``PictureTooLarge``."""
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
                raise UnsupportedPicture(
                    f"the picture at {url} cannot be had: the server replied {response.status_code}"
                )
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise PictureTooLarge(f"the picture at {url} has more than {max_bytes} bytes")
            return bytes(data)
    except TimeoutError:
        raise UnsupportedPicture(f"the picture at {url} did not come within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnsupportedPicture(f"the picture at {url} cannot be had: {error or type(error).__name__}") from error
