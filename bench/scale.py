"""Hit rate, waiting and cost of 1 to 1,000 replicas under four ways of choosing one, by simulation.

Requests come as a Poisson process; each is about one of a catalogue of pictures whose popularity follows Zipf's law. A
replica keeps the pictures it looked at last, as many as its cache holds, and computes what it has side by side as
processor sharing at a speed that grows with how many there are. How long a new and a known picture take, a token, and
that speed are measured (``bench.service_times``). The choice is ``mmserve.deploy.routing``'s own code. Seeded: the same
command gives the same figures.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmserve.deploy.routing import Bound, Rendezvous

POLICIES = ("random", "least loaded", "consistent hash", "ours")
REPLICAS = (1, 3, 10, 30, 100, 300, 1000)
MEASURED = Path(__file__).with_name("service_times.json")
_NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds on one replica that has nothing else to do. ``speed_up[n]`` is how many times as much ``n`` together get
    done as one alone, and between the measured counts as they lie on a line; beyond them it grows no more."""

    new: float
    known: float
    token: float
    speed_up: tuple[tuple[int, float], ...]

    @classmethod
    def load(cls, path: Path = MEASURED) -> Times:
        read = json.loads(path.read_text(encoding="utf-8"))
        curve = tuple(sorted((int(count), float(gain)) for count, gain in read["speed_up"].items()))
        return cls(read["new_seconds"], read["known_seconds"], read["token_seconds"], curve)

    def work(self, *, hit: bool, tokens: int, speed: float) -> float:
        """Seconds that an answer takes alone. Looking at a new picture gains nothing from others beside it, so it
        counts ``speed`` times: the device does it in the time it takes alone."""
        return self.known + (tokens - 1) * self.token + (0.0 if hit else (self.new - self.known) * speed)

    def cost(self, *, hit_rate: float, tokens: float) -> float:
        """Seconds of a full replica that an answer takes on average."""
        return (self.known + (tokens - 1) * self.token) / self.speed_up[-1][1] + (1 - hit_rate) * (
            self.new - self.known
        )

    def speeds(self, most: int) -> npt.NDArray[np.float64]:
        """The speed-up of 0 to ``most`` together."""
        counts, gains = zip(*self.speed_up, strict=True)
        speeds: npt.NDArray[np.float64] = np.interp(np.arange(most + 1), counts, gains)
        speeds[0] = 0.0
        return speeds


@dataclass(frozen=True, slots=True)
class World:
    """What comes and what there is. ``load`` is of what the replicas could do if every picture were known to them: at 1
    no system keeps up."""

    replicas: int
    requests: int
    pictures: int = 100_000
    zipf: float = 1.0
    cache: int = 128
    tokens: int = 16
    load: float = 0.25
    together: int = 32
    seed: int = 0
    bound: Bound = field(default_factory=Bound)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the requests after the first half, in which the caches fill. ``cost`` is the seconds that a replica with
    enough to do takes for 1,000 answers, ``spread`` the most loaded replica's share of the requests over the mean."""

    hit_rate: float
    p50: float
    p99: float
    cost: float
    spread: float


class Replica:
    """One engine: what it knows, and what it is computing, shared evenly (virtual time; Parekh and Gallager 1993)."""

    __slots__ = ("at", "known", "running", "virtual", "waiting")

    def __init__(self) -> None:
        self.known: OrderedDict[int, None] = OrderedDict()
        self.running: list[tuple[float, int]] = []
        self.waiting: deque[tuple[float, int]] = deque()
        self.virtual = 0.0
        self.at = 0.0

    def knows(self, picture: int, size: int) -> bool:
        """Whether it does; from now on so, and the longest unused is forgotten where there are more than ``size``."""
        hit = picture in self.known
        self.known[picture] = None
        self.known.move_to_end(picture)
        if len(self.known) > size:
            self.known.popitem(last=False)
        return hit

    def advance(self, now: float, speeds: npt.NDArray[np.float64]) -> None:
        if self.running:
            self.virtual += (now - self.at) * speeds[len(self.running)] / len(self.running)
        self.at = now

    def add(self, work: float, request: int, together: int) -> None:
        if len(self.running) < together:
            heapq.heappush(self.running, (self.virtual + work, request))
        else:
            self.waiting.append((work, request))

    def end_first(self, together: int) -> int:
        """The request that is done; the one that has waited longest takes its place."""
        _, request = heapq.heappop(self.running)
        if self.waiting and len(self.running) < together:
            self.add(*self.waiting.popleft(), together)
        return request

    def next_end(self, speeds: npt.NDArray[np.float64]) -> float:
        if not self.running:
            return _NEVER
        left = max(0.0, self.running[0][0] - self.virtual)
        return self.at + left * len(self.running) / float(speeds[len(self.running)])


