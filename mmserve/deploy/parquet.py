"""Captions as a Parquet file: one row a picture, with the columns of the JSON Lines ledger.

Parquet cannot be appended to, so while a run goes on its captions are in a ledger beside the file, which a crash leaves
whole; the file is made from it at the end, and replaced in one go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmserve.caption import Caption, LineLedger, Mode, open_jsonl
from mmserve.caption.formats import JsonLines
from mmserve.caption.ledger import read_ledger
from mmserve.errors import ConfigError
from mmserve.types import Usage

_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "image_tokens")
_TEXTS = ("file", "caption", "model", "sha256")
SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXTS), *((name, pa.int64()) for name in _COUNTS)])


@contextmanager
def open_parquet(path: Path, mode: Mode = Mode.SKIP) -> Iterator[tuple[LineLedger, frozenset[str]]]:
    """A ledger whose captions are in ``path`` once the block ends well, with those that were there before unless they
    are to be replaced; and the names that need none. Raises ConfigError."""
    journal = path.with_name(f"{path.stem}.unfinished.jsonl")
    before = read_captions(path) if mode is Mode.SKIP and path.exists() else []
    with open_jsonl(journal) as ledger:
        yield ledger, frozenset(caption.file for caption in before) | frozenset(read_ledger(journal, JsonLines()))
    captions = {caption.file: caption for caption in before} | dict(read_ledger(journal, JsonLines()))
    write_captions(path, list(captions.values()))
    journal.unlink()


def read_captions(path: Path) -> list[Caption]:
    """Raises ConfigError for a file that holds something else."""
    try:
        rows = pq.read_table(path).to_pylist()
        return [_caption(row) for row in rows]
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds something else than captions; name another file ({error})") from error


def write_captions(path: Path, captions: list[Caption]) -> None:
    """The whole file, or none of it."""
    rows = [_row(caption) for caption in captions]
    unfinished = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), unfinished)
    os.replace(unfinished, path)


def _row(caption: Caption) -> dict[str, object]:
    usage = caption.usage
    counts = {name: None if usage is None else getattr(usage, name) for name in _COUNTS}
    return {name: getattr(caption, name) for name in _TEXTS} | counts


def _caption(row: dict[str, object]) -> Caption:
    counts = [row[name] for name in _COUNTS]
    usage = None if None in counts else Usage(*counts)  # type: ignore[arg-type]
    return Caption(str(row["file"]), str(row["caption"]), str(row["model"]), usage, str(row["sha256"]))
