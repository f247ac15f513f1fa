"""Spans through OpenTelemetry's API, taken by a provider of our own; the packages that send them need not be here."""

from __future__ import annotations

import builtins
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

from mmserve.errors import ConfigError, CorruptPicture
from mmserve.sampling import SamplingParams
from mmserve.types import Prompt, Request, Stages, TokenEvent, Usage
from tests.web.fakes import FakeEngine, FakePrompts, Step, png
from web.app import create_app
from web.operations.observed import ObservedEngine
from web.operations.story import Generation
from web.operations.tracing import Tracing, start_tracing
from web.service import ServedModel, Service

pytestmark = pytest.mark.anyio
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class TakenSpan(trace.Span):
    name: str
    parent: SpanContext
    own: SpanContext
    kind: trace.SpanKind
    start: int | None
    attributes: dict[str, Any]
    stop: int | None = None
    ended: bool = False
    failed: bool = False

    def end(self, end_time: int | None = None) -> None:
        assert not self.ended
        self.ended, self.stop = True, end_time

    def get_span_context(self) -> SpanContext:
        return self.own

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes |= attributes

    def add_event(self, *_: Any, **__: Any) -> None:
        raise AssertionError("no events are expected")

    def update_name(self, name: str) -> None:
        self.name = name

    def is_recording(self) -> bool:
        return not self.ended

    def set_status(self, status: Any, description: str | None = None) -> None:  # noqa: ARG002
        self.failed = status.status_code is trace.StatusCode.ERROR

    def record_exception(self, *_: Any, **__: Any) -> None:
        raise AssertionError("exceptions may quote what a caller sent")


@dataclass
class Taker(trace.Tracer, trace.TracerProvider):
    spans: list[TakenSpan] = field(default_factory=list)
    closed: bool = False

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(  # type: ignore[override]
        self,
        name: str,
        context: Any = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[Any] | None = None,  # noqa: ARG002
        start_time: int | None = None,
        **_: Any,
    ) -> TakenSpan:
        parent = trace.get_current_span(context).get_span_context()
        own = SpanContext(parent.trace_id or 77, len(self.spans) + 1, False, TraceFlags(1))
        span = TakenSpan(name, parent, own, kind, start_time, dict(attributes or {}))
        self.spans.append(span)
        return span

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("spans are passed on, not made current")

    def shutdown(self) -> None:
        self.closed = True

    def named(self, name: str) -> TakenSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
async def traced(taker: Taker, engine: FakeEngine, prompts: FakePrompts) -> AsyncIterator[httpx.AsyncClient]:
    tracing = Tracing(taker, "pocket-vl")
    plain = Service(ServedModel("pocket-vl"), prompts, engine, 512)
    service = Service(
        plain.model,
        prompts,
        ObservedEngine(engine, plain.metrics, tracing),
        512,
        metrics=plain.metrics,
        tracing=tracing,
    )
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def ask(http: httpx.AsyncClient, **headers: str) -> httpx.Response:
    data = {"question": "A secret?", "max_tokens": "9", "temperature": "0.5"}
    return await http.post("/v1/vqa", files=[("image", ("a.png", png(), "image/png"))], data=data, headers=headers)


async def test_a_request_is_a_tree_of_spans(traced: httpx.AsyncClient, taker: Taker) -> None:
    await ask(traced, traceparent=PARENT)
    server, inference = taker.named("POST /v1/vqa"), taker.named("generate_content pocket-vl")
    assert server.kind is trace.SpanKind.SERVER
    assert server.own.trace_id == int(PARENT.split("-")[1], 16)
    assert server.parent.span_id == int(PARENT.split("-")[2], 16)
    assert inference.parent == server.own
    assert taker.named("decode").parent == inference.own
    assert all(span.ended for span in taker.spans)
    assert server.attributes["http.response.status_code"] == 200
    said = inference.attributes
    assert said["gen_ai.request.model"] == "pocket-vl"
    assert (said["gen_ai.request.max_tokens"], said["gen_ai.request.temperature"]) == (9, 0.5)
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert said["gen_ai.usage.output_tokens"] == 3
    assert "secret" not in repr(taker.spans)


async def test_stages_lie_where_the_engine_says(traced: httpx.AsyncClient, taker: Taker, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield TokenEvent(request.id, token_ids=(1,))
        stages = Stages(10.0, 12.0, (10.5, 11.5))
        yield TokenEvent(request.id, token_ids=(2,), finish_reason="stop", usage=Usage(4, 2, 0, 0), stages=stages)

    engine.script = script
    await ask(traced)
    lengths = {}
    for name in ("queue", "encode"):
        span = taker.named(name)
        assert span.start is not None
        assert span.stop is not None
        lengths[name] = round((span.stop - span.start) / 1e9, 3)
    assert lengths == {"queue": 2.0, "encode": 1.0}
    prefill = taker.named("prefill")
    assert prefill.start == taker.named("queue").stop
    assert prefill.parent == taker.named("generate_content pocket-vl").own


async def test_failures_are_marked(traced: httpx.AsyncClient, taker: Taker, engine: FakeEngine) -> None:
    engine.script = lambda _: [CorruptPicture("bad")]
    await ask(traced)
    span = taker.named("generate_content pocket-vl")
    assert span.failed
    assert span.attributes["error.type"] == "corrupt_image"
    assert not taker.named("POST /v1/vqa").failed  # a 4xx is the caller's
    engine.script = lambda _: [RuntimeError("fault")]
    taker.spans.clear()
    await ask(traced)
    assert taker.named("POST /v1/vqa").failed


async def test_chat_is_called_chat_and_health_nothing(traced: httpx.AsyncClient, taker: Taker) -> None:
    await traced.get("/health")
    assert not taker.spans
    await traced.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]})
    assert taker.named("chat pocket-vl").attributes["gen_ai.operation.name"] == "chat"


def test_a_generation_outside_http_has_a_trace_of_its_own(taker: Taker) -> None:
    request = Request("r", Prompt(np.zeros(1, dtype=np.int64)), SamplingParams())
    tracing = Tracing(taker, "m")
    tracing.record(Generation(request, "abort", 1.0, 2.0), None)
    assert not taker.named("generate_content m").parent.is_valid
    tracing.close()
    assert taker.closed


@pytest.fixture
def without_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
@pytest.mark.usefixtures("without_sdk")
def test_without_an_endpoint_nothing_is_imported(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert start_tracing("m", "0", environ=environ) is None
    assert not caplog.records


@pytest.mark.usefixtures("without_sdk")
def test_missing_packages_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'mmserve\[otel\]'"):
        start_tracing("m", "0", "http://localhost:4318/v1/traces", environ={})
    caplog.set_level(logging.WARNING)
    assert start_tracing("m", "0", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}) is None
    assert "mmserve[otel]" in caplog.text


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(ConfigError, match="grpc"):
        start_tracing("m", "0", "http://localhost:4317", environ={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
