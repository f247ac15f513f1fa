"""Whether an input file is one: a request on each line, as OpenAI's Batch API wants them.

What is inside ``body`` is left to the route that it goes to: a request that is refused there is a failed request, and
the batch goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from web.batches.linerows import Line

MAX_ERRORS = 100
MAX_CUSTOM_ID = 512
CHUNK_LINES = 500
CHUNK_BYTES = 8 << 20

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line, or with the file where ``line`` is ``None``."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def to_json(self) -> dict[str, Any]:
        """OpenAI's batch error."""
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines of the file; ``end`` is where the next begin (a byte, and its line's number), ``None`` at the last."""

    lines: tuple[Line, ...]
    faults: tuple[Fault, ...]
    end: tuple[int, int] | None


def read_chunk(path: Path, begin: tuple[int, int], endpoint: str, max_line: int) -> Chunk:
    """The lines from ``begin`` (a byte, and its line's number) on, up to ``CHUNK_LINES`` or about ``CHUNK_BYTES``.

    A line may have ``max_line`` bytes; no more of it is read at a time. Empty lines are left out.
    """
    lines: list[Line] = []
    faults: list[Fault] = []
    at, number = begin
    first = at
    with open(path, "rb") as file:
        file.seek(at)
        while len(lines) + len(faults) < CHUNK_LINES and at - first < CHUNK_BYTES:
            text = file.readline(max_line + 1)
            if not text:
                return Chunk(tuple(lines), tuple(faults), None)
            length = len(text)
            if length > max_line and not text.endswith(b"\n"):
                faults.append(Fault("line_too_long", f"This line has more than {max_line} bytes.", line=number))
                while text and not text.endswith(b"\n"):
                    text = file.readline(max_line + 1)
                    length += len(text)
            elif text.strip(b" \t\r\n"):
                found = check_line(text.removeprefix(b"\xef\xbb\xbf") if at == 0 else text, number, endpoint)
                if isinstance(found, Fault):
                    faults.append(found)
                else:
                    mark = 3 if at == 0 and text.startswith(b"\xef\xbb\xbf") else 0
                    lines.append(Line(number, at + mark, length - mark, found))
            at, number = at + length, number + 1
    return Chunk(tuple(lines), tuple(faults), (at, number))


def check_line(text: bytes, number: int, endpoint: str) -> str | Fault:
    """The line's ``custom_id``, or what is wrong with it."""
    try:
        request = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Fault("invalid_json_line", "This line is not parseable as valid JSON.", line=number)
    if not isinstance(request, dict):
        return Fault("invalid_json_line", "This line is not a JSON object.", line=number)
    id_ = _custom_id(request, number)
    return id_ if isinstance(id_, Fault) else _check_request(request, number, endpoint) or id_


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _custom_id(request: Mapping[str, Any], number: int) -> str | Fault:
    id_ = request.get("custom_id", _MISSING)
    if id_ is _MISSING:
        return _missing("custom_id", number)
    if not isinstance(id_, str) or not 0 < len(id_) <= MAX_CUSTOM_ID or not _is_text(id_):
        what = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters."
        return Fault("invalid_custom_id", what, "custom_id", number)
    return id_


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_request(request: Mapping[str, Any], number: int, endpoint: str) -> Fault | None:
    for name in ("method", "url", "body"):
        if name not in request:
            return _missing(name, number)
    if request["method"] != "POST":
        return Fault("invalid_method", 'method must be "POST".', "method", number)
    if request["url"] != endpoint:
        return Fault("invalid_url", f"url must be the batch's endpoint, {endpoint}.", "url", number)
    if not isinstance(request["body"], dict):
        return Fault("invalid_request", "body must be a JSON object.", "body", number)
    return None


def _missing(name: str, number: int) -> Fault:
    return Fault("missing_required_parameter", f"Missing required parameter: '{name}'.", name, number)


def twice(line: Line) -> Fault:
    return Fault("duplicate_custom_id", "An earlier line has the same custom_id.", "custom_id", line.number)
