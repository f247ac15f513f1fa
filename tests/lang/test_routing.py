"""Router: which backend a run goes to."""

from __future__ import annotations

import pytest

import mmserve as sgl
from mmserve.errors import ConfigError
from tests.lang.fakes import FakeBackend


@sgl.function
def chat(s: sgl.ProgramState, question: str) -> None:
    s += sgl.user(question) + sgl.assistant(sgl.gen("answer"))


def backends() -> dict[str, FakeBackend]:
    return {name: FakeBackend(lambda _, name=name: f"from {name}") for name in ("ours", "other")}  # type: ignore[misc]


def test_by_task() -> None:
    router = sgl.Router(backends(), tasks={"simple_qa": "other", "structured": "ours"}, default="ours")
    asked = [router.run(chat, task=task, question="q")["answer"] for task in ("simple_qa", "structured", "new", None)]
    assert asked == ["from other", "from ours", "from ours", "from ours"]


def test_by_a_function_of_task_and_arguments() -> None:
    router = sgl.Router(backends(), choose=lambda _, given: "other" if len(given["question"]) < 5 else "ours")
    assert router.run(chat, question="short?", temperature=0.0)["answer"] == "from ours"
    assert router.run(chat, question="hi")["answer"] == "from other"
    states = chat.run_batch([{"question": "q"}], backend=router.backend("x", question="hi"))
    assert states[0]["answer"] == "from other"


def test_names_that_are_no_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match="no backend 'vllm'; there are: ours, other"):
        sgl.Router(backends(), tasks={"simple_qa": "vllm"})
    with pytest.raises(ConfigError, match="no backend 'x'"):
        sgl.Router(backends(), choose=lambda *_: "x").backend()
    with pytest.raises(ConfigError, match="at least one"):
        sgl.Router({})
    with pytest.raises(ConfigError, match="not by both"):
        sgl.Router(backends(), choose=lambda *_: "ours", default="ours")


def test_it_closes_all() -> None:
    found = backends()
    sgl.Router(found).close()
    assert all(backend.closed for backend in found.values())
