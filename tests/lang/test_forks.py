"""Branches: what they share, what stays theirs, and what a join brings back."""

from __future__ import annotations

import pytest

import mmserve as sgl
from mmserve.lang.calls import Shown
from tests.engine.pictures import png
from tests.lang.fakes import FakeBackend, script


def test_branches_go_on_from_where_they_were_forked(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> sgl.ProgramGroup:
        s += sgl.user("shared") + sgl.assistant(sgl.gen("first"))
        branches = s.fork(2)
        for i, branch in enumerate(branches):
            branch += sgl.user(f"q{i}")
            branch += sgl.assistant(sgl.gen("answer"))
        s += sgl.user("the trunk's own")
        return branches

    state = program.run()
    branches = state.ret_value
    shared = [("user", "shared"), ("assistant", "<first/1>")]
    assert sorted(script(call.context) for call in fake.calls[1:]) == [[*shared, ("user", f"q{i}")] for i in range(2)]
    assert len(branches) == 2
    assert branches["answer"] == ["<answer/3>", "<answer/3>"]
    assert branches[0]["first"] == "<first/1>"
    assert [branch.text() for branch in branches[:]] == [f"shared\n<first/1>\nq{i}\n<answer/3>" for i in range(2)]
    assert state.text() == "shared\n<first/1>\nthe trunk's own"
    with pytest.raises(sgl.NoSuchVariable):
        state["answer"]


def test_a_fork_while_a_picture_is_in_the_open_turn(fake: FakeBackend) -> None:
    picture = png("red")

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user_begin() + sgl.image(picture)
        branches = s.fork(2)
        for i in range(2):
            branches[i] += f"question {i}" + sgl.user_end()
            branches[i] += sgl.assistant(sgl.gen(f"a{i}"))
        s += "the trunk's question" + sgl.user_end() + sgl.assistant(sgl.gen("a"))
        s += branches.join()

    state = program.run()
    assert {state["a"], state["a0"], state["a1"]} == {"<a/1>", "<a0/1>", "<a1/1>"}
    for call in fake.calls:
        (turn,) = call.context.turns
        first, *_ = turn.parts
        assert isinstance(first, Shown)
        assert first.data is picture
    assert sorted(call.context.turns[0].text for call in fake.calls) == [
        "question 0",
        "question 1",
        "the trunk's question",
    ]


def test_join_brings_names_and_no_text_however_often() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        forks = s.fork(2)
        for i in range(2):
            forks[i] += sgl.assistant(sgl.gen(f"answer_{i}"))
        joined = forks.join()
        s += joined
        s += joined + forks.join()

    state = program.run()
    assert state["answer_0"] == "<answer_0/1>"
    assert state["answer_1"] == "<answer_1/1>"
    assert state.text() == "q"


def test_join_alone_and_the_end_of_a_with_block_bring_names_too() -> None:
    @sgl.function
    def alone(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        forks = s.fork()
        forks[0] += sgl.assistant(sgl.gen("x"))
        forks.join()

    @sgl.function
    def block(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        with s.fork(1) as forks:
            forks += sgl.assistant(sgl.gen("x"))

    assert alone.run()["x"] == block.run()["x"] == "<x/1>"


def test_join_does_not_wait(fake: FakeBackend) -> None:
    fake.hold()

    @sgl.function
    def program(s: sgl.ProgramState) -> str:
        s += sgl.user("q")
        forks = s.fork(3)
        for i in range(3):
            forks[i] += sgl.assistant(sgl.gen(f"g{i}"))
        s += forks.join()
        fake.release()  # had the join waited, this would not have been reached
        return s["g2"]

    assert program.run().ret_value == "<g2/1>"


def test_a_name_of_several_branches_is_read_from_the_group() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> list[str]:
        s += "Here are two tips."
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += f" Expand tip {i + 1}:"
            f += sgl.gen("tip")
        s += forks.join()
        return forks["tip"]

    state = program.run()
    assert state.ret_value == ["<tip/1>", "<tip/1>"]
    with pytest.raises(sgl.NoSuchVariable, match=r"2 branches have generated 'tip': read forks\['tip'\]"):
        state["tip"]


def test_what_the_branches_had_before_is_not_theirs_to_bring() -> None:
    """A name that was there before the fork and is generated anew in one branch becomes that branch's."""

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))
        forks = s.fork(2)
        forks[1] += sgl.user("again") + sgl.assistant(sgl.gen("x"))
        s += forks.join()

    assert program.run()["x"] == "<x/3>"


def test_forks_of_forks_and_copies() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        outer = s.fork(2)
        for i in range(2):
            inner = outer[i].fork(2)
            for j in range(2):
                inner[j] += sgl.assistant(sgl.gen(f"g{i}{j}"))
            outer[i] += inner.join()
        s += outer.join()
        with s.copy() as other:
            other += sgl.assistant(sgl.gen("copied"))
            assert other["copied"] == "<copied/1>"

    state = program.run()
    assert [state[f"g{i}{j}"] for i in range(2) for j in range(2)] == [
        f"<g{i}{j}/1>" for i in range(2) for j in range(2)
    ]
    assert "copied" not in state


def test_a_branch_is_added_to_and_not_replaced() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        forks = s.fork(2)
        forks[-1] += "fine"
        with pytest.raises(TypeError, match="cannot be replaced"):
            forks[0] = forks[1]

    program.run()
