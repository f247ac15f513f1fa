"""Which of the engine's counters and gauges ``/metrics`` shows, under which names.

Names are vLLM's where it has the thing, else SGLang's, with this server's prefix for theirs: a dashboard made for
either is ported by renaming the prefix. The engine only counts; this reads its ``stats()`` when Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from web.operations.exposition import Family, Kind, Labels, Sample

PREFIX = "mmserve:"

Stats = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Entry:
    """One family: ``samples`` takes, for each set of labels, one of the engine's numbers by name or computes it."""

    name: str
    kind: Kind
    help: str
    samples: Mapping[Labels, str | Callable[[Stats], float]] = field(repr=False)


def engine_families(stats: Stats) -> Iterator[Family]:
    """The families of what the engine says; an engine that does not know a number has no sample of it."""
    for entry in CATALOGUE:
        found = ((labels, _value(source, stats)) for labels, source in entry.samples.items())
        samples = tuple(Sample(value, labels) for labels, value in found if value is not None)
        yield Family(PREFIX + entry.name, entry.kind, entry.help, samples)


def _value(source: str | Callable[[Stats], float], stats: Stats) -> float | None:
    if isinstance(source, str):
        return stats.get(source)
    try:
        return source(stats)
    except KeyError:
        return None


def _one(source: str | Callable[[Stats], float]) -> Mapping[Labels, str | Callable[[Stats], float]]:
    return {(): source}


def _by_kind(**sources: str) -> Mapping[Labels, str | Callable[[Stats], float]]:
    return {(("kind", kind),): source for kind, source in sources.items()}


def _used(stats: Stats) -> float:
    return stats["slots_total"] - stats["slots_free"] - stats["slots_evictable"]


def _usage(stats: Stats) -> float:
    return _used(stats) / max(1.0, stats["slots_total"])


CATALOGUE = (
    Entry("num_requests_running", "gauge", "Requests that are being computed.", _one("requests_running")),
    Entry("num_requests_waiting", "gauge", "Requests in the engine's queue.", _one("requests_waiting")),
    Entry("kv_cache_usage_perc", "gauge", "Part of the KV cache in use by requests; 1 is all.", _one(_usage)),
    Entry("max_total_num_tokens", "gauge", "Tokens that the KV cache holds.", _one("slots_total")),
    Entry("num_used_tokens", "gauge", "Tokens in the KV cache that requests use.", _one(_used)),
    Entry("num_cached_tokens", "gauge", "Tokens in the prefix tree, in use or not.", _one("slots_cached")),
    Entry("prompt_tokens_total", "counter", "Prompt tokens of admitted requests.", _one("prompt_tokens")),
    Entry("generation_tokens_total", "counter", "Tokens generated.", _one("generated_tokens")),
    Entry("prefill_tokens_total", "counter", "Tokens computed in prefill.", _one("prefilled_tokens")),
    Entry("forced_tokens_total", "counter", "Generated tokens that a grammar forced.", _one("forced_tokens")),
    Entry("prefix_cache_queries_total", "counter", "Prompt tokens looked up.", _one("prompt_tokens")),
    Entry(
        "prefix_cache_hits_total",
        "counter",
        "Prompt tokens found computed, by what they are.",
        _by_kind(system="cached_system_tokens", picture="cached_picture_tokens", history="cached_history_tokens"),
    ),
    Entry("mm_cache_queries_total", "counter", "Pictures in the prompts of admitted requests.", _one("pictures")),
    Entry("mm_cache_hits_total", "counter", "Pictures whose rows were not made anew.", _one("pictures_reused")),
    Entry(
        "external_prefix_cache_hits_total",
        "counter",
        "Tokens fetched from the second cache tier.",
        _one("tier_fetched_tokens"),
    ),
    Entry("tier_saved_tokens_total", "counter", "Tokens saved to the second tier.", _one("tier_saved_tokens")),
    Entry("tier_damaged_total", "counter", "Fetches from the second tier that failed.", _one("tier_damaged")),
    Entry("tier_max_total_num_tokens", "gauge", "Tokens that the second tier holds.", _one("tier_slots_total")),
    Entry("tier_num_cached_tokens", "gauge", "Tokens in the second tier.", _one("tier_slots_cached")),
    Entry("pictures_decoded_total", "counter", "Picture files decoded.", _one("pictures_decoded")),
    Entry("encoder_runs_total", "counter", "Pictures that the vision encoder computed.", _one("pictures_encoded")),
    Entry("encoder_cache_pictures", "gauge", "Pictures whose rows are kept.", _one("encoder_cache_pictures")),
    Entry("encoder_cache_bytes", "gauge", "Bytes of the rows kept.", _one("encoder_cache_bytes")),
    Entry("evicted_tokens_total", "counter", "Tokens evicted from the KV cache.", _one("evicted_tokens")),
    Entry("evicted_pictures_total", "counter", "Pictures whose rows were evicted.", _one("evicted_pictures")),
    Entry("num_preemptions_total", "counter", "Requests sent back to the queue.", _one("preemptions")),
    Entry("grammar_compiles_total", "counter", "Constraints compiled.", _one("grammar_compiles")),
    Entry("grammar_cache_hits_total", "counter", "Constraints found compiled.", _one("grammar_hits")),
    Entry("grammar_failures_total", "counter", "Constraints that could not be compiled.", _one("grammar_failures")),
    Entry("grammar_compilation_seconds_total", "counter", "Time spent on compiles.", _one("grammar_seconds")),
    Entry("num_grammar_queue_reqs", "gauge", "Compiles that wait or run.", _one("grammar_waiting")),
    Entry("engine_steps_total", "counter", "Steps of the engine's loop that computed.", _one("steps")),
    Entry("engine_restarts_total", "counter", "Times that the engine was started again.", _one("engine_restarts")),
)
