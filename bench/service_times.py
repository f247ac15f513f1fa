"""What an engine needs for a picture it has not seen, for one it has, and for answers, alone and side by side.

On a CPU they are seconds of CPU time, to be taken with OMP_NUM_THREADS=1: of one thread. ``bench.scale`` simulates with
these figures: ``OMP_NUM_THREADS=1 python -m bench.service_times > bench/service_times.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Prompt, Request, TextPart

TOGETHER = (1, 2, 4, 8, 16, 32)


class Stand:
    """One engine, and prompts about made-up pictures."""

    def __init__(self, model: str, device: str, tokens: int) -> None:
        checkpoint = load_registry().resolve(model)
        self.name = checkpoint.name
        self._prompts = PromptBuilder(checkpoint, Limits())
        self.engine = LocalEngineClient(build_engine(checkpoint, EngineConfig(device=device)))
        self._tokens = tokens
        self._random = np.random.default_rng(0)
        self._number = 0
        # On a CPU its own time counts and not that of whoever shares the machine; a GPU works while the CPU waits.
        self._clock = time.process_time if device == "cpu" else time.perf_counter

    def prompt(self) -> Prompt:
        """About a picture that no prompt was about before."""
        file = io.BytesIO()
        Image.fromarray(self._random.integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
        parts = (ImagePart(file.getvalue()), TextPart("What is in this picture?"))
        return self._prompts.build([Message("user", parts)])

    async def run(self, prompt: Prompt, tokens: int) -> tuple[float, float]:
        """Seconds to the first token and to the last."""
        self._number += 1
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, seed=0)
        start, first = self._clock(), 0.0
        async for _ in self.engine.generate(Request(str(self._number), prompt, sampling)):
            first = first or self._clock() - start
        return first, self._clock() - start

    async def rate(self, together: int, tokens: int, rounds: int) -> float:
        """Answers a second about pictures it knows, ``together`` at a time."""
        prompts = [self.prompt() for _ in range(together)]
        await asyncio.gather(*(self.run(prompt, 1) for prompt in prompts))
        start = self._clock()
        for _ in range(rounds):
            await asyncio.gather(*(self.run(prompt, tokens) for prompt in prompts))
        return rounds * together / (self._clock() - start)


async def measure(model: str, device: str, tokens: int, times: int) -> dict[str, object]:
    stand = Stand(model, device, tokens)
    try:
        prompts = [stand.prompt() for _ in range(times + 1)]
        await stand.run(prompts[-1], tokens)  # what is done once is done
        new = [(await stand.run(prompt, 1))[0] for prompt in prompts[:-1]]
        known = [(await stand.run(prompt, 1))[0] for prompt in prompts[:-1]]
        ends = [await stand.run(prompt, tokens) for prompt in prompts[: times // 2]]
        rates = {count: await stand.rate(count, tokens, max(2, 32 // count)) for count in TOGETHER}
    finally:
        await stand.engine.close()
    return {
        "command": f"python -m bench.service_times --model {model} --device {device} --tokens {tokens}",
        "model": stand.name,
        "machine": f"{platform.machine()}, {device}",
        "prompt_tokens": len(prompts[0]),
        "new_seconds": _middle(new),
        "known_seconds": _middle(known),
        "token_seconds": _middle([(last - first) / (tokens - 1) for first, last in ends]),
        "answer_tokens": tokens,
        "speed_up": {str(count): round(rate / rates[1], 3) for count, rate in rates.items()},
    }


def _middle(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds), 6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="pocket-vl")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer (%(default)s)")
    parser.add_argument("--times", type=int, default=40, help="each is measured (%(default)s)")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.model, arguments.device, arguments.tokens, arguments.times))
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
