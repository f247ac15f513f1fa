"""What ``/openapi.json`` says, held against the application by schemathesis: requests drawn from the document, right
and wrong ones, and each answer judged by what the document says of it."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import Case, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mmserve.config import BatchLimits
from mmserve.types import Request, TokenEvent, TokenLogprob
from tests.web.fakes import Step, say, usage_of
from web.app import create_app
from web.batches.service import BatchService
from web.service import Service

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def _picture(kind: str, size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, kind)
    return data.getvalue()


PICTURES = tuple(
    _picture(kind, size) for kind in ("PNG", "JPEG", "WEBP", "GIF") for size in ((1, 1), (30, 20), (64, 64))
)
URIS = tuple(f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in PICTURES)


def answering(request: Request) -> Iterator[Step]:
    """An engine's script: the same few words to every question, and the same score for every token."""
    if request.score_from is None:
        yield from say("It", " is", " a cat.", request=request, logprobs=request.sampling.logprobs is not None)
        return
    entries = tuple(TokenLogprob(int(id_), "x", -1.0) for id_ in request.prompt.token_ids[request.score_from :])
    yield TokenEvent(request.id, logprobs=entries, finish_reason="stop", usage=usage_of(request, 0))


@dataclass
class Tried:
    """How many requests were answered with each status, by operation; and ``made``, what they left at the server: ids
    by the path that they came from."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        return sum(counter.total() for counter in self.statuses.values())

    def note(self, label: str, response: Response) -> None:
        self.statuses.setdefault(label, Counter())[response.status_code] += 1
        verb, _, path = label.partition(" ")
        told = response.headers["content-type"][0] if "content-type" in response.headers else ""
        if verb == "POST" and path in MADE and response.status_code == 200 and told == "application/json":
            body = response.json()
            self.made.setdefault(path, []).append(body["data"][0]["id"] if "data" in body else body["id"])


@contextmanager
def batches_of() -> Iterator[BatchService]:
    """Files and batches in a folder of their own. They are kept and never worked on: what is tried is the routes."""
    with tempfile.TemporaryDirectory() as folder:
        kept = BatchService(Path(folder) / "data", BatchLimits(max_batches=1 << 20))
        yield kept
        asyncio.run(kept.close())


def operations_of(service: Service, batches: BatchService) -> dict[str, APIOperation[Any, Any, Any, Any]]:
    """The document's operations by name ("POST /v1/vqa"), over the application in this process."""
    schema: BaseSchema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service, batches))
    # Drawn bytes are never a picture, and drawn text never a picture's address: most of the code lies behind those.
    schemathesis.openapi.format("binary", st.sampled_from(PICTURES) | st.binary(max_size=64))
    found = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        found[operation.label] = operation
    return found


MADE = ("/v1/files", "/v1/batches", "/v1/responses", "/v1/pictures")
_LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}'
_PARTS = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": URIS[0]}}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/vqa": {"image": [PICTURES[0]], "question": "What is this?"},
    "/v1/captions": {"image": list(PICTURES[:3])},
    "/v1/pictures": {"image": list(PICTURES[:2])},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": _PARTS}]},
    "/v1/completions": {"prompt": "One,"},
    "/v1/responses": {"input": "Hello"},
    "/v1/files": {"file": _LINE, "purpose": "batch"},
    "/v1/batches": {"input_file_id": "", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "/v1/decisions": {"images": [URIS[0]], "questions": [{"type": "yes_no", "id": "a", "question": "Red?"}]},
    "/generate": {"text": "One,"},
    "/abort_request": {"rid": "a"},
}
"""A body for each route that is answered, without anything that it may also say."""


def likelier(body: Any, path: str, chance: random.Random) -> Any:
    """``body`` with less in it that can be refused: fewer fields, the served model, pictures that are some, and often
    no other fault than those of the fields beside what must be said."""
    if not isinstance(body, dict):
        return body
    share = chance.random() ** 2
    must = ASKED.get(path, {})
    kept = {key: value for key, value in body.items() if key in must or chance.random() < share}
    if "model" in kept:
        kept["model"] = "default"
    if chance.random() < 0.7:
        kept.update(must)
        if "text" in must:
            kept.pop("input_ids", None)
    changed: Any = with_pictures(kept, chance)
    return changed


def with_pictures(body: Any, chance: random.Random) -> Any:
    if isinstance(body, list):
        return [with_pictures(each, chance) for each in body]
    if not isinstance(body, dict):
        return body
    changed = {key: with_pictures(value, chance) for key, value in body.items()}
    for key in ("url", "image_url", "image_data"):
        if isinstance(changed.get(key), str):
            changed[key] = chance.choice(URIS)
    return changed


def with_made(case: Case[Any], made: Mapping[str, list[str]], chance: random.Random) -> None:
    """Names something that an earlier request left at the server, where ``case`` names anything."""
    path = "/".join(case.operation.path.split("/")[:3])
    if "identity" in (case.path_parameters or {}) and made.get(path):
        case.path_parameters["identity"] = chance.choice(made[path])
    if path == "/v1/batches" and isinstance(case.body, dict) and made.get("/v1/files"):
        case.body["input_file_id"] = chance.choice(made["/v1/files"])


def try_out(operation: APIOperation[Any, Any, Any, Any], examples: int, number: int, tried: Tried) -> None:
    """``examples`` requests that the document allows and, where there is a body, as many that it does not. Fails with
    the first answer that is a server error or is not as described."""
    for mode in schemathesis.GenerationMode if operation.body else [schemathesis.GenerationMode.POSITIVE]:

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode), chance=st.randoms(use_true_random=False))
        def answered(case: Case[Any], chance: random.Random) -> None:
            if chance.random() < 0.8:
                case.body = likelier(copy.deepcopy(case.body), case.operation.path, chance)
                with_made(case, tried.made, chance)
            response = case.call()
            tried.note(operation.label, response)
            case.validate_response(response, checks=CHECKS)

        answered()
