"""The bench of a shared decode step measures what it says; its times are not judged here."""

from __future__ import annotations

import pytest
import torch

from bench import tensor_parallel
from bench.tensor_parallel import SEVEN_B, TINY, Measured, Work, measure, report
from mmserve.models.layers import DecoderStack
from tests.models.ranks import on_each

CPU = torch.device("cpu")
WORK = Work(sequences=3, context=5, rounds=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "bandwidth", lambda _: 1e9)


def test_a_rank_of_two_reads_half() -> None:
    alone = measure(TINY, WORK, CPU)
    for shared in on_each(2, lambda ranks: measure(TINY, WORK, CPU, ranks)):
        assert 0.5 * alone.bytes_read < shared.bytes_read < 0.53 * alone.bytes_read  # norms are on both
        assert shared.floor == shared.bytes_read / 1e9
        assert shared.step > 0


def test_the_shape_is_that_of_seven_billion() -> None:
    count = sum(each.numel() for each in DecoderStack(SEVEN_B).parameters())
    assert 7.6e9 < count < 7.7e9


def test_the_table() -> None:
    found = {1: Measured(0.02, 0.01, 10**10), 2: Measured(0.0125, 0.005, 5 * 10**9)}
    lines = report(found, Work(16, 1024, 50)).splitlines()
    assert lines[0] == "16 sequences of 1024 tokens, median of 50 steps"
    assert lines[2].split() == ["1", "20.00", "10.00", "2.00", "10.00", "1.00"]
    assert lines[3].split() == ["2", "12.50", "5.00", "2.50", "5.00", "1.60"]


def test_without_the_gpus_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert tensor_parallel.main([]) == 1
    assert "--tp 2 takes as many GPUs; torch sees 1" in capsys.readouterr().err


def test_it_runs_from_end_to_end_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert tensor_parallel.main(["--tp", "1", "--device", "cpu", "--tiny", "--sequences", "2", "--rounds", "1"]) == 0
    assert "2 sequences of 1024 tokens" in capsys.readouterr().out
