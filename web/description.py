"""``/openapi.json``: what FastAPI knows of the routes, with what their answers and refusals look like.

FastAPI describes what goes through its own models. Bodies here are read by hand and answers are made by hand, so their
shapes are written down here; the tests hold every answer against them. Objects may have more fields than are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
BYTES: Json = {"type": "string", "format": "binary"}
WHOLE: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
FLAG: Json = {"type": "boolean"}
FINISH: Json = {"type": ["string", "null"], "enum": ["stop", "length", "tool_calls", None]}


def shape(**fields: Json) -> Json:
    """An object that has these fields, each required."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def listed(items: Json) -> Json:
    return {"type": "array", "items": items}


def either(*schemas: Json) -> Json:
    return {"anyOf": list(schemas)}


def the(value: str) -> Json:
    return {"const": value}


def nullable(schema: Json) -> Json:
    return either(schema, {"type": "null"})


ERROR = shape(error=shape(message=TEXT, type=TEXT, param={"type": ["string", "null"]}, code=TEXT))
USAGE = shape(
    prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE, prompt_tokens_details={"type": "object"}
)
IMAGES = listed(shape(width=WHOLE, height=WHOLE, tokens=WHOLE, resized=nullable(listed(WHOLE))))
_ENVELOPE = {"id": TEXT, "created": WHOLE, "model": TEXT}

VQA = shape(
    **_ENVELOPE,
    object=the("vqa.answer"),
    answer=TEXT,
    finish_reason=FINISH,
    usage=USAGE,
    timing=shape(time_to_first_token=NUMBER, total=NUMBER),
    images=IMAGES,
    constraint={"type": ["object", "null"]},
    parsed={},
)
PICTURE = shape(id=TEXT, object=the("picture"), name=TEXT, bytes=WHOLE, width=WHOLE, height=WHOLE, expires_after=NUMBER)
MESSAGE = shape(role=the("assistant"), content={"type": ["string", "null"]}, refusal={"type": "null"})
CHAT = shape(
    **_ENVELOPE,
    object=the("chat.completion"),
    choices=listed(
        shape(
            index=WHOLE, message=MESSAGE, logprobs={"type": ["object", "null"]}, finish_reason=FINISH, matched_stop={}
        )
    ),
    usage=USAGE,
    images=IMAGES,
)
COMPLETION = shape(
    **_ENVELOPE,
    object=the("text_completion"),
    choices=listed(
        shape(index=WHOLE, text=TEXT, logprobs={"type": ["object", "null"]}, finish_reason=FINISH, matched_stop={})
    ),
    usage=USAGE,
)
RESPONSE = shape(
    id=TEXT,
    object=the("response"),
    created_at=NUMBER,
    model=TEXT,
    status={"enum": ["completed", "incomplete", "failed", "in_progress"]},
    output=listed(shape(type=TEXT)),
    usage={"type": ["object", "null"]},
)
DECISION = shape(
    **_ENVELOPE,
    object=the("decision"),
    answers=either(
        listed(shape(type=TEXT, name={"type": ["string", "null"]})),
        {"type": "object", "additionalProperties": shape(type=TEXT)},
    ),
    usage={"type": "object"},
)
GENERATED = shape(text=TEXT, output_ids=listed(WHOLE), meta_info=shape(id=TEXT, prompt_tokens=WHOLE))
MODEL = shape(id=TEXT, object=the("model"), created=WHOLE, owned_by=TEXT, max_model_len=WHOLE)
STATUS = shape(status=TEXT)

_TIME: Json = {"type": ["integer", "null"]}
FILE = shape(
    id=TEXT,
    object=the("file"),
    bytes=WHOLE,
    created_at=WHOLE,
    expires_at=_TIME,
    filename=TEXT,
    purpose=TEXT,
    status=TEXT,
)
BATCH = shape(
    id=TEXT,
    object=the("batch"),
    endpoint=TEXT,
    input_file_id=TEXT,
    output_file_id={"type": ["string", "null"]},
    error_file_id={"type": ["string", "null"]},
    completion_window=TEXT,
    status={
        "enum": [
            "validating",
            "failed",
            "in_progress",
            "finalizing",
            "completed",
            "expired",
            "cancelling",
            "cancelled",
        ]
    },
    created_at=WHOLE,
    expires_at=WHOLE,
    completed_at=_TIME,
    request_counts=shape(total=WHOLE, completed=WHOLE, failed=WHOLE),
    metadata={"type": ["object", "null"]},
    errors={"type": ["object", "null"]},
    usage=shape(input_tokens=WHOLE, output_tokens=WHOLE, total_tokens=WHOLE),
)


def page_of(items: Json) -> Json:
    """OpenAI's page of a list."""
    ends: Json = {"type": ["string", "null"]}
    return shape(object=the("list"), data=listed(items), first_id=ends, last_id=ends, has_more=FLAG)


_EVENTS = {"text/event-stream": shape(data=TEXT) | {"description": "One event of the stream."}}
_DROPPED = shape(id=TEXT, object=TEXT, deleted={"const": True})

