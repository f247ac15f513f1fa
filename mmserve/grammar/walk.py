"""A JSON Schema's subschemas, with their places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from mmserve.errors import UnsupportedConstraint

Node: TypeAlias = dict[str, Any]

MAX_DEPTH = 160
"""Subschemas and references inside each other; llguidance walks them on the thread's stack."""

MAX_NODES = 20_000
MAX_ENTRIES = {
    "properties": 1_500,
    "patternProperties": 64,
    "required": 1_500,
    "enum": 10_000,
    "anyOf": 2_000,
    "oneOf": 2_000,
    "allOf": 200,
}

_ONE = ("additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames",
        "unevaluatedProperties", "unevaluatedItems", "items")  # fmt: skip
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")


@dataclass(frozen=True, slots=True)
class Place:
    """A subschema and the JSON pointer to it."""

    node: Node
    pointer: str

    def at(self, keyword: str) -> str:
        """How a message says where ``keyword`` is."""
        return f"{keyword} at {_join(self.pointer, keyword)}"


def places(root: Node) -> list[Place]:
    """Every subschema once, in the order in which they are met, references followed.

    Raises ``UnsupportedConstraint`` for what is nested too deeply or too large.
    """
    found: list[Place] = []
    seen: set[int] = set()
    stack: list[tuple[Any, str, int]] = [(root, "", 0)]
    deepest = elsewhere = 0
    while stack:
        node, pointer, depth = stack.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        found.append(Place(node, pointer))
        deepest = max(deepest, depth)
        _check(node, pointer, depth, len(found))
        reference = node.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            elsewhere += 1
        stack.extend((child, at, depth + 1) for child, at in reversed(list(_children(root, node, pointer))))
    # A reference by name leads to somewhere in here; how deep that is then was not followed.
    if elsewhere * deepest > MAX_DEPTH:
        raise UnsupportedConstraint(f"the schema has {elsewhere} references by name, too many", param="schema")
    return found


def _check(node: Node, pointer: str, depth: int, count: int) -> None:
    if depth > MAX_DEPTH:
        where = f"{pointer[:80]}…"
        raise UnsupportedConstraint(
            f"the schema is nested more than {MAX_DEPTH} levels deep, at {where}", param="schema"
        )
    if count > MAX_NODES:
        raise UnsupportedConstraint(f"the schema has more than {MAX_NODES} subschemas", param="schema")
    for keyword, most in MAX_ENTRIES.items():
        value = node.get(keyword)
        if isinstance(value, list | dict) and len(value) > most:
            where = Place(node, pointer).at(keyword)
            raise UnsupportedConstraint(f"{where} has {len(value)} entries; at most {most} are allowed", param="schema")


def _children(root: Node, node: Node, pointer: str) -> Iterator[tuple[Any, str]]:
    for keyword, value in node.items():
        if keyword in _ONE and isinstance(value, dict):
            yield value, _join(pointer, keyword)
        elif keyword in _MANY and isinstance(value, list):
            for index, child in enumerate(value):
                yield child, f"{_join(pointer, keyword)}/{index}"
        elif keyword in _NAMED and isinstance(value, dict):
            for name, child in value.items():
                yield child, _join(_join(pointer, keyword), name)
        elif keyword == "$ref" and isinstance(value, str) and value.startswith("#/"):
            yield resolve(root, value), value[1:]


def resolve(root: Node, reference: str) -> Any:
    """What the local JSON pointer ``reference`` (``#/…``) leads to, or ``None``."""
    node: Any = root
    for part in unquote(reference[2:]).split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node


def check_nesting(value: Any, limit: int = 100) -> None:
    """Raises ``UnsupportedConstraint`` where JSON values are inside each other more than ``limit`` levels deep."""
    stack = [(value, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > limit:
            raise UnsupportedConstraint(f"the schema is nested more than {limit} levels deep", param="schema")
        if isinstance(node, dict):
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)


def _join(pointer: str, name: str) -> str:
    return pointer + "/" + name.replace("~", "~0").replace("/", "~1")
