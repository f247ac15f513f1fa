"""Request bodies: read once, and never further than the limits allow."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmserve.config import Limits
from mmserve.errors import InvalidField, MediaError, PictureError, RequestError, TooManyPictures
from mmserve.types import MediaKind
from web.media import MEDIA, Medium, check_number
from web.pictures import PREFIX, PictureShelf
from web.visit import visit

_MAX_HEADER_BYTES = 16 * 1024

_HOW = (
    "send multipart/form-data with at least one file part named image and a text part named question, for example: "
    "curl -F image=@photo.jpg -F 'question=What is in this picture?'"
)


@dataclass(frozen=True, slots=True)
class FormRules:
    """Which parts a form may have: pictures called ``file``, files of ``others`` by their name, texts called
    ``fields``; ``repeated`` ones may recur.

    ``max_files`` replaces the limit on pictures in a request. With ``each_alone`` a file that is empty or too large
    is noted in ``Form.refused`` and does not refuse the others.
    """

    file: str
    fields: Collection[str]
    repeated: Collection[str] = ()
    max_files: int | None = None
    each_alone: bool = False
    others: Mapping[str, MediaKind] = field(default_factory=dict)

    def kind(self, name: str) -> MediaKind | None:
        """What files called so hold; ``None`` where there may be none."""
        return "image" if name == self.file else self.others.get(name)


@dataclass(frozen=True, slots=True)
class Form:
    """A form that was read: the files' bytes in order, and each text field's values in order.

    ``kinds`` say what each file holds, ``names`` are their names as they were sent. ``refused`` says, by a file's
    number, why its bytes were not kept.
    """

    files: tuple[bytes, ...] = field(repr=False)
    fields: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...] = field(default=(), compare=False)
    refused: Mapping[int, MediaError] = field(default_factory=dict)
    kinds: tuple[MediaKind, ...] = field(default=(), compare=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files))

    @property
    def text_size(self) -> int:
        """Characters of all text fields."""
        return sum(len(text) for texts in self.fields.values() for text in texts)


async def body_chunks(request: Request, limits: Limits, idle_seconds: float) -> AsyncGenerator[bytes, None]:
    """The body as it arrives.

    Raises HTTP 413 when its length, declared or met, is over the limit, and ``RequestError`` when it stands still or
    takes too long.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_long(limits)
    received = 0
    deadline = asyncio.get_running_loop().time() + limits.upload_seconds
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout_at(deadline), asyncio.timeout(idle_seconds):
                    chunk = await anext(stream, b"")
            except TimeoutError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise RequestError(
                        f"the upload took more than {limits.upload_seconds:g} seconds; send fewer or smaller pictures"
                    ) from None
                raise RequestError(
                    f"the upload stood still for {idle_seconds:g} seconds after {received} bytes; send it again"
                ) from None
            if not chunk:  # Starlette never yields an empty chunk but the last
                return
            received += len(chunk)
            if received > limits.max_body_bytes:
                raise _too_long(limits)
            yield chunk


def _too_long(limits: Limits) -> HTTPException:
    return HTTPException(
        413, f"a request may have at most {limits.max_body_bytes} bytes; send fewer or smaller pictures"
    )


