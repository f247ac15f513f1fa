"""The radix bench measures what it says; its times are not judged here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import radix
from mmserve.cache.key import Spans
from mmserve.cache.radix import Node


def depth(node: Node | None) -> int:
    return 0 if node is None else 1 + depth(node.parent)


def test_the_tree_grows_to_its_size_and_its_slots_are_accounted_for() -> None:
    forest = radix.Forest(slots=60_000)
    conversation = forest.converse()
    forest.grow(2_000)
    assert 1_999 <= forest.size()[0] <= 2_000
    everything = np.concatenate([forest.pool.free_slots(), forest.tree.check()])
    assert np.array_equal(np.sort(everything), np.arange(60_000))
    splits = sum(1 for node in forest.tree.nodes() if len(node.children) > 1)
    assert splits > 500
    match = forest.tree.match(conversation.key, conversation.spans)
    assert match is not None
    assert match.length == radix.PROMPT
    assert depth(match.node) == 1 + radix.TURNS


def test_a_fresh_key_misses_and_a_cut_one_hits_half() -> None:
    forest = radix.Forest(slots=40_000)
    conversation = forest.converse()
    forest.grow(500)
    assert forest.tree.match(forest.fresh(radix.PROMPT), Spans()) is None
    key = np.concatenate([conversation.key[:3000], forest.fresh(5192)])
    match = forest.tree.match(key, conversation.spans.within(0, 3000))
    assert match is not None
    assert match.length == 3000


def test_probes_leave_nothing_locked_and_eviction_is_counted() -> None:
    forest = radix.Forest(slots=200_000)
    conversations = [forest.converse() for _ in range(2)]
    forest.grow(200)
    timings = radix.measure_probes(forest, conversations, rounds=2)
    assert [(t.case, t.calls) for t in timings] == [(case, 4) for case in radix.CASES]
    assert all(0 < t.median <= t.p99 for t in timings)
    assert forest.tree.evictable_tokens == forest.tree.cached_tokens
    before = forest.tree.cached_tokens
    radix.measure_insertion(forest, calls=3)
    assert forest.tree.cached_tokens == before + 3 * radix.PROMPT
    radix.measure_eviction(forest, calls=3)
    assert forest.tree.evicted_tokens >= 3 * ((before + 3 * radix.PROMPT) // 100)


def test_the_command_writes_its_figures_and_its_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, plot = tmp_path / "radix.json", tmp_path / "radix.png"
    command = ["radix", "--sizes", "100", "400", "--json", str(figures), "--plot", str(plot)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(radix, "BAR_US", float("inf"))
    assert radix.main() == 0
    timings = json.loads(figures.read_text())
    assert [t["case"] for t in timings] == [*radix.CASES, "extend", "evict"] * 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "median" in capsys.readouterr().out
    monkeypatch.setattr(radix, "BAR_US", 0.0)
    assert radix.main() == 1
