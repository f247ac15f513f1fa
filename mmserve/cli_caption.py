"""``mmserve caption``: pictures of a folder, a pattern or a list -> captions.jsonl, captions.csv or text files."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from mmserve.caption import (
    Captioner,
    ClientCaptioner,
    Failure,
    Finish,
    Ledger,
    Mode,
    PicturePrompts,
    Pictures,
    Report,
    caption_pictures,
    open_lines,
    open_sidecars,
    plan_captions,
    recorded_lines,
    recorded_sidecars,
    select_pictures,
)
from mmserve.cli_backend import DEFAULT_MODEL, add_backend, backend_client, local_service
from mmserve.cli_bulk import add_bulk, run_bulk
from mmserve.cli_direct import DirectCaptioner
from mmserve.cli_options import add_constraint, add_detail, constraint_of, detail_of
from mmserve.cli_progress import ProgressLine, cached_share
from mmserve.client import DEFAULT_CAPTION_PROMPT, AllOptions
from mmserve.errors import ConfigError

_MOST_NAMED = 20
_TOKENS, _TOKENS_OF_A_DOCUMENT = 128, 512


def add_caption(parser: argparse.ArgumentParser) -> None:
    """The options of ``mmserve caption``; spellings with underscores are those of kohya's scripts."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="DIR|FILE|PATTERN|LIST",
        help="folders, pictures, patterns ('photos/**/*.png'), or a .txt file with a path a line (- reads stdin)",
    )
    parser.add_argument("--recursive", action="store_true", help="look into subfolders too")
    parser.add_argument(
        *("--concurrency", "--batch_size"), type=int, default=32, metavar="N", help="pictures at a time (%(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be asked about which picture, and end")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--prompt",
        default=DEFAULT_CAPTION_PROMPT,
        help="may have {name}, {directory} and {tags} (from the text file beside the picture); default: %(default)r",
    )
    asked.add_argument("--system", help="a system prompt")
    asked.add_argument("--max-tokens", type=int, help=f"per caption ({_TOKENS}, or {_TOKENS_OF_A_DOCUMENT} for JSON)")
    asked.add_argument("--temperature", type=float, help="0 is greedy; default: what the model's makers recommend")
    asked.add_argument("--seed", type=int, help="makes sampled captions repeatable")
    _add_output(parser.add_argument_group("where captions go"))
    add_detail(parser)
    add_constraint(parser)
    add_backend(parser)
    add_bulk(parser)


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, help="a .jsonl or .csv file (default: captions.jsonl beside the pictures)")
    group.add_argument(
        *("--sidecar", "--caption-extension", "--caption_extension"),
        nargs="?",
        const=".txt",
        metavar="ENDING",
        help="write a text file beside each picture instead, or below the folder --out (default ending: .txt)",
    )
    mode = group.add_mutually_exclusive_group()
    for name, what in (
        ("--skip-existing", "leave captions that are there, and go on where an earlier run ended (default)"),
        ("--overwrite", "replace them; a run that is ended goes on when it is repeated"),
        ("--append", "put the caption behind what is in the text file"),
    ):
        names = (name, "--append_tags") if name == "--append" else (name,)
        mode.add_argument(*names, dest="mode", action="store_const", const=Mode(name[2:]), default=Mode.SKIP, help=what)
    group.add_argument("--prefix", default="", help="put this before each caption")
    group.add_argument("--postfix", default="", help="put this behind each caption")
    group.add_argument(
        *("--caption-separator", "--caption_separator"), default=", ", metavar="TEXT", help="between tags (%(default)r)"
    )
    group.add_argument("--remove-duplicates", action="store_true", help="drop tags that repeat within a caption")


def run_caption(arguments: argparse.Namespace) -> int:
    """Returns 1 when a picture could not be captioned."""
    if arguments.ray:
        report, passed_over = run_bulk(arguments, _finish(arguments), _options(arguments))
        _print_report(report, passed_over)
        return 1 if report.failures else 0
    pictures = select_pictures(arguments.sources, recursive=arguments.recursive, stdin=sys.stdin)
    prompts = PicturePrompts(arguments.prompt, pictures.root)
    finish = _finish(arguments)
    options = _options(arguments)
    if arguments.dry_run:
        return _print_plan(arguments, pictures, prompts)
    try:
        report = asyncio.run(_caption(arguments, pictures, prompts, finish, options))
    except KeyboardInterrupt:
        print("mmserve: stopped; the same command goes on from here", file=sys.stderr)
        raise
    _print_report(report, pictures.passed_over)
    return 1 if report.failures else 0


async def _caption(
    arguments: argparse.Namespace, pictures: Pictures, prompts: PicturePrompts, finish: Finish, options: AllOptions
) -> Report:
    with _ledger(arguments, pictures.root) as ledger, ProgressLine(sys.stderr) as line:
        async with _captioner(arguments, options) as captioner:
            return await caption_pictures(
                pictures,
                captioner,
                ledger,
                prompts=prompts,
                finish=finish,
                concurrency=arguments.concurrency,
                on_progress=line.show,
            )


