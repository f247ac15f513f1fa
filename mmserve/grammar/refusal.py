"""What llguidance says about a grammar, in words that name the keyword and its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mmserve.errors import ConstraintError, InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.walk import Place

_LIMITS = ("fuel", "too big", "too large", "limit", "too many", "too complex", "too deeply", "resource", "precomput")


def refusal(message: str, places: Sequence[Place]) -> ConstraintError:
    """The error of a JSON Schema that did not compile. ``places`` are those of the schema as it was sent."""
    line = first_line(message)
    if match := re.search(r"Unimplemented keys: \[\"([^\"]+)\"", message):
        name = match[1]
        return _unsupported(name, places, lambda place: name in place.node, "cannot be enforced")
    if "oneOf constraints are not supported" in message:
        return _unsupported("oneOf", places, lambda p: "oneOf" in p.node, "cannot be enforced: its options may overlap")
    if match := re.search(r"Unknown format: (.+)", message):
        name = match[1].strip()
        return _unsupported("format", places, lambda p: p.node.get("format") == name, f"({name!r}) is not known")
    if "min/maxProperties" in message:
        both = {"minProperties", "maxProperties"}
        keyword = next((k for p in places for k in sorted(both & p.node.keys())), "minProperties")
        return _unsupported(
            keyword, places, lambda p: keyword in p.node, "cannot be enforced beside optional properties"
        )
    if "patternProperty regexes" in message:
        return _unsupported("patternProperties", places, lambda p: "patternProperties" in p.node, f"overlap: {line}")
    if "present in a registry" in message or "etriev" in message:

        def elsewhere(place: Place) -> bool:
            return not str(place.node.get("$ref", "#")).startswith("#")

        return _unsupported("$ref", places, elsewhere, "leads outside the schema, and nothing is fetched")
    if "circular references" in message:
        return _unsupported(
            "$ref", places, lambda p: "$ref" in p.node and len(p.node) > 1, f"cannot be enforced: {line}"
        )
    if "Pointer " in message or "does not exist" in message:
        return InvalidConstraint(f"a $ref leads nowhere: {line}", param="schema")
    if any(words in message for words in ("nsatisfiable", "Regex is empty", "NoExtension")):
        return UnsupportedConstraint(f"nothing satisfies the schema: {line}", param="schema")
    if "regex" in message.lower() and not any(word in message for word in _LIMITS):
        return _unsupported("pattern", places, lambda p: "pattern" in p.node, f"cannot be enforced: {line}")
    if any(word in message for word in _LIMITS):
        return UnsupportedConstraint(f"the schema is too large to enforce: {line}", param="schema")
    if re.search(r"must be|Expected |Invalid type|expected", message):
        return InvalidConstraint(f"schema is malformed: {line}", param="schema")
    return UnsupportedConstraint(f"the schema cannot be enforced: {line}", param="schema")


def grammar_refusal(message: str, param: str) -> ConstraintError:
    """The error of a grammar that did not compile; syntax errors keep their line."""
    line = first_line(message)
    if "NoExtension" in message:
        return UnsupportedConstraint(f"nothing satisfies the {param}", param=param)
    if "failed to compile JSON schema" in message:
        inner = refusal(message, ())
        return type(inner)(f"{inner.message} ({line})", param=param)
    if any(word in message for word in _LIMITS):
        return UnsupportedConstraint(f"the {param} is too large to enforce: {line}", param=param)
    if match := re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", message):
        return InvalidConstraint(f"line {match[1]}, column {match[2]}: {match[3][:200]}", param=param)
    return InvalidConstraint(f"the {param} cannot be read: {line}", param=param)


def first_line(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "")[:200]


def _unsupported(keyword: str, places: Sequence[Place], here: Callable[[Place], bool], why: str) -> ConstraintError:
    place = next((place for place in places if here(place)), None)
    where = place.at(keyword) if place else keyword
    return UnsupportedConstraint(f"{where} {why}", param="schema")
