"""``mmserve serve --tp 2``: the engine's process is rank 0 and has the other; they live and end together."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.pictures import png
from tests.test_cli_serve import Served, _command, _has_torch, _members
from tests.web.fakes import eventually

FEW = 200
"""Tokens of an answer that is being written when the signal comes: it takes some seconds."""


class Group(Served):
    """A server whose model two processes share."""

    def __init__(self, checkpoint: Path, log: Path) -> None:
        super().__init__(checkpoint, log, "--tp-size", "2", "--dtype", "float32", "--drain-seconds", "600")

    def running(self) -> list[int]:
        """The process ids of those that compute, rank 0's first."""
        modules = ("mmserve.engine.process", "mmserve.engine.parallel.worker")
        return [pid for module in modules for pid in _members(self.process.pid) if module in _command(pid)]

    def ranks(self) -> list[int]:
        """The same, once all of them are there."""
        [first, second] = self.running()
        return [first, second]

    def kill(self, pid: int) -> str:
        """In the middle of an answer; the code of the error that ends it."""
        with self.answering() as lines:
            os.kill(pid, signal.SIGKILL)
            *_, last = lines
        refused = self.http.post("/generate", json={"text": "1 2 3"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert refused.headers["retry-after"]
        return str(json.loads(last)["error"]["code"])

    def answer(self) -> str:
        data = {"question": "What is this?", "max_tokens": "8", "ignore_eos": "true"}
        answered = self.http.post("/v1/vqa", data=data, files={"image": ("a.png", png("red"), "image/png")})
        assert answered.status_code == 200
        return str(answered.json()["answer"])


@pytest.fixture
def group(checkpoint_path: Path, tmp_path: Path) -> Iterator[Group]:
    group = Group(checkpoint_path, tmp_path / "log")
    try:
        yield group
    finally:
        group.http.close()
        group.process.kill()
        group.process.wait()


def test_they_end_together_and_start_together(group: Group) -> None:
    group.until(200, "ok")
    said, lives = group.answer(), [group.ranks()]
    assert [_has_torch(pid) for pid in (group.process.pid, *lives[0])] == [False, True, True]
    for rank in (1, 0):  # rank 0 is the engine's process itself
        assert group.kill(lives[-1][rank]) == "engine_unavailable"
        group.until(200, "ok")
        eventually(lambda: not {*lives[-1]} & _members(group.process.pid), seconds=20)
        lives.append(group.ranks())
        assert group.answer() == said
    assert group.http.get("/server_info").json()["stats"]["engine_restarts"] == 2
    assert any("rank 1 of 2 failed: its process" in str(line) for line in group.lines())
    with group.answering(FEW) as lines:
        os.killpg(group.process.pid, signal.SIGTERM)  # as a service manager does: all processes get it
        group.until(503, "draining")
        assert group.ranks() == lives[-1]
        *_, last, done = lines
    assert (done, json.loads(last)["usage"]["completion_tokens"]) == ("[DONE]", FEW)
    assert group.process.wait(30) == 0
    assert not _members(group.process.pid)


def test_a_server_that_is_killed_leaves_no_rank_behind(group: Group) -> None:
    """Not even in the middle of loading, when the ranks wait for each other."""
    eventually(lambda: len(group.running()) == 2, seconds=60)
    group.process.kill()
    group.process.wait()
    eventually(lambda: not _members(group.process.pid), seconds=60)
