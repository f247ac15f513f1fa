"""The engine in a thread: answers, refusals, departures, and an end that leaves nobody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import CorruptPicture, EngineUnavailable, PromptTooLong, QueueFull
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart
from tests.engine.pictures import png

pytestmark = pytest.mark.anyio
CONFIG = EngineConfig(device="cpu", check_invariants=True, kv_slots=2048)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint, Limits())


@pytest.fixture
async def client(checkpoint: Checkpoint) -> AsyncIterator[LocalEngineClient]:
    client = LocalEngineClient(build_engine(checkpoint, CONFIG), max_queue=8)
    yield client
    await client.close()


def make(prompts: PromptBuilder, name: str, *pictures: bytes, max_tokens: int | None = 6) -> Request:
    prompt = prompts.build([Message("user", (*map(ImagePart, pictures), TextPart("What?")))])
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True))


async def count_tokens(client: LocalEngineClient, request: Request) -> int:
    return sum([len(event.token_ids) async for event in client.generate(request)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_many_at_once_are_all_answered(client: LocalEngineClient, prompts: PromptBuilder) -> None:
    asked = [make(prompts, str(i), png("red") if i % 2 else png("blue")) for i in range(8)]
    assert await asyncio.gather(*(count_tokens(client, r) for r in asked)) == [6] * 8
    assert client.stats()["pictures_encoded"] == 2
    assert client.ready


async def test_one_more_than_the_queue_holds_is_refused(client: LocalEngineClient, prompts: PromptBuilder) -> None:
    asked = [make(prompts, str(i), max_tokens=40) for i in range(9)]
    results = await asyncio.gather(*(count_tokens(client, r) for r in asked), return_exceptions=True)
    assert [r for r in results if r != 40] == [results[-1]]
    assert isinstance(results[-1], QueueFull)
    assert await count_tokens(client, make(prompts, "later")) == 6


async def test_errors_are_raised(client: LocalEngineClient, prompts: PromptBuilder) -> None:
    noise = png("noise", (80, 80))
    with pytest.raises(CorruptPicture):
        await count_tokens(client, make(prompts, "a", noise[: len(noise) // 2]))
    with pytest.raises(PromptTooLong):
        await count_tokens(client, make(prompts, "b", max_tokens=1_000_000))


async def leave_by_break(client: LocalEngineClient, request: Request) -> None:
    generator = client.generate(request)
    async for _ in generator:
        break
    await generator.aclose()


async def leave_by_cancel(client: LocalEngineClient, request: Request) -> None:
    task = asyncio.create_task(count_tokens(client, request))
    await until(lambda: client.stats()["generated_tokens"] > 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_cancel])
async def test_who_leaves_frees_what_he_held(
    client: LocalEngineClient,
    prompts: PromptBuilder,
    leave: Callable[[LocalEngineClient, Request], Awaitable[None]],
) -> None:
    await leave(client, make(prompts, "a", png("red"), max_tokens=None))
    await until(lambda: client.stats()["requests_running"] == 0)
    stats = client.stats()
    assert stats["slots_free"] + stats["slots_cached"] == stats["slots_total"]
    assert stats["requests_aborted"] == 1


async def test_closing_answers_those_who_wait(client: LocalEngineClient, prompts: PromptBuilder) -> None:
    task = asyncio.create_task(count_tokens(client, make(prompts, "a", max_tokens=None)))
    await until(lambda: client.stats()["generated_tokens"] > 0)
    await client.close()
    with pytest.raises(EngineUnavailable):
        await task
    assert not client.ready
    with pytest.raises(EngineUnavailable):
        await count_tokens(client, make(prompts, "b"))


async def test_a_loop_that_fails_answers_everybody(
    checkpoint: Checkpoint, prompts: PromptBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build_engine(checkpoint, CONFIG)
    client = LocalEngineClient(engine)

    def broken(_: Engine, **__: object) -> object:
        raise AssertionError("a slot is lost")

    monkeypatch.setattr(Engine, "step", broken)
    with pytest.raises(EngineUnavailable, match="AssertionError"):
        await count_tokens(client, make(prompts, "a"))
    assert not client.ready
    assert "loop failed" in caplog.text
    await client.close()


async def test_a_request_that_cannot_be_added_is_answered_and_the_next_is_served(
    client: LocalEngineClient, prompts: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no positions")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add", broken)
        with pytest.raises(Exception, match="RuntimeError"):
            await count_tokens(client, make(prompts, "a"))
    assert await count_tokens(client, make(prompts, "b")) == 6


async def test_an_idle_engine_uses_no_processor_time(client: LocalEngineClient, prompts: PromptBuilder) -> None:
    await count_tokens(client, make(prompts, "a"))
    before = client.stats()["steps"]
    calls = []
    step = client._engine.step
    client._engine.step = lambda **kwargs: calls.append(1) or step(**kwargs)  # type: ignore[method-assign, func-returns-value]
    await asyncio.sleep(0.3)
    assert client.stats()["steps"] == before
    assert len(calls) <= 1
