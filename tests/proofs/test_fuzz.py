"""20,000 damaged pictures and forms through the whole application with the embedded model: no server error, no crash,
nothing that grows. The small form is ``tests/web/test_fuzz.py``."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from tests.web.fuzzing import Held, Outcomes, fuzz
from tests.web.test_fuzz import service
from web.service import Service

__all__ = ["service"]

pytestmark = [pytest.mark.proof, pytest.mark.timeout(4 * 3600)]

ROUND = 1000
ROUNDS = 20
WARM = 6
"""Rounds after which caches are full, imports are made, and the allocator has what it needs."""

SLACK = 24 << 20
"""Bytes by which resident memory may still move: allocators keep what they freed."""


def test_damage_is_answered_and_nothing_grows(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcomes, held = Outcomes(), []
    for number in range(ROUNDS):
        asyncio.run(fuzz(service, ROUND, 100 + number, outcomes))
        held.append(Held.now(tmp_path))
        print(
            f"{(number + 1) * ROUND:6} requests: {held[-1].memory >> 20} MiB resident, "
            f"{held[-1].descriptors} open files, {held[-1].temporary} temporary files",
            flush=True,
        )
    print(f"statuses {dict(sorted(outcomes.statuses.items()))}")
    print(f"reasons  {dict(outcomes.codes.most_common())}")
    assert sum(outcomes.statuses.values()) == ROUND * ROUNDS
    warm = held[WARM:]
    assert {each.descriptors for each in warm} == {held[WARM].descriptors}
    assert {each.temporary for each in held} == {0}
    half = len(warm) // 2
    first, second = (max(each.memory for each in part) for part in (warm[:half], warm[half:]))
    assert second <= first + SLACK, (first, second)
