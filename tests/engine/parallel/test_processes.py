"""Three families, each shared by two processes over gloo: they answer as one process does, and every end is clean."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import EngineUnavailable
from mmserve.grammar.spec import Choice, Regex
from mmserve.types import Request
from tests.engine.parallel.asking import CONFIG, add, alone, asked, compare, requests, run, tiny
from tests.reference import NEAR_TIE, Tally

FAMILIES = ("qwen2-vl", "llava-vicuna", "qwen2.5-vl")
SMALL_STEPS = dataclasses.replace(
    CONFIG, tp_size=2, step_tokens=24, encode_patches=200, max_running=3, kv_slots=2048, tier_bytes=1 << 16
)
PICTURES = (3, 0, 1, 2)
LONG = 500

Shared = dict[str, tuple[Checkpoint, Engine]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A process each beside this one; starting them is what this file's time goes to."""
    folder = tmp_path_factory.mktemp("families")
    checkpoints = [tiny(folder, kind) for kind in FAMILIES]
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        engines = list(pool.map(lambda checkpoint: build_engine(checkpoint, SMALL_STEPS), checkpoints))
    yield dict(zip(FAMILIES, zip(checkpoints, engines, strict=True), strict=True))
    for engine in engines:
        engine.close()


def pid(engine: Engine) -> int:
    runner: Any = engine._runner
    (found,) = runner.pids
    assert isinstance(found, int)
    return found


def finish(engine: Engine) -> None:
    while engine.has_requests:
        engine.step(wait=True)


def process(engine: Engine) -> Any:
    runner: Any = engine._runner
    return runner._workers._workers[0]


class TestAnswers:
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_alone_together_from_the_cache_and_in_small_pieces(self, kind: str, shared: Shared) -> None:
        checkpoint, engine = shared[kind]
        # What a terminal or a service manager sends to all processes must not end one before its time.
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid(engine), number)
        wanted, tally = requests(checkpoint, asked(PICTURES)), Tally()
        expected = alone(checkpoint, wanted)
        compare(tally, {"0": expected["0"]}, run(engine, wanted[:1]))
        engine.flush()
        compare(tally, expected, run(engine, wanted))
        before = engine.stats()
        compare(tally, expected, run(engine, wanted))
        after = engine.stats()
        assert after["cached_tokens"] - before["cached_tokens"] >= sum(len(each.prompt) - 1 for each in wanted) * 0.9
        assert (tally.compared, after["pictures_encoded"]) == (1 + 2 * len(wanted), before["pictures_encoded"])
        assert tally.excused <= 1

    @pytest.mark.parametrize("kind", FAMILIES)
    def test_constrained(self, kind: str, shared: Shared) -> None:
        checkpoint, engine = shared[kind]
        kinds = (Choice(("red", "dark red", "深红")), Regex("[a-f]{2,5}-[0-9]+"), None)
        plain = requests(checkpoint, asked((1, 0, 1)), max_tokens=20, ignore_eos=False)
        wanted = [dataclasses.replace(each, constraint=kind) for each, kind in zip(plain, kinds, strict=True)]
        expected, tally = alone(checkpoint, wanted), Tally()
        events = run(engine, wanted)
        compare(tally, expected, events)
        assert "".join(event.text for event in events["0"]) in ("red", "dark red", "深红")
        assert tally.excused <= 1

    @pytest.mark.proof
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_a_hundred(self, kind: str, shared: Shared) -> None:
        checkpoint, engine = shared[kind]
        wanted, tally = requests(checkpoint, asked(PICTURES * 25), max_tokens=16), Tally()
        expected = alone(checkpoint, wanted)
        compare(tally, expected, run(engine, wanted))
        count = sum(len(each.token_ids) for each in expected.values())
        print(
            f"\n{kind}: {tally.compared} answers of {count} tokens by two processes over gloo, those of one;"
            f" {tally.excused} parted at a near tie (a lead below {NEAR_TIE:g})"
        )
        assert (tally.compared, tally.refused) == (len(wanted), 0)
        assert tally.excused <= 2


class TestEnds:
    """Each of the engines ends in a way of its own."""

    def test_a_rank_that_fails_says_why(self, shared: Shared) -> None:
        checkpoint, engine = shared["qwen2-vl"]
        runner: Any = engine._runner
        runner._workers.tell(["nonsense"])
        for request in requests(checkpoint, asked((0, 1))):
            add(engine, request)
        with pytest.raises(EngineUnavailable, match="rank 1 of 2 failed: AttributeError: 'str'"):
            finish(engine)
        assert process(engine).process.wait(20) == 1
        # Its last words are said once; that it is gone stays true.
        with pytest.raises(EngineUnavailable, match="rank 1 of 2 failed"):
            finish(engine)

    @pytest.mark.anyio
    async def test_a_rank_that_is_killed_ends_every_request_with_a_typed_error(self, shared: Shared) -> None:
        checkpoint, engine = shared["llava-vicuna"]
        client = LocalEngineClient(engine)
        (request,) = requests(checkpoint, asked((1,)), max_tokens=LONG)
        said: list[int] = []

        async def ask() -> None:
            async for event in client.generate(request):
                if not said:
                    os.kill(pid(engine), signal.SIGKILL)
                said.extend(event.token_ids)

        with pytest.raises(EngineUnavailable, match=r"rank 1 of 2 failed: its process [0-9]+ ended by signal 9"):
            await ask()
        assert 0 < len(said) < LONG
        assert not client.ready
        with pytest.raises(EngineUnavailable, match="rank 1 of 2"):
            await anext(client.generate(dataclasses.replace(request, id="late")))
        await client.close()

    def test_a_rank_ends_when_rank_0_s_process_does(self, shared: Shared) -> None:
        """Whatever that died of, the system closes its socket."""
        engine = shared["qwen2.5-vl"][1]
        worker = process(engine)
        worker.pipe.close()
        assert worker.process.wait(20) == 0


def test_the_requests_are_not_trivial(shared: Shared) -> None:
    """They are cut in several pieces, and have pictures that several ranks encode."""
    wanted: list[Request] = requests(shared["qwen2-vl"][0], asked(PICTURES))
    assert max(len(request.prompt) for request in wanted) > 2 * SMALL_STEPS.step_tokens
    assert max(len(request.prompt.media) for request in wanted) == 3