ANSWERS: Mapping[tuple[str, str], Mapping[str, Json]] = {
    ("post", "/v1/vqa"): {"application/json": VQA, **_EVENTS},
    ("post", "/v1/captions"): {"application/x-ndjson": TEXT},
    ("post", "/v1/pictures"): {"application/json": shape(object=the("list"), data=listed(PICTURE))},
    ("delete", "/v1/pictures/{identity}"): {"application/json": _DROPPED},
    ("post", "/v1/chat/completions"): {"application/json": CHAT, **_EVENTS},
    ("post", "/v1/completions"): {"application/json": COMPLETION, **_EVENTS},
    ("post", "/v1/responses"): {"application/json": RESPONSE, **_EVENTS},
    ("get", "/v1/responses/{identity}"): {"application/json": RESPONSE},
    ("delete", "/v1/responses/{identity}"): {"application/json": _DROPPED},
    ("post", "/v1/files"): {"application/json": FILE},
    ("get", "/v1/files"): {"application/json": page_of(FILE)},
    ("get", "/v1/files/{identity}"): {"application/json": FILE},
    ("get", "/v1/files/{identity}/content"): {"application/octet-stream": BYTES},
    ("delete", "/v1/files/{identity}"): {"application/json": _DROPPED},
    ("post", "/v1/batches"): {"application/json": BATCH},
    ("get", "/v1/batches"): {"application/json": page_of(BATCH)},
    ("get", "/v1/batches/{identity}"): {"application/json": BATCH},
    ("post", "/v1/batches/{identity}/cancel"): {"application/json": BATCH},
    ("post", "/v1/decisions"): {"application/json": DECISION},
    ("post", "/generate"): {"application/json": either(GENERATED, listed(GENERATED)), **_EVENTS},
    ("post", "/abort_request"): {"application/json": shape(aborted=WHOLE)},
    ("get", "/model_info"): {"application/json": shape(model_path=TEXT, is_generation=FLAG, max_model_len=WHOLE)},
    ("get", "/health_generate"): {"application/json": STATUS},
    ("get", "/health"): {"application/json": STATUS},
    ("get", "/live"): {"application/json": STATUS},
    ("get", "/v1/models"): {"application/json": shape(object=the("list"), data=listed(MODEL))},
    ("get", "/v1/models/{name}"): {"application/json": MODEL},
    ("get", "/server_info"): {
        "application/json": shape(version=TEXT, model=TEXT, ready=FLAG, limits={"type": "object"}, stats={})
    },
    ("post", "/flush_cache"): {"application/json": shape(flushed_tokens=WHOLE)},
    ("get", "/metrics"): {"text/plain": TEXT},
}
"""Method and path -> media type -> schema of the 200; routes that are missing here keep FastAPI's own description."""

_OWN_REFUSALS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("post", "/v1/files"): (507,),
    ("post", "/v1/batches"): (507,),
    ("delete", "/v1/files/{identity}"): (507,),
    ("post", "/v1/batches/{identity}/cancel"): (409, 507),
}

UNAVAILABLE = ("/health", "/health_generate")
"""Whose 503 is a status like their 200."""

_REFUSALS: Mapping[int, str] = {
    400: "The request is at fault; param names the field.",
    401: "No API key came, or one that is not known.",
    403: "The API key may not do this, or a page of another site asks.",
    404: "What is named is not here.",
    409: "The batch has ended.",
    413: "More bytes or pixels than the limit.",
    422: "What the answer should look like cannot be enforced.",
    429: "Too many requests wait, or the key's rate is used up; Retry-After says when to come back.",
    503: "The model loads, the server drains, or the engine has ended; Retry-After says when to come back.",
    507: "The disk is full, or what may be kept on it.",
}
_EVERYWHERE = (401, 403, 429, 503)
_OF_INPUT = (400, 404, 413, 422)


def describe(app: FastAPI) -> None:
    """Make ``app.openapi()`` the whole description. It is put together once."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _completed(document)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: Json) -> Json:
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape, which no answer here has
        components.pop(unused, None)
    components["Error"] = ERROR
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, path)
    return document


def _complete(operation: Json, method: str, path: str) -> None:
    responses: Json = operation["responses"]
    responses.pop("422", None)
    answer = ANSWERS.get((method, path))
    if answer is not None:
        described = responses.get("200", {}).get("description", "Successful Response")
        responses["200"] = {"description": described, "content": _content(answer)}
    takes_input = "requestBody" in operation or "parameters" in operation
    refusals = _EVERYWHERE + (_OF_INPUT if takes_input else ()) + _OWN_REFUSALS.get((method, path), ())
    for status in sorted(refusals):
        refused = {"application/json": {"$ref": "#/components/schemas/Error"}}
        if status == 503 and path in UNAVAILABLE:
            refused = {"application/json": either(STATUS, {"$ref": "#/components/schemas/Error"})}
        responses[str(status)] = {"description": _REFUSALS[status], "content": _content(refused)}


def _content(schemas: Mapping[str, Json]) -> Json:
    return {media: {"schema": schema} for media, schema in schemas.items()}
