"""What goes wrong in a program: told where it is read, with its line, and nothing is left running."""

from __future__ import annotations

import pytest

import mmserve as sgl
from mmserve.errors import EngineUnavailable, MMServeError, PromptTooLong
from mmserve.lang.calls import GenerateCall
from tests.lang.fakes import FakeBackend, wait_until


def test_a_name_that_nothing_generates_is_a_clear_error() -> None:
    @sgl.function
    def program(s: sgl.ProgramState, read: bool) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("category"))
        if read:
            _ = s["answer"]

    with pytest.raises(KeyError, match=r"nothing generates 'answer' .* there is: 'category'"):
        program.run(True)
    state = program.run(False)
    with pytest.raises(sgl.NoSuchVariable, match="nothing generates 'answer'"):
        state["answer"]
    assert "category" in state
    assert "answer" not in state


def test_an_error_surfaces_at_the_read_with_the_line_of_its_generation() -> None:
    def fail(call: GenerateCall) -> str:
        if call.name == "bad":
            raise PromptTooLong("the prompt has 9 tokens", param="messages")
        return "fine"

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        s += sgl.assistant(sgl.gen("good"))
        s += sgl.user("q")
        s += sgl.assistant(sgl.gen("bad"))  # the line
        s += sgl.user("q")
        s += sgl.assistant(sgl.gen("after"))

    line = _line_of("# the line")
    state = program.run(backend=FakeBackend(fail))
    assert state["good"] == "fine"
    for read in (lambda: state["bad"], lambda: state["after"], state.text, state.messages):
        with pytest.raises(PromptTooLong) as caught:
            read()
        assert f'[gen "bad" in test_errors.py, line {line}]' in str(caught.value)
        assert caught.value.param == "messages"
    assert isinstance(state.error(), PromptTooLong)


def _line_of(mark: str) -> int:
    with open(__file__, encoding="utf-8") as lines:
        return next(number for number, line in enumerate(lines, 1) if line.rstrip().endswith(mark))


def test_an_error_of_another_kind_is_told_as_ours() -> None:
    def fail(_: GenerateCall) -> str:
        raise ZeroDivisionError("oops")

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))

    with pytest.raises(MMServeError, match=r'ZeroDivisionError: oops .gen "x" in') as caught:
        program.run(backend=FakeBackend(fail))["x"]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_answer_that_breaks_off_is_an_error() -> None:
    class Cut(FakeBackend):
        async def generate(self, call: GenerateCall):  # type: ignore[no-untyped-def]
            async for event in super().generate(call):
                if not event.last:
                    yield event

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))

    with pytest.raises(EngineUnavailable, match="before it was complete"):
        program.run(backend=Cut())["x"]


def test_a_program_that_raises_leaves_nothing_running(fake: FakeBackend) -> None:
    fake.hold()

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        for i, branch in enumerate(s.fork(3)):
            branch += sgl.assistant(sgl.gen(f"g{i}"))
        wait_until(lambda: fake.running == 3)
        raise ValueError("the program's own")

    with pytest.raises(ValueError, match="the program's own"):
        program.run()
    assert fake.running == 0
    assert sorted(fake.ended) == ["g0", "g1", "g2"]


def test_one_branch_that_fails_leaves_the_others_alone() -> None:
    def fail(call: GenerateCall) -> str:
        if call.name == "b1":
            raise EngineUnavailable("gone")
        return call.name

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        forks = s.fork(3)
        for i in range(3):
            forks[i] += sgl.assistant(sgl.gen(f"b{i}"))
        s += forks.join()

    state = program.run(backend=FakeBackend(fail))
    assert (state["b0"], state["b2"]) == ("b0", "b2")
    with pytest.raises(EngineUnavailable, match=r'gone \[gen "b1" in test_errors.py'):
        state["b1"]
