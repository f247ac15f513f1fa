"""What programs write, and what of it reaches the backend; by a backend that answers without a model."""

from __future__ import annotations

import gc
import threading
import time

import pytest

import mmserve as sgl
from mmserve.errors import ConfigError, PromptTooLong
from mmserve.lang import default
from mmserve.lang.calls import DEFAULT_MAX_TOKENS, GenerateCall, Shown
from tests.engine.pictures import png
from tests.lang.fakes import FakeBackend, script, wait_until


def test_turns_reach_the_backend_as_they_were_written(fake: FakeBackend) -> None:
    @sgl.function
    def chat(s: sgl.ProgramState, question: str) -> None:
        s += sgl.system("Be brief.")
        s += sgl.user("Q: " + question)
        s += sgl.assistant("A: " + sgl.gen("answer") + ".")
        s += sgl.user("And?")
        s += sgl.assistant(sgl.gen("more"))

    state = chat.run("why")
    assert state["answer"] == "<answer/2>"
    assert state["more"] == "<more/4>"
    assert script(fake.calls[0].context) == [("system", "Be brief."), ("user", "Q: why"), ("assistant…", "A: ")]
    assert script(fake.calls[1].context)[2:] == [("assistant", "A: <answer/2>."), ("user", "And?")]
    assert state.text() == "Be brief.\nQ: why\nA: <answer/2>.\nAnd?\n<more/4>"
    assert state.messages()[2:] == [
        {"role": "assistant", "content": "A: <answer/2>."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "<more/4>"},
    ]


def test_all_ways_to_write_a_turn_are_one(fake: FakeBackend) -> None:
    @sgl.function
    def wrapped(s: sgl.ProgramState) -> None:
        s += sgl.system("a") + sgl.user("b" + sgl.image(b"x") + "c") + sgl.assistant(sgl.gen("g"))

    @sgl.function
    def begun(s: sgl.ProgramState) -> None:
        s += sgl.system_begin() + "a" + sgl.system_end()
        s += sgl.user_begin()
        s += "b"
        s += sgl.image(b"x")
        s += "c" + sgl.user_end() + sgl.assistant_begin()
        s += sgl.gen("g")
        s += sgl.assistant_end()

    @sgl.function
    def methods(s: sgl.ProgramState) -> None:
        s.system("a")
        with s.user():
            s += "b" + sgl.image(b"x")
            s += "c"
        with s.assistant():
            s += sgl.gen("g")

    states = [program.run() for program in (wrapped, begun, methods)]
    assert len({repr(state.messages()) for state in states}) == 1
    assert len({state.text() for state in states}) == 1
    assert len({repr(script(call.context)) for call in fake.calls}) == 1


def test_pictures_stand_anywhere_and_several_in_a_turn(fake: FakeBackend) -> None:
    one, two = png("red"), png("blue")

    @sgl.function
    def compare(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(one) + "or" + sgl.image(two) + "?" + sgl.image(one))
        s += sgl.assistant(sgl.gen("g"))

    compare.run()
    parts = fake.calls[0].context.turns[0].parts
    assert [part.data if isinstance(part, Shown) else part.text for part in parts] == [one, "or", two, "?", one]


def test_text_outside_any_role_is_the_users_up_to_the_first_generation(fake: FakeBackend) -> None:
    @sgl.function
    def tool_use(s: sgl.ProgramState, question: str) -> None:
        s += "To answer this question: " + question + ". "
        s += "I need to use a " + sgl.select("tool", ["calculator", "search engine"]) + ". "
        if s["tool"] == "calculator":
            s += "The math expression is" + sgl.gen("expression")

    state = tool_use.run("2+2?")
    asked = ("user", "To answer this question: 2+2?. I need to use a ")
    assert script(fake.scored[0].context) == [asked]
    assert script(fake.calls[0].context) == [asked, ("assistant…", "calculator. The math expression is")]
    assert state.text() == asked[1] + "calculator. The math expression is<expression/1>"


