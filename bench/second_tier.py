"""Where fetching an evicted prefix from the second tier beats computing it again.

For each prompt length a request is served, pushed out of the device's cache by another, and served again: once with
the second tier and once without. The time is that of the whole second request with one token of answer, medians over
``--rounds``; so it holds the step that a fetch takes, the copy, the check of its sums, and the tree's work.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmserve.cache.costs import FetchCosts
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.engine import Engine
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Prompt, Request, TextPart

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of the second request, with the second tier and without."""

    tokens: int
    fetched: float
    computed: float

    def __str__(self) -> str:
        return f"{self.tokens:>6} {self.fetched:>12.2f} {self.computed:>12.2f} {self.computed / self.fetched:>8.2f}x"


class AlwaysWorth(FetchCosts):
    """Fetches whatever is there, so that the price of it can be seen."""

    def worth(self, tokens: int, rows: int) -> bool:
        return tokens + rows > 0


def text_prompt(tokens: int, seed: int) -> Prompt:
    """Random ids, each length and seed another from the first token on."""
    ids = np.random.default_rng([tokens, seed]).integers(0, 256, tokens)
    ids.setflags(write=False)
    return Prompt(ids)


def picture_prompt(builder: PromptBuilder, seed: int) -> Prompt:
    noise = np.random.default_rng(seed).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return builder.build([Message("user", (ImagePart(file.getvalue()), TextPart("What is this?")))])


def serve(engine: Engine, prompt: Prompt, name: str) -> float:
    """Milliseconds until the answer's only token."""
    start = time.perf_counter()
    engine.add(engine.resolve(Request(name, prompt, SamplingParams(max_tokens=1, seed=0))))
    while engine.has_requests:
        engine.step(wait=True)
    return 1000 * (time.perf_counter() - start)


def measure(model: str, device: str, pairs: list[tuple[Prompt, Prompt]], *, tier: bool) -> float:
    """Median milliseconds to serve each pair's first again after its second has pushed it out."""
    slots = max(len(prompt) for pair in pairs for prompt in pair) + 8
    config = EngineConfig(
        device=device,
        kv_slots=slots,
        encoder_cache_bytes=0,
        step_tokens=8192,
        tier_bytes=(1 << 30) if tier else 0,
    )
    engine = build_engine(load_registry().resolve(model), config)
    if engine.scheduler.tier is not None:
        engine.scheduler.tier.costs = AlwaysWorth(1)
    times = []
    for i, (first, second) in enumerate(pairs):
        serve(engine, first, f"{i} first")
        serve(engine, second, f"{i} second")
        times.append(serve(engine, first, f"{i} again"))
    fetched = engine.stats()["tier_fetched_tokens"]
    engine.close()
    assert bool(fetched) == tier, "nothing was fetched" if tier else "something was fetched"
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetching from the second tier against recomputing.")
    parser.add_argument("--model", default="pocket-vl")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{'tokens':>6} {'fetched ms':>12} {'computed ms':>12}")
    even = None
    for length in LENGTHS:
        pairs = [(text_prompt(length, 2 * i), text_prompt(length, 2 * i + 1)) for i in range(arguments.rounds)]
        fetched, computed = (measure(arguments.model, arguments.device, pairs, tier=tier) for tier in (True, False))
        print(Row(length, fetched, computed), flush=True)
        even = even or (length if fetched < computed else None)
    builder = PromptBuilder(load_registry().resolve(arguments.model), Limits())
    pictures = [(picture_prompt(builder, 2 * i), picture_prompt(builder, 2 * i + 1)) for i in range(arguments.rounds)]
    fetched, computed = (measure(arguments.model, arguments.device, pictures, tier=tier) for tier in (True, False))
    print(Row(len(pictures[0][0]), fetched, computed), " a 448 x 448 picture and a question")
    print(f"text: fetching is faster from {even} tokens on" if even else "text: computing is always faster")
    return 0


if __name__ == "__main__":
    sys.exit(main())
