"""``mmserve chat``: a conversation about pictures in the terminal, or through pipes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mmserve.cli_backend import add_backend, listening, local_service
from mmserve.cli_options import add_detail, detail_of
from mmserve.client import Client, Options, PictureHandle
from mmserve.errors import ConfigError, EngineUnavailable, MMServeError

HELP = """/image FILE…  show one or several pictures with the next question
/new          forget the conversation
/quit         end (so does Ctrl-D)
Ctrl-C stops an answer; what it has said so far is kept."""


def add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE", help="shown with the first question")
    parser.add_argument("--system", help="a system prompt")
    parser.add_argument("--max-tokens", type=int, help="end each answer after this many tokens")
    parser.add_argument("--temperature", type=float, help="0 is greedy; default: what the model's makers recommend")
    parser.add_argument("--seed", type=int, help="makes sampled answers repeatable")
    add_detail(parser)
    add_backend(parser)


def run_chat(arguments: argparse.Namespace) -> int:
    """Questions are lines of stdin, answers go to stdout. Returns 1 when a question from a pipe had no answer."""
    chosen = Options(max_tokens=arguments.max_tokens, temperature=arguments.temperature, seed=arguments.seed)
    options = Options(**chosen, **detail_of(arguments))
    for picture in arguments.pictures:  # before a model is loaded for nothing
        if not picture.is_file():
            raise ConfigError(f"there is no picture {picture}")
    with _client(arguments) as client:
        chat = Chat(client, options, arguments.system, sys.stdout, sys.stderr)
        for picture in arguments.pictures:
            chat.show(picture)
        terminal = sys.stdin.isatty()
        if terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input() then has a history and editing)
            print(HELP, file=sys.stderr)
        return chat.run(_asked(terminal, sys.stderr), keep_going=terminal)


def _asked(terminal: bool, notes: TextIO) -> Iterator[str]:
    """Lines of stdin to its end. Ctrl-C at a terminal's prompt drops the line that is being typed."""
    if not terminal:
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print(file=notes)
            return
        except KeyboardInterrupt:
            print("\n(/quit ends)", file=notes)


class Chat:
    """A conversation. A question that has no answer leaves it as it was, its pictures kept for the next."""

    def __init__(self, client: Client, options: Options, system: str | None, out: TextIO, notes: TextIO) -> None:
        self._client = client
        self._options = options
        self._start: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)
        self._pictures: list[PictureHandle] = []
        self._out = out
        self._notes = notes

    def run(self, lines: Iterator[str], *, keep_going: bool) -> int:
        """Take lines until there are no more or one says to end. 1 where a question failed, unless ``keep_going``."""
        failed = False
        for line in lines:
            text = line.strip()
            if text in ("/quit", "/exit"):
                break
            if text:
                failed |= not self._take(text)
        return int(failed and not keep_going)

    def show(self, path: Path) -> None:
        """Keep a picture for the next question. Raises OSError."""
        self._pictures.append(self._client.image(path))

    def _take(self, text: str) -> bool:
        if not text.startswith("/") or text.startswith("//"):
            return self._ask(text.removeprefix("/") if text.startswith("//") else text)
        command, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], bool]] = {"/image": self._image, "/new": self._new, "/help": self._help}
        if command in commands:
            return commands[command](rest)
        self._note(f"there is no {command}; begin with // to say it to the model\n{HELP}")
        return False

    def _image(self, rest: str) -> bool:
        try:
            paths = [Path(name).expanduser() for name in shlex.split(rest)]
            for path in paths:
                self.show(path)
        except (OSError, ValueError) as error:
            self._note(f"mmserve: {error}")
            return False
        self._note(f"{len(self._pictures)} to be shown" if paths else "which? /image photo.jpg")
        return bool(paths)

    def _new(self, _: str) -> bool:
        self._messages, self._pictures = list(self._start), []
        self._note("a new conversation")
        return True

    def _help(self, _: str) -> bool:
        self._note(HELP)
        return True

    def _ask(self, question: str) -> bool:
        asked = {"role": "user", "content": [*self._pictures, question] if self._pictures else question}
        stream = self._client.stream_chat([*self._messages, asked], **self._options)
        try:
            with stream as pieces:
                for piece in pieces:
                    self._out.write(piece)
                    self._out.flush()
        except KeyboardInterrupt:
            self._note(" (stopped)")
        except MMServeError as error:
            if stream.text:
                self._out.write("\n")
            self._note(f"mmserve: {error}")
            if isinstance(error, EngineUnavailable):
                self._note("the question was not kept; ask again")
            return False
        self._out.write("\n")
        self._out.flush()
        if stream.text:
            self._messages += [asked, {"role": "assistant", "content": stream.text}]
            self._pictures = []
        return True

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


@contextmanager
def _client(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client of the server that was named, or of one that runs in a thread of this process."""
    key = os.environ.get("MMSERVE_API_KEY")
    if arguments.server:
        with Client(arguments.server, api_key=key) as client:
            client.health()  # said now, and not after the first question
            yield client
        return
    with _served(arguments) as url, Client(url) as client:
        yield client


@contextmanager
def _served(arguments: argparse.Namespace) -> Iterator[str]:
    """The model behind a free port of this machine's own address, in a thread: signals stay with the main one."""
    ready: Future[str] = Future()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()
    place = argparse.Namespace(**{**vars(arguments), "host": "127.0.0.1", "port": 0})

    async def serve() -> None:
        try:
            async with local_service(place) as service, listening(service, place) as (_, url):
                ready.set_result(url)
                await end.wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="mmserve-server", daemon=True)
    thread.start()
    try:
        yield ready.result()
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        if not thread.is_alive():
            loop.close()