def test_a_turn_of_its_own_ends_what_stood_outside_any_role(fake: FakeBackend) -> None:
    @sgl.function
    def mixed(s: sgl.ProgramState) -> None:
        s += "a"
        s += sgl.gen("one")
        s += sgl.user("b")
        s += sgl.gen("two")
        s += "c" + sgl.image(b"x") + "d"
        s += sgl.gen("three")

    state = mixed.run()
    state.sync()
    assert script(fake.calls[-1].context) == [
        ("user", "a"),
        ("assistant", "<one/1>"),
        ("user", "b"),
        ("assistant", "<two/3>c"),
        ("user", "d"),
    ]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda s: s.user(sgl.gen("x")), "put this into sgl.assistant"),
        (lambda s: s.user(sgl.user("x")), "begins inside the user turn"),
        (lambda s: s.assistant("a" + sgl.image(b"x")), "put it into a user turn"),
        (lambda s: s.__iadd__(sgl.user_end()), "no turn is open"),
        (lambda s: s.__iadd__(sgl.user_begin() + sgl.assistant_end()), "the open turn is the user's"),
        (lambda s: s.fork(0), "at least one branch"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_its_line(fake: FakeBackend, write, message: str) -> None:  # type: ignore[no-untyped-def]
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        write(s)

    with pytest.raises(sgl.ProgramError, match=message):
        program.run()
    assert fake.calls == []


@pytest.mark.parametrize("value", [None, 3, b"bytes"])
def test_only_text_and_expressions_are_taken(value: object) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += value  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="takes text and expressions, not"):
        program.run()


def test_generations_that_need_nothing_of_each_other_run_together(fake: FakeBackend) -> None:
    fake.hold()

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        branches = s.fork(5)
        for i, branch in enumerate(branches):
            branch += sgl.assistant(sgl.gen(f"g{i}"))
        wait_until(lambda: fake.running == 5)  # all are asked before anything is read
        fake.release()
        s += branches.join()

    state = program.run()
    assert [state[f"g{i}"] for i in range(5)] == [f"<g{i}/1>" for i in range(5)]
    assert fake.most == 5


def test_a_generation_waits_for_those_that_its_prompt_holds(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        for name in "abc":
            s += sgl.user("q") + sgl.assistant(sgl.gen(name))

    program.run().sync()
    assert fake.most == 1
    assert [call.name for call in fake.calls] == ["a", "b", "c"]
    assert script(fake.calls[2].context)[3] == ("assistant", "<b/3>")


def test_writing_does_not_wait_and_reading_does() -> None:
    backend = FakeBackend(pause=0.05)
    moments = {}

    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        start = time.monotonic()
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))
        moments["written"] = time.monotonic() - start
        assert s["x"] == "<x/1>"
        moments["read"] = time.monotonic() - start

    program.run(backend=backend)
    assert moments["written"] < 0.05 < moments["read"]


