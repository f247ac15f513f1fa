"""``image_data`` -> the bytes of each prompt's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from mmserve.errors import InvalidField, TooManyPictures
from web.pictures import PREFIX, PictureShelf

Source: TypeAlias = tuple[str, str]
"""A picture as it was sent, and the path of its place in the body."""


def pictures_of(image_data: Any, count: int, batch: bool, shelf: PictureShelf) -> list[tuple[bytes, ...]]:
    """The pictures of each of ``count`` prompts; ``batch`` says whether the body has a list of prompts.

    A single picture belongs to every prompt. A list belongs to the one prompt, or has an entry for each: a picture, a
    list of them, or null. Raises ``InvalidField``, ``TooManyPictures`` or a ``PictureError``, with the path at fault.
    """
    sources = _sources(image_data, count, batch)
    known: dict[str, bytes] = {}  # a picture that stands for every prompt is decoded once
    return [_read(each, shelf, known) for each in sources]


def _sources(image_data: Any, count: int, batch: bool) -> list[list[Source]]:
    if image_data is None or image_data == []:
        return [[] for _ in range(count)]
    if not isinstance(image_data, list):
        return [_listed(image_data, "image_data")] * count
    if not batch:
        nested = len(image_data) == 1 and isinstance(image_data[0], list)
        return [_listed(image_data[0], "image_data[0]") if nested else _listed(image_data, "image_data")]
    if len(image_data) != count:
        raise InvalidField(
            f"image_data has {len(image_data)} entries for {count} prompts: send one entry for each, or one picture",
            param="image_data",
        )
    return [_listed(each, f"image_data[{i}]") for i, each in enumerate(image_data)]


def _listed(value: Any, path: str) -> list[Source]:
    if value is None:
        return []
    if isinstance(value, list):
        return [(_text(each, f"{path}[{i}]"), f"{path}[{i}]") for i, each in enumerate(value) if each is not None]
    return [(_text(value, path), path)]


def _text(value: Any, path: str) -> str:
    if isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str):
        raise InvalidField(f"{path} must be a picture: a data URI, or its file in base64", param=path)
    return value


def _read(sources: Sequence[Source], shelf: PictureShelf, known: dict[str, bytes]) -> tuple[bytes, ...]:
    most = shelf.limits.max_pictures
    if len(sources) > most:
        raise TooManyPictures(f"a prompt may have at most {most} pictures", param=sources[most][1])
    return tuple(_bytes(text, path, shelf, known) for text, path in sources)


def _bytes(text: str, path: str, shelf: PictureShelf, known: dict[str, bytes]) -> bytes:
    found = known.get(text)
    if found is None:
        found = known[text] = _picture(text, path, shelf)
    return found


def _picture(text: str, path: str, shelf: PictureShelf) -> bytes:
    if text[:5].lower() == "data:" or text.startswith(PREFIX):
        return shelf.read(text, path)
    if "://" in text[:64]:
        return shelf.read(text, path)  # which says that addresses are off
    try:
        return shelf.read(f"data:;base64,{text}", path)
    except InvalidField:
        raise InvalidField(
            f"{path} is neither a data URI nor base64 (standard alphabet, padded); the server reads no files by name: "
            "send the picture itself",
            param=path,
        ) from None
