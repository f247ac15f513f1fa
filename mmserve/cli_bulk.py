"""``mmserve caption --ray``: the captions of many pictures by workers on Ray."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from mmserve.caption import Captioner, Finish, LineLedger, PicturePrompts, Report, open_lines, select_pictures
from mmserve.caption.files import Pictures
from mmserve.caption.formats import CsvRows, JsonLines
from mmserve.caption.ledger import read_ledger
from mmserve.cli_backend import local_service, plain_options
from mmserve.cli_direct import DirectCaptioner
from mmserve.cli_progress import ProgressLine
from mmserve.client import AllOptions
from mmserve.deploy.bulk import Store, Table, Workers
from mmserve.deploy.extra import require_ray
from mmserve.errors import ConfigError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")


def add_bulk(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`run_bulk`."""
    group = parser.add_argument_group("many machines")
    group.add_argument("--ray", action="store_true", help="by workers on Ray; sources may be s3://... and .parquet too")
    group.add_argument(
        "--ray-address", metavar="RAY", help="a running Ray: auto, or HOST:PORT (default: start one here)"
    )
    group.add_argument("--workers", type=int, default=1, metavar="N", help="engines (%(default)s)")
    group.add_argument("--worker-cpus", type=float, default=1.0, metavar="N", help="of its node for each (%(default)s)")
    group.add_argument("--worker-gpus", type=float, default=0.0, metavar="N", help="of its node for each (%(default)s)")
    group.add_argument("--picture-column", default="image", metavar="NAME", help="of Parquet files (%(default)s)")
    group.add_argument("--name-column", default="file", metavar="NAME", help="which names each row (%(default)s)")


def run_bulk(arguments: argparse.Namespace, finish: Finish, options: AllOptions) -> tuple[Report, tuple[str, ...]]:
    """The report, and the names of pictures in formats that are not read. Raises ConfigError."""
    if arguments.server or arguments.sidecar or arguments.dry_run:
        raise ConfigError(
            "--ray brings engines of its own and writes one file: leave out --server, --sidecar, --dry-run"
        )
    require_ray("mmserve caption --ray")
    from mmserve.deploy.cluster import Cluster, connected
    from mmserve.deploy.ray_data import caption_dataset

    source = source_of(arguments)
    workers = Workers(arguments.workers, arguments.worker_cpus, arguments.worker_gpus, arguments.concurrency)
    root = source.root if isinstance(source, Pictures) else Path()
    prompts = PicturePrompts(arguments.prompt, root)
    opener = OpenCaptioner(plain_options(arguments), options)
    with (
        opened(arguments, root) as (ledger, recorded),
        connected(Cluster(arguments.ray_address)),
        ProgressLine(sys.stderr) as line,
    ):
        report = caption_dataset(
            source,
            opener,
            ledger,
            recorded,
            prompts=prompts,
            finish=finish,
            workers=workers,
            on_progress=line.show,
        )
    return report, source.passed_over if isinstance(source, Pictures) else ()


def source_of(arguments: argparse.Namespace) -> Pictures | Table | Store:
    """Raises ConfigError."""
    [first, *more] = arguments.sources
    table = first.endswith(".parquet")
    if not table and not _ADDRESS.match(first):
        return select_pictures(arguments.sources, recursive=arguments.recursive, stdin=sys.stdin)
    if more:
        raise ConfigError(
            "name one Parquet file, folder of them, or address; several are captioned one after the other"
        )
    return Table(first, arguments.picture_column, arguments.name_column) if table else Store(first)


@contextmanager
def opened(arguments: argparse.Namespace, root: Path) -> Iterator[tuple[LineLedger, frozenset[str]]]:
    """The ledger that captions are written to, and the names that have one. A name counts whatever its bytes are now:
    to compare them, all pictures would have to be read again."""
    out: Path = arguments.out or root / "captions.jsonl"
    if out.suffix == ".parquet":
        from mmserve.deploy.parquet import open_parquet

        with open_parquet(out, arguments.mode) as opened:
            yield opened
        return
    with open_lines(out, arguments.mode) as ledger:
        form = CsvRows() if out.suffix == ".csv" else JsonLines()
        yield ledger, frozenset(read_ledger(ledger.path, form))


class OpenCaptioner:
    """Loads the engine that these options describe, in whichever process calls it."""

    def __init__(self, arguments: Mapping[str, Any], options: AllOptions) -> None:
        self._arguments = dict(arguments)
        self._options = options

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Captioner]:
        arguments = argparse.Namespace(**self._arguments)
        async with local_service(arguments) as service:
            yield DirectCaptioner(service, system=arguments.system, options=self._options)
