"""A small engine in real processes: answers, departures, deaths, hangs, and ends that leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmserve.cli_log import configure_logging
from mmserve.engine.children import spawn
from mmserve.engine.process import link as link_module
from mmserve.engine.process.channel import encode, receive
from mmserve.engine.process.client import ProcessEngineClient
from mmserve.engine.process.messages import Ready, Start, Stepped, Submit, unpack
from mmserve.engine.process.recipe import Recipe
from mmserve.engine.process.supervisor import BackOff
from mmserve.errors import (
    CheckpointError,
    EngineUnavailable,
    MMServeError,
    PromptTooLong,
    QueueFull,
    UnsupportedConstraint,
)
from mmserve.grammar.spec import Regex
from mmserve.types import Request
from tests.engine.process.fakes import CONTEXT, FAKE, Flaky, ask, broken, dying, endless, picture, refused, talking

pytestmark = pytest.mark.anyio
SOON = BackOff(first=0.01)
LONG = 50_000
"""Tokens of an answer that does not end by itself in a test's time."""


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[ProcessEngineClient]:
    """One process for all tests that leave it alive; it may have died before."""
    client = await ProcessEngineClient.start(FAKE, max_queue=8, back_off=SOON)
    yield client
    await client.close()


async def words(client: ProcessEngineClient, request: Request) -> str:
    return "".join([event.text async for event in client.generate(request)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def began(client: ProcessEngineClient, *requests: Request) -> list[asyncio.Task[str]]:
    """Requests that are being answered: the first word of each has come."""
    firsts = [asyncio.Event() for _ in requests]

    async def follow(request: Request, first: asyncio.Event) -> str:
        text = ""
        async for event in client.generate(request):
            text += event.text
            first.set()
        return text

    tasks = [asyncio.create_task(follow(*pair)) for pair in zip(requests, firsts, strict=True)]
    async with asyncio.timeout(30):
        for first in firsts:
            await first.wait()
    return tasks


def alive(pid: int | None) -> bool:
    """Whether there is such a process, a zombie included."""
    assert pid is not None
    return Path(f"/proc/{pid}").exists()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_requests_are_answered_each_with_its_own_words(client: ProcessEngineClient) -> None:
    assert client.ready
    assert client.max_model_len == CONTEXT
    answers = await asyncio.gather(*(words(client, ask(str(n), n)) for n in range(1, 8)))
    assert answers == ["".join(f"w{i} " for i in range(n)) for n in range(1, 8)]


async def test_counters_are_those_after_the_answer(client: ProcessEngineClient) -> None:
    before = client.stats()
    await words(client, ask("a", 5))
    after = client.stats()
    assert after["generated_tokens"] - before["generated_tokens"] == 5
    assert after["requests_running"] == 0


async def test_what_cannot_fit_and_one_too_many_are_refused_before_any_event(client: ProcessEngineClient) -> None:
    with pytest.raises(PromptTooLong):
        await words(client, ask("a", CONTEXT))
    tasks = await began(client, *(ask(str(n), LONG) for n in range(8)))
    with pytest.raises(QueueFull):
        await words(client, ask("b"))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert await words(client, ask("b", 1)) == "w0 "


async def test_one_who_leaves_is_forgotten_and_the_counters_say_so(client: ProcessEngineClient) -> None:
    before = client.stats()["requests_aborted"]
    [left] = await began(client, ask("a", LONG))
    left.cancel()
    generator = client.generate(ask("b", LONG))
    await anext(generator)
    await generator.aclose()
    await until(lambda: client.stats()["requests_aborted"] == before + 2)
    assert client.stats()["requests_running"] == 0


async def test_constraints_are_compiled_over_there_and_their_errors_come_back(client: ProcessEngineClient) -> None:
    assert await words(client, ask("a", 1, constraint=Regex("a"))) == "w0 "
    with pytest.raises(UnsupportedConstraint, match="b cannot") as caught:
        await words(client, ask("b", 1, constraint=Regex("b")))
    assert caught.value.param == "regex"


async def test_one_who_leaves_before_his_constraint_is_compiled_is_never_added(client: ProcessEngineClient) -> None:
    before = client.stats()["requests_added"]
    task = asyncio.create_task(words(client, ask("a", 1, constraint=Regex("never"))))
    await words(client, ask("b", 1))
    task.cancel()
    await asyncio.wait([task])
    assert await words(client, ask("a", 1)) == "w0 "  # the name is free again
    assert client.stats()["requests_added"] == before + 2


async def test_pictures_arrive_whole_and_once(client: ProcessEngineClient) -> None:
    large, small = picture("large", 3_000_000), picture("small", 10)
    asked = [(large,), (small, large), (large, large)]
    answers = await asyncio.gather(
        *(words(client, ask(str(n), 1, "pictures", *shown)) for n, shown in enumerate(asked))
    )
    assert answers == ["3000000", "10 3000000", "3000000 3000000"]
    assert await words(client, ask("d", 1, "pictures", large)) == "3000000"


async def test_flush(client: ProcessEngineClient) -> None:
    assert [await client.flush(), await client.flush()] == [7, 7]


async def test_a_killed_process_answers_everybody_and_comes_back(client: ProcessEngineClient) -> None:
    restarts, generated = client.stats()["engine_restarts"], client.stats()["generated_tokens"]
    tasks = await began(client, *(ask(str(n), LONG) for n in range(4)))
    tasks.append(asyncio.create_task(words(client, ask("waits", 1, constraint=Regex("never")))))
    flushed = asyncio.create_task(client.flush())
    pid, before = client.pid, descriptors()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineUnavailable] * 5
    assert await asyncio.gather(flushed, return_exceptions=True)  # done, or refused: it does not wait
    assert not client.ready
    with pytest.raises(EngineUnavailable, match="again"):
        await words(client, ask("early"))
    with pytest.raises(EngineUnavailable):
        await client.flush()
    await until(lambda: client.ready)
    assert await words(client, ask("late", 2)) == "w0 w1 "
    assert client.stats()["engine_restarts"] == restarts + 1
    assert client.stats()["generated_tokens"] >= generated + 2
    assert not alive(pid)
    assert descriptors() <= before


@pytest.mark.parametrize(("wish", "cause"), [("crash", "RuntimeError"), ("die", "ended")])
async def test_an_engine_that_fails_answers_everybody_and_is_started_again(
    client: ProcessEngineClient, wish: str, cause: str
) -> None:
    restarts = client.stats()["engine_restarts"]
    results = await asyncio.gather(
        words(client, ask("a", LONG)), words(client, ask("b", 3, wish)), return_exceptions=True
    )
    assert [type(result) for result in results] == [EngineUnavailable] * 2
    assert cause in str(results[1])
    await until(lambda: client.ready and client.stats()["engine_restarts"] == restarts + 1)
    assert await words(client, ask("c", 1)) == "w0 "


async def test_a_full_pipe_holds_up_nobody(client: ProcessEngineClient) -> None:
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        large = asyncio.create_task(words(client, ask("a", 1, "pictures", picture("huge", 8_000_000))))
        small = asyncio.create_task(words(client, ask("b", 1)))
        for _ in range(50):
            await asyncio.sleep(0)  # the event loop goes on
        assert not large.done()
        assert not small.done()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await large == "8000000"
    assert await small == "w0 "


async def test_hangs_are_ended_stopped_processes_too(caplog: pytest.LogCaptureFixture) -> None:
    client = await ProcessEngineClient.start(FAKE, watchdog_seconds=0.8, back_off=SOON)
    try:
        await words(client, ask("warm", 1))
        with pytest.raises(EngineUnavailable), caplog.at_level(logging.ERROR):
            await words(client, ask("a", 3, "hang"))
        await until(lambda: "has done no step" in caplog.text)
        await until(lambda: client.ready)
        assert await words(client, ask("b", 1)) == "w0 "
        pid = client.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable):
            await words(client, ask("c", 1))
        await until(lambda: "has not answered" in caplog.text)
        await until(lambda: client.ready)
        assert await words(client, ask("d", 1)) == "w0 "
        assert not alive(pid)
        assert client.stats()["engine_restarts"] == 2
    finally:
        await client.close()


