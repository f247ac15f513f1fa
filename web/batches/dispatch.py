"""A request of a batch, put to the application as if it had come over HTTP."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from mmserve.errors import InvalidField
from web.access.gate import OWN
from web.errors import error_body
from web.visit import Visit

RETRIED = frozenset({429, 503})
"""No room now, or the engine is not there now: worth another try, which is what a batch has time for."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def worth_another_try(self) -> bool:
        return self.status in RETRIED and self.headers.get("x-should-retry") != "false"

    @property
    def retry_after(self) -> float | None:
        """Seconds, where the reply says so."""
        said = self.headers.get("retry-after", "")
        return float(said) if said.isdigit() else None


async def post(app: ASGIApp, path: str, body: bytes, visit: Visit, name: str) -> Reply:
    """What ``app`` answers to a POST of JSON, whose request id in the log is ``name``. To cancel it is to go away."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:  # nobody hangs up: whoever waits for that is cancelled in the end
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    start: Message = {}
    pieces: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    await app(_scope(path, len(body), visit, name), receive, send)
    headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in start["headers"]}
    return Reply(start["status"], headers, b"".join(pieces))


def _scope(path: str, length: int, visit: Visit, name: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"batch"),
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
            (b"x-request-id", name.encode()),
        ],
        "client": None,
        "server": None,
        "state": {},
        OWN: visit,
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request's line in the file of answers, or of errors where not ``ok``. Tokens are those of its usage."""

    ok: bool
    data: bytes
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def outcome_of(custom_id: str, reply: Reply) -> Outcome:
    """The line that tells of ``reply``."""
    try:
        body = json.loads(reply.body)
    except ValueError:
        body = reply.body.decode("utf-8", "replace")
    response = {"status_code": reply.status, "request_id": reply.headers.get("x-request-id", ""), "body": body}
    usage = body.get("usage") if reply.ok and isinstance(body, dict) else None
    return Outcome(reply.ok, _line(custom_id, response), *_tokens(usage if isinstance(usage, dict) else {}))


def refused(custom_id: str, error: InvalidField) -> Outcome:
    """For a request that makes no sense in a batch."""
    return Outcome(False, _line(custom_id, {"status_code": 400, "request_id": "", "body": error_body(error)}))


def not_done(custom_id: str, code: str, message: str) -> Outcome:
    """For a request that was not begun, or not ended."""
    return Outcome(False, _line(custom_id, None, {"code": code, "message": message}))


def _line(custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, str] | None = None) -> bytes:
    value = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    # ASCII: there are characters that some readers take for the end of a line, and halves of surrogate pairs.
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _tokens(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return prompt, details.get("cached_tokens", 0), usage.get("completion_tokens", usage.get("output_tokens", 0))


def body_of(line: bytes) -> bytes:
    """The request in a line of the input file. Raises ``InvalidField`` for one that a batch cannot carry out."""
    try:
        body = json.loads(line)["body"]
        if body.get("stream"):
            raise InvalidField("a request of a batch cannot be streamed; leave out stream", param="stream")
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        try:
            return text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell; the route judges it
            return json.dumps(body, separators=(",", ":")).encode()
    except RecursionError:
        raise InvalidField("body is nested too deeply", param="body") from None
