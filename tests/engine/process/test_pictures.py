"""A picture's bytes travel once while anybody has it, and are dropped when nobody has."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from mmserve.engine.process.pictures import Kept, Sent
from mmserve.types import Request
from tests.engine.process.fakes import ask, picture

NAMES = "abc"


def sizes(request: Request) -> list[int]:
    return [len(p.data) for p in request.prompt.pictures]


def test_the_second_request_travels_without_the_bytes() -> None:
    sent, kept = Sent(), Kept()
    shared = picture("a", 50_000)
    first, second = ask("1", 3, "", shared), ask("2", 3, "", shared, shared)
    assert sizes(sent.lighten(first)) == [50_000]
    light = sent.lighten(second)
    assert sizes(light) == [0, 0]
    assert len(pickle.dumps(light)) < 2000
    kept.complete(first)
    assert sizes(kept.complete(light)) == [50_000, 50_000]
    assert sent.ended(first) == ()
    assert sent.ended(second) == (shared.content,)
    kept.forget((shared.content,))
    assert len(kept) == 0


def test_a_picture_that_comes_twice_in_one_request_travels_once() -> None:
    twice = ask("1", 3, "", picture("a", 9), picture("a", 9))
    light = Sent().lighten(twice)
    assert sizes(light) == [9, 0]
    assert sizes(Kept().complete(light)) == [9, 9]


def test_token_ids_stay_read_only() -> None:
    request = pickle.loads(pickle.dumps(ask("1")))
    assert not Kept().complete(request).prompt.token_ids.flags.writeable


@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from(NAMES), max_size=3)), max_size=30))
def test_every_request_arrives_whole_and_nothing_is_kept_for_nobody(moves: list[tuple[bool, list[str]]]) -> None:
    sent, kept, open_ = Sent(), Kept(), []
    for number, (begin, names) in enumerate(moves):
        if begin:
            request = ask(str(number), 3, "", *(picture(name, 1 + NAMES.index(name)) for name in names))
            assert sizes(kept.complete(sent.lighten(request))) == sizes(request)
            open_.append(request)
        elif open_:
            kept.forget(sent.ended(open_.pop(0)))
        assert len(kept) == len({p.content for request in open_ for p in request.prompt.pictures})
