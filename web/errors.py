"""Errors -> HTTP: one mapping from class to status, one shape (OpenAI's) for every error body."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mmserve.errors import (
    BatchEnded,
    BatchNotFound,
    BudgetTooSmall,
    EngineUnavailable,
    FileNotKept,
    FileTooLarge,
    InvalidField,
    KeyRefused,
    MMServeError,
    ModelNotFound,
    NotAllowed,
    PictureNotKept,
    PictureTooLarge,
    QueueFull,
    RateLimited,
    RequestCancelled,
    RequestError,
    ResponseNotKept,
    StorageFull,
    UnsupportedConstraint,
    WireError,
)

_STATUS: Mapping[type[MMServeError], int] = {
    MMServeError: 500,
    RequestError: 400,
    KeyRefused: 401,
    NotAllowed: 403,
    ModelNotFound: 404,
    ResponseNotKept: 404,
    FileNotKept: 404,
    BatchNotFound: 404,
    BatchEnded: 409,
    FileTooLarge: 413,
    PictureTooLarge: 413,
    PictureNotKept: 404,
    UnsupportedConstraint: 422,
    BudgetTooSmall: 422,
    QueueFull: 429,
    RequestCancelled: 499,
    EngineUnavailable: 503,
    StorageFull: 507,
}
_RETRY_AFTER_SECONDS: Mapping[int, str] = {429: "1", 503: "5"}
_HTTP_CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def status_of(error: MMServeError) -> int:
    """The status of the nearest class in the error's ancestry that has one."""
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)


def error_body(error: MMServeError) -> dict[str, WireError]:
    """``{"error": {message, type, param, code}}``."""
    return {"error": error.to_wire()}


def internal_error(request_id: str) -> MMServeError:
    """What a caller is told about a fault of ours: enough to find it in the log, and nothing of what is inside."""
    return MMServeError(f"the server failed on this request; its log has the cause under {request_id}")


def error_response(error: MMServeError) -> Response:
    headers = {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        if error.hopeless:
            headers["X-Should-Retry"] = "false"
    if isinstance(error, KeyRefused):
        headers["WWW-Authenticate"] = 'Bearer realm="mmserve"'
    return _response(status_of(error), error.to_wire(), headers)


def _response(status: int, wire: WireError, headers: Mapping[str, str] | None = None) -> Response:
    extra = dict(headers or {})
    if status in _RETRY_AFTER_SECONDS:
        extra.setdefault("Retry-After", _RETRY_AFTER_SECONDS[status])
    return JSONResponse({"error": wire}, status, extra)


def install_error_handlers(app: FastAPI) -> None:
    """Every error that a route raises leaves ``app`` in the one shape. Unexpected ones are for ``web.middleware``."""
    app.add_exception_handler(MMServeError, _on_typed_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_typed_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, MMServeError)
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    # The first element of FastAPI's location says which part of the request it is: "path", "query", "body".
    return error_response(explain([{**e, "loc": tuple(e["loc"])[1:]} for e in error.errors()]))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, error.headers
    message = str(error.detail)
    if status == 404 and message == "Not Found":
        message = f"there is no {request.method} {request.url.path} here; GET /openapi.json lists what there is"
    if status == 405:
        allowed = (headers or {}).get("Allow") or (headers or {}).get("allow") or "another method"
        message = f"{request.url.path} does not take {request.method}; use {allowed}"
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = _HTTP_CODES.get(status, "invalid_request" if status < 500 else "internal_error")
    return _response(status, {"message": message, "type": kind, "param": None, "code": code}, headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return error_response(RequestCancelled("the client went away before its request was complete"))


def explain(errors: Sequence[Any]) -> InvalidField:
    """The first of pydantic's errors as a sentence that names the field.

    ``errors`` is what ``ValidationError.errors()`` returns; values that the caller sent are not repeated.
    """
    first = errors[0]
    name = field_path(first["loc"])
    kind, text = first["type"], first["msg"]
    if kind == "json_invalid":
        return InvalidField(f"the body is not valid JSON: {text.removeprefix('Invalid JSON: ')}")
    if kind == "missing":
        return InvalidField(f"{name} is missing; it is required", param=name)
    if kind == "extra_forbidden":
        return InvalidField(f"{name} is not a field here; leave it out", param=name)
    if kind == "value_error":
        text = text.removeprefix("Value error, ")
        return InvalidField(f"{name}: {text}" if name else text, param=name or None)
    sentence = text.removeprefix("Input ").removeprefix("should").strip()
    return InvalidField(f"{name or 'the body'} should {sentence}", param=name or None)


def field_path(location: Sequence[int | str]) -> str:
    """``("messages", 0, "content")`` -> ``messages[0].content``."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
