"""20,000 requests drawn from ``/openapi.json``, right and wrong ones, each answered as the document says.

Most go to an engine that always says the same, since what is tried is the HTTP side; a share is answered by the
embedded model. The small form is ``tests/web/test_description.py``.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from tests.web.conformance import Tried, answering, batches_of, operations_of, try_out
from tests.web.fakes import FakeEngine
from web.batches.service import BatchService
from web.service import ServedModel, Service

pytestmark = [pytest.mark.proof, pytest.mark.timeout(4 * 3600)]

CONTEXT = 256
"""Tokens: an answer without ``max_tokens`` goes on until the context is full."""


@pytest.fixture(scope="module")
def real() -> Iterator[Service]:
    checkpoint = dataclasses.replace(load_registry().resolve("pocket-vl", offline=True), max_model_len=CONTEXT)
    engine = LocalEngineClient(build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=8192)))
    yield Service(ServedModel("pocket-vl"), PromptBuilder(checkpoint, Limits()), engine, CONTEXT)
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def fake(real: Service) -> Service:
    return dataclasses.replace(real, engine=FakeEngine(answering), judge=lambda *_: True)


@pytest.fixture(scope="module")
def batches() -> Iterator[BatchService]:
    with batches_of() as kept:
        yield kept


@pytest.mark.parametrize(("which", "least"), [("fake", 18_000), ("real", 2_000)])
def test_requests_from_the_document_are_answered_as_it_says(
    request: pytest.FixtureRequest, batches: BatchService, which: str, least: int
) -> None:
    service: Service = request.getfixturevalue(which)
    tried = Tried()
    operations = operations_of(service, batches)
    with_body = [operation for operation in operations.values() if operation.body]
    round_ = 0
    while tried.cases < least:
        round_ += 1
        for label, operation in operations.items():
            # What takes no body has little to try; the others share the cases.
            examples = least // (8 * len(with_body)) if operation.body else 20
            try_out(operation, examples, 1000 * round_, tried)
            if round_ == 1:
                print(f"{label}: {dict(sorted(tried.statuses[label].items()))}", flush=True)
    total: dict[int, int] = {}
    for counter in tried.statuses.values():
        for status, count in counter.items():
            total[status] = total.get(status, 0) + count
    print(f"{which} engine: {tried.cases} requests in {round_} rounds, statuses {dict(sorted(total.items()))}")
    assert max(total) < 500