async def test_closing_refuses_what_runs_and_leaves_no_process() -> None:
    before = descriptors()
    client = await ProcessEngineClient.start(FAKE)
    pid, [task] = client.pid, await began(client, ask("a", LONG))
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # a group's signals are its parent's affair
        os.kill(pid, number)
    await words(client, ask("b", 3))
    await client.close()
    with pytest.raises(EngineUnavailable, match="stopped"):
        await task
    assert not client.ready
    assert not alive(pid)
    assert descriptors() <= before
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="stopped"):
            await words(client, ask("c"))
        await client.close()
    with pytest.raises(EngineUnavailable, match="stopped"):
        await client.flush()


async def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "END_SECONDS", 0.05)
    client = await ProcessEngineClient.start(FAKE)
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await client.close()
    assert not alive(pid)


async def test_what_cannot_be_started_again_is_tried_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = await ProcessEngineClient.start(Recipe(Flaky(tmp_path, failures=1)), back_off=SOON)
    try:
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: not client.ready)
        await until(lambda: client.ready)
        assert "model.safetensors is missing" in caplog.text
        assert await words(client, ask("a", 1)) == "w0 "
        assert client.stats()["engine_restarts"] == 2
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (refused, CheckpointError, "model.safetensors is missing: download it again"),
        (broken, MMServeError, "could not be loaded: RuntimeError"),
        (dying, EngineUnavailable, "SIGKILL"),
    ],
)
async def test_a_load_that_fails_says_why(
    build: Callable[[], Any], error: type[MMServeError], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = descriptors()
    with pytest.raises(error, match=sentence) as caught:
        await ProcessEngineClient.start(Recipe(build))
    assert type(caught.value) is error
    assert descriptors() <= before
    assert ("nobody thought of this" in capfd.readouterr().err) == (build is broken)


async def test_what_the_child_logs_looks_as_the_server_log_does(capfd: pytest.CaptureFixture[str]) -> None:
    client = await ProcessEngineClient.start(Recipe(talking, partial(configure_logging, "info", "json")))
    await client.close()
    [line] = map(json.loads, capfd.readouterr().err.splitlines())
    assert (line["level"], line["logger"], line["message"]) == ("info", "mmserve.loading", "half of it is there")


async def test_a_start_that_is_given_up_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def spied(module: str, sock: socket.socket) -> subprocess.Popen[bytes]:
        process = spawn(module, sock)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(link_module, "spawn", spied)
    before = descriptors()
    starting = asyncio.create_task(ProcessEngineClient.start(Recipe(endless)))
    await until(lambda: bool(pids))
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert not alive(pids[0])
    assert descriptors() <= before


def test_a_slow_reader_does_not_stop_the_engine(tmp_path: Path) -> None:
    """More than the pair holds is written while nobody reads, and is all there afterwards."""
    ours, theirs = socket.socketpair()
    process = spawn("mmserve.engine.process", theirs)
    theirs.close()
    done = tmp_path / "done"
    with ours:
        ours.sendall(b"".join(encode(Start(FAKE))))
        assert isinstance(receive(ours), Ready)
        for request in (ask("a", 500, "long"), ask("b", 500, f"file:{done}")):
            ours.sendall(b"".join(encode(Submit(request))))
        waited = threading.Event()
        for _ in range(3000):
            if done.exists() or waited.wait(0.01):
                break
        assert done.exists()
        tokens = {"a": 0, "b": 0}
        while tokens != {"a": 500, "b": 500}:
            message = receive(ours)
            assert isinstance(message, Stepped)
            for event in unpack(message.packed):
                tokens[event.request_id] += len(event.token_ids)
    assert process.wait(20) == 1  # the pair has ended


_PARENT = """
import asyncio, sys
from mmserve.engine.process.client import ProcessEngineClient
from mmserve.engine.process.recipe import Recipe
from mmserve.cli_log import configure_logging
from mmserve.engine.process import link
from tests.engine.process import fakes

async def main():
    spawn = link.spawn
    def spied(*given):
        process = spawn(*given)
        print(process.pid, flush=True)
        return process
    link.spawn = spied
    client = await ProcessEngineClient.start(Recipe(getattr(fakes, sys.argv[1])))
    print("ready", flush=True)
    async for _ in client.generate(fakes.ask("a", 50_000, sys.argv[2])):
        print("word", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("build", "wish", "after"), [("endless", "", ""), ("fake", "", "word"), ("fake", "hang", "ready")]
)
async def test_a_child_does_not_outlive_its_parent(build: str, wish: str, after: str) -> None:
    """Killed while it loads, while it answers, and in the middle of a step that does not end."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, build, wish],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        while after and parent.stdout.readline().strip() != after:
            pass
        parent.kill()
    await until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    """Whether it runs; where nothing reaps orphans, an ended one stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
