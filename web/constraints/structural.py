"""Structural tags: free text with constrained regions, in the shapes that SGLang, vLLM and xgrammar's users send.

Two shapes are read: ``{"structures": [{begin, schema, end}], "triggers": [...]}``, and ``{"format": {...}}`` with
xgrammar's format objects, as far as they say what a ``StructuralTag`` or another constraint can say. What they cannot
is refused by the format's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.spec import AnyJson, Choice, Constraint, Grammar, JsonSchema, Regex, StructuralTag, Tag, XmlSchema
from web.constraints import leaves

Content: TypeAlias = JsonSchema | AnyJson | Regex | Choice | Grammar | XmlSchema

_WHAT_THERE_IS = "json_schema, regex, grammar, const_string, or (of const_string), triggered_tags"


def structural_tag(value: object, path: str) -> Constraint:
    """From a JSON object, or JSON text of one; ``"type": "structural_tag"`` may be left out.

    Raises ``InvalidConstraint``, and ``UnsupportedConstraint`` for formats that have no meaning here.
    """
    if isinstance(value, str):
        value = leaves.decoded(value, path)
    body = leaves.mapping(value, path, ("type", "format", "structures", "triggers"))
    if body.get("type", "structural_tag") != "structural_tag":
        raise InvalidConstraint(f'{path}.type must be "structural_tag"', param=f"{path}.type")
    if "format" in body:
        leaves.mapping(body, path, ("type", "format"))
        return _format(body["format"], f"{path}.format")
    triggers = leaves.texts(leaves.needed(body, "triggers", path), f"{path}.triggers")
    tags = _each(leaves.needed(body, "structures", path), f"{path}.structures", _structure)
    with leaves.at(path):
        return StructuralTag(tags, triggers)


def _each(value: object, path: str, read: Callable[[object, str], Tag]) -> tuple[Tag, ...]:
    if not isinstance(value, list):
        raise InvalidConstraint(f"{path} must be a list", param=path)
    return tuple(read(item, f"{path}[{i}]") for i, item in enumerate(value))


def _structure(value: object, path: str) -> Tag:
    body = leaves.mapping(value, path, ("begin", "schema", "end"))
    begin, end = (leaves.text(leaves.needed(body, name, path), f"{path}.{name}") for name in ("begin", "end"))
    return Tag(begin, leaves.schema(leaves.needed(body, "schema", path), f"{path}.schema"), end)


def _format(value: object, path: str) -> Constraint:
    kind = _kind(value, path)
    if kind == "triggered_tags":
        return _triggered_tags(value, path)
    if kind == "any_text":
        raise InvalidConstraint(f"{path} is any_text, which constrains nothing; leave it out", param=path)
    return _content(value, path)


def _triggered_tags(value: object, path: str) -> StructuralTag:
    known = ("type", "triggers", "tags", "at_least_one", "stop_after_first", "excludes")
    body = leaves.mapping(value, path, known)
    if body.get("excludes"):
        raise _unsupported("triggered_tags with excludes", f"{path}.excludes")
    at_least_one, stop_after_first = (
        leaves.flag(body.get(name, False), f"{path}.{name}") for name in ("at_least_one", "stop_after_first")
    )
    triggers = leaves.texts(leaves.needed(body, "triggers", path), f"{path}.triggers")
    tags = _each(leaves.needed(body, "tags", path), f"{path}.tags", _tag)
    with leaves.at(path):
        return StructuralTag(tags, triggers, at_least_one, stop_after_first)


def _tag(value: object, path: str) -> Tag:
    kind = value.get("type", "tag") if isinstance(value, Mapping) else "tag"
    if kind != "tag":
        raise InvalidConstraint(f'{path}.type must be "tag"', param=f"{path}.type")
    body = leaves.mapping(value, path, ("type", "begin", "content", "end"))
    begin = leaves.text(leaves.needed(body, "begin", path), f"{path}.begin")
    ends = leaves.texts(leaves.needed(body, "end", path), f"{path}.end")
    if len(ends) != 1:
        raise _unsupported("a tag with several ends", f"{path}.end")
    content = leaves.needed(body, "content", path)
    where = f"{path}.content"
    if _kind(content, where) == "any_text":
        if any(content.get(name) for name in content if name != "type"):
            raise _unsupported("any_text with limits or excludes", where)
        return Tag(begin, None, ends[0])
    return Tag(begin, _content(content, where), ends[0])


def _content(value: object, path: str) -> Content:
    kind = _kind(value, path)
    if kind not in _READERS:
        raise _unsupported(f'the format "{kind[:64]}"', path)
    return _READERS[kind](value, path)


def _json_schema(value: object, path: str) -> JsonSchema:
    body = leaves.mapping(value, path, ("type", "json_schema", "style", "any_order"))
    if body.get("style", "json") != "json":
        raise _unsupported(f"json_schema in the style {body['style']!r:.64}", f"{path}.style")
    if body.get("any_order"):
        raise _unsupported("json_schema with any_order", f"{path}.any_order")
    return leaves.schema(leaves.needed(body, "json_schema", path), f"{path}.json_schema")


def _regex(value: object, path: str) -> Regex:
    body = leaves.mapping(value, path, ("type", "pattern"))
    return leaves.regex(leaves.needed(body, "pattern", path), f"{path}.pattern")


def _grammar(value: object, path: str) -> Grammar:
    body = leaves.mapping(value, path, ("type", "grammar"))
    return leaves.grammar(leaves.needed(body, "grammar", path), f"{path}.grammar")


def _const_string(value: object, path: str) -> Choice:
    body = leaves.mapping(value, path, ("type", "value"))
    return leaves.choice([leaves.needed(body, "value", path)], f"{path}.value")


def _or(value: object, path: str) -> Choice:
    body = leaves.mapping(value, path, ("type", "elements"))
    elements = leaves.needed(body, "elements", path)
    if not isinstance(elements, list):
        raise InvalidConstraint(f"{path}.elements must be a list", param=f"{path}.elements")
    options: list[str] = []
    for i, element in enumerate(elements):
        where = f"{path}.elements[{i}]"
        if _kind(element, where) != "const_string":
            raise _unsupported("or of anything but const_string", where)
        options += _const_string(element, where).options
    return leaves.choice(options, f"{path}.elements")


_READERS: Mapping[str, Callable[[object, str], Content]] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "grammar": _grammar,
    "const_string": _const_string,
    "or": _or,
}


def _kind(value: Any, path: str) -> str:
    if not isinstance(value, Mapping):
        raise InvalidConstraint(f"{path} must be a format object", param=path)
    return leaves.text(leaves.needed(value, "type", path), f"{path}.type")


def _unsupported(what: str, path: str) -> UnsupportedConstraint:
    return UnsupportedConstraint(f"{path}: {what} cannot be enforced here; there are {_WHAT_THERE_IS}", param=path)
