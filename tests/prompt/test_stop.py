from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmserve.prompt import StopChecker


def by_hand(stops: list[str], text: str) -> tuple[str, str | None]:
    """The text up to the first stop string to be completed, and that string; of several the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    checker = StopChecker(stops)
    out = [checker.push(piece) for piece in pieces]
    out.append(checker.flush())
    return "".join(out), checker.stopped, out


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("abc", max_size=6), max_size=8),
)
def test_equal_to_a_search_in_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    text, stopped, _ = run(stops, pieces)
    assert (text, stopped) == by_hand(stops, "".join(pieces))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab", max_size=4), max_size=6),
)
def test_nothing_is_held_back_without_need(stops: list[str], pieces: list[str]) -> None:
    checker = StopChecker(stops)
    given_, returned = "", ""
    for piece in pieces:
        given_ += piece
        returned += checker.push(piece)
        if checker.stopped is not None:
            return
        held = given_[len(returned) :]
        assert given_ == returned + held
        assert held == "" or any(stop.startswith(held) for stop in stops)
        tails = [given_[at:] for at in range(len(given_))]
        assert len(held) == max((len(tail) for tail in tails if any(s.startswith(tail) for s in stops)), default=0)


def test_without_stop_strings_text_passes_through() -> None:
    assert run([], ["a", "", "bc"]) == ("abc", None, ["a", "", "bc", ""])


def test_the_possible_start_of_a_stop_string_is_held_back_and_given_back() -> None:
    assert run(["END"], ["the E", "N", "emy"]) == ("the ENemy", None, ["the ", "", "ENemy", ""])
    assert run(["END"], ["the E", "N"]) == ("the EN", None, ["the ", "", "EN"])


def test_nothing_comes_after_a_stop_string() -> None:
    checker = StopChecker(["\n"])
    assert checker.push("one\ntwo") == "one"
    assert checker.stopped == "\n"
    assert checker.push("three\n") == ""
    assert checker.flush() == ""


def test_of_nested_stop_strings_the_first_completed_counts() -> None:
    assert run(["abc", "b"], ["abc"])[:2] == run(["abc", "b"], list("abc"))[:2] == ("a", "b")
    assert run(["c", "abc"], ["xabc"])[:2] == ("x", "abc")


@pytest.mark.parametrize("stop", ["a" * 50_000 + "b", "ab" * 25_000 + "c"])
def test_long_stop_strings_take_linear_time(stop: str) -> None:
    def cpu_seconds(pieces: int) -> float:
        checker = StopChecker([stop])
        start = time.thread_time()
        for _ in range(pieces):
            checker.push("abaa")
        return time.thread_time() - start

    quarter = min(cpu_seconds(2_000) for _ in range(3))
    assert min(cpu_seconds(8_000) for _ in range(3)) < 8 * quarter + 0.01


def by_hand_where_accepted(stops: list[str], text: str, accepted: set[int]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        complete = sorted((s for s in stops if text[:end].endswith(s)), key=len, reverse=True)
        for stop in complete:
            if end - len(stop) in accepted:
                return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3, unique=True),
    st.lists(st.text("ab", max_size=6), max_size=8),
    st.sets(st.integers(0, 40)),
)
def test_a_stop_string_counts_only_where_it_is_accepted(
    stops: list[str], pieces: list[str], accepted: set[int]
) -> None:
    whole = "".join(pieces)

    def accepts(text: str) -> bool:
        assert whole.startswith(text)
        return len(text) in accepted

    checker = StopChecker(stops)
    text = "".join(checker.push(piece, accepts) for piece in pieces) + checker.flush()
    assert (text, checker.stopped) == by_hand_where_accepted(stops, whole, accepted)


def test_skipped_text_is_part_of_what_is_accepted() -> None:
    checker = StopChecker(["!"])
    checker.skip("abc")
    seen: list[str] = []

    def accepts(text: str) -> bool:
        seen.append(text)
        return True

    assert checker.push("d!e", accepts) == "d"
    assert seen == ["abcd"]
