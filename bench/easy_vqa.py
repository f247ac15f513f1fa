"""easy-vqa's test split asked through the REST API: accuracy, failures, requests per second.

The split has 9,673 questions about 1,000 pictures (github.com/vzhou842/easy-VQA); none of it is trained on. An answer
counts when it equals the data set's word for word.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import easy_vqa
import httpx

from bench.server import served
from mmserve import AsyncClient
from mmserve.errors import MMServeError


@dataclass(frozen=True, slots=True)
class Question:
    picture: Path
    text: str
    answer: str


@dataclass(slots=True)
class Result:
    """What came back; ``latencies`` in seconds, one a question."""

    right: int = 0
    failed: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    wrong: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0


def questions(count: int | None, seed: int = 0) -> list[Question]:
    """The test split in its own order, or ``count`` of it drawn with ``seed``."""
    paths = easy_vqa.get_test_image_paths()
    rows = zip(*easy_vqa.get_test_questions(), strict=True)
    found = [Question(Path(paths[i]), text, answer) for text, answer, i in rows]
    return found if count is None else random.Random(seed).sample(found, count)


async def ask_all(url: str, asked: Sequence[Question], concurrency: int) -> Result:
    """Ask every question once, ``concurrency`` at a time, without retries."""
    result = Result()
    pending = iter(asked)

    async def worker(client: AsyncClient) -> None:
        for question in pending:
            start = time.perf_counter()
            try:
                answer = await client.ask(question.picture, question.text, temperature=0)
            except MMServeError as error:
                result.failed.append(str(error))
                continue
            result.latencies.append(time.perf_counter() - start)
            if answer.text == question.answer:
                result.right += 1
            else:
                result.wrong[question.answer, answer.text] += 1

    async with AsyncClient(url, retries=0) as client:
        start = time.perf_counter()
        await asyncio.gather(*(worker(client) for _ in range(concurrency)))
        result.seconds = time.perf_counter() - start
    return result


def report(result: Result, counters: dict[str, float], concurrency: int) -> str:
    ordered = sorted(result.latencies) or [0.0]
    total = len(result.latencies) + len(result.failed)
    p50, p99 = (1000 * ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.99))
    wrong = ", ".join(f"{want!r} answered {got!r} {n}x" for (want, got), n in result.wrong.most_common(5))
    return "\n".join(
        [
            f"easy-vqa test split: {total} questions, concurrency {concurrency}",
            f"accuracy      {result.right / total:.4f} ({result.right} right, {len(result.failed)} failed)",
            f"time          {result.seconds:.1f} s, {total / result.seconds:.1f} requests/s",
            f"latency       p50 {p50:.0f} ms, p99 {p99:.0f} ms",
            f"pictures      {counters['pictures']:.0f} asked about, {counters['pictures_decoded']:.0f} decoded, "
            f"{counters['pictures_encoded']:.0f} encoded",
            f"prompt tokens {counters['prompt_tokens']:.0f}, {counters['cached_tokens']:.0f} from the cache",
            f"wrong         {wrong or 'none'}",
            f"machine       {os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--server", help="URL of a running server; by default one is started with the embedded model")
    parser.add_argument("--questions", type=int, help="draw this many (default: the whole split)")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    with nullcontext(arguments.server) if arguments.server else served() as url:
        result = asyncio.run(ask_all(url, questions(arguments.questions), arguments.concurrency))
        counters = httpx.get(f"{url}/server_info").json()["stats"]
    text = report(result, counters, arguments.concurrency)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
