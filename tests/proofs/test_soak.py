"""A server process survives random requests, cancels, disconnects, damage and flushes with nothing lost.

The small form runs with the tests; 20,000 requests, whose memory is judged too, with ``make proof``. The same soak as a
command: ``python -m bench.soak``.
"""

from __future__ import annotations

import pytest

from bench.soak import MAX_GROWTH, Result, Sample, report, run
from bench.soak_traffic import Memory, Step, Wrong


@pytest.mark.parametrize("requests", [150, pytest.param(20_000, marks=[pytest.mark.proof, pytest.mark.timeout(7200)])])
def test_nothing_is_lost_and_nothing_hangs(requests: int) -> None:
    result = run(requests)
    print(report(result, {"concurrency": 32, "seed": 0}))
    assert result.failures == []
    assert sum(result.seen.values()) == requests
    assert {outcome for _, outcome in result.seen} == {"answered", "refused", "left"}
    assert result.repeated > 0


def grown(by: int) -> Result:
    """A run whose own memory is 100 MB, and ``by`` bytes more from three quarters on; encoder rows come and go."""
    rows = [0, 5_000_000, 9_000_000, 1_000_000]
    own = [100_000_000 + (by if i >= 30 else 0) for i in range(40)]
    samples = [Sample(i, i / 10, 0, own[i] + rows[i % 4], rows[i % 4]) for i in range(40)]
    return Result(40, samples=samples)


def test_growth_is_that_of_the_second_half_without_cached_rows() -> None:
    assert grown(0).growth == 0
    assert grown(MAX_GROWTH + 1).growth > MAX_GROWTH


def test_an_answer_that_changes_is_found_and_a_near_tie_is_counted() -> None:
    memory = Memory()
    steps: list[Step] = [("a", -0.1, 2.0), ("red", -0.7, 0.00005), ("cat", -0.2, 1.0)]
    memory.check("key", steps)
    memory.check("key", list(steps))
    memory.check("key", [steps[0], ("blue", -0.7, 0.00005)])
    assert (memory.repeated, memory.excused) == (2, 1)
    for wrong in ([("the", -0.1, 2.0)], steps[:2], [("a", -0.2, 2.0), *steps[1:]]):
        with pytest.raises(Wrong):
            memory.check("key", wrong)