@asynccontextmanager
async def _captioner(arguments: argparse.Namespace, options: AllOptions) -> AsyncIterator[Captioner]:
    """The server that was named, or an engine in this process."""
    if arguments.server:
        model = None if arguments.model == DEFAULT_MODEL else arguments.model
        async with backend_client(arguments) as client:
            yield ClientCaptioner(client, model=model, system=arguments.system, options=options)
        return
    async with local_service(arguments) as service:
        yield DirectCaptioner(service, system=arguments.system, options=options)


def _options(arguments: argparse.Namespace) -> AllOptions:
    """Raises ConfigError for words in a form that cannot be promised."""
    for name in ("must_include", "must_not_include"):
        words: list[str] | None = getattr(arguments, name)
        if words is not None:  # with commas between them, as taggui has them
            split = [word.strip() for entry in words for word in entry.split(",") if word.strip()]
            if name == "must_include" and any("|" in word for word in split):
                raise ConfigError("--must-include takes words that must all be there; for a choice (a|b) use --regex")
            setattr(arguments, name, split)
    shape: dict[str, Any] = {k: v for k, v in constraint_of(arguments).items() if v is not None}
    document = shape.keys() & {"schema", "json", "grammar", "xml"}
    if document and (arguments.prefix or arguments.postfix or arguments.remove_duplicates):
        raise ConfigError("--prefix, --postfix and --remove-duplicates are for captions in words, not for JSON or XML")
    max_tokens = arguments.max_tokens
    if max_tokens is None:
        max_tokens = _TOKENS_OF_A_DOCUMENT if document else _TOKENS
    plain = {"max_tokens": max_tokens, "temperature": arguments.temperature, "seed": arguments.seed}
    return cast("AllOptions", {**plain, **detail_of(arguments), **shape})


def _finish(arguments: argparse.Namespace) -> Finish:
    separator: str = arguments.caption_separator
    if not separator.strip():
        raise ConfigError("--caption-separator must have more than white space in it")
    return Finish(arguments.prefix, arguments.postfix, separator, arguments.remove_duplicates)


@contextmanager
def _ledger(arguments: argparse.Namespace, root: Path) -> Iterator[Ledger]:
    suffix = _suffix(arguments)
    if suffix is None:
        with open_lines(_out(arguments, root), arguments.mode) as lines:
            yield lines
        return
    separator = arguments.caption_separator
    with open_sidecars(root, arguments.out, suffix=suffix, mode=arguments.mode, separator=separator) as sidecars:
        yield sidecars


def _recorded(arguments: argparse.Namespace, root: Path) -> Ledger:
    suffix = _suffix(arguments)
    if suffix is None:
        return recorded_lines(_out(arguments, root), arguments.mode)
    return recorded_sidecars(root, arguments.out, suffix=suffix, mode=arguments.mode)


def _suffix(arguments: argparse.Namespace) -> str | None:
    suffix: str | None = arguments.sidecar
    if suffix is not None and not re.fullmatch(r"\.\w+", suffix):
        raise ConfigError(f"--sidecar takes an ending such as .txt, not {suffix!r}; name what to caption before it")
    return suffix


def _out(arguments: argparse.Namespace, root: Path) -> Path:
    return arguments.out or root / "captions.jsonl"


def _print_plan(arguments: argparse.Namespace, pictures: Pictures, prompts: PicturePrompts) -> int:
    plan = asyncio.run(plan_captions(pictures, _recorded(arguments, pictures.root), prompts=prompts))
    for file, prompt in plan:
        print(f"{file}\t{' '.join(prompt.split())}")
    done = len(pictures.files) - len(plan)
    print(f"{len(plan)} pictures would be captioned, {done} are done", file=sys.stderr)
    _print_passed_over(pictures.passed_over)
    return 0


def _print_report(report: Report, passed_over: tuple[str, ...]) -> None:
    progress = report.progress
    cached = cached_share(progress)
    print(
        f"{progress.captioned} captioned ({progress.copied} of them copies), {progress.skipped} done before, "
        f"{progress.failed} failed, {progress.rate:.1f} pictures/s{f', {cached}' if cached else ''}",
        file=sys.stderr,
    )
    _print_failures(report.failures)
    _print_passed_over(passed_over)


def _print_failures(failures: tuple[Failure, ...]) -> None:
    for failure in failures:
        print(f"  {failure.file}: {failure.error}", file=sys.stderr)


def _print_passed_over(names: tuple[str, ...]) -> None:
    if names:
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        kinds = ", ".join(sorted({Path(name).suffix.lower() for name in names}))
        shown = ", ".join(names[:_MOST_NAMED])
        print(f"passed over, since {kinds} is not read (convert to PNG or JPEG): {shown}{more}", file=sys.stderr)
