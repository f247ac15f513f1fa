"""Programs as mypy sees them. What must not pass is marked so, and mypy refuses marks that are not needed."""

from __future__ import annotations

from typing import assert_type

import pytest

import mmserve as sgl
from mmserve.lang.expressions import Expr


@sgl.function
def ask(s: sgl.ProgramState, question: str, times: int = 1) -> list[str]:
    for i in range(times):
        s += sgl.user(question) + sgl.assistant(sgl.gen(f"x{i}"))
    return [s[f"x{i}"] for i in range(times)]


def test_arguments_are_checked() -> None:
    assert_type(ask.run("q", times=2), sgl.ProgramState)
    assert_type(ask.run("q", temperature=0.0), sgl.ProgramState)
    assert_type(ask.run("q", stream=True), sgl.ProgramState)
    assert_type(ask.run_batch([{"question": "q"}], top_p=0.5), list[sgl.ProgramState])
    with pytest.raises(TypeError):
        ask.run()  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        ask.run("q", tiems=2)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        ask.run_batch([{"question": "q"}], temprature=0.5)  # type: ignore[call-arg]


def test_values_have_types() -> None:
    state = ask.run("q")
    assert_type(state["x0"], str)
    assert_type(state.get_meta_info("x0")["prompt_tokens"], int)
    assert_type(state.text(), str)
    assert_type(sgl.gen("x") + "text", Expr)
    assert_type("text" + sgl.gen("x"), Expr)

    @sgl.function
    def outer(s: sgl.ProgramState) -> None:
        assert_type(ask(s, "q", times=2), list[str])
        forks = s.fork(2)
        assert_type(forks[0], sgl.ProgramState)

    outer.run()
