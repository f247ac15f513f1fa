"""``mmserve serve``: listens while the model loads, answers, and drains when it is told to end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mmserve.cli_backend import accepting, add_address, add_engine, add_model, local_service
from mmserve.cli_batches import add_batches, batch_service_of
from mmserve.cli_engine import load_apart
from mmserve.cli_safety import add_safety, secured
from mmserve.trim import trim_often

if TYPE_CHECKING:
    from mmserve.engine.client import EngineClient
    from web.operations.front import Front
    from web.service import Service

log = logging.getLogger("mmserve.serve")

GRACE_SECONDS = 5.0
"""For answers whose engine was ended under them to be sent: each is a short error."""

_EPILOG = """\
Every option can also stand in a file (--config, TOML: max-queue = 100) and in the environment (MMSERVE_MAX_QUEUE=100).
A flag wins over the environment, and the environment over the file.

SIGTERM and Ctrl-C drain: no new requests, and up to --drain-seconds for those that run. Sent again, they end what
runs with an error; a third time, the process at once.
"""


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [--model MODEL] [--host HOST] [--port N] [option ...]"
    parser.epilog = _EPILOG
    group = parser.add_argument_group("model")
    add_model(group)
    group.add_argument("--served-model-name", metavar="NAME", help="the name that clients use (default: the model's)")
    add_address(parser.add_argument_group("address"))
    add_engine(parser)
    add_safety(parser)
    add_batches(parser)
    group = parser.add_argument_group("operations")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML (or MMSERVE_CONFIG)")
    group.add_argument("--log-format", choices=["text", "json"], default="text", help="default: %(default)s")
    group.add_argument(
        "--drain-seconds", type=float, default=25.0, metavar="S", help="for running requests at the end (%(default)s)"
    )
    group.add_argument(
        "--watchdog-seconds",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="an engine that has work and does no step for so long is started again; 0 never (%(default)s)",
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send traces to http://HOST:4318/v1/traces or the like (or OTEL_EXPORTER_OTLP_ENDPOINT)",
    )
    for action in parser._actions:
        if action.metavar is None and action.type in (int, float):
            action.metavar = "N"
    parser.set_defaults(settings=parser, log_level="info")


def _seconds(text: str) -> float:
    """Raises ``ValueError`` for what is no time."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def run_serve(arguments: argparse.Namespace) -> int:
    trim_often()
    return asyncio.run(_serve(arguments))


async def _serve(arguments: argparse.Namespace) -> int:
    from web.app import create_app
    from web.operations.front import Front

    front = Front()
    with Signals() as signals:
        async with (
            accepting(front, arguments, own_signals=True) as (_, url),
            batch_service_of(
                arguments, url
            ) as batch_service,  # before the model, which may take minutes, since it may be refused
            _loaded(arguments, signals) as service,
        ):
            front.serve(create_app(service, batch_service))
            await batch_service.start(service, front)  # by way of the front, so that a drain waits for what batches run
            _announce(f"{service.model.name} is served at {url}", arguments.log_format)
            await signals.first.wait()
            await drain(front, service.engine, signals.second, arguments.drain_seconds)
            await batch_service.close()
    return signals.status


def _announce(text: str, log_format: str) -> None:
    """Say so whatever the log level is; but where machines read the log, every line is an object."""
    if log_format == "json":
        log.log(max(logging.INFO, log.getEffectiveLevel()), text)
    else:
        print(f"mmserve: {text}", file=sys.stderr, flush=True)


@asynccontextmanager
async def _loaded(arguments: argparse.Namespace, signals: Signals) -> AsyncIterator[Service]:
    # Reading weights cannot be interrupted, and nobody is being served who would have to be told.
    signals.at_once = True
    load = load_apart(
        watchdog_seconds=arguments.watchdog_seconds,
        log_level=arguments.log_level,
        log_format=arguments.log_format,
    )
    async with local_service(arguments, load) as loaded:
        service = secured(loaded, arguments)
        signals.at_once = False
        yield service
    if service.tracing is not None:
        await asyncio.to_thread(service.tracing.close)


async def drain(front: Front, engine: EngineClient, hurry: asyncio.Event, seconds: float) -> None:
    """Take nothing new, and wait for what runs until ``seconds`` are over or ``hurry`` is set; then end the engine.

    What still ran then gets ``EngineUnavailable``: a 503, or a stream's last event.
    """
    front.drain()
    if not front.open_requests:
        return
    log.info("draining: %d requests are under way", front.open_requests)
    waiters = [asyncio.create_task(front.idle()), asyncio.create_task(hurry.wait())]
    await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters:
        waiter.cancel()
    if not front.open_requests:
        return
    log.warning("%d requests did not end in time and are ended", front.open_requests)
    await engine.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await front.idle()


class Signals:
    """SIGTERM and SIGINT, counted: ``first`` drains, ``second`` hurries, and a third ends the process there and then.

    With ``at_once`` the first does that. ``status`` is the exit status: 0 for SIGTERM, 130 for SIGINT as for Ctrl-C
    anywhere.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.at_once = False
        self.status = 0
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._came, number)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _came(self, number: int) -> None:
        if self.at_once or self.second.is_set():
            sys.stderr.flush()
            os._exit(_status(number))
        if self.first.is_set():
            self.second.set()
        else:
            self.status = _status(number)
            self.first.set()


def _status(number: int) -> int:
    return 130 if number == signal.SIGINT else 0
