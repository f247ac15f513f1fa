"""Options for OpenAI's files and batches: where they lie, and how much of them there may be."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mmserve.config import BatchLimits
from mmserve.errors import ConfigError

if TYPE_CHECKING:
    from web.batches.service import BatchService

log = logging.getLogger(__name__)

_LIMITS = {
    "max_file_bytes": "bytes of a file",
    "max_data_bytes": "bytes of all files",
    "max_batch_requests": "requests of a batch",
}


def add_batches(parser: argparse.ArgumentParser) -> None:
    """Options that :func:`batch_service_of` reads."""
    group = parser.add_argument_group("files and batches")
    group.add_argument(
        "--data-folder",
        type=Path,
        metavar="DIR",
        help="where they are kept, one server's alone (default: ~/.local/state/mmserve/PORT)",
    )
    defaults = BatchLimits()
    for name, what in _LIMITS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=int, default=getattr(defaults, name), metavar="N", help=f"{what} (%(default)s)")
    group.add_argument(
        "--batch-concurrency",
        type=int,
        default=defaults.concurrency,
        metavar="N",
        help="requests of batches that run at a time; the rest of the engine is for others (%(default)s)",
    )


@asynccontextmanager
async def batch_service_of(arguments: argparse.Namespace, url: str) -> AsyncIterator[BatchService]:
    """Files and batches as these options want them, until the block ends. Raises ``ConfigError``."""
    batch_service = await asyncio.to_thread(_open, arguments, _limits(arguments), urlsplit(url).port or 0)
    try:
        yield batch_service
    finally:
        await batch_service.close()


def _limits(arguments: argparse.Namespace) -> BatchLimits:
    given = {name: getattr(arguments, name) for name in _LIMITS} | {"concurrency": arguments.batch_concurrency}
    for name, value in given.items():
        if value <= 0:
            flag = "batch-concurrency" if name == "concurrency" else name.replace("_", "-")
            raise ConfigError(f"--{flag} must be more than 0")
    return BatchLimits(**given)


def _open(arguments: argparse.Namespace, limits: BatchLimits, port: int) -> BatchService:
    from web.batches.service import BatchService

    if arguments.data_folder is not None:
        return BatchService(arguments.data_folder, limits)
    # A port that was given is the server's own for as long as it runs, and the same when it is started again; a free
    # one that it was lent will be another's.
    if arguments.port:
        try:
            return BatchService(state_folder(os.environ, sys.platform) / str(port), limits)
        except ConfigError as error:
            reason = str(error)
    else:
        reason = "the port is another at each start"
    folder = Path(tempfile.mkdtemp(prefix="mmserve-data-"))
    log.warning("files and batches are lost when this server ends, unless --data-folder names a place: %s", reason)
    return BatchService(folder, limits, temporary=True)


def state_folder(environ: Mapping[str, str], platform: str) -> Path:
    """Where programs keep what is neither settings nor cache, as the platform has it.

    https://specifications.freedesktop.org/basedir-spec/latest/ for ``XDG_STATE_HOME``. Raises ``ConfigError`` where
    there is no home.
    """
    if platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"]) / "mmserve"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ConfigError(f"there is no home folder: {error}") from None
    if platform == "darwin":
        return home / "Library" / "Application Support" / "mmserve"
    given = environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(given) if given.startswith("/") else home / ".local" / "state") / "mmserve"
