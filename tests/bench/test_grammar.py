"""The grammar bench measures what it says; its times are not judged here."""

from __future__ import annotations

import base64
from pathlib import Path

from bench import grammar
from tests.grammar.support import tiny_vocabulary


def test_it_counts_masks_and_steps(tmp_path: Path) -> None:
    tiny_vocabulary(tmp_path)
    vocabulary = grammar.load_vocabulary(tmp_path)
    assert vocabulary.size == 504
    rows = grammar.load_rows()
    assert len(rows) == 600
    figures = grammar.measure(vocabulary, rows[:12])
    assert sum(figures.steps.values()) == 12
    assert figures.steps["strict"] >= 8
    assert figures.tokens > 1000
    assert 0 < figures.times["mask p50 µs"] <= figures.times["mask p99 µs"] <= figures.times["mask max µs"]
    assert "bar 30" in grammar.table(figures)


def test_it_reads_a_tiktoken_file(tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', "猫".encode()]
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)))
    vocabulary = grammar.load_vocabulary(path)
    assert vocabulary.size == 262
    assert vocabulary.bytes_of(vocabulary.tokenize('{"猫":1}'.encode())) == '{"猫":1}'.encode()
    figures = grammar.measure(vocabulary, [{"schema": {"type": "object"}, "valid": [{"猫": 1}]}])
    assert figures.steps == {"strict": 1}
    assert figures.tokens == 5
