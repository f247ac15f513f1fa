"""Random programs with branches, against a plain Python oracle that writes one line of them at a time."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

import mmserve as sgl
from mmserve.lang.calls import GenerateCall
from tests.lang.fakes import FakeBackend, script


@dataclass(frozen=True)
class User:
    text: str


@dataclass(frozen=True)
class Answered:
    """A generation, in an assistant's turn of its own or outside any role."""

    explicit: bool


@dataclass(frozen=True)
class Fork:
    branches: list[list[Step]]


Step: TypeAlias = "str | User | Answered | Fork"

words = st.text("abc ", min_size=1, max_size=4)
turns = st.one_of(words.map(User), st.booleans().map(Answered))
programs = st.recursive(
    st.lists(st.one_of(words, turns), max_size=5),
    lambda inner: st.lists(st.one_of(words, turns, st.lists(inner, min_size=1, max_size=3).map(Fork)), max_size=5),
    max_leaves=12,
)

Turns: TypeAlias = list[tuple[str, str]]


def answer(turns: Turns) -> str:
    """What the model would say: something of its own for each conversation."""
    return f"<{zlib.crc32(repr(turns).encode()):x}>"


def model(call: GenerateCall) -> str:
    return answer(script(call.context))


class Line:
    """The oracle: finished turns and an open one."""

    def __init__(self, turns: Turns, open_: bool, explicit: list[bool]) -> None:
        self.turns, self.open, self.explicit = list(turns), open_, list(explicit)

    def begin(self, role: str, *, explicit: bool) -> None:
        self.turns.append((role, ""))
        self.explicit.append(explicit)
        self.open = True

    def write(self, text: str) -> None:
        role, before = self.turns[-1]
        self.turns[-1] = (role, before + text)

    def generate(self) -> None:
        if not (self.open and self.turns[-1][0] == "assistant"):
            self.begin("assistant", explicit=False)
        *before, (_, opening) = self.turns
        self.write(answer([*before, ("assistant…", opening)] if opening else before))

    def text(self) -> str:
        made = ""
        for i, (_, text) in enumerate(self.turns):
            made += "\n" if i and (self.explicit[i] or self.explicit[i - 1]) else ""
            made += text
        return made


def expected(steps: list[Step], line: Line) -> list[str]:
    """The texts of all lines, this one's last."""
    found: list[str] = []
    for step in steps:
        match step:
            case str(text):
                if not line.open:
                    line.begin("user", explicit=False)
                line.write(text)
            case User(text):
                line.begin("user", explicit=True)
                line.write(text)
                line.open = False
            case Answered(explicit):
                if explicit:
                    line.begin("assistant", explicit=True)
                line.generate()
                line.open = not explicit
            case Fork(branches):
                for branch in branches:
                    found += expected(branch, Line(line.turns, line.open, line.explicit))
    return [*found, line.text()]


def written(steps: list[Step], s: sgl.ProgramState, states: list[sgl.ProgramState]) -> None:
    for step in steps:
        match step:
            case str(text):
                s += text
            case User(text):
                s += sgl.user(text)
            case Answered(explicit):
                s += sgl.assistant(sgl.gen()) if explicit else sgl.gen()
            case Fork(branches):
                for branch, state in zip(branches, s.fork(len(branches)), strict=True):
                    written(branch, state, states)
    states.append(s)


@given(programs)
@settings(max_examples=150, deadline=None)
def test_every_line_reads_as_if_it_were_alone(steps: list[Step]) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> list[str]:
        states: list[sgl.ProgramState] = []
        written(steps, s, states)  # everything is asked for before anything is read
        return [state.text() for state in states]

    assert program.run(backend=FakeBackend(model)).ret_value == expected(steps, Line([], False, []))
