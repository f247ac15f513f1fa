"""The hit rates' structural facts, on traces a tenth as long with a tenth as much running."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import hit_rate
from bench.optimum import optimum, trace_paths
from bench.traces import WORKLOADS, query
from mmserve.config import EngineConfig

SCALE = 0.15
CONFIG = EngineConfig(max_running=8, step_tokens=512)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_queued_at_once_each_distinct_prefix_is_computed_about_once(workload: str) -> None:
    figures = hit_rate.measure(workload, "queued", scale=SCALE, config=CONFIG)
    result = figures.replay
    assert len(result.order) == figures.requests
    assert figures.slots == figures.working_set // 2
    assert figures.best_after_answers is not None
    assert result.cached_tokens <= figures.best_after_answers
    assert figures.ratio >= hit_rate.BAR
    if result.preemptions == 0:
        assert result.prefilled_tokens == result.prompt_tokens - result.cached_tokens


@pytest.mark.parametrize("mode", ["32 in flight", "256 in flight"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_nothing_beats_the_eviction_that_knows_the_future(workload: str, mode: str) -> None:
    figures = hit_rate.measure(workload, mode, scale=SCALE, config=CONFIG)
    assert len(figures.replay.order) == figures.requests
    assert 0 < figures.replay.cached_tokens <= figures.best
    assert figures.best <= optimum(trace_paths(WORKLOADS[workload](0, SCALE)).values()).hits_after_answers


def test_without_reuse_nothing_comes_from_the_cache() -> None:
    queries = WORKLOADS["agents"](0, SCALE)
    config = EngineConfig(max_running=8, step_tokens=512, reuse=False)
    result = hit_rate.replay(queries, 60_000, config)
    assert result.cached_tokens == 0
    assert result.prompt_tokens == sum(len(q.request.prompt) for q in queries)


def test_a_follow_up_waits_for_the_answer_it_quotes() -> None:
    first = query("a", (tuple(range(100)),), tuple(range(200, 240)))
    second = query("b", (tuple(range(100)), first.answer, (1,)), (2,), after="a")
    assert hit_rate.replay([first, second], 400, in_flight=2).cached_tokens == 139  # its last token is never computed
    assert hit_rate.replay([first, second], 400).cached_tokens == 100


def test_the_command_reports_and_fails_below_the_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(hit_rate, "WORKLOADS", {"agents": WORKLOADS["agents"]})
    monkeypatch.setattr(sys, "argv", ["hit_rate", "--scale", "0.1", "--json", str(out)])
    monkeypatch.setattr(hit_rate, "BAR", 0.0)
    assert hit_rate.main() == 0
    assert [figures["mode"] for figures in json.loads(out.read_text())] == list(hit_rate.MODES)
    assert "agents" in capsys.readouterr().out
    monkeypatch.setattr(hit_rate, "BAR", 1.1)
    assert hit_rate.main() == 1
