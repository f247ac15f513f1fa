"""Who is looked at next: common prefixes together, everybody in the end."""

from __future__ import annotations

import random

from mmserve.engine.queue import WaitingQueue
from mmserve.engine.sequence import Sequence
from tests.engine.simulator import make_prompt, positions_of, request


class Arrivals:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *tokens: int, salt: str = "") -> Sequence:
        self.count += 1
        prompt = make_prompt(list(tokens))
        return Sequence(request(str(self.count), list(tokens), salt=salt), (), *positions_of(prompt), self.count)


def admit(queue: WaitingQueue, *, limit: int = 8) -> Sequence:
    seq = queue.window(limit)[0]
    queue.remove(seq, advance=True)
    queue.count_admission()
    return seq


def keys(sequences: list[Sequence]) -> list[list[int]]:
    return [seq.key.tolist() for seq in sequences]


def test_common_prefixes_follow_each_other() -> None:
    queue, new = WaitingQueue(), Arrivals()
    for tokens in ((5, 1), (3, 1), (5, 2), (3, 2), (5, 1, 1)):
        queue.add(new(*tokens))
    assert keys(queue.window(9)) == [[3, 1], [3, 2], [5, 1], [5, 1, 1], [5, 2]]


def test_the_sweep_goes_on_where_it_was_and_round() -> None:
    queue, new = WaitingQueue(), Arrivals()
    for tokens in ((1,), (2,), (3,)):
        queue.add(new(*tokens))
    assert keys([admit(queue), admit(queue)]) == [[1], [2]]
    queue.add(new(2, 5))
    queue.add(new(1, 5))
    assert keys([admit(queue) for _ in range(3)]) == [[2, 5], [3], [1, 5]]


def test_equal_keys_go_in_order_of_arrival_and_salts_apart() -> None:
    queue, new = WaitingQueue(), Arrivals()
    for salt in ("b", "a", "b", "a"):
        queue.add(new(1, 2, salt=salt))
    assert [(seq.salt, seq.arrival) for seq in queue.window(9)] == [("a", 2), ("a", 4), ("b", 1), ("b", 3)]


def test_a_preempted_one_goes_first_the_oldest_before_others() -> None:
    queue, new = WaitingQueue(), Arrivals()
    old, young = new(9), new(8)
    queue.add(new(1))
    queue.give_back(young)
    queue.give_back(old)
    assert keys(queue.window(9)) == [[9], [8], [1]]
    assert len(queue) == 3
    queue.remove(old)
    assert old not in queue


def test_the_window_shows_each_once_and_no_more_than_its_limit() -> None:
    queue, new = WaitingQueue(), Arrivals()
    for i in range(30):
        queue.add(new(i % 7, i))
    assert len({seq.id for seq in queue.window(100)}) == 30
    assert len(queue.window(4)) == 4


def test_nobody_starves_while_favourites_keep_coming() -> None:
    """New arrivals always lie just ahead of the sweep; the one behind it is reached all the same."""
    queue, new = WaitingQueue(), Arrivals()
    victim = new(0)
    queue.add(new(1, 0))
    admit(queue)
    queue.add(victim)
    for turn in range(1, 5000):
        queue.add(new(1, turn))
        if admit(queue) is victim:
            break
    else:
        raise AssertionError("it starved")
    assert turn < 300


def test_any_order_of_use_keeps_the_two_orders_the_same() -> None:
    rng, queue, new = random.Random(0), WaitingQueue(), Arrivals()
    waiting: list[Sequence] = []
    for _ in range(2000):
        if rng.random() < 0.55 or not waiting:
            waiting.append(new(*(rng.randint(0, 2) for _ in range(rng.randint(1, 4)))))
            queue.add(waiting[-1])
        elif rng.random() < 0.5:
            waiting.remove(admit(queue))
        else:
            queue.remove(waiting.pop(rng.randrange(len(waiting))))
        assert len(queue) == len(waiting)
    assert {seq.id for seq in queue.window(10_000)} == {seq.id for seq in waiting}


def test_a_cached_newcomer_goes_before_the_sweep_and_does_not_move_it() -> None:
    queue, new = WaitingQueue(), Arrivals()
    for tokens in ((1,), (2,), (3,)):
        queue.add(new(*tokens))
    assert keys([admit(queue)]) == [[1]]
    queue.add(new(9, 1), cached=True)
    queue.add(new(0, 1), cached=True)
    assert keys([admit(queue) for _ in range(4)]) == [[0, 1], [9, 1], [2], [3]]


def test_nobody_starves_while_cached_newcomers_keep_coming() -> None:
    queue, new = WaitingQueue(), Arrivals()
    victims = [new(0), new(5)]
    queue.add(victims[0])
    queue.add(victims[1], cached=True)
    left = {seq.id for seq in victims}
    for turn in range(1, 1000):
        queue.add(new(1, turn), cached=True)
        left.discard(admit(queue).id)
        if not left:
            break
    assert turn < 300
