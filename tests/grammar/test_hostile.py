from __future__ import annotations

import time

import pytest

from mmserve.errors import ConstraintError
from mmserve.grammar.judge import judge
from mmserve.grammar.spec import Choice
from tests.grammar.conftest import Bench
from tests.grammar.hostile import Make, hostile

CASES = list(hostile())
SECONDS = 1.0


def check(bench: Bench, make: Make) -> None:
    start = time.thread_time() + bench.compiler.stats()["seconds"]
    refusal = None
    try:
        bench.compile(make())
    except ConstraintError as error:
        refusal = error
    assert time.thread_time() + bench.compiler.stats()["seconds"] - start < SECONDS
    if refusal is not None:
        assert refusal.param
        assert 10 < len(refusal.message) < 1000


def test_there_are_two_hundred() -> None:
    assert len(CASES) >= 200
    assert len({name for name, _ in CASES}) == len(CASES)


@pytest.mark.parametrize("make", [make for _, make in CASES[::9]], ids=[name for name, _ in CASES[::9]])
def test_a_hostile_constraint_ends_in_time(bench: Bench, make: Make) -> None:
    check(bench, make)


@pytest.mark.proof
@pytest.mark.parametrize("make", [make for _, make in CASES], ids=[name for name, _ in CASES])
def test_every_hostile_constraint_ends_in_time(bench: Bench, make: Make) -> None:
    check(bench, make)
    grammar = bench.compile(Choice(("yes", "no")))
    assert judge(Choice(("yes", "no")), bench.vocabulary.bytes_of(grammar.completion).decode())
