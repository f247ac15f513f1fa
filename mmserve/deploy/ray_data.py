"""Captions of millions of pictures by Ray Data: read in parallel, captioned by engines that stay, written by one hand.

Ray Data hands batches to workers that each hold an engine, and does a dead worker's batches again on another. The
captions stream back to this process, which alone writes them, a line each, before it takes the next: the ledger is the
checkpoint, and a run that is ended and repeated leaves out what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import ray
import ray.data

from mmserve.caption import PICTURE_SUFFIXES, Ledger, PicturePrompts, Pictures, Progress, Report
from mmserve.deploy.bulk import Collector, Open, Row, Store, Table, Worker, Workers
from mmserve.errors import ConfigError


def caption_dataset(
    source: Pictures | Table | Store,
    open_captioner: Open,
    ledger: Ledger,
    recorded: frozenset[str],
    *,
    prompts: PicturePrompts,
    finish: Callable[[str], str] = str.strip,
    workers: Workers = Workers(),  # noqa: B008 (frozen)
    on_progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Caption what ``source`` has and ``recorded`` (names) has not; Ray is running. Files are read by the workers, so
    a folder must be one that all nodes see.

    Raises ConfigError for a source that cannot be read, the typed error that would meet every picture, and OSError
    when a caption cannot be written; the ledger stays whole.
    """
    listed = isinstance(source, Pictures)
    skipped = sum(file in recorded for file in source.files) if isinstance(source, Pictures) else len(recorded)
    total = len(source.files) if isinstance(source, Pictures) else 0
    collector = Collector(ledger, finish, clock, total, skipped, on_progress)
    if listed and total == skipped:
        return Report(collector.progress(), ())
    rows = _rows(source, recorded, workers)
    captioned = rows.map_batches(
        Worker,
        fn_constructor_args=(open_captioner, prompts, frozenset() if listed else recorded),
        batch_size=workers.batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers.count),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    collector.start()
    for batch in _batches(captioned):
        collector.take(batch)
    failures = sorted(collector.failures, key=lambda failure: failure.file)
    return Report(collector.progress(), tuple(failures))


def _rows(source: Pictures | Table | Store, recorded: frozenset[str], workers: Workers) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if isinstance(source, Pictures):
        todo = [file for file in source.files if file not in recorded]
        items = [{"file": file, "path": str((source.root / file).absolute())} for file in todo]
        # A block is what is done again when a worker dies, so it is not much more than a batch.
        return ray.data.from_items(items, override_num_blocks=-(-len(items) // (2 * workers.batch)))
    try:
        if isinstance(source, Store):
            kinds = sorted(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
            found = ray.data.read_binary_files(source.address, include_paths=True, file_extensions=kinds)
            return found.rename_columns({"path": "file"})
        table = ray.data.read_parquet(source.address)
        if missing := {source.name, source.picture}.difference(table.columns() or ()):
            raise ConfigError(
                f"{source.address} has no column {min(missing)}; name it with --picture-column or --name-column"
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {source.address}: {error}") from error
    named = {source.name: "file", source.picture: "bytes"}
    table = table.select_columns([source.name, source.picture])
    return table.rename_columns({old: new for old, new in named.items() if old != new}).map(_unpack)


def _unpack(row: Row) -> Row:
    """A picture as the datasets library keeps it is a struct."""
    data = row["bytes"]
    return {"file": row["file"], "bytes": data["bytes"] if isinstance(data, dict) else data}


def _batches(captioned: ray.data.Dataset) -> Iterator[list[Row]]:
    for batch in captioned.iter_batches(batch_size=None, batch_format="numpy"):
        names = list(batch)
        yield [
            {name: value.item() if hasattr(value, "item") else value for name, value in zip(names, row, strict=True)}
            for row in zip(*batch.values(), strict=True)
        ]
