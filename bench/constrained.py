"""What constraints cost: tokens per second beside unconstrained answers, forced tokens, and the first use of a schema.

Three tables. Throughput: the same prompts, so many in flight all the time, answered freely, under a schema token by
token, and under it with forced tokens appended at once; modes alternate within each round. Forced tokens: five schemas
as picture questions have them. First use: each schema of a file is asked for twice, beside a stream of free answers
whose gaps between tokens are watched; the difference is what compiling adds to a first answer, and the gaps show
whether it delays others.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gzip
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import ConstraintError
from mmserve.grammar.spec import Constraint, JsonSchema
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Prompt, Request, TextPart


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "maxLength": 80}
NUMBER = {"type": "number"}
VQA_SCHEMAS: dict[str, dict[str, Any]] = {
    "shape and colour": _object(
        shape={"enum": ["circle", "rectangle", "triangle"]}, color={"enum": ["red", "green", "blue", "black", "grey"]}
    ),
    "caption and tags": _object(caption=TEXT, tags={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 5}),
    "objects and boxes": _object(
        objects={
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": _object(
                label=TEXT,
                bbox_2d={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "minItems": 4}
                | {"maxItems": 4},
            ),
        }
    ),
    "receipt": _object(
        merchant=TEXT,
        date={"type": "string", "format": "date"},
        currency={"enum": ["EUR", "USD", "CNY", "GBP"]},
        total=NUMBER,
        paid={"type": "boolean"},
    ),
    "moderation": _object(
        is_safe={"type": "boolean"},
        violence_score={"type": "integer", "minimum": 0, "maximum": 10},
        contains_people={"type": "boolean"},
        contains_text={"type": "boolean"},
        explanation=TEXT,
    ),
}
LONG = _object(
    description={"type": "string", "minLength": 60, "maxLength": 90},
    colour={"enum": ["red", "green", "blue"]},
    details={"type": "string", "minLength": 60, "maxLength": 90},
)


@dataclass(frozen=True, slots=True)
class Figures:
    tokens: int
    seconds: float
    steps: int
    forced: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def prompts_of(checkpoint: Checkpoint, count: int) -> list[Prompt]:
    builder = PromptBuilder(checkpoint, Limits())
    examples = Path(__file__).parent.parent / "mmserve" / "assets" / "examples"
    pictures = [examples / entry["file"] for entry in json.loads((examples / "examples.json").read_text())]
    picture = pictures[0].read_bytes()
    return [
        builder.build([Message("user", (ImagePart(picture), TextPart(f"Describe it, {i}.")))]) for i in range(count)
    ]


def serve(engine: Engine, requests: Sequence[Request], in_flight: int) -> Figures:
    """Answer all requests, ``in_flight`` at a time, the next as soon as one ends, from what the caches have."""
    grammars = {r.constraint: engine.compile(r.constraint).result() for r in requests if r.constraint is not None}
    counters = engine.scheduler.counters
    before = dataclasses.replace(counters)
    start = time.perf_counter()
    coming, running = iter(requests), 0
    while True:
        for request in islice(coming, in_flight - running):
            engine.add(
                engine.resolve(request), grammars[request.constraint] if request.constraint is not None else None
            )
            running += 1
        if not running:
            break
        running -= sum(event.last for event in engine.step(wait=True))
    seconds = time.perf_counter() - start
    return Figures(
        counters.generated_tokens - before.generated_tokens,
        seconds,
        counters.steps - before.steps,
        counters.forced_tokens - before.forced_tokens,
    )


def requests_of(
    prompts: Sequence[Prompt], constraint: Constraint | None, max_tokens: int, *, ignore_eos: bool
) -> list[Request]:
    return [
        Request(
            str(i),
            prompt,
            SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=i, ignore_eos=ignore_eos),
            constraint=constraint,
        )
        for i, prompt in enumerate(prompts)
    ]


def throughput(checkpoint: Checkpoint, config: EngineConfig, batch: int, rounds: int) -> None:
    """Tokens per second of the three modes, medians over rounds that alternate."""
    prompts = prompts_of(checkpoint, 4 * batch)
    schema = JsonSchema.of(LONG)
    plain = build_engine(checkpoint, dataclasses.replace(config, fast_forward=False))
    forward = build_engine(checkpoint, config)
    length = serve(plain, requests_of(prompts, schema, 400, ignore_eos=False), batch).tokens // len(prompts)
    found: dict[str, list[Figures]] = {"free": [], "schema, token by token": [], "schema, forced tokens at once": []}
    for _ in range(rounds + 1):
        found["free"].append(serve(plain, requests_of(prompts, None, length, ignore_eos=True), batch))
        found["schema, token by token"].append(serve(plain, requests_of(prompts, schema, 400, ignore_eos=False), batch))
        found["schema, forced tokens at once"].append(
            serve(forward, requests_of(prompts, schema, 400, ignore_eos=False), batch)
        )
    plain.close()
    forward.close()
    free = statistics.median(f.rate for f in found["free"][1:])
    print(f"\nthroughput, {batch} in flight, {len(prompts)} answers of {length} tokens, medians of {rounds} rounds")
    print(f"{'mode':<32}{'tokens/s':>10}{'of free':>9}{'steps':>7}{'ms/step':>9}")
    for mode, figures in found.items():
        rate = statistics.median(f.rate for f in figures[1:])
        step = statistics.median(1000 * f.seconds / f.steps for f in figures[1:])
        print(f"{mode:<32}{rate:>10.0f}{rate / free:>9.2f}{figures[-1].steps:>7}{step:>9.2f}")


def forced(checkpoint: Checkpoint, config: EngineConfig) -> None:
    """How many tokens of answers take no forward pass of their own."""
    print(f"\n{'forced tokens':<24}{'tokens':>8}{'forced':>8}{'share':>8}")
    prompts = prompts_of(checkpoint, 16)
    engine = build_engine(checkpoint, config)
    for name, schema in VQA_SCHEMAS.items():
        figures = serve(engine, requests_of(prompts, JsonSchema.of(schema), 300, ignore_eos=False), len(prompts))
        print(f"{name:<24}{figures.tokens:>8}{figures.forced:>8}{figures.forced / figures.tokens:>8.1%}")
    engine.close()


async def first_use(
    checkpoint: Checkpoint, config: EngineConfig, schemas: Sequence[dict[str, Any]], streams: int
) -> None:
    """Seconds of the first and second answer under each schema, and the gaps of ``streams`` free answers meanwhile."""
    client = LocalEngineClient(build_engine(checkpoint, config))
    prompts = prompts_of(checkpoint, 5)
    gaps: dict[bool, list[float]] = {True: [], False: []}
    asking = done = False

    async def free(number: int) -> None:
        turn = 0
        while not done:
            sampling = SamplingParams(max_tokens=200, temperature=1.0, ignore_eos=True)
            last = time.perf_counter()
            turn += 1
            async for _ in client.generate(Request(f"free-{number}-{turn}", prompts[number], sampling)):
                now = time.perf_counter()
                gaps[asking].append(now - last)
                last = now

    async def ask(name: str, constraint: Constraint) -> float:
        start = time.perf_counter()
        sampling = SamplingParams(max_tokens=2000, temperature=0.0)
        async for _ in client.generate(Request(name, prompts[4], sampling, constraint=constraint)):
            return time.perf_counter() - start  # to the first event; leaving ends the request
        raise RuntimeError("no answer")

    beside = [asyncio.create_task(free(i)) for i in range(streams)]
    await asyncio.sleep(3)
    differences, refused = [], 0
    for i, schema in enumerate(schemas):
        try:
            asking = True
            first = await ask(f"{i}-first", JsonSchema.of(schema))
            asking = False
            second = await ask(f"{i}-second", JsonSchema.of(schema))
        except ConstraintError:
            refused += 1
            continue
        finally:
            asking = False
        differences.append(1000 * (first - second))
    done = True
    await asyncio.gather(*beside)
    await client.close()
    late = sum(d > 20 for d in differences)
    quantiles = statistics.quantiles(differences, n=100)
    print(f"\nfirst use of {len(differences)} schemas ({refused} refused) beside {streams} free answers,", end=" ")
    print("first answer less second, milliseconds")
    print(f"p50 {quantiles[49]:.1f}  p95 {quantiles[94]:.1f}  p99 {quantiles[98]:.1f}; more than 20 ms: {late}", end="")
    print(f" ({late / len(differences):.1%})")
    if not streams:
        return
    for when, label in ((False, "else"), (True, "while a first answer is waited for")):
        cut = statistics.quantiles(gaps[when], n=1000)
        print(f"gaps of free answers, {label}: p50 {1e3 * cut[499]:.1f}  p99 {1e3 * cut[989]:.1f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.constrained", description=__doc__)
    parser.add_argument("--model", default="pocket-vl")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--schemas", type=Path, default=Path(__file__).parent.parent / "tests" / "data" / "jsonschemabench.jsonl.gz"
    )
    parser.add_argument("--limit", type=int, help="how many schemas of the file (default: all)")
    arguments = parser.parse_args()
    checkpoint = load_registry().resolve(arguments.model)
    config = EngineConfig(device=arguments.device)
    throughput(checkpoint, config, arguments.batch, arguments.rounds)
    forced(checkpoint, config)
    with gzip.open(arguments.schemas, "rt", encoding="utf-8") as file:
        schemas = [json.loads(line)["schema"] for line in file]
    for streams in (0, 4):
        asyncio.run(first_use(checkpoint, config, schemas[: arguments.limit], streams))
    return 0


if __name__ == "__main__":
    sys.exit(main())
