"""Many programs at once."""

from __future__ import annotations

import pytest

import mmserve as sgl
from mmserve.errors import EngineUnavailable
from mmserve.lang.calls import GenerateCall
from tests.lang.fakes import FakeBackend


@sgl.function
def ask(s: sgl.ProgramState, question: str, fail: bool = False) -> str:
    s += sgl.user(question) + sgl.assistant(sgl.gen("answer"))
    if fail:
        raise ValueError(question)
    return s["answer"]


def last_words(call: GenerateCall) -> str:
    return f"re: {call.context.turns[-1].text}"


def test_states_come_in_the_order_of_their_arguments() -> None:
    states = ask.run_batch([{"question": f"q{i}"} for i in range(50)], backend=FakeBackend(last_words, pause=0.001))
    assert [state["answer"] for state in states] == [f"re: q{i}" for i in range(50)]


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (7, 7), ("auto", 40)])
def test_so_many_run_at_a_time(threads: int, most: int) -> None:
    backend = FakeBackend(pause=0.02 if most < 40 else 0.5)
    ask.run_batch([{"question": "q"}] * 40, backend=backend, num_threads=threads, temperature=0.5)
    assert backend.most == most
    assert {call.options.temperature for call in backend.calls} == {0.5}


def test_one_that_raises_leaves_the_others_and_is_raised_at_its_read() -> None:
    states = ask.run_batch([{"question": f"q{i}", "fail": i == 1} for i in range(3)])
    assert [type(state.error()) for state in states] == [type(None), ValueError, type(None)]
    assert states[0].ret_value == states[2]["answer"] == "<answer/1>"
    with pytest.raises(ValueError, match="q1"):
        states[1].text()


def test_a_backend_that_is_gone_is_told_for_each() -> None:
    def gone(_: GenerateCall) -> str:
        raise EngineUnavailable("gone")

    states = ask.run_batch([{"question": "q"}] * 3, backend=FakeBackend(gone))
    assert all(isinstance(state.error(), EngineUnavailable) for state in states)


def test_wrong_arguments_are_told_before_anything_runs(fake: FakeBackend) -> None:
    with pytest.raises(TypeError, match=r"ask: .*'question'"):
        ask.run_batch([{"question": "q"}, {"questions": "q"}])
    assert fake.calls == []
    assert ask.run_batch([]) == []


def test_the_progress_bar_counts(capsys: pytest.CaptureFixture[str]) -> None:
    ask.run_batch([{"question": "q"}] * 3, progress_bar=True)
    assert capsys.readouterr().err.endswith("\r3/3 programs\n")
