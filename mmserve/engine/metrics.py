"""Counters of the engine, by the names under which they are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(slots=True)
class Counters:
    """Totals since start. Tokens are counted when a request is first admitted (prompt) or a token is chosen."""

    requests_added: int = 0
    requests_finished: int = 0
    requests_failed: int = 0
    requests_aborted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cached_system_tokens: int = 0
    cached_picture_tokens: int = 0
    cached_history_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    closed_early: int = 0
    pictures: int = 0
    pictures_reused: int = 0
    pictures_decoded: int = 0
    pictures_encoded: int = 0
    preemptions: int = 0
    tier_saved_tokens: int = 0
    tier_fetched_tokens: int = 0
    tier_damaged: int = 0
    steps: int = 0

    def snapshot(self) -> dict[str, float]:
        return {name: float(value) for name, value in asdict(self).items()}


TOTALS = frozenset(field.name for field in fields(Counters)) | {
    "evicted_tokens",
    "evicted_pictures",
    "grammar_compiles",
    "grammar_hits",
    "grammar_failures",
    "grammar_seconds",
}
"""Those of an engine's ``stats()`` that only grow; the others are gauges."""


def unfinished(stats: Mapping[str, float]) -> float:
    """How many requests an engine of these ``stats()`` had taken and not yet ended."""
    ended = sum(stats.get(f"requests_{how}", 0.0) for how in ("finished", "failed", "aborted"))
    return stats.get("requests_added", 0.0) - ended
