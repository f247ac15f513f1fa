"""What ``/openapi.json`` says, held against the application by schemathesis: requests drawn from the document, right
and wrong ones, and each answer judged by what the document says of it."""

from __future__ import annotations

import base64
import copy
import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mmserve.types import Request, TokenEvent, TokenLogprob
from tests.web.fakes import Step, say, usage_of
from web.app import create_app
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
    """How many requests were answered with each status, by operation."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        return sum(counter.total() for counter in self.statuses.values())

    def note(self, label: str, status: int) -> None:
        self.statuses.setdefault(label, Counter())[status] += 1


def operations_of(service: Service) -> dict[str, APIOperation[Any, Any, Any, Any]]:
    """The document's operations by name ("POST /v1/vqa"), over the application in this process."""
    schema: BaseSchema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    # Drawn bytes are never a picture, and drawn text never a picture's address: most of the code lies behind those.
    schemathesis.openapi.format("binary", st.sampled_from(PICTURES) | st.binary(max_size=64))
    found = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        found[operation.label] = operation
    return found


_PARTS = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": URIS[0]}}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/vqa": {"image": [PICTURES[0]], "question": "What is this?"},
    "/v1/captions": {"image": list(PICTURES[:3])},
    "/v1/pictures": {"image": list(PICTURES[:2])},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": _PARTS}]},
    "/v1/completions": {"prompt": "One,"},
    "/v1/responses": {"input": "Hello"},
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
        def answered(case: schemathesis.Case, chance: random.Random) -> None:
            if chance.random() < 0.8:
                case.body = likelier(copy.deepcopy(case.body), case.operation.path, chance)
            response = case.call()
            tried.note(operation.label, response.status_code)
            case.validate_response(response, checks=CHECKS)

        answered()
