"""The embedded model on a Ray of its own, three replicas on this machine: what the choice of a replica is worth, what a
killed one costs, and whether growing and shrinking is noticed.

Ends with 1 where our choice finds less than ``BAR`` of what one replica finds, where another request than those in
flight on the killed replica fails, where that is not over in ``RECOVERY`` seconds, or where one fails while replicas
come and go.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
import numpy as np
import numpy.typing as npt
import ray
from PIL import Image
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from mmserve.cli import build_parser
from mmserve.cli_backend import plain_options, service_limits
from mmserve.cli_deploy import Builder
from mmserve.deploy.cluster import Cluster
from mmserve.deploy.fleet import Fleet
from mmserve.deploy.ray_serve import Running, serving

BAR = 0.95
RECOVERY = 5.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
FLEET = Fleet(cpus=0.2, health_seconds=1.0, drain_seconds=30.0)


class RoundRobin(RequestRouter):  # type: ignore[misc]  # Ray is untyped to those who do without it
    """Each request to the next replica."""

    def initialize_state(self, **_: object) -> None:
        self._turn = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        order = sorted(candidate_replicas, key=lambda replica: str(replica.replica_id.unique_id))
        self._turn = (self._turn + 1) % len(order)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[replica] for replica in order[self._turn :] + order[: self._turn]]


@dataclass(slots=True)
class Tally:
    """What became of requests: when each ended and how, in seconds of one clock."""

    ended: list[tuple[float, float, int, str]] = field(default_factory=list)
    prompt: int = 0
    cached: int = 0

    @property
    def failed(self) -> list[tuple[float, float, int, str]]:
        return [each for each in self.ended if each[2] != 200]


class Load:
    """Questions about pictures that are asked about again and again."""

    def __init__(self, url: str, pictures: int, each: int, seed: int) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=120)
        self._random = random.Random(seed)
        pixels = np.random.default_rng(seed)
        self._pictures = [_png(pixels.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(pictures)]
        self._each = each

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, picture: int, question: int, tally: Tally, tokens: int = 8) -> None:
        start = time.monotonic()
        files = {"image": ("a.png", self._pictures[picture])}
        data = {
            "question": f"What is in this picture, number {question}?",
            "max_tokens": str(tokens),
            "ignore_eos": "true",
        }
        response = await self._client.post("/v1/vqa", data=data, files=files)
        code = ""
        if response.status_code == 200:
            usage = response.json()["usage"]
            tally.prompt += usage["prompt_tokens"]
            tally.cached += usage["prompt_tokens_details"]["cached_tokens"]
        else:
            code = response.json()["error"]["code"]
        tally.ended.append((start, time.monotonic(), response.status_code, code))

    async def shared(self, together: int) -> Tally:
        """Each picture asked about ``each`` times, in random order, with empty caches."""
        (await self._client.post("/flush_cache")).raise_for_status()
        todo = [(picture, question) for picture in range(len(self._pictures)) for question in range(self._each)]
        self._random.shuffle(todo)
        tally, left = Tally(), iter(todo)

        async def user() -> None:
            for picture, question in left:
                await self.ask(picture, question, tally)

        await asyncio.gather(*(user() for _ in range(together)))
        return tally

    @asynccontextmanager
    async def going_on(self, users: int, tokens: int = 8) -> AsyncIterator[Tally]:
        """``users`` asking without a pause until the block ends, each for answers of so many ``tokens``."""
        tally, done = Tally(), asyncio.Event()

        async def user() -> None:
            while not done.is_set():
                await self.ask(self._random.randrange(len(self._pictures)), self._random.randrange(100), tally, tokens)

        tasks = [asyncio.create_task(user()) for _ in range(users)]
        try:
            yield tally
        finally:
            done.set()
            await asyncio.gather(*tasks)

    async def count(self) -> int:
        """Replicas that answer."""
        return (await self._client.get("/metrics")).text.count("\nmmserve:ready{")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(300):
            while await self.count() != count:
                await asyncio.sleep(0.2)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Bench:
    def __init__(self, running: Running, arguments: argparse.Namespace) -> None:
        self._running = running
        command = ["deploy", "--device", "cpu", "--tier-bytes", "0", "--kv-slots", "20000"]
        self._options = build_parser().parse_args(command)
        self._arguments = arguments
        self.ok = True

    async def up(self, fleet: Fleet) -> str:
        build, limits = Builder(plain_options(self._options)), service_limits(self._options)
        return await asyncio.to_thread(self._running.up, "mmserve", build, fleet, limits, 30.0, ENVIRONMENT)

    async def run(self) -> None:
        url = await self.up(FLEET)
        load = Load(url, self._arguments.pictures, self._arguments.each, self._arguments.seed)
        try:
            if self._arguments.only in (None, "choices"):
                await self._choices(load)
            if self._arguments.only in (None, "killed"):
                await self.up(replace(FLEET, least=3, most=3))
                await load.until(3)
                await self._killed(load)
            if self._arguments.only in (None, "scaled"):
                await self._scaled(load)
        finally:
            await load.close()

    async def _choices(self, load: Load) -> None:
        together, three = self._arguments.together, replace(FLEET, least=3, most=3)
        tallies = {"1": await load.shared(together)}
        await self.up(three)
        await load.until(3)
        tallies["3, ours"] = await load.shared(together)
        await self.up(replace(three, router="bench.cluster.RoundRobin"))
        await load.until(3)
        tallies["3, turns"] = await load.shared(together)
        rates = {name: tally.cached / tally.prompt for name, tally in tallies.items()}
        print(f"{len(tallies['1'].ended)} questions, {self._arguments.each} about each picture, {together} at a time")
        for name, rate in rates.items():
            print(
                f"{name:<10}{rate:>8.2%} of the prompts' tokens from cache, {rate / rates['1']:>8.2%} of one replica's"
            )
        self._expect("our choice finds what one replica does", rates["3, ours"] >= BAR * rates["1"])
        self._expect("all were answered", not any(tally.failed for tally in tallies.values()))

    async def _killed(self, load: Load) -> None:
        async with load.going_on(3 * self._arguments.together, tokens=64) as tally:
            await asyncio.sleep(5)
            at = time.monotonic()
            await asyncio.to_thread(kill_replica)
            await asyncio.sleep(10)
        before = [each for each in tally.failed if each[0] <= at]
        kinds = sorted({(status, code) for _, _, status, code in tally.failed})
        last = max((end for _, end, _, _ in tally.failed), default=at) - at
        print(
            f"killed under load: {len(tally.ended)} requests, {len(tally.failed)} failed, {len(before)} of them begun"
            f" before, with {kinds}; the last {last:.2f} s after"
        )
        self._expect("what fails may be asked again", all(each[2] == 503 for each in tally.failed))
        self._expect("what was in flight fails, and nothing else", 0 < len(before) == len(tally.failed))
        self._expect(f"routing recovers in {RECOVERY:g} s", last <= RECOVERY)
        start = time.monotonic()
        await load.until(3)
        print(f"a new replica answers {time.monotonic() - start + 10:.0f} s after")

    async def _scaled(self, load: Load) -> None:
        await self.up(replace(FLEET, least=1, most=3, target_requests=2.0, up_seconds=1.0, down_seconds=5.0))
        await load.until(1)
        async with load.going_on(self._arguments.together) as many:
            await load.until(3)
        print(f"1 to 3 replicas under load: {len(many.ended)} requests meanwhile, {len(many.failed)} failed")
        async with load.going_on(1) as few:
            await load.until(1)
        print(f"3 to 1 when there is less: {len(few.ended)} requests meanwhile, {len(few.failed)} failed")
        self._expect("1 to 3 to 1 without a failed request", not (many.failed or few.failed))

    def _expect(self, what: str, holds: bool) -> None:
        print(f"{'ok' if holds else 'NOT SO'}: {what}", flush=True)
        self.ok = self.ok and holds


def kill_replica() -> None:
    """End one engine's process there and then."""
    names = (actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    ray.kill(ray.get_actor(next(name for name in names if "#engine#" in name), namespace="serve"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--each", type=int, default=10, help="questions about each (%(default)s)")
    parser.add_argument("--together", type=int, default=8, help="at a time (%(default)s)")
    parser.add_argument("--port", type=int, default=8456)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["choices", "killed", "scaled"], help="one of the three")
    arguments = parser.parse_args()
    print(json.dumps(vars(arguments)))
    with serving(Cluster(None, 200_000_000, "127.0.0.1", arguments.port, cpus=2)) as running:
        bench = Bench(running, arguments)
        asyncio.run(bench.run())
    return 0 if bench.ok else 1


if __name__ == "__main__":
    sys.exit(main())
