"""Single values of a request -> constraints. Each reader names the field at fault by its ``path``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmserve.errors import InvalidConstraint
from mmserve.grammar.spec import MAX_SOURCE_BYTES, Choice, Grammar, JsonSchema, Regex, XmlSchema


@contextmanager
def at(path: str) -> Iterator[None]:
    """``InvalidConstraint`` raised inside names ``path`` as its field."""
    try:
        yield
    except InvalidConstraint as error:
        raise InvalidConstraint(error.message, param=path) from None


def mapping(value: object, path: str, known: Collection[str]) -> Mapping[str, Any]:
    """``value`` as a JSON object whose members are among ``known``; a null counts as absent."""
    if not isinstance(value, Mapping):
        raise InvalidConstraint(f"{path} must be a JSON object", param=path)
    for name in value:
        if name not in known and value[name] is not None:
            raise InvalidConstraint(
                f'{path} has a member "{str(name)[:64]}", which cannot be honoured here; '
                f"there are: {', '.join(sorted(known))}",
                param=f"{path}.{str(name)[:64]}",
            )
    return {name: member for name, member in value.items() if member is not None}


def needed(value: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in value:
        raise InvalidConstraint(f"{path}.{name} is missing; it is required", param=f"{path}.{name}")
    return value[name]


def text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidConstraint(f"{path} must be a string", param=path)
    return value


def texts(value: object, path: str) -> tuple[str, ...]:
    """A list of strings; one string stands for a list of it."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidConstraint(f"{path} must be a list of strings", param=path)
    return tuple(value)


def flag(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidConstraint(f"{path} must be true or false", param=path)
    return value


def decoded(source: str, path: str) -> Any:
    """The value of JSON text, of at most ``MAX_SOURCE_BYTES``."""
    if len(source) > MAX_SOURCE_BYTES:
        raise InvalidConstraint(f"{path} is longer than {MAX_SOURCE_BYTES} bytes", param=path)
    try:
        return json.loads(source, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidConstraint(f"{path} is nested too deeply", param=path) from None
    except ValueError as error:
        reason = str(error).removeprefix("Expecting value: ")[:200]
        raise InvalidConstraint(f"{path} is not valid JSON: {reason}", param=path) from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def schema(value: object, path: str, *, strict: bool = False) -> JsonSchema:
    """A JSON Schema, as a JSON object or as JSON text, which keeps the order of properties that was sent."""
    shown = decoded(value, path) if isinstance(value, str) else value
    if not isinstance(shown, dict | bool):
        raise InvalidConstraint(f"{path} must be a JSON Schema: an object, true or false", param=path)
    with at(path):
        return JsonSchema(value, strict) if isinstance(value, str) else JsonSchema.of(shown, strict=strict)


def xml(value: object, path: str) -> XmlSchema:
    """An element schema, as a JSON object or as JSON text."""
    shown = decoded(value, path) if isinstance(value, str) else value
    if not isinstance(shown, dict):
        raise InvalidConstraint(f"{path} must be an element schema: a JSON object", param=path)
    with at(path):
        return XmlSchema(value) if isinstance(value, str) else XmlSchema.of(shown)


def regex(value: object, path: str) -> Regex:
    with at(path):
        return Regex(text(value, path))


def grammar(value: object, path: str) -> Grammar:
    with at(path):
        return Grammar(text(value, path))


def choice(value: object, path: str) -> Choice:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidConstraint(f"{path} must be a list of strings", param=path)
    with at(path):
        return Choice(tuple(value))
