"""What is timed and counted on this side of the engine, and the whole text of ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

from web.operations.catalogue import PREFIX, Stats, engine_families
from web.operations.exposition import Counter, Family, Gauge, Histogram, Sample, render

FINISH_REASONS = ("stop", "length", "abort", "refused", "error")
"""How a request of the engine ends: by itself, at its limit, its caller gone, with the caller's error or with ours."""

BATCH_OUTCOMES = ("completed", "failed", "expired", "cancelled")
BATCH_STATUSES = ("validating", "in_progress", "finalizing", "cancelling", *BATCH_OUTCOMES)

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_STATUSES = tuple(str(status) for status in range(100, 600))

_TOKEN_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_FIRST_BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_WHOLE_BOUNDS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0)
_STAGE_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0)
_LENGTH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class ServiceMetrics:
    """The server's own metrics. One event loop owns it; the number of series is bounded.

    ``http`` counts by a route's template, such as ``/v1/models/{name:path}``, never by a path.
    """

    def __init__(self) -> None:
        p = PREFIX
        self.first_token = Histogram(p + "time_to_first_token_seconds", "Arrival to first token.", _FIRST_BOUNDS)
        self.between_tokens = Histogram(p + "inter_token_latency_seconds", "Between two tokens.", _TOKEN_BOUNDS)
        self.whole = Histogram(p + "e2e_request_latency_seconds", "Arrival to last token.", _WHOLE_BOUNDS)
        self.queue = Histogram(p + "request_queue_time_seconds", "In the engine's queue.", _STAGE_BOUNDS)
        self.encode = Histogram(p + "request_encode_time_seconds", "Decoding and encoding pictures.", _STAGE_BOUNDS)
        self.prefill = Histogram(p + "request_prefill_time_seconds", "Admission to first token.", _STAGE_BOUNDS)
        self.decode = Histogram(p + "request_decode_time_seconds", "First to last token.", _STAGE_BOUNDS)
        self.prompt = Histogram(p + "request_prompt_tokens", "Prompt tokens of a request.", _LENGTH_BOUNDS)
        self.generated = Histogram(p + "request_generation_tokens", "Tokens of an answer.", _LENGTH_BOUNDS)
        self.requests = Counter(p + "requests_total", "Requests by outcome.", {"finished_reason": FINISH_REASONS})
        self.http = Counter(
            p + "http_requests_total",
            "HTTP requests by route, method and status.",
            {"handler": None, "method": _METHODS, "status": _STATUSES},
        )
        self.batches = Gauge(p + "num_batches", "Batches that are kept, by status.", "status", BATCH_STATUSES)
        self.batch_requests = Counter(
            p + "batch_requests_total", "Requests of batches by outcome.", {"outcome": BATCH_OUTCOMES}
        )

    def families(self) -> Iterator[Family]:
        timed = (self.first_token, self.between_tokens, self.whole, self.queue, self.encode, self.prefill, self.decode)
        counted = (self.requests, self.http, self.batches, self.batch_requests)
        for metric in (*timed, self.prompt, self.generated, *counted):
            yield metric.family()

    def text(self, stats: Stats, *, model: str, version: str, ready: bool) -> str:
        """Everything, labelled with the model's name."""
        info = Family(PREFIX + "build_info", "gauge", "1, with the version.", (Sample(1, (("version", version),)),))
        up = Family(PREFIX + "ready", "gauge", "1 where the engine can answer.", (Sample(float(ready)),))
        return render([info, up, *engine_families(stats), *self.families()], (("model_name", model),))
