"""Settings of a command from a file and the environment: what a flag does not say, ``MMSERVE_...`` does, else the file.

Each option has one name in three spellings: ``--max-queue 100``, ``MMSERVE_MAX_QUEUE=100`` and ``max-queue = 100``.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmserve.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = "MMSERVE_"
CONFIG = "MMSERVE_CONFIG"

OTHERS = frozenset({CONFIG, "MMSERVE_SERVER", "MMSERVE_API_KEY"})
"""Variables that mean something to other commands, or are looked up elsewhere."""

_YES_NO = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def apply_settings(parser: argparse.ArgumentParser, config: Path | None, environ: Mapping[str, str]) -> None:
    """Make what the file and the environment say the defaults of ``parser``'s options; the environment wins.

    The file is ``config``, or what ``MMSERVE_CONFIG`` names. Raises ``ConfigError`` for a file that cannot be read, a
    key that is not an option, and a value that an option does not take. An unknown variable only warns: orchestrators
    put variables of their own under a service's name.
    """
    options = _options(parser)
    path = config if config is not None else Path(environ[CONFIG]) if environ.get(CONFIG) else None
    values: dict[str, Any] = {}
    if path is not None:
        for key, given in _read(path).items():
            option = options.get(key.replace("_", "-"))
            if option is None:
                raise ConfigError(f"{path}: {key} is not a setting{_hint(key.replace('_', '-'), options)}")
            values[option.dest] = _value(option, given, f"{path}: {key}")
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OTHERS:
            continue
        key = name.removeprefix(PREFIX).lower().replace("_", "-")
        option = options.get(key)
        if option is None:
            log.warning("%s is not a setting and is ignored%s", name, _hint(key, options))
            continue
        values[option.dest] = _from_text(option, environ[name], name)
    parser.set_defaults(**values)


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The parser's long options by name, without those that make no sense outside a command line."""
    return {
        spelling.removeprefix("--"): action
        for action in parser._actions
        for spelling in action.option_strings
        if spelling.startswith("--") and action.dest not in ("help", "config")
    }


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings in {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _hint(key: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(options), 1)
    return f"; did you mean {close[0]}?" if close else "; mmserve serve --help lists them"


def _value(option: argparse.Action, given: object, where: str) -> object:
    """A value of a TOML file."""
    if isinstance(option, argparse._AppendAction):
        if not isinstance(given, list):
            raise ConfigError(f'{where} takes a list, such as ["a", "b"]')
        return [_one(option, item, where) for item in given]
    return _one(option, given, where)


def _from_text(option: argparse.Action, text: str, where: str) -> object:
    """A value of the environment; lists are separated by commas."""
    if isinstance(option, argparse._AppendAction):
        return [_one(option, item.strip(), where) for item in text.split(",") if item.strip()]
    if option.nargs == 0 and text.lower() in _YES_NO:
        return _one(option, _YES_NO[text.lower()], where)
    return _one(option, text, where)


def _one(option: argparse.Action, given: object, where: str) -> object:
    if option.nargs == 0:
        if not isinstance(given, bool):
            raise ConfigError(f"{where} is true or false, not {given!r}")
        return given
    if not isinstance(given, str | int | float) or isinstance(given, bool):
        raise ConfigError(f"{where} takes a single value, not {given!r}")
    try:
        value: object = option.type(str(given)) if callable(option.type) else str(given)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise ConfigError(f"{where} does not take {given!r}{_kubernetes(where, given)}") from None
    if option.choices is not None and value not in option.choices:
        raise ConfigError(f"{where} is one of {', '.join(map(str, option.choices))}, not {given!r}")
    return value


def _kubernetes(where: str, given: object) -> str:
    if where.startswith(PREFIX) and str(given).startswith("tcp://"):
        return "; Kubernetes sets it for a service of that name: set enableServiceLinks: false, or rename the service"
    return ""
