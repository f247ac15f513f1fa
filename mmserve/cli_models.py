"""``mmserve models``: what models.yaml names, what of it is on this machine and the memory it takes; and downloads."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmserve.checkpoint import read_json
from mmserve.errors import ConfigError
from mmserve.hub import cache_folder
from mmserve.memory import MemoryNeed, memory_of
from mmserve.registry import ModelEntry, Registry, load_registry

_WIDTHS = (60, 110)
"""The narrowest and the widest list, in characters."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry, where its files are (``None``: not all are here), and the memory it takes (``None``: not known)."""

    entry: ModelEntry
    folder: Path | None
    memory: MemoryNeed | None

    @property
    def place(self) -> str:
        if self.entry.weights.startswith("package:"):
            return "embedded" if self.folder else "left out"
        if self.folder is None:
            return "not here"
        return "downloaded" if self.folder != Path(self.entry.weights).expanduser() else "folder"

    def to_json(self) -> dict[str, object]:
        need = self.memory
        return dataclasses.asdict(self.entry) | {
            "place": self.place,
            "path": None if self.folder is None else str(self.folder),
            "weights_bytes": None if need is None else need.weights,
            "kv_bytes_per_1k_tokens": None if need is None else 1000 * need.kv_per_token,
        }


def add_models(parser: argparse.ArgumentParser) -> None:
    """The options of ``mmserve models``."""
    parser.set_defaults(action=_list)
    parser.add_argument("--json", action="store_true", help="print the list as JSON, sizes in bytes")
    actions = parser.add_subparsers(title="instead of the list", metavar="")
    text = "fetch a model's files now, not on first use"
    download = actions.add_parser(
        "download",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Prints the folder they are in. A download that was ended goes on.",
    )
    download.add_argument(
        "name", metavar="NAME", help="a name from models.yaml, or owner/name[@revision] on Hugging Face"
    )
    download.set_defaults(action=_download)


def run_models(arguments: argparse.Namespace) -> int:
    status: int = arguments.action(arguments)
    return status


def listed(registry: Registry, entry: ModelEntry) -> Listed:
    """From the files where they are here, else from what models.yaml says. Uses no network."""
    folder = registry.find(entry)
    if folder is not None:
        try:
            config = read_json(folder / "config.json")
            stored = config.get("dtype") or config.get("torch_dtype") or "float32"
            return Listed(entry, folder, memory_of(folder, config, entry.dtype or str(stored), entry.quantization))
        except ConfigError:  # files that cannot be read are said when the model is served
            pass
    if entry.memory.keys() >= {"weights", "kv_per_token"}:
        return Listed(entry, folder, MemoryNeed(**entry.memory))
    return Listed(entry, folder, None)


def table(rows: Sequence[Listed], width: int) -> str:
    """Two lines or more a model, ``width`` characters wide: the facts, then the description."""
    cells = [("NAME", "FILES", "WEIGHTS", "1K TOKENS", "FAMILY")]
    cells += [(row.entry.name, row.place, *_sizes(row.memory), row.entry.family) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, (name, place, weights, tokens, family) in zip([None, *rows], cells, strict=True):
        figures = f"{weights:>{widths[2]}}  {tokens:>{widths[3]}}"
        lines.append(f"{name:<{widths[0]}}  {place:<{widths[1]}}  {figures}  {family}")
        if row is not None:
            licence = f" [{row.entry.licence}]" if row.entry.licence else ""
            text = row.entry.description + licence
            lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _list(arguments: argparse.Namespace) -> int:
    registry = load_registry()
    rows = [listed(registry, entry) for entry in registry.entries.values()]
    if arguments.json:
        print(json.dumps([row.to_json() for row in rows], ensure_ascii=False, indent=2))
        return 0
    narrowest, widest = _WIDTHS
    width = min(max(shutil.get_terminal_size().columns, narrowest), widest)
    notes = (
        "WEIGHTS and 1K TOKENS are memory: of the model in the dtype that models.yaml gives, and of the keys and "
        "values of each 1,000 tokens of context; pictures take tokens too. A folder or owner/name works as a model "
        "as well. "
        f"Downloads go to {cache_folder()}: mmserve models download NAME."
    )
    print(table(rows, width) + "\n\n" + textwrap.fill(notes, width, break_long_words=False))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    registry = load_registry()
    entry = registry.entries.get(arguments.name)
    about = f" (about {_size(entry.memory['weights'])})" if entry is not None and "weights" in entry.memory else ""
    print(f"fetching {arguments.name if entry is None else entry.weights}{about}", file=sys.stderr)
    print(registry.fetch(arguments.name))
    return 0


def _sizes(need: MemoryNeed | None) -> tuple[str, str]:
    return ("?", "?") if need is None else (_size(need.weights), _size(1000 * need.kv_per_token))


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{count / 1e3:.1f} kB"
