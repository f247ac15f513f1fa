"""``mmserve keys add | list | revoke``: who may use a server."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from mmserve.errors import ConfigError
from mmserve.keys import Key, add_key, load_keys, new_key, revoke_key

VARIABLE = "MMSERVE_KEYS_FILE"


def add_keys_file(parser: argparse._ActionsContainer) -> None:
    """``--keys-file`` on ``parser``; without it (and the variable) it is ``None``."""
    parser.add_argument(
        "--keys-file",
        type=Path,
        default=os.environ.get(VARIABLE) or None,
        metavar="FILE",
        help=f"the API keys that requests must carry (or {VARIABLE}); mmserve keys add makes one",
    )


def add_keys(parser: argparse.ArgumentParser) -> None:
    """The three commands below ``mmserve keys``."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = _command(commands, "add", _add, "make a key and print it, this once")
    add.add_argument("name", metavar="NAME", help="whose key it is; shown in the list")
    add.add_argument("--admin", action="store_true", help="may flush the cache, abort others, see counters")
    for flag, field, what in (
        ("--requests-per-minute", "requests_per_minute", "requests in any 60 seconds"),
        ("--concurrency", "concurrency", "requests at a time"),
        ("--pictures-per-minute", "pictures_per_minute", "pictures in any 60 seconds"),
    ):
        default = Key.__dataclass_fields__[field].default
        add.add_argument(flag, type=int, default=default, metavar="N", help=f"{what}, 0 for no limit ({default})")
    add.add_argument(
        "--cache-group",
        default="",
        metavar="NAME",
        help="share cached work with the other keys of this group (default: with none)",
    )
    _command(commands, "list", _list, "list the keys that there are").add_argument(
        "--json", action="store_true", help="print them as JSON"
    )
    revoke = _command(commands, "revoke", _revoke, "take a key back; running servers notice within a second")
    revoke.add_argument("name", metavar="NAME")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_keys_file(parser)
    parser.set_defaults(keys_command=run)
    return parser


def run_keys(arguments: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], int] = arguments.keys_command
    return command(arguments)


def _path(arguments: argparse.Namespace) -> Path:
    if arguments.keys_file is None:
        raise ConfigError(f"say which file holds the keys: --keys-file FILE, or {VARIABLE}")
    return Path(arguments.keys_file)


def _add(arguments: argparse.Namespace) -> int:
    key, secret = new_key(
        arguments.name,
        admin=arguments.admin,
        requests_per_minute=arguments.requests_per_minute,
        concurrency=arguments.concurrency,
        pictures_per_minute=arguments.pictures_per_minute,
        cache_group=arguments.cache_group,
    )
    add_key(_path(arguments), key)
    print(secret)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    keys = load_keys(_path(arguments))
    if arguments.json:
        names = [name for name in Key.__dataclass_fields__ if name not in ("digest", "identity")]
        print(json.dumps([{name: getattr(key, name) for name in names} for key in keys], indent=2))
        return 0
    for key in keys:
        made = time.strftime("%Y-%m-%d", time.gmtime(key.created))
        limits = (
            f"{_limit(key.requests_per_minute)} requests/min, {_limit(key.concurrency)} at a time, "
            f"{_limit(key.pictures_per_minute)} pictures/min"
        )
        group = f", cache group {key.cache_group}" if key.cache_group else ""
        print(f"{key.name:<20}  {'admin' if key.admin else 'user':<5}  {made}  {limits}{group}")
    return 0


def _limit(value: int) -> str:
    return str(value) if value else "unlimited"


def _revoke(arguments: argparse.Namespace) -> int:
    key = revoke_key(_path(arguments), arguments.name)
    print(f"{key.name} is revoked")
    return 0
