"""The scheduler against the sequential truth, and its promises one by one."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmserve.config import EngineConfig
from mmserve.engine.scheduler import Scheduler
from mmserve.types import Picture, Request
from tests.engine.simulator import Simulation, make_picture, make_prompt, positions_of, request, truth

CONFIG = EngineConfig(step_tokens=64, max_running=8, encode_patches=64, encoder_cache_bytes=64, share_threshold=4)
SYSTEM = [1, 2, 3, 4, 5, 6]


def finished(simulation: Simulation, *requests: Request) -> None:
    for r in requests:
        simulation.add(r)
    simulation.run()
    for r in requests:
        assert simulation.answers[r.id] == truth(r), r.id
    held = simulation.scheduler.encoder_cache.bytes_held
    assert held == 0, "rows are still held after the last request"
    assert simulation.scheduler.tree.evictable_tokens == simulation.scheduler.tree.cached_tokens


def test_one_request_alone() -> None:
    finished(Simulation(CONFIG, 64), request("a", [1, 2, make_picture("p", 3), 4]))


def test_the_second_question_computes_only_what_is_new() -> None:
    simulation = Simulation(CONFIG, 128)
    cat = make_picture("cat", 9)
    finished(simulation, request("a", [*SYSTEM, cat, 11, 12]))
    before = simulation.device.computed_tokens
    second = request("b", [*SYSTEM, cat, 21, 22])
    simulation.add(second)
    seq = simulation.scheduler.get("b")
    simulation.run()
    assert simulation.answers["b"] == truth(second)
    assert seq is not None
    assert (seq.cached_tokens, seq.cached_pictures) == (15, 1)
    assert simulation.device.computed_tokens - before == 2 + 2
    assert len(simulation.decoded) == len(simulation.device.encoded) == 1


def test_a_picture_behind_another_prefix_is_not_encoded_again() -> None:
    simulation = Simulation(CONFIG, 128)
    cat = make_picture("cat", 9)
    finished(simulation, request("a", [*SYSTEM, cat, 11]))
    finished(simulation, request("b", [9, 9, 9, cat, 11]))
    assert len(simulation.decoded) == len(simulation.device.encoded) == 1
    assert simulation.scheduler.counters.pictures_reused == 1


@pytest.mark.parametrize("count", [2, 64])
def test_simultaneous_first_questions_share_one_of_everything(count: int) -> None:
    config = EngineConfig(step_tokens=4096, max_running=64, share_threshold=4)
    simulation = Simulation(config, 4096)
    cat = make_picture("cat", 20)
    requests = [request(str(i), [*SYSTEM, cat, 100 + i], max_tokens=2) for i in range(count)]
    finished(simulation, *requests)
    assert len(simulation.decoded) == len(simulation.device.encoded) == 1
    # The shared 26 tokens once, then each request's own last token and its one decode.
    assert simulation.device.computed_tokens == 26 + 2 * count


def test_pictures_of_equal_size_never_answer_for_each_other() -> None:
    simulation = Simulation(CONFIG, 256)
    a, b = make_picture("a", 5), make_picture("b", 5)
    finished(
        simulation, *(request(f"{i}", [*SYSTEM, *order, 8]) for i, order in enumerate([[a, b], [b, a], [a, a], [b]]))
    )


def test_a_salt_keeps_prefixes_apart() -> None:
    simulation = Simulation(CONFIG, 128)
    finished(simulation, request("a", [*SYSTEM, 9], salt="x"))
    simulation.add(request("b", [*SYSTEM, 9], salt="y"))
    seq = simulation.scheduler.get("b")
    simulation.run()
    assert seq is not None
    assert seq.cached_tokens == 0


def test_a_long_prompt_is_prefilled_in_chunks_that_may_cut_a_picture() -> None:
    config = EngineConfig(step_tokens=4, max_running=4, share_threshold=4)
    simulation = Simulation(config, 64)
    r = request("a", [1, 2, make_picture("p", 11), 3, 4, 5])
    simulation.add(r)
    cuts = []
    while simulation.scheduler.has_requests:
        cuts += [chunk.stop for chunk in simulation.step().prefill]
    assert simulation.answers["a"] == truth(r)
    assert cuts == [4, 8, 12, 16]


def test_a_decode_never_waits_for_a_long_prefill() -> None:
    config = EngineConfig(step_tokens=8, max_running=4, share_threshold=4)
    simulation = Simulation(config, 256)
    simulation.add(request("short", [1, 2], max_tokens=8))
    simulation.step()
    simulation.add(request("long", list(range(100, 160)), max_tokens=1))
    for _ in range(7):
        assert [chunk.sequence_id for chunk in simulation.step().decode] == ["short"]
    simulation.run()


def test_too_few_slots_preempt_the_youngest_and_nothing_is_lost() -> None:
    simulation = Simulation(CONFIG, 40)
    finished(simulation, *(request(str(i), [i * 10 + 1, i * 10 + 2], max_tokens=20) for i in range(4)))
    assert simulation.scheduler.counters.preemptions > 0


def test_a_broken_picture_ends_only_those_that_show_it() -> None:
    bad, good = make_picture("bad", 3), make_picture("good", 3)
    simulation = Simulation(CONFIG, 128, broken=frozenset({bad.content}))
    requests = [request(str(i), [*SYSTEM, bad if i % 2 else good, i]) for i in range(6)]
    for r in requests:
        simulation.add(r)
    simulation.run()
    assert sorted(simulation.failed) == ["1", "3", "5"]
    assert all(simulation.answers[str(i)] == truth(requests[i]) for i in (0, 2, 4))


def test_an_aborted_request_frees_what_it_holds_at_any_moment() -> None:
    for moment in range(8):
        simulation = Simulation(EngineConfig(step_tokens=4, max_running=4, share_threshold=4), 64)
        simulation.add(request("a", [*SYSTEM, make_picture("p", 6), 8], max_tokens=3))
        for _ in range(moment):
            simulation.step()
        simulation.abort("a")
        simulation.scheduler.check()
        simulation.step()
        assert not simulation.scheduler.has_requests
        assert simulation.scheduler.pool.free_count + simulation.scheduler.tree.cached_tokens == 64
        assert simulation.scheduler.encoder_cache.bytes_held == 0


def test_who_waited_for_an_aborted_request_takes_over() -> None:
    config = EngineConfig(step_tokens=4, max_running=4, share_threshold=4)
    simulation = Simulation(config, 128)
    first, second = (request(name, [*range(20), ord(name)]) for name in "ab")
    simulation.add(first)
    simulation.add(second)
    simulation.step()
    simulation.abort("a")
    simulation.run()
    assert simulation.answers["b"] == truth(second)


def test_a_failed_step_ends_its_requests_and_forgets_rows_that_were_never_made() -> None:
    simulation = Simulation(CONFIG, 128)
    cat = make_picture("cat", 3)
    simulation.add(request("a", [1, cat, 2]))
    simulation.scheduler.schedule()
    simulation.device.pixels.add(cat.content)
    simulation.scheduler.prepared(cat.content)
    plan = simulation.scheduler.schedule()
    assert plan.encode == (cat.content,)
    assert [seq.id for seq in simulation.scheduler.execution_failed(plan)] == ["a"]
    simulation.scheduler.check()
    assert cat.content not in simulation.scheduler.encoder_cache
    simulation.device.pixels.clear()
    again = request("b", [1, cat, 2])
    finished(simulation, again)


def test_without_reuse_nothing_is_kept() -> None:
    config = EngineConfig(step_tokens=64, max_running=8, reuse=False, encoder_cache_bytes=0)
    simulation = Simulation(config, 128)
    finished(simulation, request("a", [*SYSTEM, 7]), request("b", [*SYSTEM, 8]))
    assert simulation.scheduler.tree.cached_tokens == 0
    assert simulation.scheduler.counters.cached_tokens == 0


def test_a_request_with_more_pictures_than_the_encoder_cache_holds_still_runs() -> None:
    config = EngineConfig(step_tokens=64, max_running=4, encode_patches=8, encoder_cache_bytes=8, share_threshold=4)
    simulation = Simulation(config, 256)
    big = [make_picture(f"{i}", 5) for i in range(6)]
    finished(simulation, request("a", [1, *big, 2]), request("b", [3, *reversed(big), 4]), request("c", [5, big[0]]))
    assert simulation.scheduler.encoder_cache.bytes_used <= 8


@pytest.mark.parametrize("step_tokens", [1, 4, 5, 7, 64])
def test_a_picture_whose_tokens_see_each_other_is_never_cut(step_tokens: int) -> None:
    """Though it has more tokens than a step takes."""
    config = dataclasses.replace(CONFIG, step_tokens=step_tokens)
    simulation = Simulation(config, 128, whole_pictures=True)
    cat, dog = make_picture("cat", 9), make_picture("dog", 4)
    finished(simulation, request("a", [*SYSTEM, cat, dog, 11, cat]), request("b", [cat, 1, dog, 2, 3]))


def test_a_second_request_with_the_same_id_is_refused() -> None:
    scheduler = Scheduler(CONFIG, num_slots=16, row_bytes=1)
    prompt = make_prompt([1, 2])
    r = request("a", [1, 2])
    scheduler.add(r, *positions_of(prompt))
    with pytest.raises(ValueError, match="already"):
        scheduler.add(r, *positions_of(prompt))


def test_any_mix_answers_as_if_alone() -> None:
    """Shared prefixes and pictures, tiny pools, aborts and flushes: every answer is the sequential one.

    At least 10,000 steps of the scheduler, its invariants checked after each.
    """
    steps = 0

    @settings(max_examples=450, deadline=None)
    @given(seed=st.integers(0, 2**32), slots=st.integers(48, 120), step_tokens=st.sampled_from([3, 7, 16, 64]))
    def play(seed: int, slots: int, step_tokens: int) -> None:
        nonlocal steps
        steps += play_mix(seed, slots, step_tokens)

    play()
    assert steps >= 10_000


def play_mix(seed: int, slots: int, step_tokens: int) -> int:
    """One mix, its answers held against the truth; returns the number of steps."""
    rng = random.Random(seed)
    pictures = [make_picture(name, rng.randint(1, 9)) for name in "pqrs"]
    broken = make_picture("broken", 2)
    config = EngineConfig(
        step_tokens=step_tokens,
        max_running=rng.randint(1, 6),
        encode_patches=rng.choice([4, 40, 400]),
        encoder_cache_bytes=rng.choice([0, 8, 100]),
        share_threshold=rng.choice([1, 4, 16]),
        reuse=rng.random() < 0.9,
        tier_min_tokens=rng.choice([1, 5, 12]),
    )
    simulation = Simulation(
        config,
        slots,
        seed=seed,
        broken=frozenset({broken.content}),
        tier_slots=rng.choice([0, 40, 400]),
        damage=rng.choice([0.0, 0.0, 0.3]),
        whole_pictures=rng.random() < 0.3,
    )
    requests = {}
    for i in range(rng.randint(2, 14)):
        parts: list[int | Picture] = [*SYSTEM[: rng.choice([0, 3, 6])]]
        anything: list[int | Picture] = [*pictures, rng.randint(0, 2)]
        parts += [rng.choice(anything) for _ in range(rng.randint(1, 3))]
        parts += [rng.randint(0, 2)] * rng.randint(0, 3)
        parts += [broken] if rng.random() < 0.1 else []
        salt = rng.choice(["", "", "salt"])
        requests[str(i)] = request(str(i), parts, rng.randint(1, 9), salt, forced=rng.random() < 0.3)
        length = len(requests[str(i)].prompt)
        if rng.random() < 0.2 and length > 1:
            requests[str(i)] = request(str(i), parts, salt=salt, score_from=rng.randint(1, length - 1))
    aborted = set()
    for name, r in requests.items():
        simulation.add(r)
        for _ in range(rng.randint(0, 3)):
            simulation.step()
        if rng.random() < 0.15:
            aborted.add(victim := rng.choice(list(requests)))
            simulation.abort(victim)
        if rng.random() < 0.1:
            simulation.scheduler.flush()
        assert name in simulation.answers
    simulation.run()
    for name, r in requests.items():
        if any(p.content == broken.content for p in r.prompt.pictures):
            assert name in aborted or name in simulation.failed
        elif name not in aborted:
            assert simulation.answers[name] == truth(r)
    assert simulation.scheduler.encoder_cache.bytes_held == 0
    simulation.scheduler.flush()
    simulation.scheduler.check()
    assert simulation.scheduler.pool.free_count == slots
    return simulation.steps


def test_what_eviction_takes_comes_back_from_the_second_tier() -> None:
    config = EngineConfig(step_tokens=64, max_running=4, share_threshold=4, tier_min_tokens=4, encoder_cache_bytes=0)
    simulation = Simulation(config, 40, tier_slots=200)
    cat = make_picture("cat", 9)
    again = request("c", [*SYSTEM, cat, 12])
    finished(simulation, request("a", [*SYSTEM, cat, 11]))
    finished(simulation, request("b", list(range(100, 130))))
    assert simulation.scheduler.tree.evicted_tokens > 0
    before = simulation.device.computed_tokens
    simulation.add(again)
    seq = simulation.scheduler.get("c")
    simulation.run()
    assert seq is not None
    assert simulation.answers["c"] == truth(again)
    assert (seq.cached_tokens, seq.cached_pictures) == (15, 1)
    assert simulation.device.computed_tokens - before == 1 + 2
    assert len(simulation.decoded) == 1
    assert simulation.scheduler.counters.tier_fetched_tokens > 0


def test_a_damaged_second_tier_is_a_miss() -> None:
    config = EngineConfig(step_tokens=64, max_running=4, share_threshold=4, tier_min_tokens=4, encoder_cache_bytes=0)
    simulation = Simulation(config, 40, tier_slots=200, damage=1.0)
    cat = make_picture("cat", 9)
    again = request("c", [*SYSTEM, cat, 12])
    finished(simulation, request("a", [*SYSTEM, cat, 11]))
    finished(simulation, request("b", list(range(100, 130))))
    finished(simulation, again)
    assert simulation.scheduler.counters.tier_damaged == 1
    assert len(simulation.decoded) == 2


def test_reuse_is_counted_by_what_was_reused() -> None:
    simulation = Simulation(CONFIG, 128)
    cat = make_picture("cat", 9)
    for name, tail in (("a", [11, 12]), ("b", [11, 13])):
        r = request(name, [*SYSTEM, cat, *tail])
        finished(simulation, dataclasses.replace(r, prompt=dataclasses.replace(r.prompt, system_tokens=len(SYSTEM))))
    counters = simulation.scheduler.counters
    assert counters.cached_system_tokens == 6
    assert counters.cached_picture_tokens == 9
    assert counters.cached_history_tokens == 1
    assert counters.cached_tokens == 16


def test_a_flush_leaves_what_is_in_use() -> None:
    simulation = Simulation(CONFIG, 128)
    cat = make_picture("cat", 9)
    finished(simulation, request("a", [*SYSTEM, cat, 11]))
    running = request("b", [*SYSTEM, cat, 12], max_tokens=5)
    simulation.add(running)
    simulation.step()
    simulation.scheduler.flush()
    simulation.scheduler.check()
    simulation.run()
    assert simulation.answers["b"] == truth(running)
    assert simulation.scheduler.flush() > 0
    assert simulation.scheduler.tree.cached_tokens == simulation.scheduler.encoder_cache.bytes_used == 0
