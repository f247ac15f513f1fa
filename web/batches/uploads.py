"""``POST /v1/files``: a form whose file goes to the disk as it arrives. No more than a piece of it is in memory."""

from __future__ import annotations

import dataclasses
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from mmserve.config import BatchLimits
from mmserve.errors import InvalidField, RequestError
from web.batches.expiry import FileExpiry, expiry_of_form
from web.batches.filerows import FileRecord
from web.batches.store import FileStore, Upload
from web.service import Service
from web.uploads import body_chunks
from web.visit import visit

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

PURPOSES = ("batch", "vision", "user_data")
"""What files may be for. A batch's input is read here; the others are kept and given back, as people's own."""

_NOT_HERE = ("assistants", "fine-tune", "evals")

_PIECE = 1 << 20
_MAX_HEADER_BYTES = 16 * 1024
_MAX_FIELD_BYTES = 1024
_MAX_NAME = 512
_FORM_ROOM = 1 << 20
"""What a form may have beside the file."""

_HOW = 'send multipart/form-data with a file part named file and a text part named purpose, which is "batch"'


async def receive_file(request: Request, service: Service, store: FileStore, limits: BatchLimits) -> FileRecord:
    """The file that the form brings. Raises ``InvalidField``, ``RequestError``, ``FileTooLarge``, ``StorageFull``."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidField(f"no file came with this request: {_HOW}", param="file")
    reader = _Reader(service.limits.max_parts)
    wire = dataclasses.replace(service.limits, max_body_bytes=limits.max_file_bytes + _FORM_ROOM)
    async with store.upload() as upload:
        try:
            parser = MultipartParser(boundary, reader.callbacks())
            async with aclosing(body_chunks(request, wire, service.upload_idle_seconds)) as chunks:
                async for chunk in chunks:
                    for at in range(0, len(chunk), _PIECE):
                        parser.write(chunk[at : at + _PIECE])
                        await reader.pass_on(upload, _PIECE)
        except FormParserError as error:
            raise RequestError(f"the multipart body is broken ({error}); {_HOW}") from None
        await reader.pass_on(upload, 1)
        form = reader.form()
        now = store.clock()
        expires_at = form.expiry.expires_at(form.purpose, now, limits.kept_seconds)
        return await upload.finish(visit().owner, form.purpose, form.filename, now, expires_at)


@dataclass(frozen=True, slots=True)
class _Form:
    purpose: str
    filename: str
    expiry: FileExpiry


@dataclass(slots=True)
class _Part:
    name: str = ""
    is_file: bool = False
    filename: str = ""
    disposition: bytes = b""
    text: bytes = b""
    header_name: bytes = b""
    header_value: bytes = b""
    header_bytes: int = 0


@dataclass(slots=True)
class _Reader:
    """Collects the parser's callbacks. Header and data callbacks may come in pieces."""

    max_parts: int
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    _part: _Part = field(default_factory=_Part)
    _parts: int = 0
    _complete: bool = False
    _pieces: list[bytes] = field(default_factory=list)
    _size: int = 0

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    async def pass_on(self, upload: Upload, least: int) -> None:
        """Write what has come of the file, where it is ``least`` bytes or more."""
        if self._size >= least:
            data = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            await upload.write(data)

    def form(self) -> _Form:
        if not self._complete:
            raise RequestError("the multipart body ends before its closing boundary; send it again, whole")
        if self.filename is None:
            raise InvalidField(f"file is missing; {_HOW}", param="file")
        purpose = self.fields.get("purpose")
        if purpose is None:
            raise InvalidField(f"purpose is missing; {_HOW}", param="purpose")
        if purpose not in PURPOSES:
            what = "is for what is not offered here" if purpose in _NOT_HERE else "is no purpose"
            raise InvalidField(f"purpose {purpose[:64]!r} {what}; send one of {', '.join(PURPOSES)}", param="purpose")
        return _Form(purpose, self.filename, expiry_of_form(self.fields))

    def _on_part_begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > self.max_parts:
            raise RequestError(f"a form may have at most {self.max_parts} parts")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._part.header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._part.header_value += data[start:end]

    def _count_header(self, size: int) -> None:
        self._part.header_bytes += size
        if self._part.header_bytes > _MAX_HEADER_BYTES:
            raise RequestError(f"a part of the form has more than {_MAX_HEADER_BYTES} bytes of headers")

    def _on_header_end(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            part.disposition = part.header_value
        part.header_name = part.header_value = b""

    def _on_headers_finished(self) -> None:
        part = self._part
        _, options = parse_options_header(part.disposition)
        if b"name" not in options:
            raise RequestError(f"a part of the form has no name; {_HOW}")
        part.name = options[b"name"].decode("utf-8", "replace")
        part.is_file = b"filename" in options
        if part.is_file != (part.name == "file"):
            what = "must be a file" if part.name == "file" else "must be text"
            raise InvalidField(f"{part.name[:64]} {what}; {_HOW}", param=part.name[:64])
        if part.name in self.fields or (part.is_file and self.filename is not None):
            raise InvalidField(f"{part.name[:64]} was given twice; give it once", param=part.name[:64])
        if part.is_file:
            self.filename = options[b"filename"].decode("utf-8", "replace")[:_MAX_NAME] or "file"

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self._pieces.append(data[start:end])
            self._size += end - start
            return
        self._part.text += data[start:end]
        if len(self._part.text) > _MAX_FIELD_BYTES:
            name = self._part.name[:64]
            raise InvalidField(f"{name} has more than {_MAX_FIELD_BYTES} bytes", param=name)

    def _on_part_end(self) -> None:
        if not self._part.is_file:
            self.fields[self._part.name] = self._part.text.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._complete = True
