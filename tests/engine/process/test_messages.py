"""What travels comes back equal, errors as the classes they were."""

from __future__ import annotations

import pickle
from functools import partial

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.process.messages import LoadFailed, Pong, Ready, Start, Stepped, Submit, pack, unpack
from mmserve.engine.process.recipe import BuildEngine, Recipe
from mmserve.errors import BudgetTooSmall, CheckpointError, CorruptPicture
from mmserve.grammar.spec import JsonSchema
from mmserve.types import ConstraintReport, Stages, TokenEvent, TokenLogprob, Usage
from tests.engine.process.fakes import ask, picture

EVENTS = [
    TokenEvent("a", " word", (3, 4)),
    TokenEvent("a"),
    TokenEvent("b", "x", (1,), (TokenLogprob(1, "x", -0.5, ((1, "x", -0.5),)),)),
    TokenEvent("b", "x", (1,), (), "stop", Usage(3, 1, 0, 0), None, ConstraintReport(), Stages(1.0, 2.0, (1.0, 1.5))),
    TokenEvent("c", error=CorruptPicture("damaged", param="image")),
]


def copied(value: object) -> object:
    return pickle.loads(pickle.dumps(value, 5))


@pytest.mark.parametrize("event", EVENTS, ids=range(len(EVENTS)))
def test_events_come_back(event: TokenEvent) -> None:
    [back] = unpack(copied(pack([event])))  # type: ignore[arg-type]
    if event.error is None:
        assert back == event
        return
    assert back.error is not None
    assert type(back.error) is type(event.error)
    assert back.error.to_wire() == event.error.to_wire()
    assert back.last


def test_the_usual_event_is_packed_as_a_tuple() -> None:
    packed = pack(EVENTS)
    assert packed[:2] == (("a", " word", (3, 4)), ("a", "", ()))
    assert packed[2:] == tuple(EVENTS[2:])


def test_the_other_messages_come_back() -> None:
    for message in (Ready(12, {"steps": 1.0}), Stepped((), {"steps": 2.0}), Pong(3, True, True)):
        assert copied(message) == message
    failed = copied(LoadFailed(CheckpointError("no weights")))
    assert isinstance(failed, LoadFailed)
    assert isinstance(failed.error, CheckpointError)
    assert str(failed.error) == "no weights"
    assert isinstance(copied(LoadFailed(BudgetTooSmall("x", param="max_tokens"))), LoadFailed)


def test_a_request_comes_back() -> None:
    request = ask("r", 5, "salt", picture("p", 10), constraint=JsonSchema('{"type": "object"}'))
    back = copied(Submit(request))
    assert isinstance(back, Submit)
    got = back.request
    assert (got.id, got.sampling, got.cache_salt, got.constraint) == ("r", request.sampling, "salt", request.constraint)
    assert got.prompt.token_ids.tolist() == request.prompt.token_ids.tolist()
    assert got.prompt.ranges == request.prompt.ranges
    assert [p.data for p in got.prompt.pictures] == [b"p" * 10]


def test_a_recipe_comes_back(checkpoint: Checkpoint) -> None:
    recipe = Recipe(BuildEngine(checkpoint, EngineConfig(device="cpu")), partial(print, "ready"))
    back = copied(Start(recipe))
    assert isinstance(back, Start)
    assert back.recipe.build == recipe.build
