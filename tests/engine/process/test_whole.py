"""The embedded model in a process of its own says what it says in this one, and refuses what it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import mmserve
from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.client import EngineClient
from mmserve.engine.local import LocalEngineClient
from mmserve.engine.process.client import ProcessEngineClient
from mmserve.engine.process.recipe import BuildEngine, Recipe
from mmserve.engine.process.supervisor import BackOff
from mmserve.errors import BudgetTooSmall, CorruptPicture, EngineUnavailable, InvalidConstraint
from mmserve.grammar.spec import Choice, Constraint, JsonSchema
from mmserve.prompt import PromptBuilder
from mmserve.types import ImagePart, Message, Request, SamplingParams, TextPart, TokenEvent
from tests.engine.pictures import png

pytestmark = pytest.mark.anyio
EXAMPLES = Path(mmserve.__file__).parent / "assets" / "examples"
CONFIG = EngineConfig(device="cpu", kv_slots=2048, tier_bytes=1 << 22)


@pytest.fixture(scope="module")
def prompts(pocket_vl: Checkpoint) -> PromptBuilder:
    return PromptBuilder(pocket_vl, Limits())


@pytest.fixture(scope="module")
async def apart(pocket_vl: Checkpoint) -> AsyncIterator[ProcessEngineClient]:
    client = await ProcessEngineClient.start(Recipe(BuildEngine(pocket_vl, CONFIG)), back_off=BackOff(first=0.01))
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def here(pocket_vl: Checkpoint) -> AsyncIterator[LocalEngineClient]:
    client = LocalEngineClient(build_engine(pocket_vl, CONFIG))
    yield client
    await client.close()


class Asking:
    """Makes the same requests for both engines."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self._prompts = prompts

    def __call__(
        self, name: str, data: bytes | None, question: str, sampling: SamplingParams, shape: Constraint | None = None
    ) -> Request:
        shown = () if data is None else (ImagePart(data),)
        prompt = self._prompts.build([Message("user", (*shown, TextPart(question)))])
        return Request(name, prompt, sampling, constraint=shape)


@pytest.fixture(scope="module")
def asking(prompts: PromptBuilder) -> Asking:
    return Asking(prompts)


async def events(client: EngineClient, request: Request) -> list[TokenEvent]:
    return [event async for event in client.generate(request)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.01)


def said(found: list[TokenEvent]) -> tuple[object, ...]:
    """What must be equal: everything but when it happened."""
    logprobs = [(entry.token_id, entry.token) for event in found for entry in event.logprobs]
    tokens = [token for event in found for token in event.token_ids]
    return "".join(event.text for event in found), tokens, logprobs, found[-1].finish_reason, found[-1].usage


async def test_it_says_the_same_as_an_engine_of_this_process(
    apart: ProcessEngineClient, here: LocalEngineClient, asking: Asking
) -> None:
    circle = (EXAMPLES / "red-circle.png").read_bytes()
    asked = [
        asking("plain", circle, "What color is the circle?", SamplingParams()),
        asking("again", circle, "What is this?", SamplingParams(logprobs=2)),
        asking("sampled", None, "What is this?", SamplingParams(max_tokens=12, temperature=1.0, seed=7)),
        asking("chosen", circle, "What color is the circle?", SamplingParams(), Choice(("red", "blue"))),
        asking("shaped", circle, "Describe it.", SamplingParams(max_tokens=40), JsonSchema('{"type": "boolean"}')),
        Request("scored", asking("", circle, "What?", SamplingParams()).prompt, SamplingParams(), score_from=20),
    ]
    assert apart.max_model_len == here._engine.max_model_len
    for request in asked:
        one, other = await events(apart, request), await events(here, request)
        assert said(one) == said(other)
        assert one[-1].constraint == other[-1].constraint
        assert one[-1].stages is not None
    assert "red" in str(said(await events(apart, asked[0]))[0])
    ours, theirs = here.stats(), apart.stats()
    assert theirs["pictures_encoded"] == ours["pictures_encoded"] == 1
    assert theirs["generated_tokens"] > ours["generated_tokens"]  # of the one that was asked again


async def test_typed_errors_cross_the_pair(apart: ProcessEngineClient, asking: Asking) -> None:
    noise = png("noise", (80, 80))
    with pytest.raises(CorruptPicture):
        await events(apart, asking("a", noise[: len(noise) // 2], "What?", SamplingParams()))
    with pytest.raises(InvalidConstraint):
        await events(apart, asking("b", None, "What?", SamplingParams(), JsonSchema('{"type": 3}')))
    shape = JsonSchema('{"type": "object", "required": ["a"]}')
    with pytest.raises(BudgetTooSmall) as caught:
        await events(apart, asking("c", None, "What?", SamplingParams(max_tokens=1), shape))
    assert caught.value.param == "max_tokens"


async def test_caches_are_flushed_and_those_who_leave_free_their_slots(
    apart: ProcessEngineClient, asking: Asking
) -> None:
    await events(apart, asking("a", png("red"), "What?", SamplingParams(max_tokens=4)))
    assert await apart.flush() > 0
    assert await apart.flush() == 0
    generator = apart.generate(asking("b", png("red"), "What?", SamplingParams(ignore_eos=True)))
    await anext(generator)
    await generator.aclose()
    await until(lambda: apart.stats()["requests_running"] == 0)
    stats = apart.stats()
    assert stats["slots_free"] + stats["slots_cached"] == stats["slots_total"]


async def test_killed_under_several_requests_it_answers_them_and_serves_again(
    apart: ProcessEngineClient, asking: Asking
) -> None:
    forever = SamplingParams(ignore_eos=True)
    requests = [asking(str(n), png("red") if n % 2 else png("blue"), "What?", forever) for n in range(4)]
    tasks = [asyncio.create_task(events(apart, request)) for request in requests]
    await until(lambda: apart.stats().get("requests_running") == 4)
    pid, encoded = apart.pid, apart.stats()["pictures_encoded"]
    assert pid is not None
    held = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    tier = [path for path in held if "mmserve-kv-" in path or path.endswith("(deleted)")]
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineUnavailable] * 4
    await until(lambda: apart.ready)
    assert not any(Path(path.removesuffix(" (deleted)")).exists() for path in tier)
    assert tier
    [*_, last] = await events(apart, asking("after", png("red"), "What?", SamplingParams(max_tokens=3)))
    assert last.finish_reason is not None
    assert apart.stats()["pictures_encoded"] == encoded + 1
    assert apart.stats()["engine_restarts"] == 1
