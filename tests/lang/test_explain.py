"""explain: the prompts of a program, and how much of each is cached."""

from __future__ import annotations

import pytest

import mmserve as sgl
from mmserve.errors import PromptTooLong
from mmserve.lang.calls import GenerateCall
from tests.lang.conftest import EXAMPLES
from tests.lang.fakes import FakeBackend


@sgl.function
def follow_up(s: sgl.ProgramState, picture: str) -> None:
    s += sgl.user(sgl.image(picture) + "What is this?")
    s += sgl.assistant(sgl.gen("thing"))
    s += sgl.user(f"Is {s['thing']} common?")
    s += sgl.assistant("I say " + sgl.select("verdict", ["yes", "no"]))


def test_segments_are_told_once_and_stand_ins_take_the_place_of_answers(
    fake: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    told = follow_up.explain(str(EXAMPLES / "red-circle.png"))
    assert capsys.readouterr().out == told + "\n"
    assert told.splitlines() == [
        "  user      <picture of 738 bytes>",
        "  user      'What is this?'",
        'gen "thing": a prompt of 7 tokens; 3 are cached',
        "  … 2 of these segments as above",
        "  assistant '{thing}'",
        "  user      'Is {thing} common?'",
        "  assistant 'I say '",
        'select "verdict": a prompt of 7 tokens; 3 are cached',
    ]
    assert [call.options.max_tokens for call in fake.calls] == [1, 1]
    assert not fake.scored


def test_errors_of_the_backend_are_raised() -> None:
    def fail(_: GenerateCall) -> str:
        raise PromptTooLong("too long")

    with pytest.raises(PromptTooLong, match=r'too long \[gen "thing"'):
        follow_up.explain(str(EXAMPLES / "red-circle.png"), backend=FakeBackend(fail))


def test_it_tells_what_the_engine_has(engine: sgl.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.flush_cache()
    follow_up.explain(str(EXAMPLES / "red-circle.png"), backend=engine)
    first, second = (line for line in capsys.readouterr().out.splitlines() if "a prompt of" in line)
    assert first.endswith("16 of them for pictures; 0 are cached")
    assert not second.endswith("; 0 are cached")  # the second prompt begins with the first
    follow_up.explain(str(EXAMPLES / "red-circle.png"), backend=engine)
    again = next(line for line in capsys.readouterr().out.splitlines() if "a prompt of" in line)
    assert not again.endswith("; 0 are cached")
