"""Programs on the embedded model in this process: what is right, what is shared, and what is freed."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

import mmserve as sgl
from mmserve.engine.local import LocalEngineClient
from mmserve.engine.plan import SchedulerOutput
from mmserve.errors import (
    BudgetTooSmall,
    ConstraintError,
    CorruptPicture,
    EngineUnavailable,
    InvalidField,
    ModelNotFound,
    PromptTooLong,
    TooManyPictures,
)
from mmserve.lang.calls import Context, GenerateCall, Options, Said, ScoreCall, Scores, Shown, Turn
from mmserve.lang.expressions import Expr
from mmserve.lang.loop import program_loop
from mmserve.types import TokenEvent
from tests.lang.conftest import EXAMPLES
from tests.lang.fakes import wait_until

CIRCLE, RECTANGLE = str(EXAMPLES / "red-circle.png"), str(EXAMPLES / "blue-rectangle.png")


class Shape(BaseModel):
    color: str
    shape: str


@pytest.fixture
def model(engine: sgl.Engine) -> Iterator[sgl.Engine]:
    """The engine, its caches empty, as the default backend; nothing is left in it."""
    engine.flush_cache()
    sgl.set_default_backend(engine)
    yield engine
    wait_until(lambda: engine.stats()["slots_free"] + engine.stats()["slots_cached"] == engine.stats()["slots_total"])


@pytest.fixture
def steps(model: sgl.Engine, monkeypatch: pytest.MonkeyPatch) -> list[SchedulerOutput]:
    """The plans that the engine carries out."""
    client = model._parts.client
    assert isinstance(client, LocalEngineClient)
    scheduler, seen = client._engine.scheduler, []
    schedule = scheduler.schedule

    def watched() -> SchedulerOutput:
        plan = schedule()
        if plan.chunks:
            seen.append(plan)
        return plan

    monkeypatch.setattr(scheduler, "schedule", watched)
    return seen


def added(model: sgl.Engine, work: Callable[[], object]) -> dict[str, float]:
    before = dict(model.stats())
    work()
    return {name: value - before[name] for name, value in model.stats().items()}


@sgl.function
def converse(s: sgl.ProgramState, picture: str, *questions: str) -> None:
    s += sgl.user(sgl.image(picture) + questions[0])
    s += sgl.assistant(sgl.gen("answer_0"))
    for i, question in enumerate(questions[1:], 1):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{i}"))


@pytest.mark.usefixtures("model")
def test_questions_and_follow_ups_are_answered_right() -> None:
    state = converse.run(CIRCLE, "What color is the circle?", "is there a red shape?", "What is this?")
    assert [state[f"answer_{i}"] for i in range(3)] == ["red", "yes", "a red circle"]


@pytest.mark.usefixtures("model")
def test_two_pictures_in_one_turn() -> None:
    @sgl.function
    def which(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + sgl.image(RECTANGLE) + "which picture has the circle?")
        s += sgl.assistant(sgl.gen("answer"))

    assert which.run()["answer"] == "first"


def test_a_fork_computes_its_prefix_once_and_its_branches_in_one_batch(
    model: sgl.Engine, steps: list[SchedulerOutput]
) -> None:
    questions = [f"What color is the {thing}?" for thing in ("circle", "shape")] + ["What is this?"] * 3
    questions += ["is there a red shape?", "is there a circle?", "Describe the picture."]

    @sgl.function
    def ask(s: sgl.ProgramState) -> None:
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user_begin() + sgl.image(CIRCLE)
        forks = s.fork(8)  # while the picture is in the open turn
        for i, question in enumerate(questions):
            forks[i] += question + sgl.user_end()
            forks[i] += sgl.assistant(sgl.gen(f"answer_{i}"))
        s += forks.join()

    states = []
    change = added(model, lambda: states.append(ask.run()))
    answers = [states[0][f"answer_{i}"] for i in range(8)]
    assert answers == ["red", "red", "a red circle", "a red circle", "a red circle", "yes", "yes", "a red circle"]
    assert (change["pictures_decoded"], change["pictures_encoded"], change["pictures"]) == (1, 1, 8)
    infos = [states[0].get_meta_info(f"answer_{i}") for i in range(8)]
    new = [info["prompt_tokens"] - info["cached_tokens"] for info in infos]
    assert change["prefilled_tokens"] == sum(new)
    assert sorted(new)[-1] > 32 > sorted(new)[-2]  # one computed the prefix, the others what is theirs
    assert max(len(plan.decode) for plan in steps) == 8 or any(len(plan.chunks) == 8 for plan in steps)


def test_a_batch_of_programs_keeps_the_engines_batch_full(steps: list[SchedulerOutput]) -> None:
    @sgl.function
    def describe(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "Describe the picture.")
        s += sgl.assistant(sgl.gen("answer", max_tokens=12, ignore_eos=True))

    shares: list[tuple[int, float]] = []
    # How soon the threads send the next program says how busy the machine is, so a batch with gaps gets another try.
    while len(shares) < 5 and (not shares or shares[-1][0] < 3 * 10):
        steps.clear()
        states = describe.run_batch([{}] * 200)
        assert all(state["answer"].startswith("a red circle") for state in states)
        # 64 run at a time, the last 200 - 3 * 64 alone.
        full = sum(len(plan.chunks) == 64 for plan in steps)
        shares.append((full, full / len(steps)))
    assert shares[-1][0] >= 3 * 10, shares
    assert shares[-1][1] > 0.6, shares


def test_what_was_generated_in_the_open_turn_is_cached_to_its_last_token(model: sgl.Engine) -> None:
    @sgl.function
    def twice(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "Describe the picture in detail.")
        s += sgl.assistant(
            sgl.gen("one", max_tokens=6, ignore_eos=True) + sgl.gen("two", max_tokens=2, ignore_eos=True)
        )

    state = twice.run(backend=model)
    one, two = state.get_meta_info("one"), state.get_meta_info("two")
    assert two["prompt_tokens"] == one["prompt_tokens"] + 6
    assert two["cached_tokens"] >= two["prompt_tokens"] - 1


@pytest.mark.usefixtures("model")
def test_text_behind_a_stop_string_is_not_carried_on() -> None:
    @sgl.function
    def cut(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "What is this?")
        s += sgl.assistant(sgl.gen("one", stop="red") + "blue" + sgl.gen("two"))

    state = cut.run()
    assert state["one"] == "a "
    assert state.text().splitlines()[1].startswith("a blue")


@pytest.mark.parametrize("give", ["dict", "model", "json"])
@pytest.mark.usefixtures("model")
def test_structured_text_is_whole_and_validates(give: str) -> None:
    schema: Any = {"dict": Shape.model_json_schema(), "model": Shape, "json": json.dumps(Shape.model_json_schema())}[
        give
    ]

    @sgl.function
    def extract(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "Describe the picture as JSON.")
        s += sgl.assistant(sgl.gen("shape", max_tokens=40, json_schema=schema))

    state = extract.run()
    Shape.model_validate_json(state["shape"])
    assert state.get_meta_info("shape")["constraint"].step == "strict"


@pytest.mark.usefixtures("model")
def test_patterns_and_grammars_are_kept_without_a_limit() -> None:
    @sgl.function
    def forms(s: sgl.ProgramState) -> None:
        s += sgl.user("hello")
        s += sgl.assistant(sgl.gen("phone", regex=r"1[3-9]\d{9}"))
        s += sgl.user("again")
        s += sgl.assistant(sgl.gen("word", ebnf='root ::= "red" | "blue"'))
        s += sgl.user("how many?")
        s += sgl.assistant(sgl.gen_int("number"))

    state = forms.run()
    assert re.fullmatch(r"1[3-9]\d{9}", state["phone"])
    assert state["word"] in ("red", "blue")
    assert isinstance(int(state["number"]), int)


@pytest.mark.parametrize(
    ("expr", "error", "message"),
    [
        (lambda: sgl.gen("x", 3, json_schema=Shape), BudgetTooSmall, "no whole answer of this shape fits max_tokens=3"),
        (lambda: sgl.gen("x", regex=r"(?=a)b"), ConstraintError, "lookaround in a pattern cannot be enforced"),
        (lambda: sgl.gen("x", temperature=-1.0), InvalidField, "temperature must be between"),
        (lambda: "long " * 9000 + sgl.gen("x"), PromptTooLong, "maximum context length is 8,192"),
    ],
)
@pytest.mark.usefixtures("model")
def test_what_cannot_be_done_is_told_at_the_read(
    expr: Callable[[], Expr], error: type[Exception], message: str
) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("hello")
        s += sgl.assistant(expr())

    state = program.run()
    with pytest.raises(error, match=message) as caught:
        state["x"]
    assert re.search(r'\[gen "x" in test_engine_backend.py, line \d+\]', str(caught.value))


@pytest.mark.usefixtures("model")
def test_pictures_that_cannot_be_used_are_told_at_the_read() -> None:
    @sgl.function
    def program(s: sgl.ProgramState, pictures: list[bytes]) -> None:
        with s.user():
            for picture in pictures:
                s += sgl.image(picture)
            s += "What is this?"
        s += sgl.assistant(sgl.gen("x"))

    data = (EXAMPLES / "red-circle.png").read_bytes()
    with pytest.raises(CorruptPicture):
        program.run([data[: len(data) // 2]])["x"]
    with pytest.raises(TooManyPictures, match="at most 16"):
        program.run([data] * 17)["x"]


@pytest.mark.usefixtures("model")
def test_a_program_without_a_question_is_told() -> None:
    @sgl.function
    def empty(s: sgl.ProgramState) -> None:
        s += sgl.gen("x")

    with pytest.raises(InvalidField, match="there are no messages"):
        empty.run()["x"]


def test_leaving_early_frees_what_the_request_held(model: sgl.Engine) -> None:
    @sgl.function
    def endless(s: sgl.ProgramState) -> None:
        s += sgl.user("hello") + sgl.assistant(sgl.gen("x", max_tokens=4000, ignore_eos=True))

    with endless.run(backend=model, stream=True) as state:
        assert next(state.text_iter("x"))
    wait_until(lambda: model.stats()["requests_added"] == sum(
        model.stats()[f"requests_{end}"] for end in ("finished", "failed", "aborted")
    ))  # fmt: skip
    assert model.stats()["requests_aborted"] >= 1


def test_sampling_is_the_models_own_where_nothing_is_said_and_repeats_with_a_seed(model: sgl.Engine) -> None:
    states = [converse.run(CIRCLE, "What is this?", temperature=1.5, seed=seed) for seed in (1, 1)]
    assert states[0]["answer_0"] == states[1]["answer_0"]
    assert model._parts.sampling.greedy


def test_logprobs_are_kept(model: sgl.Engine) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "What is this?")
        s += sgl.assistant(sgl.gen("x", return_logprob=True, top_logprobs_num=2))

    logprobs = program.run(backend=model).get_meta_info("x")["logprobs"]
    assert "".join(entry.token for entry in logprobs[:-1]) == "a red circle"
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in logprobs)


# -- scores -----------------------------------------------------------------------------------------------------


def score(model: sgl.Engine, opening: str, choices: tuple[str, ...], *, ends_turn: bool) -> Scores:
    turn = Turn("user", (Shown((EXAMPLES / "red-circle.png").read_bytes()), Said("What is this?")))
    context = Context((turn,), (Said(opening),) if opening else ())
    return program_loop().run(model.score(ScoreCall(context, choices, ends_turn)))


def test_a_choices_score_is_the_probability_of_its_tokens(model: sgl.Engine) -> None:
    """And of the end behind them: as the same tokens have it when they are generated."""
    turn = Turn("user", (Shown((EXAMPLES / "red-circle.png").read_bytes()), Said("What is this?")))

    async def generated() -> list[TokenEvent]:
        call = GenerateCall(Context((turn,)), Options(temperature=0.0, logprobs=0))
        return [event async for event in model.generate(call)]

    logprobs = [entry.logprob for event in program_loop().run(generated()) for entry in event.logprobs]
    ended, open_ = (score(model, "", ("a red circle", "a dog"), ends_turn=ends) for ends in (True, False))
    assert ended.logprobs[0] == pytest.approx(math.fsum(logprobs), abs=1e-3)
    assert open_.logprobs[0] == pytest.approx(math.fsum(logprobs[:-1]), abs=1e-3)
    assert ended.logprobs[1] < -5


def test_text_before_a_choice_is_encoded_together_with_it(model: sgl.Engine) -> None:
    """The space may stand on either side; what is scored from is the same."""
    left = score(model, "a red ", ("circle", "triangle"), ends_turn=True)
    right = score(model, "a red", (" circle", " triangle"), ends_turn=True)
    assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
    assert left.logprobs[0] > -0.1 > -5 > left.logprobs[1]


def test_a_choice_that_begins_another_does_not_have_its_probability(model: sgl.Engine) -> None:
    cat, catfish = score(model, "", ("a red", "a red circle"), ends_turn=True).logprobs
    assert cat < -5 < -0.1 < catfish
    cat, catfish = score(model, "", ("a red", "a red circle"), ends_turn=False).logprobs
    assert cat > catfish


@pytest.mark.usefixtures("model")
def test_select_takes_the_likeliest_and_keeps_all_probabilities() -> None:
    @sgl.function
    def classify(s: sgl.ProgramState) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "What color is the circle?")
        s += sgl.assistant(sgl.select("color", ["blue", "red", "green"]))

    state = classify.run()
    info = state.get_meta_info("color")
    assert state["color"] == "red"
    assert math.fsum(info["probabilities"].values()) == pytest.approx(1.0)
    assert info["probabilities"]["red"] > 0.99
    assert info["label_mass"] > 0.99
    assert list(info["choice_logprobs"]) == ["blue", "red", "green"]


@pytest.mark.usefixtures("model")
def test_select_draws_where_it_has_a_temperature() -> None:
    @sgl.function
    def draw(s: sgl.ProgramState, seed: int) -> None:
        s += sgl.user(sgl.image(CIRCLE) + "What color is the circle?")
        s += sgl.assistant(sgl.select("color", ["blue", "red", "green"], temperature=1000.0, seed=seed))

    def drawn() -> list[str]:
        return [draw.bind(seed=seed).run()["color"] for seed in range(12)]

    first = drawn()
    assert set(first) == {"blue", "red", "green"}
    assert drawn() == first


# -- making and ending one --------------------------------------------------------------------------------------


def test_what_an_engine_cannot_be_made_of_is_told() -> None:
    with pytest.raises(ModelNotFound, match="there is no model 'no-such-model'"):
        sgl.Engine(model_path="no-such-model")
    with pytest.raises(TypeError, match="Engine has no option 'max_batch'; there are: check_invariants, "):
        sgl.Engine(model_path="pocket-vl", max_batch=3)


def test_a_closed_engine_ends_its_programs_and_refuses_others() -> None:
    @sgl.function
    def endless(s: sgl.ProgramState) -> None:
        s += sgl.user("hello") + sgl.assistant(sgl.gen("x", max_tokens=4000, ignore_eos=True))
        _ = s["x"]

    engine = sgl.Engine(model_path="pocket-vl", device="cpu", max_pictures=1)
    state = endless.run(backend=engine, stream=True)
    assert next(state.text_iter("x"))
    engine.close()
    engine.close()
    with pytest.raises(EngineUnavailable, match=r"has stopped .gen \"x\" in"):
        state.text()
    with pytest.raises(EngineUnavailable, match="has stopped"):
        endless.run(backend=engine)
    assert not [thread for thread in threading.enumerate() if thread.name == "program-endless"]


def test_a_picture_is_looked_at_as_closely_as_the_program_says(model: sgl.Engine) -> None:
    @sgl.function
    def look(s: sgl.ProgramState, most: int | None) -> None:
        s += sgl.user(sgl.image(CIRCLE, max_pixels=most) + "What color is the circle?")
        s += sgl.assistant(sgl.gen("answer", max_tokens=4))

    def tokens(most: int | None) -> float:
        return added(model, lambda: look.run(most)["answer"])["prompt_tokens"]

    whole = tokens(None)
    assert [whole - tokens(784 * rows) for rows in (4, 9)] == [12, 7]
    with pytest.raises(InvalidField, match="max_pixels must be between 784 and 200,704"):
        look.run(10**9)["answer"]
