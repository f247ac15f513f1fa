"""Six hundred real JSON Schemas with instances, and how they are put to a grammar.

``tests/data/jsonschemabench.jsonl.gz`` is a sample of JSONSchemaBench in the form of MaskBench
(https://github.com/guidance-ai/jsonschemabench; https://huggingface.co/datasets/epfl-dlab/JSONSchemaBench), published
under the MIT licence. Geng et al., "JSONSchemaBench: A Rigorous Benchmark of Structured Outputs for Language Models",
arXiv:2501.10868. A line has ``id``, ``split``, ``schema``, and the instances ``valid`` and ``invalid``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmserve.grammar.walk import resolve

SAMPLE = Path(__file__).parents[1] / "data" / "jsonschemabench.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Case:
    """A schema, and ``(instance, whether it is valid)``."""

    name: str
    schema: Any
    tests: tuple[tuple[Any, bool], ...]


def load() -> list[Case]:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        Case(row["id"], row["schema"], (*((x, True) for x in row["valid"]), *((x, False) for x in row["invalid"])))
        for row in rows
    ]


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def spellings(schema: Any, instance: Any) -> list[str]:
    """The instance as it is and with its names in the schema's order: objects have none, a grammar has."""
    first, second = compact(instance), compact(_in_order(schema, [schema], instance))
    return [first] if first == second else [first, second]


def _in_order(root: Any, schemas: list[Any], value: Any) -> Any:
    known = list(_spread(root, schemas))
    if isinstance(value, list):
        return [_in_order(root, [s for k in known for s in _items(k, index)], x) for index, x in enumerate(value)]
    if not isinstance(value, dict):
        return value
    order: dict[str, None] = {}
    for schema in known:
        order |= dict.fromkeys(schema.get("properties", {}))
    for schema in known:
        order |= dict.fromkeys(name for name in schema.get("required", []) if isinstance(name, str))
    rank = {name: index for index, name in enumerate(order)}
    found = {}
    for name in sorted(value, key=lambda name: rank.get(name, len(rank))):
        below = [s for k in known for s in _members(k, name)]
        found[name] = _in_order(root, below, value[name])
    return found


def _spread(root: Any, schemas: list[Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    for schema in schemas:
        if isinstance(schema, dict) and depth < 12:
            yield from _own_order(root, schema, depth)


def _own_order(root: Any, schema: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    """Itself and its options in the order of its keywords, as llguidance takes them."""
    plain = False
    for keyword, value in schema.items():
        if keyword in ("allOf", "anyOf", "oneOf") and isinstance(value, list):
            yield from _spread(root, value, depth + 1)
        elif keyword == "$ref" and isinstance(value, str):
            target = root if value == "#" else resolve(root, value) if value.startswith("#/") else None
            yield from _spread(root, [target], depth + 1)
        elif not plain:
            plain = True
            yield schema


def _members(schema: dict[str, Any], name: str) -> Iterator[Any]:
    properties = schema.get("properties", {})
    if name in properties:
        yield properties[name]
    else:
        yield from schema.get("patternProperties", {}).values()
        yield schema.get("additionalProperties")


def _items(schema: dict[str, Any], index: int) -> Iterator[Any]:
    items = schema.get("items")
    several = items if isinstance(items, list) else schema.get("prefixItems", [])
    yield several[index] if index < len(several) else schema.get("additionalItems")
    yield items
