"""What a request is about, as bytes for ``routing``: its first picture, else how its prompt begins.

Read from the raw body with nothing decoded or tokenised, and from whatever is there: a body that is no good gets a key
too, and the replica it goes to says what is wrong. The same picture has the same key as a form's part and as a data
URI, with every route and every question. Keys place requests and nothing more; the caches know pictures by identities
that also hold the model's settings and the tenant's salt.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vision.identity import content_hash, digest

PREFIX_CHARACTERS = 1024
"""Of the first user's turn; what comes before it counts whole, so a conversation keeps its key from turn to turn."""

_PICTURES = frozenset({"image", "images", "image_data", "image_url", "file_id"})
_TEXTS = ("prompt", "text", "input", "question", "input_ids", "context")
_MAX_DEPTH = 32

Resolve = Callable[[str], bytes | None]
"""From the name of something sent before (a picture, a response) to the key it was sent under, where that is known."""


def routing_key(content_type: str, body: bytes, resolve: Resolve = lambda _: None) -> bytes:
    """The key of a request; 32 bytes, or none for a body that says nothing. Raises nothing on any input."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind == b"multipart/form-data" and boundary:
        return _of_form(body, boundary, resolve)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return digest("mmserve/route-body/1", body) if body else b""
    return _of_document(value, resolve)


def picture_key(data: bytes) -> bytes:
    """The key of a picture's bytes: a content hash under no model's settings and no tenant's salt."""
    return content_hash(data, b"")


def name_key(name: str) -> bytes:
    """The key of a picture by its address, or of a thing that is named."""
    return digest("mmserve/route-name/1", _utf8(name))


def _text_key(texts: list[str]) -> bytes:
    return digest("mmserve/route-text/1", *(_utf8(text) for text in texts)) if any(texts) else b""


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# -- JSON -------------------------------------------------------------------------------------------------------


def _of_document(value: Any, resolve: Resolve) -> bytes:
    address = next(_addresses(value, 0), None)
    if address is not None:
        return _address_key(address, resolve)
    if not isinstance(value, Mapping):
        return _text_key([json.dumps(value)[:PREFIX_CHARACTERS]])
    before = value.get("previous_response_id")
    if isinstance(before, str):
        return resolve(before) or name_key(before)
    return _text_key(list(_opening(value)))


def _addresses(value: Any, depth: int) -> Iterator[str]:
    """What stands where pictures stand, in the document's order."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in _PICTURES:
                yield from _strings(inner, depth + 1)
            else:
                yield from _addresses(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _addresses(inner, depth + 1)


def _strings(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, depth + 1)
    elif isinstance(value, Mapping):
        yield from _strings(value.get("url"), depth + 1)


def _address_key(address: str, resolve: Resolve) -> bytes:
    head, comma, payload = address.partition(",")
    if head[:5].lower() == "data:" and comma:
        try:
            return picture_key(base64.b64decode(payload, validate=True))
        except (binascii.Error, ValueError):
            return name_key(address)
    return resolve(address) or name_key(address)


def _opening(value: Mapping[str, Any]) -> Iterator[str]:
    """The system prompt whole and the beginning of what follows it."""
    for name in ("system", "instructions"):
        if isinstance(value.get(name), str):
            yield value[name]
    messages = value.get("messages", value.get("input"))
    if isinstance(messages, list) and any(isinstance(message, Mapping) for message in messages):
        for message in messages:
            if isinstance(message, Mapping):
                text = "".join(_said(message.get("content")))
                if message.get("role") == "user":
                    yield text[:PREFIX_CHARACTERS]
                    return
                yield text
        return
    for name in _TEXTS:
        if value.get(name):
            said = value[name]
            yield (said if isinstance(said, str) else json.dumps(said))[:PREFIX_CHARACTERS]


def _said(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield part["text"]


# -- forms ------------------------------------------------------------------------------------------------------


def _of_form(body: bytes, boundary: bytes, resolve: Resolve) -> bytes:
    found = _Parts()
    callbacks: dict[str, Callable[..., None]] = {
        name: getattr(found, name) for name in ("on_part_begin", "on_header_field", "on_header_value", "on_header_end")
    } | {"on_part_data": found.on_part_data}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
    except FormParserError:
        pass  # what was read of it is enough for a key
    if found.picture is not None:
        data = bytes(found.picture)
        if found.is_file:
            return picture_key(data)
        return _address_key(data.decode("utf-8", "replace"), resolve)
    texts = {name: bytes(text).decode("utf-8", "replace") for name, text in found.texts.items()}
    return _text_key(list(_opening(texts)))


@dataclass(slots=True)
class _Parts:
    """A form's first picture, and its texts."""

    picture: bytearray | None = None
    is_file: bool = False
    texts: dict[str, bytearray] = field(default_factory=dict)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _into: bytearray | None = None

    def on_part_begin(self) -> None:
        self._into = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._begin(bytes(self._value))
        self._header.clear()
        self._value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._into is not None:
            self._into += data[start:end]

    def _begin(self, disposition: bytes) -> None:
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        is_file = b"filename" in options
        if is_file or name == "image":
            if self.picture is None:
                self.picture, self.is_file = bytearray(), is_file
                self._into = self.picture
        elif len(self.texts) < _MAX_DEPTH:
            self._into = self.texts.setdefault(name, bytearray())
