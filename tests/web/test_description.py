"""The API description: it is whole, and requests drawn from it are answered as it says (full size: tests/proofs)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mmserve.config import Limits
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from tests.web.conformance import MADE, Tried, answering, batches_of, operations_of, try_out
from tests.web.fakes import FakeEngine
from web.app import create_app
from web.batches.service import BatchService
from web.description import ANSWERS
from web.service import ServedModel, Service

EXAMPLES = 6


@pytest.fixture(scope="module")
def service() -> Service:
    """The embedded model's own prompts, and an engine that always says the same."""
    checkpoint = load_registry().resolve("pocket-vl", offline=True)
    prompts = PromptBuilder(checkpoint, Limits())
    return Service(ServedModel("pocket-vl"), prompts, FakeEngine(answering), 512, Limits(), judge=lambda *_: True)


@pytest.fixture(scope="module")
def batches() -> Iterator[BatchService]:
    with batches_of() as kept:
        yield kept


@pytest.fixture(scope="module")
def document(service: Service, batches: BatchService) -> dict[str, Any]:
    return create_app(service, batches).openapi()


def test_every_answer_that_is_described_is_of_a_route(document: dict[str, Any]) -> None:
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert set(ANSWERS) <= described


def test_every_refusal_has_the_one_shape(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            refusals = {status for status in operation["responses"] if status >= "400"}
            assert {"401", "403", "429", "503"} <= refusals, (method, path)
            if "requestBody" in operation:
                assert {"400", "404", "413", "422"} <= refusals, (method, path)
            for status in refusals:
                assert "schemas/Error" in str(operation["responses"][status]), (method, path, status)


def test_every_answer_is_described(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for content in operation["responses"]["200"]["content"].values():
                assert content["schema"], (method, path)


def test_requests_from_the_document_are_answered_as_it_says(service: Service, batches: BatchService) -> None:
    tried = Tried()
    for operation in operations_of(service, batches).values():
        try_out(operation, EXAMPLES, 1, tried)
    assert tried.made.keys() == set(MADE)
    assert tried.cases >= EXAMPLES * len(tried.statuses)
