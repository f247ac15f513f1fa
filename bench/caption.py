"""A folder captioned by a command that is killed and repeated: every good picture once, and at what share of the peak.

The pictures are drawn from a seed, or taken from a folder first (``--pictures``, for example the 64-pixel PNG files of
the npm package ``emoji-datasource-google``); some are cut short, some are copies. The command ``mmserve caption`` is
killed at random moments (SIGKILL) and run again to its end. Then the same pictures go through the same code and
straight into the same engine by turns, in blocks, each block and way under a salt of its own, so that neither finds
anything in the caches and other work on the machine meets both.

    python -m bench.caption --count 5000 --corrupt 20 --copies 100 --kills 2
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageDraw

from mmserve.caption import PicturePrompts, Pictures, caption_pictures, open_lines
from mmserve.cli_direct import DirectCaptioner
from mmserve.client import DEFAULT_CAPTION_PROMPT, AllOptions
from mmserve.config import EngineConfig, Limits
from mmserve.engine.build import build_engine
from mmserve.engine.local import LocalEngineClient
from mmserve.errors import MMServeError
from mmserve.prompt import PromptBuilder
from mmserve.registry import load_registry
from mmserve.sampling import SamplingParams
from mmserve.types import ImagePart, Message, Request, TextPart
from web.service import ServedModel, Service

MODEL = "pocket-vl"
MAX_TOKENS = 16
BLOCK = 125
DEADLINE = 1800.0


@dataclass(frozen=True, slots=True)
class Folder:
    """Pictures on disk: names below ``root``; ``copies`` says of which good picture one has the bytes."""

    root: Path
    good: tuple[str, ...]
    corrupt: tuple[str, ...]
    copies: dict[str, str]

    @property
    def files(self) -> tuple[str, ...]:
        return self.good + self.corrupt + tuple(self.copies)


@dataclass(slots=True)
class Result:
    """What became of a folder. ``rate`` and ``peak`` in pictures per second, of the blocks taken by turns; ``cpu`` and
    ``cpu_of_engine`` in milliseconds of this process a picture, which other work on the machine moves less."""

    problems: list[str] = field(default_factory=list)
    killed_at: list[int] = field(default_factory=list)
    lines: int = 0
    asked: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    peak: float = 0.0
    cpu: float = 0.0
    cpu_of_engine: float = 0.0

    @property
    def share(self) -> float:
        return self.rate / self.peak if self.peak else 0.0


def make_folder(root: Path, count: int, corrupt: int, copies: int, *, pictures: Path | None, seed: int) -> Folder:
    """``count`` files in subfolders: ``corrupt`` of them cut in half, ``copies`` with the bytes of another."""
    rng = random.Random(seed)
    given = _different(sorted(pictures.rglob("*.png"))) if pictures else []
    names = [f"{i // 500:02}/{i:05}.png" for i in range(count)]
    rng.shuffle(names)
    good, bad, doubled = (
        names[: count - corrupt - copies],
        names[-corrupt - copies :][:corrupt],
        names[count - copies :],
    )
    for i in range((count + 499) // 500):
        (root / f"{i:02}").mkdir(parents=True)
    for i, name in enumerate((*good, *bad)):
        if i < len(given):
            shutil.copyfile(given[i], root / name)
        else:
            draw(rng).save(root / name, "PNG", compress_level=1)
    for name in bad:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    originals = {name: rng.choice(good) for name in doubled}
    for name, original in originals.items():
        shutil.copyfile(root / original, root / name)
    return Folder(root, tuple(good), tuple(bad), originals)


def _different(paths: Sequence[Path]) -> list[Path]:
    """``paths`` without those whose bytes an earlier one has."""
    first: dict[bytes, Path] = {}
    for path in paths:
        first.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    return list(first.values())


def draw(rng: random.Random, side: int = 64) -> Image.Image:
    """Some shapes in some colours. Two that are alike would take 2**24 backgrounds and more."""
    picture = Image.new("RGB", (side, side), _colour(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 4)):
        x, y, size = rng.randrange(side), rng.randrange(side), rng.randint(8, side // 2)
        shape = rng.choice((pen.ellipse, pen.rectangle))
        shape((x - size // 2, y - size // 2, x + size // 2, y + size // 2), fill=_colour(rng))
    return picture


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


# -- killed and resumed -----------------------------------------------------------------------------------------


def run_killed(folder: Folder, out: Path, kills: int, *, seed: int, flags: Sequence[str] = ()) -> Result:
    """``mmserve caption`` on ``folder``, killed ``kills`` times, then run to its end; what the ledger then says."""
    rng = random.Random(seed)
    result = Result()
    command = [sys.executable, "-m", "mmserve", "caption", str(folder.root), "--recursive", "--out", str(out)]
    command += ["--max-tokens", str(MAX_TOKENS), "--temperature", "0", *flags]
    marks = sorted(rng.sample(range(len(folder.files) // 10, len(folder.files) * 9 // 10), kills))
    start = time.monotonic()
    for mark in marks:
        with _quiet(command) as process:
            _until_lines(process, out, mark)
            time.sleep(rng.random() * 0.05)
            process.kill()
        result.killed_at.append(_count(out))
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    result.seconds = time.monotonic() - start
    judge(folder, out, done, result)
    return result


def _quiet(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _until_lines(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while not out.exists() or _count(out) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended by itself ({process.returncode}) before it was to be killed")
        time.sleep(0.01)


def _count(out: Path) -> int:
    return out.read_bytes().count(b"\n")


def judge(folder: Folder, out: Path, done: subprocess.CompletedProcess[str], result: Result) -> None:
    """The ledger read without our help: each line whole, each good picture and copy once, no corrupt one."""
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    captions = {line["file"]: line["caption"] for line in lines}
    times = Counter(line["file"] for line in lines)
    expected = {*folder.good, *folder.copies}
    result.lines = len(lines)
    result.asked = sum(line["usage"] is not None for line in lines)
    if times != Counter(expected):
        result.problems.append(
            f"not once each: {sorted((times - Counter(expected)) + (Counter(expected) - times))[:9]}"
        )
    if result.asked != len(folder.good):
        result.problems.append(f"{result.asked} pictures were asked about, and {len(folder.good)} are different")
    result.problems += [
        f"{copy} has another caption than {original}, whose bytes it has"
        for copy, original in folder.copies.items()
        if captions.get(copy) != captions.get(original)
    ]
    result.problems += [f"{file} has an empty caption" for file, caption in captions.items() if not caption.strip()]
    reported = {name for name in folder.corrupt if f"  {name}: " in done.stderr}
    if reported != set(folder.corrupt) or done.returncode != (1 if folder.corrupt else 0):
        result.problems.append(
            f"exit status {done.returncode}, {len(reported)} corrupt files named: {done.stderr[-500:]}"
        )


# -- against the engine alone -----------------------------------------------------------------------------------


async def compare(folder: Folder, concurrency: int, result: Result, *, blocks: int | None = None) -> None:
    """Time the good pictures through captioning and straight into the engine, block by block, who is first by turns."""
    checkpoint = load_registry().resolve(MODEL)
    limits = Limits()
    engine = LocalEngineClient(build_engine(checkpoint, EngineConfig()), max_queue=limits.max_queue)
    prompts = PromptBuilder(checkpoint, limits)
    service = Service(ServedModel(checkpoint.name), prompts, engine, checkpoint.max_model_len, limits=limits)
    seconds, busy = {"caption": 0.0, "engine": 0.0}, {"caption": 0.0, "engine": 0.0}
    count = 0
    try:
        for number, block in enumerate(_blocks(folder.good, blocks)):
            ways = ["caption", "engine"] if number % 2 else ["engine", "caption"]
            for way in ways:
                pictures = Pictures(folder.root, tuple(block))
                salt = f"{way}{number}"
                start, busy_before = time.perf_counter(), time.process_time()
                if way == "caption":
                    await _through_captioning(pictures, service, concurrency, salt)
                else:
                    await _straight(pictures, engine, prompts, concurrency, salt)
                if number:  # the first warms up
                    seconds[way] += time.perf_counter() - start
                    busy[way] += time.process_time() - busy_before
            count += len(block) if number else 0
    finally:
        await engine.close()
    result.rate, result.peak = (count / seconds[way] for way in ("caption", "engine"))
    result.cpu, result.cpu_of_engine = (1000 * busy[way] / count for way in ("caption", "engine"))


def _blocks(files: Sequence[str], most: int | None) -> Iterator[Sequence[str]]:
    starts = range(0, len(files), BLOCK)
    for start in starts if most is None else starts[:most]:
        yield files[start : start + BLOCK]


async def _through_captioning(pictures: Pictures, service: Service, concurrency: int, salt: str) -> None:
    options: AllOptions = {"max_tokens": MAX_TOKENS, "temperature": 0, "cache_salt": salt}
    captioner = DirectCaptioner(service, system=None, options=options)
    with tempfile.TemporaryDirectory() as folder, open_lines(Path(folder) / "c.jsonl") as ledger:
        report = await caption_pictures(
            pictures,
            captioner,
            ledger,
            prompts=PicturePrompts(DEFAULT_CAPTION_PROMPT, pictures.root),
            concurrency=concurrency,
        )
    if report.failures:
        raise RuntimeError(f"{report.failures[0].file}: {report.failures[0].error}")


async def _straight(
    pictures: Pictures, engine: LocalEngineClient, prompts: PromptBuilder, concurrency: int, salt: str
) -> None:
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    todo = iter(pictures.files)

    async def worker() -> None:
        for file in todo:
            picture = ImagePart((pictures.root / file).read_bytes())
            message = Message("user", (picture, TextPart(DEFAULT_CAPTION_PROMPT)))
            request = Request(f"{salt}-{file}", prompts.build([message], cache_salt=salt), sampling, salt)
            async for _ in engine.generate(request):
                pass

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


# -- report -----------------------------------------------------------------------------------------------------


def report(folder: Folder, result: Result, concurrency: int) -> str:
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}"
    lines = [
        f"{MODEL}, {len(folder.files)} files, concurrency {concurrency}, {machine}",
        f"  {len(folder.good)} good, {len(folder.corrupt)} corrupt, {len(folder.copies)} copies",
        f"  killed after {', '.join(map(str, result.killed_at))} lines; {result.seconds:.0f} s with the starts",
        f"  {result.lines} lines, {result.asked} pictures asked about, problems: {len(result.problems)}",
        *(f"    {problem}" for problem in result.problems[:20]),
    ]
    if result.peak:
        lines += [
            f"  {result.rate:.1f} pictures/s, {result.share:.1%} of the engine's own {result.peak:.1f} pictures/s",
            f"  {result.cpu:.1f} ms of CPU a picture, of which the engine alone takes {result.cpu_of_engine:.1f}",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--corrupt", type=int, default=20)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--pictures", type=Path, help="a folder of PNG files to take before any is drawn")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--blocks", type=int, help=f"compare with the engine on so many blocks of {BLOCK} (all)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folder = make_folder(
            root / "pictures",
            arguments.count,
            arguments.corrupt,
            arguments.copies,
            pictures=arguments.pictures,
            seed=arguments.seed,
        )
        flags = ["--concurrency", str(arguments.concurrency)]
        result = run_killed(folder, root / "captions.jsonl", arguments.kills, seed=arguments.seed, flags=flags)
        asyncio.run(compare(folder, arguments.concurrency, result, blocks=arguments.blocks))
        print(report(folder, result, arguments.concurrency))
    return 1 if result.problems else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        sys.exit(main())
    except MMServeError as error:
        sys.exit(f"{error}")
