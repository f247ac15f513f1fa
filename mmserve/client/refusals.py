"""Replies that are not answers, and connections that fail -> typed errors of ``mmserve.errors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from mmserve.client.answer import AnswerNotValid
from mmserve.errors import (
    EngineUnavailable,
    MMServeError,
    PictureError,
    PictureTooLarge,
    PromptTooLong,
    QueueFull,
    RequestCancelled,
    RequestError,
    WireError,
    from_wire,
)

NOT_OURS = (ValueError, LookupError, TypeError, AttributeError)
"""What reading JSON of an unexpected shape raises."""


def error_from_response(response: httpx.Response) -> MMServeError:
    """The typed error that a reply other than 2xx stands for. Its body must have been read."""
    status = response.status_code
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return error_from_body(error, status=status)
    detail = f": {_excerpt(response)}" if response.content.strip() else ""
    return _class_of(status)(f"{response.request.url} replied {status} {response.reason_phrase}{detail}".rstrip())


def error_from_body(error: Mapping[str, Any], *, status: int = 500) -> MMServeError:
    """The typed error in an OpenAI-shaped error object; the HTTP status decides where its code is not one of ours."""
    param = error.get("param")
    wire: WireError = {
        "message": str(error.get("message") or "the server gave no reason"),
        "type": str(error.get("type")),
        "param": param if isinstance(param, str) else None,
        "code": str(error.get("code")),
    }
    found = from_wire(wire)
    if found.code != wire["code"]:
        return _class_of(status)(wire["message"], param=wire["param"])
    return found


def error_from_transport(error: httpx.RequestError, base_url: str) -> EngineUnavailable:
    """No reply, or only a part of one."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return EngineUnavailable(f"cannot connect to {base_url} ({reason}); is the server running (mmserve serve)?")
    if isinstance(error, httpx.TimeoutException):
        return EngineUnavailable(f"{base_url} sent nothing for the time allowed ({reason}); give a longer timeout")
    return EngineUnavailable(f"the connection to {base_url} broke before the answer was complete ({reason})")


def not_an_answer(url: httpx.URL) -> MMServeError:
    return MMServeError(f"{url} replied with something else than an answer; is base_url an mmserve server?")


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds asked for by ``Retry-After``: a number, or a date, which may be past (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        # The server's own clock, where it tells: ours may be off.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return (until - now).total_seconds()
    except (ValueError, TypeError):
        return None


def about_picture(error: Exception) -> bool:
    """Whether an error may be due to the one picture asked about, so that asking about others is worth while.

    True for pictures that cannot be read or used, for a picture too large for the context, for an answer that is not
    what was asked for, and for an internal error; false when the server is gone, full, or refuses the request
    whatever the picture.
    """
    return isinstance(error, OSError | PictureError | PromptTooLong | AnswerNotValid) or type(error) is MMServeError


def _class_of(status: int) -> type[MMServeError]:
    if status == 413:
        return PictureTooLarge
    if status == 429:
        return QueueFull
    if status == 499:
        return RequestCancelled
    if status in (502, 503, 504):
        return EngineUnavailable
    return MMServeError if status >= 500 else RequestError


def _excerpt(response: httpx.Response, limit: int = 300) -> str:
    text = " ".join(response.text.split())
    return text if len(text) <= limit else text[:limit] + "…"