def test_limits_are_implied_only_where_nothing_is_said_and_nothing_must_be_whole(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q")
        s += sgl.assistant(sgl.gen("a") + sgl.gen("b", 5) + sgl.gen("c", regex="x+") + sgl.gen("d", 9, regex="x+"))

    program.run().sync()
    assert [call.options.max_tokens for call in fake.calls] == [DEFAULT_MAX_TOKENS, 5, None, 9]
    fake.calls.clear()
    program.run(max_new_tokens=7).sync()
    assert [call.options.max_tokens for call in fake.calls] == [7, 5, 7, 9]


def test_the_implied_limit_gives_way_to_a_short_context() -> None:
    def short(call: GenerateCall) -> str:
        if call.options.max_tokens is not None:
            raise PromptTooLong("no room", param="max_tokens")
        return "short"

    @sgl.function
    def program(s: sgl.ProgramState, limit: int | None) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x", limit))

    assert program.run(None, backend=FakeBackend(short))["x"] == "short"
    with pytest.raises(PromptTooLong):
        program.run(50, backend=FakeBackend(short))["x"]


def test_options_of_the_run_hold_where_a_generation_says_nothing(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("a", temperature=0.5) + sgl.gen("b", stop="."))

    program.run(temperature=0.9, seed=3, stop=["x", "y"]).sync()
    a, b = (call.options for call in fake.calls)
    assert (a.temperature, a.seed, a.stop) == (0.5, 3, ("x", "y"))
    assert (b.temperature, b.seed, b.stop) == (0.9, 3, (".",))


def test_programs_are_made_of_programs() -> None:
    @sgl.function
    def ask(s: sgl.ProgramState, question: str, name: str = "answer") -> str:
        s += sgl.user(question) + sgl.assistant(sgl.gen(name))
        return s[name]

    @sgl.function
    def twice(s: sgl.ProgramState) -> list[str]:
        return [ask(s, "one", name="first"), ask.bind(name="second")(s, "two")]

    state = twice.run()
    assert state.ret_value == ["<first/1>", "<second/3>"]
    assert [turn["content"] for turn in state.messages()] == ["one", "<first/1>", "two", "<second/3>"]


def test_arguments_are_checked_by_name() -> None:
    @sgl.function
    def ask(s: sgl.ProgramState, question: str) -> None:
        s += question

    with pytest.raises(TypeError, match=r"ask: .*question"):
        ask.run(wrong="x", temperature=0.0)
    with pytest.raises(TypeError, match="ask: "):
        ask.run("a", "b", temperature=0.0)
    with pytest.raises(TypeError, match="has no parameter 'wrong'"):
        ask.bind(wrong=1)
    assert ask.bind(question="hello").run().text() == "hello"
    with pytest.raises(TypeError, match="'stream', which is run's own"):

        @sgl.function
        def taken(s: sgl.ProgramState, stream: bool) -> None: ...

    with pytest.raises(TypeError, match="needs a first parameter"):
        sgl.Program(lambda: None)  # type: ignore[arg-type,misc]


def test_a_name_that_a_program_shares_with_the_options_is_the_programs(fake: FakeBackend) -> None:
    @sgl.function
    def program(s: sgl.ProgramState, seed: int) -> None:
        s += sgl.user(f"seed {seed}") + sgl.assistant(sgl.gen("x"))

    assert program.run(seed=3, temperature=0.5).text().startswith("seed 3")
    assert fake.calls[0].options.said() == {"max_tokens": DEFAULT_MAX_TOKENS, "temperature": 0.5}


def test_without_a_backend_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "_chosen", [])

    @sgl.function
    def program(s: sgl.ProgramState) -> None: ...

    with pytest.raises(ConfigError, match="set_default_backend"):
        program.run()
    with pytest.raises(TypeError, match="a backend is an Engine"):
        sgl.set_default_backend("http://localhost")  # type: ignore[arg-type]


def test_variables_can_be_set_and_are_text_as_any_other() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s["language"] = "German"
        s.set_var("tone", "kind")
        s += sgl.user("in " + s["language"]) + sgl.assistant(sgl.gen("x"))

    state = program.run()
    assert (state["language"], state.get_var("tone")) == ("German", "kind")
    assert state.text() == "in German\n<x/1>"


def test_what_is_known_beside_the_text() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x") + sgl.select("y", ["a", "b"]))

    state = program.run()
    assert state.get_meta_info("x") == {
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "cached_tokens": 3,
        "image_tokens": 0,
        "cached_pictures": 0,
    }
    assert sum(state.get_meta_info("y")["probabilities"].values()) == pytest.approx(1.0)
    assert 0 < state.get_meta_info("y")["label_mass"] < 1


def test_a_finished_state_can_be_written_on() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("x"))

    state = program.run()
    state += sgl.user("more") + sgl.assistant(sgl.gen("y"))
    assert state["y"] == "<y/3>"


def test_a_branch_that_is_returned_outlives_the_state() -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> sgl.ProgramState:
        s += sgl.user("q")
        return s.copy()

    branch = program.run().ret_value
    gc.collect()
    branch += sgl.assistant(sgl.gen("x"))
    assert branch["x"] == "<x/1>"


def test_programs_run_in_many_threads_at_once() -> None:
    @sgl.function
    def program(s: sgl.ProgramState, i: int) -> None:
        s += sgl.user(f"q{i}") + sgl.assistant(sgl.gen("x") + f" {i}")

    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: program.run(i).text()})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: f"q{i}\n<x/1> {i}" for i in range(16)}
