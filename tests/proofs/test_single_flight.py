"""Many first questions about one new picture at the same moment: one decodes and computes it, all use it.

Asked of the engine in a thread, and of a server in a process of its own. The counters are exact: one decode, one
encoder run, the shared prefix prefilled once and each question's own tail once, however many ask.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import combinations

import httpx
import pytest

from bench.server import served
from mmserve.cache.key import common_prefix
from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.types import Prompt, Request
from tests.proofs.serving import serve
from tests.proofs.traps import conversation, drawing
from tests.vision.files import encode

pytestmark = pytest.mark.anyio

COUNT = 64
CONFIG = EngineConfig(device="cpu", dtype="float32", kv_slots=8192, check_invariants=True)
SAMPLING = SamplingParams(max_tokens=4, temperature=0.0, seed=0)
QUESTIONS = [f"{chr(ord('!') + i)} is there a red shape?" for i in range(COUNT)]
"""Their first tokens differ, so that two prompts share what stands before the question and nothing else."""


@pytest.fixture(scope="module")
def prompts(pocket_vl: Checkpoint) -> PromptBuilder:
    return PromptBuilder(pocket_vl, Limits())


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encode(drawing(280, 196), "PNG")


@pytest.fixture(scope="module")
def requests(prompts: PromptBuilder, picture: bytes) -> list[Request]:
    return [Request(str(i), prompts.build(conversation(picture, q)), SAMPLING) for i, q in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def truth(pocket_vl: Checkpoint, requests: list[Request]) -> list[list[int]]:
    """Each answered alone, without reuse."""
    engine = build_engine(pocket_vl, dataclasses.replace(CONFIG, reuse=False, encoder_cache_bytes=0))
    tokens = [serve(engine, [request])[request.id] for request in requests]
    engine.close()
    return tokens


def shared_prefix(prompts: list[Prompt]) -> int:
    """The length of the prefix that any two of the prompts share, and no two share more of."""
    (length,) = {common_prefix(a.token_ids, b.token_ids) for a, b in combinations(prompts, 2)}
    assert length >= prompts[0].ranges[-1].end
    return length


def assert_computed_once(before: Mapping[str, float], after: Mapping[str, float], requests: list[Request]) -> None:
    done = {name: after[name] - before.get(name, 0.0) for name in after}
    prompts = [request.prompt for request in requests]
    shared = shared_prefix(prompts)
    assert done["pictures_decoded"] == done["pictures_encoded"] == 1
    assert done["prefilled_tokens"] == shared + sum(len(prompt) - shared for prompt in prompts)
    assert done["cached_tokens"] == (len(prompts) - 1) * shared
    assert done["pictures_reused"] == len(prompts) - 1
    print(
        f"{len(prompts)} first questions: 1 decode, 1 encoder run, {shared} shared tokens prefilled once; "
        f"{done['prefilled_tokens']:.0f} of {sum(map(len, prompts))} prompt tokens computed"
    )


@pytest.fixture(
    params=[
        {},
        {"step_tokens": 9},
        {"max_running": 5},
        {"encoder_cache_bytes": 0},
        {"step_tokens": 50, "max_running": 2},
    ],
    ids=str,
)
async def client(pocket_vl: Checkpoint, request: pytest.FixtureRequest) -> AsyncIterator[LocalEngineClient]:
    client = LocalEngineClient(build_engine(pocket_vl, dataclasses.replace(CONFIG, **request.param)))
    yield client
    await client.close()


async def tokens_of(client: LocalEngineClient, request: Request) -> list[int]:
    return [token async for event in client.generate(request) for token in event.token_ids]


async def test_first_questions_share_one_of_everything(
    client: LocalEngineClient, requests: list[Request], truth: list[list[int]]
) -> None:
    assert await asyncio.gather(*(tokens_of(client, request) for request in requests)) == truth
    assert_computed_once({}, client.stats(), requests)


async def test_when_some_of_those_who_came_first_leave_others_take_over(
    client: LocalEngineClient, requests: list[Request], truth: list[list[int]]
) -> None:
    tasks = [asyncio.create_task(tokens_of(client, request)) for request in requests]
    for leaving in range(8):
        await asyncio.sleep(0.002)
        tasks[leaving].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[8:] == truth[8:]
    assert all(isinstance(a, asyncio.CancelledError) or a == t for a, t in zip(answers[:8], truth[:8], strict=True))
    stats = client.stats()
    assert stats["pictures_decoded"] == stats["pictures_encoded"] == 1
    # Of what a leaver had begun, at most the rows of the picture that it was in the middle of are computed again.
    lost = 8 * requests[0].prompt.picture_tokens
    once = sum(len(request.prompt) for request in requests) - (len(requests) - 1) * shared_prefix(
        [request.prompt for request in requests]
    )
    assert stats["prefilled_tokens"] <= once + lost


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("--device", "cpu", "--max-running", "16") as address:
        yield address


async def test_first_questions_through_http_share_one_of_everything(
    url: str, prompts: PromptBuilder, requests: list[Request], truth: list[list[int]], picture: bytes
) -> None:
    limits = httpx.Limits(max_connections=COUNT)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as http:

        async def ask(question: str) -> str:
            form = {"question": question, "max_tokens": "4", "temperature": "0"}
            answer = await http.post("/v1/vqa", data=form, files={"image": ("photo.png", picture, "image/png")})
            text: str = answer.raise_for_status().json()["answer"]
            return text

        before = (await http.get("/server_info")).json()["stats"]
        answers = await asyncio.gather(*map(ask, QUESTIONS))
        after = (await http.get("/server_info")).json()["stats"]
    assert answers == [prompts.tokenizer.decode(tokens) for tokens in truth]
    assert_computed_once(before, after, requests)
