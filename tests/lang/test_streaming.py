"""Following a program while it runs, and ending it early."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

import mmserve as sgl
from mmserve.errors import EngineUnavailable, RequestCancelled
from mmserve.lang.calls import GenerateCall
from tests.lang.fakes import FakeBackend, wait_until


@sgl.function
def two_answers(s: sgl.ProgramState) -> str:
    s += sgl.user("q")
    s += sgl.assistant("A: " + sgl.gen("one"))
    s += sgl.user("and")
    s += sgl.assistant(sgl.gen("two"))
    return "done"


def words(call: GenerateCall) -> str:
    return f"{call.name} in three words"


def test_all_text_comes_in_pieces_and_in_order() -> None:
    state = two_answers.run(backend=FakeBackend(words), stream=True)
    pieces = list(state.text_iter())
    assert "".join(pieces) == state.text() == "q\nA: one in three words\nand\ntwo in three words"
    assert pieces[:7] == ["q", "\n", "A: ", "one", " in", " three", " words"]
    assert state.ret_value == "done"


def test_one_names_text_comes_while_it_is_written() -> None:
    backend = FakeBackend(words)
    backend.hold()
    state = two_answers.run(backend=backend, stream=True)
    pieces = state.text_iter("two")  # asked for before the program has come to it
    backend.release()
    assert list(pieces) == ["two", " in", " three", " words"]
    assert list(state.text_iter("one")) == ["one", " in", " three", " words"]  # afterwards too, in pieces


@pytest.mark.anyio
async def test_asyncio_follows_from_its_own_loop() -> None:
    state = two_answers.run(backend=FakeBackend(words, pause=0.002), stream=True)
    pieces, named = await asyncio.gather(_all(state, None), _all(state, "two"))
    assert "".join(pieces) == "q\nA: one in three words\nand\ntwo in three words"
    assert named == ["two", " in", " three", " words"]


async def _all(state: sgl.ProgramState, name: str | None) -> list[str]:
    return [piece async for piece in state.async_iter(name)]


def test_the_program_itself_can_follow_what_it_wrote() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> list[str]:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))
        return list(s.text_iter())

    assert program.run().ret_value == ["q", "\n", "<x/1>"]


def test_an_error_comes_behind_the_text_before_it() -> None:
    def fail(call: GenerateCall) -> str:
        if call.name == "two":
            raise EngineUnavailable("the server is gone")
        return "fine"

    state = two_answers.run(backend=FakeBackend(fail), stream=True)
    pieces: list[str] = []
    with pytest.raises(EngineUnavailable, match=r'gone \[gen "two" in test_streaming.py, line 22\]'):
        pieces.extend(state.text_iter())
    assert state["one"] == "fine"


def test_what_the_program_raises_is_raised_to_its_readers() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))
        _ = s["x"]
        raise ValueError("the program's own")

    state = program.run(stream=True)
    for read in (state.text, lambda: list(state.text_iter()), lambda: state["y"], state.messages):
        with pytest.raises(ValueError, match="the program's own"):
            read()
    assert state["x"] == "<x/1>"
    assert isinstance(state.error(), ValueError)


def test_a_name_that_never_comes_ends_with_the_program() -> None:
    state = two_answers.run(stream=True)
    with pytest.raises(sgl.NoSuchVariable, match=r"'three'.*'one', 'two'"):
        list(state.text_iter("three"))


@pytest.mark.parametrize("how", ["close", "with", "drop", "break"])
def test_leaving_early_ends_the_requests(how: str) -> None:
    """And the program, whose next read says so."""
    backend = FakeBackend(lambda _: "word " * 1000, pause=0.005)
    caught: list[BaseException] = []
    over = threading.Event()

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        try:
            s += sgl.user("q") + sgl.assistant(sgl.gen("x"))
            _ = s["x"]
        except BaseException as error:
            caught.append(error)
            raise
        finally:
            over.set()

    state = program.run(backend=backend, stream=True)
    if how == "break":
        for piece in state.text_iter("x"):
            assert piece
            break
    else:
        wait_until(lambda: backend.running == 1)
    if how == "with":
        with state:
            pass
    elif how == "close":
        state.close()
    if how in ("close", "with"):
        assert backend.running == 0
    else:
        del state
        gc.collect()
    assert over.wait(5)
    wait_until(lambda: backend.running == 0)
    assert backend.ended == ["x"]
    assert isinstance(caught[0], RequestCancelled)