class Chooser:
    """One of ``POLICIES`` over replicas 0 to n − 1."""

    def __init__(self, policy: str, world: World, rng: np.random.Generator) -> None:
        self._policy = policy
        self._rng = rng
        self._bound = world.bound if policy == "ours" else None
        self._rendezvous = Rendezvous(f"{number:04d}" for number in range(world.replicas))
        self._count = world.replicas

    def choose(self, picture: int, loads: npt.NDArray[np.int64]) -> int:
        if self._policy == "random":
            return int(self._rng.integers(self._count))
        if self._policy == "least loaded":  # of those with the least, any
            least = np.flatnonzero(loads == loads.min())
            return int(least[self._rng.integers(len(least))])
        return self._rendezvous.place(picture.to_bytes(8, "little"), loads, self._bound)


def simulate(policy: str, world: World, times: Times) -> Outcome:
    """One run, in order of events: a request comes, or the next answer is done."""
    run = _Run(policy, world, times)
    while run.step():
        pass
    return run.outcome()


class _Run:
    """What has come, what is under way and what became of it."""

    def __init__(self, policy: str, world: World, times: Times) -> None:
        rng = np.random.default_rng(world.seed)
        self._world, self._times = world, times
        self._speeds = times.speeds(world.together)
        self._pictures = _zipf(rng, world)
        self._lengths = rng.geometric(1 / world.tokens, world.requests)
        rate = world.load * world.replicas / times.cost(hit_rate=1.0, tokens=world.tokens)
        self._arrivals = np.cumsum(rng.exponential(1 / rate, world.requests))
        self._chooser = Chooser(policy, world, rng)
        self._replicas = [Replica() for _ in range(world.replicas)]
        self._loads = np.zeros(world.replicas, np.int64)
        self._versions = [0] * world.replicas
        self._ends: list[tuple[float, int, int]] = []  # when, which replica, its version: only the last one counts
        self._coming = 0
        self._took = np.zeros(world.requests)
        self._hits = np.zeros(world.requests, bool)
        self._placed = np.zeros(world.requests, np.int64)

    def step(self) -> bool:
        """The next event; False when there is none."""
        comes = self._coming < self._world.requests
        if comes and (not self._ends or self._arrivals[self._coming] <= self._ends[0][0]):
            self._arrive(self._coming)
            self._coming += 1
            return True
        if not self._ends:
            return False
        now, number, version = heapq.heappop(self._ends)
        if version == self._versions[number]:
            self._replicas[number].advance(now, self._speeds)
            request = self._replicas[number].end_first(self._world.together)
            self._took[request] = now - self._arrivals[request]
            self._loads[number] -= 1
            self._plan(number)
        return True

    def _arrive(self, request: int) -> None:
        picture = int(self._pictures[request])
        number = self._chooser.choose(picture, self._loads)
        replica = self._replicas[number]
        replica.advance(float(self._arrivals[request]), self._speeds)
        hit = replica.knows(picture, self._world.cache)
        speed = float(self._speeds[min(len(replica.running) + 1, self._world.together)])
        work = self._times.work(hit=hit, tokens=int(self._lengths[request]), speed=speed)
        replica.add(work, request, self._world.together)
        self._hits[request], self._placed[request] = hit, number
        self._loads[number] += 1
        self._plan(number)

    def _plan(self, number: int) -> None:
        self._versions[number] += 1
        when = self._replicas[number].next_end(self._speeds)
        if when < _NEVER:
            heapq.heappush(self._ends, (when, number, self._versions[number]))

    def outcome(self) -> Outcome:
        counted = slice(self._world.requests // 2, None)
        hit_rate, took = float(self._hits[counted].mean()), self._took[counted]
        tokens = float(self._lengths[counted].mean())
        shares = np.bincount(self._placed[counted], minlength=self._world.replicas)
        return Outcome(
            hit_rate=hit_rate,
            p50=float(np.quantile(took, 0.5)),
            p99=float(np.quantile(took, 0.99)),
            cost=1000 * self._times.cost(hit_rate=hit_rate, tokens=tokens),
            spread=float(shares.max() / shares.mean()),
        )


def _zipf(rng: np.random.Generator, world: World) -> npt.NDArray[np.int64]:
    """A picture for each request: the k-th most popular with probability proportional to k to the minus ``zipf``."""
    weights = np.arange(1, world.pictures + 1, dtype=np.float64) ** -world.zipf
    edges = np.cumsum(weights / weights.sum())
    found: npt.NDArray[np.int64] = np.searchsorted(edges, rng.random(world.requests)).clip(max=world.pictures - 1)
    return found


def worlds(counts: Sequence[int], each: int, **settings: object) -> list[World]:
    """One of each size; enough requests that its caches fill."""
    return [World(count, max(20_000, each * count), **settings) for count in counts]  # type: ignore[arg-type]


def table(results: Sequence[tuple[str, World, Outcome]]) -> str:
    lines = [
        f"{'replicas':>8} {'requests':>9}  {'policy':<16}{'hit rate':>9}{'p50 s':>8}{'p99 s':>9}"
        f"{'cost':>8}{'spread':>8}"
    ]
    for policy, world, outcome in results:
        lines.append(
            f"{world.replicas:>8,} {world.requests:>9,}  {policy:<16}{outcome.hit_rate:>9.1%}{outcome.p50:>8.3f}"
            f"{outcome.p99:>9.3f}{outcome.cost:>8.2f}{outcome.spread:>8.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--replicas", type=int, nargs="+", default=REPLICAS)
    parser.add_argument("--each", type=int, default=600, help="requests for each replica (%(default)s)")
    parser.add_argument("--pictures", type=int, default=100_000, help="in the catalogue (%(default)s)")
    parser.add_argument("--zipf", type=float, default=1.0, help="popularity's exponent (%(default)s)")
    parser.add_argument("--cache", type=int, default=128, help="pictures that a replica keeps (%(default)s)")
    parser.add_argument("--load", type=float, default=0.25, help="of what the replicas can do at best (%(default)s)")
    parser.add_argument("--balance", type=float, default=1.25, help="most load over the mean (%(default)s)")
    parser.add_argument("--spare", type=int, default=8, help="requests that never spill (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=Path, default=MEASURED, help="measured figures (%(default)s)")
    arguments = parser.parse_args()
    settings = ", ".join(
        f"{name} {value}" for name, value in vars(arguments).items() if name not in ("replicas", "times")
    )
    times, start, results = Times.load(arguments.times), time.perf_counter(), []
    for world in worlds(
        arguments.replicas,
        arguments.each,
        pictures=arguments.pictures,
        zipf=arguments.zipf,
        cache=arguments.cache,
        load=arguments.load,
        bound=Bound(arguments.balance, arguments.spare),
        seed=arguments.seed,
    ):
        results += [(policy, world, simulate(policy, world, times)) for policy in POLICIES]
        print(f"{world.replicas} replicas: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table(results))
    print(f"cost: seconds of a busy replica for 1,000 answers; {settings}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
