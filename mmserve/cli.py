"""The command line: the one place that reads argv, the environment and signals, and puts the parts together.

``mmserve serve | ask | caption | models | demo``. Answers go to stdout, everything else to stderr; a typed error ends
the command with one sentence and exit status 1 (2 for a misuse of the command line, 130 for Ctrl-C).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from mmserve import __version__
from mmserve.caption import (
    ClientCaptioner,
    Ledger,
    Progress,
    Report,
    SidecarLedger,
    caption_folder,
    find_pictures,
    open_csv,
    open_jsonl,
)
from mmserve.client import DEFAULT_CAPTION_PROMPT, Answer, AsyncClient, Options
from mmserve.config import EngineConfig, Limits
from mmserve.errors import ConfigError, MMServeError
from mmserve.registry import load_registry

if TYPE_CHECKING:
    import uvicorn

    from web.service import Service

DEFAULT_MODEL = "pocket-vl"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    # Before torch loads: OpenMP's threads otherwise spin at their barriers, and where the cores also serve HTTP (or
    # anybody else) a step then takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except MMServeError as error:
        print(f"mmserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, head for instance, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# -- arguments --------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmserve", description="Ask questions about pictures.")
    parser.add_argument("--version", action="version", version=f"mmserve {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = _command(commands, "serve", run_serve, "serve the page and the API")
    _add_model(serve)
    _add_engine(serve)
    _add_address(serve)

    ask = _command(commands, "ask", run_ask, "ask one question about one or several pictures")
    ask.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="picture files, in order")
    ask.add_argument("question", help="the question, after the pictures")
    ask.add_argument("--system", help="a system prompt")
    ask.add_argument("--max-tokens", type=int, help="end the answer after this many tokens")
    ask.add_argument("--temperature", type=float, help="0 is greedy; default: what the model's makers recommend")
    ask.add_argument("--seed", type=int, help="makes a sampled answer repeatable")
    ask.add_argument("--json", action="store_true", help="print answer, usage and timing as one JSON object")
    _add_backend(ask)

    caption = _command(commands, "caption", run_caption, "caption the pictures of a folder")
    caption.add_argument("folder", type=Path, metavar="DIR")
    caption.add_argument("--out", type=Path, help="a .jsonl or .csv file (default: DIR/captions.jsonl)")
    caption.add_argument("--sidecar", action="store_true", help="write a .txt beside each picture instead")
    caption.add_argument("--prompt", default=DEFAULT_CAPTION_PROMPT, help="default: %(default)r")
    caption.add_argument("--recursive", action="store_true", help="look into subfolders too")
    caption.add_argument("--concurrency", type=int, default=16, help="pictures at a time (default: %(default)s)")
    caption.add_argument("--max-tokens", type=int, default=128, help="per caption (default: %(default)s)")
    _add_backend(caption)

    models = _command(commands, "models", run_models, "list the models that models.yaml names")
    models.add_argument("--json", action="store_true", help="print them as JSON")

    demo = _command(commands, "demo", run_demo, "serve the embedded model and ask it about a bundled picture")
    demo.add_argument("--once", action="store_true", help="stop after the answer")
    _add_engine(demo)
    _add_address(demo)
    demo.set_defaults(model=DEFAULT_MODEL)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--log-level", default="warning", choices=["debug", "info", "warning", "error"], help="default: %(default)s"
    )
    parser.set_defaults(command=run)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a name from models.yaml, a checkpoint folder, or owner/name on Hugging Face (default: %(default)s)",
    )
    parser.add_argument("--offline", action="store_true", help="download nothing")


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        default=os.environ.get("MMSERVE_SERVER"),
        help="URL of a running server (or MMSERVE_SERVER); without it the model is loaded here",
    )
    _add_model(parser)
    _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine, limits = EngineConfig(), Limits()
    group = parser.add_argument_group("engine and limits")
    group.add_argument("--device", default=engine.device, help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    group.add_argument("--dtype", default=engine.dtype, help="auto, float32, bfloat16, float16 (%(default)s)")
    group.add_argument("--max-model-len", type=int, help="context in tokens (default: the model's own)")
    group.add_argument("--max-running", type=int, default=engine.max_running, help="default: %(default)s requests")
    group.add_argument("--step-tokens", type=int, default=engine.step_tokens, help="tokens in a step (%(default)s)")
    group.add_argument("--kv-slots", type=int, help="tokens that the KV cache holds (default: what memory allows)")
    group.add_argument("--tier-bytes", type=int, default=1 << 30, help="second cache tier, 0 for none (%(default)s)")
    group.add_argument("--tier-folder", help="where a CPU's second tier has its file (default: the temporary folder)")
    group.add_argument("--max-queue", type=int, default=limits.max_queue, help="requests at once (%(default)s)")
    group.add_argument("--max-pictures", type=int, default=limits.max_pictures, help="per request (%(default)s)")
    group.add_argument("--max-picture-bytes", type=int, default=limits.max_picture_bytes, help="default: %(default)s")
    group.add_argument("--max-picture-pixels", type=int, default=limits.max_picture_pixels, help="default: %(default)s")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s; 0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")


# -- commands ---------------------------------------------------------------------------------------------------


def run_serve(arguments: argparse.Namespace) -> int:
    asyncio.run(_serve(arguments))
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    asyncio.run(_demo(arguments))
    return 0


def run_ask(arguments: argparse.Namespace) -> int:
    answer = asyncio.run(_ask(arguments))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False))
    else:
        print(answer.text)
    return 0


def run_caption(arguments: argparse.Namespace) -> int:
    report = asyncio.run(_caption(arguments))
    progress = report.progress
    print(
        f"{progress.captioned} captioned ({progress.copied} of them copies), {progress.skipped} done before, "
        f"{progress.failed} failed, {progress.rate:.1f} pictures/s",
        file=sys.stderr,
    )
    for failure in report.failures:
        print(f"  {failure.file}: {failure.error}", file=sys.stderr)
    return 1 if report.failures else 0


def run_models(arguments: argparse.Namespace) -> int:
    entries = load_registry().entries.values()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], ensure_ascii=False, indent=2))
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:<{width}}  {entry.family}  {entry.weights}  {entry.description}")
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    async with _service(arguments) as service, _listening(service, arguments) as (server, url):
        print(f"mmserve: {service.model.name} is served at {url}", file=sys.stderr)
        await _until_stopped(server)


async def _demo(arguments: argparse.Namespace) -> None:
    async with _service(arguments) as service, _listening(service, arguments) as (server, url):
        assert service.examples is not None
        example = json.loads((service.examples / "examples.json").read_text(encoding="utf-8"))[0]
        picture = service.examples / example["file"]
        async with AsyncClient(url) as client:
            answer = await client.ask(picture, example["question"])
        print(f"picture   {picture}\nquestion  {example['question']}\nanswer    {answer.text}\npage      {url}")
        if not arguments.once:
            print("serving until Ctrl-C", flush=True)
            await _until_stopped(server)


async def _ask(arguments: argparse.Namespace) -> Answer:
    for picture in arguments.pictures:  # before a model is loaded for nothing
        if not picture.is_file():
            raise ConfigError(f"there is no picture {picture}")
    options = Options(max_tokens=arguments.max_tokens, temperature=arguments.temperature, seed=arguments.seed)
    async with _client(arguments) as client:
        return await client.ask(arguments.pictures, arguments.question, system=arguments.system, **options)


async def _caption(arguments: argparse.Namespace) -> Report:
    with _ledger(arguments) as ledger:
        async with _client(arguments) as client:
            captioner = ClientCaptioner(client, options=Options(max_tokens=arguments.max_tokens))
            report = await caption_folder(
                arguments.folder,
                captioner,
                ledger,
                prompt=arguments.prompt,
                recursive=arguments.recursive,
                concurrency=arguments.concurrency,
                on_progress=_draw_progress if sys.stderr.isatty() else None,
            )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return report


@contextmanager
def _ledger(arguments: argparse.Namespace) -> Iterator[Ledger]:
    folder: Path = arguments.folder
    find_pictures(folder, recursive=arguments.recursive)  # nothing to do is an error, before a file is made
    if arguments.sidecar:
        yield SidecarLedger(folder, arguments.out)
        return
    out: Path = arguments.out or folder / "captions.jsonl"
    formats = {".jsonl": open_jsonl, ".csv": open_csv}
    if out.suffix not in formats:
        raise ConfigError(f"--out must end in .jsonl or .csv, not {out.suffix!r}; --sidecar writes .txt files")
    with formats[out.suffix](out) as ledger:
        yield ledger


def _draw_progress(progress: Progress) -> None:
    done = progress.total - progress.left
    eta = "" if progress.eta is None else f", {progress.eta:.0f} s left"
    print(f"\r{done}/{progress.total} pictures, {progress.rate:.1f}/s{eta}   ", end="", file=sys.stderr, flush=True)


# -- composition ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _client(arguments: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client of the server that was named, or of one without sockets in this process."""
    if arguments.server:
        async with AsyncClient(arguments.server, api_key=os.environ.get("MMSERVE_API_KEY")) as client:
            yield client
        return
    from web.app import create_app

    async with _service(arguments) as service:
        transport = httpx.ASGITransport(create_app(service))
        async with AsyncClient(transport=transport) as client:
            yield client


