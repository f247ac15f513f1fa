"""The command line's options for what an answer must look like."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mmserve.client import Constraints
from mmserve.client.calls import Looking
from mmserve.errors import ConfigError
from mmserve.types import DETAIL_LEVELS


def add_constraint(parser: argparse.ArgumentParser) -> None:
    """``--schema``, ``--regex`` and the like on ``parser``."""
    group = parser.add_argument_group("what the answer must look like (one of these)")
    group.add_argument(
        "--schema",
        metavar="FILE|JSON|MODULE:TYPE",
        help="a JSON Schema, or a pydantic model: shop.models:Item or models.py:Item",
    )
    group.add_argument("--strict", action="store_true", help="refuse a schema that cannot be enforced exactly")
    group.add_argument("--json-object", action="store_true", help="a JSON object of any shape")
    group.add_argument("--regex", metavar="PATTERN", help="text that the pattern matches as a whole")
    group.add_argument("--choice", action="append", metavar="TEXT", help="one of these; give it once for each")
    group.add_argument("--grammar", metavar="FILE|TEXT", help="a Lark or EBNF (GBNF) grammar")
    group.add_argument("--xml", metavar="FILE|JSON", help="an XML element, by its element schema")
    group.add_argument("--must-include", action="append", metavar="WORD", help="repeat it for several")
    group.add_argument("--must-not-include", action="append", metavar="WORD", help="repeat it for several")
    group.add_argument("--start-with", metavar="TEXT")
    group.add_argument("--max-words", type=int, metavar="N")


def add_detail(parser: argparse.ArgumentParser) -> None:
    """``--detail`` and the limits in pixels on ``parser``."""
    group = parser.add_argument_group("how closely the model looks (where its family can choose)")
    group.add_argument("--detail", choices=DETAIL_LEVELS, help="low is fast, high and auto see all (default: auto)")
    group.add_argument("--min-pixels", type=int, metavar="N", help="enlarge smaller pictures to N pixels (Qwen-VL)")
    group.add_argument("--max-pixels", type=int, metavar="N", help="shrink larger pictures to N pixels (Qwen-VL)")


def detail_of(arguments: argparse.Namespace) -> Looking:
    """The client's options."""
    return Looking(detail=arguments.detail, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels)


def constraint_of(arguments: argparse.Namespace) -> Constraints:
    """The client's options. Raises ``ConfigError`` for a file or type that is not there."""
    return Constraints(
        schema=None if arguments.schema is None else _schema(arguments.schema),
        strict=arguments.strict or None,
        json=arguments.json_object or None,
        regex=arguments.regex,
        choices=arguments.choice,
        grammar=None if arguments.grammar is None else _source(arguments.grammar, "::=", "start:"),
        xml=None if arguments.xml is None else _source(arguments.xml, "{"),
        must_include=arguments.must_include,
        must_not_include=arguments.must_not_include,
        start_with=arguments.start_with,
        max_words=arguments.max_words,
    )


def _schema(given: str) -> Any:
    module, colon, name = given.rpartition(":")
    if colon and module.endswith(".py") and _dotted(name):
        return _member(_load_file(Path(module)), given, name)
    if colon and _dotted(module) and _dotted(name):
        return _type(module, name)
    return _source(given, "{")


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _load_file(path: Path) -> ModuleType:
    """Runs a Python file as a module. Its own imports see the folder it lies in."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pydantic looks there for the names in annotations
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def _type(module: str, name: str) -> Any:
    sys.path.insert(0, os.getcwd())  # as python -m has it: the model is often in a file that lies right here
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"--schema {module}:{name} cannot be loaded: {error}") from None
    finally:
        sys.path.remove(os.getcwd())
    return _member(found, f"{module}:{name}", name)


def _member(module: Any, given: str, name: str) -> Any:
    found = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ConfigError(f"--schema {given} cannot be loaded: {error}") from None
    return found


def _source(given: str, *marks: str) -> str:
    """``given`` itself where it has one of ``marks``, else the text of the file that it names."""
    if any(mark in given for mark in marks) or given in ("true", "false"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{given[:200]!r} is neither a file nor the thing itself: {error}") from None
