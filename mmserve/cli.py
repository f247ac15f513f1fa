"""The command line: the one place that reads argv, the environment and signals, and puts the parts together.

``mmserve serve | deploy | ask | caption | chat | models | keys | demo``. Answers go to stdout, everything else to
stderr; a typed error ends the command with one sentence and exit status 1 (2 for a misuse of the command line, 130 for
Ctrl-C).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic_core import to_jsonable_python

from mmserve import __version__
from mmserve.cli_backend import (
    DEFAULT_MODEL,
    add_address,
    add_backend,
    add_engine,
    backend_client,
    listening,
    local_service,
    until_stopped,
)
from mmserve.cli_caption import add_caption, run_caption
from mmserve.cli_chat import add_chat, run_chat
from mmserve.cli_config import apply_settings
from mmserve.cli_deploy import add_deploy, run_deploy
from mmserve.cli_keys import add_keys, run_keys
from mmserve.cli_log import configure_logging
from mmserve.cli_models import add_models, run_models
from mmserve.cli_options import add_constraint, add_detail, constraint_of, detail_of
from mmserve.cli_serve import add_serve, run_serve
from mmserve.client import Answer, AnswerNotValid, AsyncClient, Options
from mmserve.errors import ConfigError, MMServeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    # Before torch loads: OpenMP's threads otherwise spin at their barriers, and where the cores also serve HTTP (or
    # anybody else) a step then takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        if "settings" in arguments:
            apply_settings(arguments.settings, arguments.config, os.environ)
            arguments = parser.parse_args(argv)
        configure_logging(arguments.log_level, getattr(arguments, "log_format", "text"))
        command: Callable[[argparse.Namespace], int] = arguments.command
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

    add_serve(_command(commands, "serve", run_serve, "serve the page and the API"))
    add_deploy(_command(commands, "deploy", run_deploy, "serve from several replicas, on Ray"))

    ask = _command(commands, "ask", run_ask, "ask one question about one or several pictures")
    ask.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="picture files, in order")
    ask.add_argument("question", help="the question, after the pictures")
    ask.add_argument("--system", help="a system prompt")
    ask.add_argument("--max-tokens", type=int, help="end the answer after this many tokens")
    ask.add_argument("--temperature", type=float, help="0 is greedy; default: what the model's makers recommend")
    ask.add_argument("--seed", type=int, help="makes a sampled answer repeatable")
    ask.add_argument("--json", action="store_true", help="print answer, usage and timing as one JSON object")
    add_detail(ask)
    add_constraint(ask)
    add_backend(ask)

    add_caption(_command(commands, "caption", run_caption, "caption pictures: folders, files, patterns, lists"))
    add_chat(_command(commands, "chat", run_chat, "talk about pictures in the terminal"))

    add_models(_command(commands, "models", run_models, "list models, what they need and whether they are here"))

    add_keys(_command(commands, "keys", run_keys, "make, list and revoke the API keys of a server"))

    demo = _command(commands, "demo", run_demo, "serve the embedded model and ask it about a bundled picture")
    demo.add_argument("--once", action="store_true", help="stop after the answer")
    add_engine(demo)
    add_address(demo)
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


# -- commands ---------------------------------------------------------------------------------------------------


def run_demo(arguments: argparse.Namespace) -> int:
    asyncio.run(_demo(arguments))
    return 0


def run_ask(arguments: argparse.Namespace) -> int:
    try:
        answer = asyncio.run(_ask(arguments))
    except AnswerNotValid as error:
        if error.answer is not None and not arguments.json:
            print(error.text)
        raise
    if arguments.json:
        print(json.dumps(to_jsonable_python(dataclasses.asdict(answer)), ensure_ascii=False))
    else:
        print(answer.text)
    kept = answer.constraint
    if kept is not None and kept.valid is False:
        print(f"mmserve: the answer is not all that was asked for: {'; '.join(kept.relaxed)}", file=sys.stderr)
        return 1
    return 0


async def _demo(arguments: argparse.Namespace) -> None:
    async with local_service(arguments) as service, listening(service, arguments) as (server, url):
        assert service.examples is not None
        example = json.loads((service.examples / "examples.json").read_text(encoding="utf-8"))[0]
        picture = service.examples / example["file"]
        async with AsyncClient(url) as client:
            answer = await client.ask(picture, example["question"])
        print(f"picture   {picture}\nquestion  {example['question']}\nanswer    {answer.text}\npage      {url}")
        if not arguments.once:
            print("serving until Ctrl-C", flush=True)
            await until_stopped(server)


async def _ask(arguments: argparse.Namespace) -> Answer:
    for picture in arguments.pictures:  # before a model is loaded for nothing
        if not picture.is_file():
            raise ConfigError(f"there is no picture {picture}")
    chosen = Options(max_tokens=arguments.max_tokens, temperature=arguments.temperature, seed=arguments.seed)
    options = Options(**chosen, **detail_of(arguments))
    wanted = constraint_of(arguments)
    async with backend_client(arguments) as client:
        return await client.ask(arguments.pictures, arguments.question, system=arguments.system, **options, **wanted)


if __name__ == "__main__":
    sys.exit(main())