@asynccontextmanager
async def _service(arguments: argparse.Namespace) -> AsyncIterator[Service]:
    """The model loaded and its engine running, until the block ends."""
    checkpoint = load_registry().resolve(arguments.model, offline=getattr(arguments, "offline", False))
    if arguments.max_model_len is not None:
        if not 1 < arguments.max_model_len <= checkpoint.max_model_len:
            raise ConfigError(f"--max-model-len must be 2 to {checkpoint.max_model_len} for {checkpoint.name}")
        checkpoint = dataclasses.replace(checkpoint, max_model_len=arguments.max_model_len)
    config = EngineConfig(
        device=arguments.device,
        dtype=arguments.dtype,
        max_running=arguments.max_running,
        step_tokens=arguments.step_tokens,
        kv_slots=arguments.kv_slots,
        tier_bytes=arguments.tier_bytes,
        tier_folder=arguments.tier_folder,
    )
    limits = Limits(
        max_picture_bytes=arguments.max_picture_bytes,
        max_picture_pixels=arguments.max_picture_pixels,
        max_pictures=arguments.max_pictures,
        max_queue=arguments.max_queue,
    )
    # Imported here: they bring torch, which the commands that only talk to a server never need.
    from mmserve.engine.build import build_engine
    from mmserve.engine.local import LocalEngineClient
    from mmserve.prompt import PromptBuilder
    from web.service import ServedModel, Service

    engine = build_engine(checkpoint, config)
    card = checkpoint.path / "README.md"
    examples = Path(__file__).parent / "assets" / "examples"
    client = LocalEngineClient(engine, max_queue=limits.max_queue)
    try:
        yield Service(
            model=ServedModel(
                checkpoint.name, checkpoint.description, card.read_text(encoding="utf-8") if card.is_file() else ""
            ),
            prompts=PromptBuilder(checkpoint, limits),
            engine=client,
            max_model_len=engine.max_model_len,
            limits=limits,
            sampling=checkpoint.sampling,
            examples=examples if checkpoint.name == DEFAULT_MODEL else None,
        )
    finally:
        await client.close()


@asynccontextmanager
async def _listening(service: Service, arguments: argparse.Namespace) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """The server accepting connections, and its URL. Raises ``ConfigError`` where it cannot listen."""
    import uvicorn

    from web.app import create_app

    listener = _listener(arguments.host, arguments.port)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve([listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    port = listener.getsockname()[1]
    host = "127.0.0.1" if arguments.host in ("0.0.0.0", "::") else arguments.host
    try:
        yield server, f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); another program may use the port: try --port 0"
        ) from None


async def _until_stopped(server: uvicorn.Server) -> None:
    while not server.should_exit:
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