async def read_body(request: Request, limits: Limits, idle_seconds: float) -> bytes:
    """The whole body. Raises as :func:`body_chunks` does."""
    async with aclosing(body_chunks(request, limits, idle_seconds)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def read_form(request: Request, rules: FormRules, shelf: PictureShelf, idle_seconds: float) -> Form:
    """The request's multipart form. A file part may also come as text, the id of a picture on ``shelf``.

    What ``rules`` and the shelf's limits forbid is refused as soon as it is seen, before the rest is read:
    ``InvalidField``, ``PictureTooLarge``, ``PictureNotKept``, ``TooManyPictures`` and their like for other media, or
    ``RequestError`` for a body that is no whole form.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidField(f"no picture came with this request: {_HOW}", param=rules.file)
    reader = _FormReader(rules, shelf)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_headers_finished": reader.on_headers_finished,
                "on_part_data": reader.on_part_data,
                "on_part_end": reader.on_part_end,
                "on_end": reader.on_end,
            },
        )
        async with aclosing(body_chunks(request, shelf.limits, idle_seconds)) as chunks:
            async for chunk in chunks:
                parser.write(chunk)
    except FormParserError as error:
        raise RequestError(f"the multipart body is broken ({error}); {_HOW}") from None
    return reader.form()


class _FormReader:
    """Collects the parser's callbacks. Header and data callbacks may come in pieces."""

    def __init__(self, rules: FormRules, shelf: PictureShelf) -> None:
        self._rules = rules
        self._shelf = shelf
        self._limits = shelf.limits
        self._max_files = shelf.limits.max_pictures if rules.max_files is None else rules.max_files
        parts = shelf.limits.max_parts
        self._max_parts = max(parts, self._max_files + parts // 2)
        self._files: list[bytes] = []
        self._names: list[str] = []
        self._kinds: list[MediaKind] = []
        self._refused: dict[int, MediaError] = {}
        self._fields: dict[str, list[str]] = {}
        self._parts = 0
        self._complete = False
        self.on_part_begin()

    def form(self) -> Form:
        if not self._complete:
            raise RequestError("the multipart body ends before its closing boundary; send it again, whole")
        fields = {name: tuple(values) for name, values in self._fields.items()}
        return Form(tuple(self._files), fields, tuple(self._names), self._refused, tuple(self._kinds))

    def on_part_begin(self) -> None:
        self._header_name = b""
        self._header_value = b""
        self._header_bytes = 0
        self._disposition = b""
        self._name = ""
        self._kind: MediaKind | None = None
        self._is_file = False
        self._pieces: list[bytes] = []
        self._size = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._count_header(end - start)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise RequestError(f"a part of the form has more than {_MAX_HEADER_BYTES} bytes of headers")

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise RequestError(f"a part of the form has no name; {_HOW}")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options
        self._file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._parts += 1
        self._check_part()

    def _check_part(self) -> None:
        name, rules = self._name, self._rules
        self._kind = rules.kind(name)
        if self._parts > self._max_parts:
            raise RequestError(f"a form may have at most {self._max_parts} parts")
        if self._kind is None and name not in rules.fields:
            raise InvalidField(_unknown(name, rules), param=name)
        if self._kind is None and self._is_file:
            raise InvalidField(f"{name} must be text, and came as a file; pictures go into {rules.file}", param=name)
        if self._kind == "image" and self._kinds.count("image") == self._max_files:
            raise TooManyPictures(f"a request may have at most {self._max_files} pictures", param=name)
        if self._kind is not None and self._kind != "image":
            check_number(self._kind, self._kinds.count(self._kind) + 1, self._limits, name)
        if self._kind is not None:
            visit().charge_picture()
        if name in self._fields and name not in rules.repeated:
            raise InvalidField(f"{name} was given twice; give it once", param=name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._is_file and self._size > self._medium.max_bytes(self._limits):
            most = self._medium.max_bytes(self._limits)
            self._refuse(
                self._medium.too_large(
                    f"{self._medium.name} {self._number} has more than {most} bytes; shrink it first", param=self._name
                )
            )
            return
        if not self._is_file and self._size > self._limits.max_field_bytes:
            most = self._limits.max_field_bytes
            raise InvalidField(f"{self._name} has more than {most} bytes", param=self._name)
        self._pieces.append(data[start:end])

    @property
    def _medium(self) -> Medium:
        return MEDIA[self._kind or "image"]

    @property
    def _number(self) -> int:
        """Of the file at hand among those of its kind, from 1."""
        return self._kinds.count(self._kind or "image") + 1

    def _take_file(self, data: bytes, name: str) -> None:
        assert self._kind is not None
        self._files.append(data)
        self._names.append(name)
        self._kinds.append(self._kind)

    def _refuse(self, error: MediaError) -> None:
        if not self._rules.each_alone:
            raise error
        self._refused[len(self._files)] = error
        self._pieces = []

    def on_part_end(self) -> None:
        data = b"".join(self._pieces)
        self._pieces = []
        if self._is_file:
            if not data and len(self._files) not in self._refused:
                name = self._medium.name
                self._refuse(
                    self._medium.unsupported(
                        f"{name} {self._number} is an empty file; choose a {name}", param=self._name
                    )
                )
            self._take_file(data, self._file_name)
            return
        if self._kind is not None:
            self._take_kept(data)
            return
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidField(f"{self._name} is not UTF-8 text", param=self._name) from None
        # Browsers send every line end in a form as CRLF; the text that a person typed has LF.
        self._fields.setdefault(self._name, []).append(text.replace("\r\n", "\n"))

    def _take_kept(self, data: bytes) -> None:
        name, text = self._name, data.decode("utf-8", "replace").strip()
        if self._kind != "image" or not text.startswith(PREFIX):
            example = "photo.jpg" if self._kind == "image" else "FILE"
            raise InvalidField(
                f'{name} must be a file, and came as text; with curl write -F {name}=@{example} (mind the "@")',
                param=name,
            )
        kept = b""
        try:
            kept = self._shelf.get(text, name)
        except PictureError as error:
            self._refuse(error)
        self._take_file(kept, "")

    def on_end(self) -> None:
        self._complete = True


def _unknown(name: str, rules: FormRules) -> str:
    accepted = sorted(rules.fields)
    files = [rules.file, *rules.others]
    near = difflib.get_close_matches(name[:64], [*files, *accepted], n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    named = ", ".join([*(f"{each} (file)" for each in files), *accepted])
    return f'there is no field "{name[:64]}"{hint} Accepted: {named}'
