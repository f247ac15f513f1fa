"""One compile a constraint, however many ask for it; the cache is bounded and failures do not stay."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait

import pytest

from mmserve.errors import EngineUnavailable, QueueFull, UnsupportedConstraint
from mmserve.grammar.compiler import CompiledGrammar, GrammarCompiler, canonical
from mmserve.grammar.spec import Choice, JsonSchema, Regex, StructuralTag, Tag
from tests.grammar.conftest import Bench


class Gate:
    """Stands in for the search for the shortest answer, and holds compiles up until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, *_: object) -> list[int]:
        self.entered.release()
        assert self.open.wait(20)
        return []


def test_what_is_compiled_can_be_used(bench: Bench) -> None:
    grammar = bench.compile(Choice(("yes", "no")))
    assert grammar.constraint == Choice(("yes", "no"))
    assert grammar.step == "strict"
    assert bench.vocabulary.bytes_of(grammar.completion) in (b"yes", b"no")
    first, second = grammar.matcher(), grammar.matcher()
    assert first.consume_tokens(list(grammar.completion))
    assert first.is_accepting()
    assert not second.is_accepting()


def test_callers_share_a_compile_and_later_ones_find_it(bench: Bench) -> None:
    gate = Gate()
    compiler = GrammarCompiler(bench.vocabulary, threads=2, completion=gate)
    futures = [compiler.submit(Regex("[ab]+")) for _ in range(5)]
    assert gate.entered.acquire(timeout=20)
    gate.open.set()
    found = {id(future.result(20)) for future in futures}
    assert len(found) == 1
    late = compiler.submit(Regex("[ab]+"))
    assert late.done()
    assert id(late.result()) in found
    stats = compiler.stats()
    assert (stats["compiles"], stats["hits"], stats["failures"]) == (1, 5, 0)
    assert stats["seconds"] > 0
    compiler.close()


def test_a_caller_that_goes_away_takes_nobody_along(bench: Bench) -> None:
    gate = Gate()
    compiler = GrammarCompiler(bench.vocabulary, threads=1, completion=gate)
    left, stays = compiler.submit(Regex("x")), compiler.submit(Regex("x"))
    assert left.cancel()
    gate.open.set()
    assert stays.result(20).constraint == Regex("x")
    compiler.close()


def test_the_canonical_form_forgets_white_space_but_not_order() -> None:
    one, two = JsonSchema('{"a": 1,\n "b": {"c": "é"}}'), JsonSchema('{"a":1,"b":{"c":"\\u00e9"}}')
    assert canonical(one) == canonical(two)
    assert canonical(JsonSchema('{"b":1,"a":2}')) != canonical(JsonSchema('{"a":2,"b":1}'))
    assert canonical(JsonSchema("{}", strict=True)) != canonical(JsonSchema("{}"))
    assert canonical(JsonSchema('{"a')) == JsonSchema('{"a')
    tags = [StructuralTag((Tag("<f>", schema, ""),), ("<",)) for schema in (one, two)]
    assert canonical(tags[0]) == canonical(tags[1])


def test_the_least_recently_used_goes_first(bench: Bench) -> None:
    compiler = GrammarCompiler(bench.vocabulary, threads=1, capacity=2)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        compiler.submit(Regex(pattern)).result(20)
    stats = compiler.stats()
    assert stats["compiles"] == 4
    assert stats["hits"] == 2
    assert stats["cached"] == 2
    compiler.close()


def test_failures_are_told_to_all_and_not_kept(bench: Bench) -> None:
    compiler = GrammarCompiler(bench.vocabulary, threads=1)
    for _ in range(2):
        with pytest.raises(UnsupportedConstraint, match="lookaround"):
            compiler.submit(Regex("(?=a)")).result(20)
    assert compiler.stats()["failures"] == 2
    assert compiler.stats()["cached"] == 0
    compiler.close()


def test_no_answer_short_enough_is_refused(bench: Bench) -> None:
    compiler = GrammarCompiler(bench.vocabulary, threads=1, longest=3)
    with pytest.raises(UnsupportedConstraint, match="no answer of at most 3 tokens satisfies the regex"):
        compiler.submit(Regex("[xyz]{9}")).result(20)
    compiler.close()


def test_the_queue_is_bounded(bench: Bench) -> None:
    gate = Gate()
    compiler = GrammarCompiler(bench.vocabulary, threads=1, queue=3, completion=gate)
    futures = [compiler.submit(Regex(pattern)) for pattern in "abc"]
    with pytest.raises(QueueFull):
        compiler.submit(Regex("d"))
    futures.append(compiler.submit(Regex("a")))
    gate.open.set()
    assert not wait(futures, 20).not_done
    assert compiler.submit(Regex("d")).result(20).completion == ()
    compiler.close()


def test_closing_answers_everybody(bench: Bench) -> None:
    gate = Gate()
    compiler = GrammarCompiler(bench.vocabulary, threads=1, completion=gate)
    futures: list[Future[CompiledGrammar]] = [compiler.submit(Regex(pattern)) for pattern in "abcdef"]
    assert gate.entered.acquire(timeout=20)
    closing = threading.Thread(target=compiler.close)
    closing.start()
    gate.open.set()
    closing.join(20)
    assert not wait(futures, 20).not_done
    assert futures[0].result().constraint == Regex("a")
    with pytest.raises(EngineUnavailable):
        futures[-1].result()
    with pytest.raises(EngineUnavailable):
        compiler.submit(Regex("a"))


def test_many_threads_at_once(bench: Bench) -> None:
    compiler = GrammarCompiler(bench.vocabulary, threads=2, capacity=4)
    failures: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for index in range(25):
                pattern = "abcdef"[(index * seed) % 6] + "{2}"
                assert compiler.submit(Regex(pattern)).result(20).constraint == Regex(pattern)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    stats = compiler.stats()
    assert stats["compiles"] + stats["hits"] == 150
    compiler.close()


def test_large_sources_push_older_ones_out(bench: Bench) -> None:
    compiler = GrammarCompiler(bench.vocabulary, threads=1, most_bytes=3000)
    for letter in "abc":
        compiler.submit(Choice((letter * 1200,))).result(20)
    assert compiler.stats()["cached"] == 2
    compiler.submit(Choice(tuple("x" * n for n in range(1, 90)))).result(20)
    assert compiler.stats()["cached"] == 1
    compiler.close()
