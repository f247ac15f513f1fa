"""Traces over OpenTelemetry: a span for each HTTP request, one for each request of the engine, and one for each stage.

Attributes follow OpenTelemetry's semantic conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/
gen-ai/). The spans of the engine's stages are made when a request has ended, from the times that it brought, so that
tracing adds nothing to a step. The packages are the extra ``otel``; without an endpoint they are not imported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from mmserve.errors import ConfigError
from web.operations.story import Generation, Story

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

logger = logging.getLogger(__name__)

Value: TypeAlias = "str | int | float | bool | list[str]"

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
}
_MISSING = "OpenTelemetry's packages are not installed; install mmserve's extra for them: pip install 'mmserve[otel]'"


class Tracing:
    """Makes spans through ``provider``, whose owner it is from then on. ``model`` is the served model's name."""

    def __init__(self, provider: TracerProvider, model: str, version: str = "") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("mmserve", version)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def begin(self, method: str, headers: Mapping[str, str]) -> Span:
        """The span of an HTTP request; a child of the caller's where its ``traceparent`` says so."""
        context = self._propagator.extract(dict(headers))
        kind = self._api.SpanKind.SERVER
        return self._tracer.start_span(method, context, kind, {"http.request.method": method})

    def end(self, span: Span, method: str, handler: str, status: int) -> None:
        span.update_name(f"{method} {handler}")
        span.set_attribute("http.route", handler)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR))
        span.end()

    def record(self, generation: Generation, story: Story | None) -> None:
        """The spans of one request of the engine, under its HTTP request's."""
        operation = _OPERATIONS.get(story.path if story else "", "generate_content")
        parent = self._api.set_span_in_context(story.span) if story and story.span else None
        wall = time.time() - time.monotonic()
        attributes = {**self._asked(generation, operation), **_answered(generation)}
        span = self._tracer.start_span(
            f"{operation} {self._model}", parent, attributes=attributes, start_time=_ns(generation.started + wall)
        )
        if generation.error is not None:
            span.set_attribute("error.type", generation.error)
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, generation.error))
        inside = self._api.set_span_in_context(span)
        for name, start, end in _stages(generation):
            self._tracer.start_span(name, inside, start_time=_ns(start + wall)).end(_ns(max(start, end) + wall))
        span.end(_ns(generation.ended + wall))

    def close(self) -> None:
        """Send what is still here."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()

    def _asked(self, generation: Generation, operation: str) -> dict[str, Value]:
        request = generation.request
        sampling = request.sampling
        said: dict[str, Value | None] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "mmserve",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": request.id,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k or None,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
            "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
            "mmserve.pictures": len(request.prompt.pictures),
        }
        return {name: value for name, value in said.items() if value is not None}


def _answered(generation: Generation) -> dict[str, Value]:
    said: dict[str, Value] = {"gen_ai.response.finish_reasons": [generation.outcome]}
    if generation.usage is not None:
        said |= {
            "gen_ai.usage.input_tokens": generation.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": generation.usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": generation.usage.cached_tokens,
            "mmserve.usage.image_tokens": generation.usage.image_tokens,
        }
    if generation.first_token is not None:
        said["gen_ai.response.time_to_first_chunk"] = generation.first_token - generation.started
    return said


def _stages(generation: Generation) -> Iterable[tuple[str, float, float]]:
    stages, first = generation.stages, generation.first_token
    if stages is not None:
        yield "queue", stages.added, stages.admitted
        if stages.encoding is not None:
            yield "encode", *stages.encoding
        if first is not None:
            yield "prefill", stages.admitted, first
    if first is not None:
        yield "decode", first, generation.ended


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def start_tracing(
    model: str, version: str, endpoint: str | None = None, environ: Mapping[str, str] = os.environ
) -> Tracing | None:
    """Tracing to ``endpoint``, or to where OpenTelemetry's own variables say; ``None`` where nothing is said.

    Raises ``ConfigError`` where ``endpoint`` is given and cannot be used. What the environment says may not be meant
    for this server, so that it only warns.
    """
    if endpoint is None:
        off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
        if off or not any(environ.get(name) for name in ENDPOINTS):
            return None
    try:
        return Tracing(_provider(endpoint, environ), model, version)
    except ConfigError as error:
        if endpoint is not None:
            raise
        logger.warning("no traces are sent, though the environment names an endpoint for them: %s", error)
        return None


def _provider(endpoint: str | None, environ: Mapping[str, str]) -> TracerProvider:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise ConfigError(f"traces are sent by http/protobuf, not by {protocol}; change OTEL_EXPORTER_OTLP_PROTOCOL")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(_MISSING) from None
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider: TracerProvider = SdkTracerProvider(resource=Resource.create({} if named else {"service.name": "mmserve"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))  # type: ignore[attr-defined]
    return provider
