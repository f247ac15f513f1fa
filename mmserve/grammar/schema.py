"""JSON Schema: a chain of steps from exact to lenient, and a pre-pass that keeps the first one sound.

llguidance's own strictness has holes, all closed here by a rewriting that accepts no more than the schema does, or by
a refusal that names the place:

- ``{"properties": {"a": …}}`` without ``additionalProperties: false`` lets ``"\\u0061"`` in as an additional name, so
  names that are not listed are written without escapes here;
- names may come twice, so that ``minProperties`` counts too many;
- numbers go through 64-bit floats, so large integers change;
- patterns follow Rust's character classes rather than ECMAScript's or Python's.

A bare ``integer`` gets the bounds of 64 bits, so that it cannot run away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, TypeGuard

from mmserve.errors import ConstraintError, InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.lowered import COMPACT, JsonStyle, Lowered, Step, Trial, as_hints, grammars
from mmserve.grammar.refusal import refusal
from mmserve.grammar.regex import translate
from mmserve.grammar.walk import Node, Place, check_nesting, places

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
"""The formats that llguidance enforces."""

IGNORED = (
    "not", "if", "dependencies", "dependentRequired", "dependentSchemas", "contains", "propertyNames", "uniqueItems",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip

_PLAIN_NAME = r'^[^\x00-\x1F\x7F"\\]*$'
"""Names without a character that has to be escaped; llguidance's masks are fast for these."""

_OLD_DRAFTS = ("draft-04/schema", "draft-06/schema", "draft-07/schema")
_VALIDATING = (
    "type", "const", "enum", "allOf", "anyOf", "oneOf",
    "not", "if", "then", "else", "pattern", "format",
    "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minItems", "maxItems", "uniqueItems", "items", "additionalItems",
    "contains", "required", "properties", "patternProperties", "additionalProperties", "minProperties",
    "maxProperties", "dependencies", "propertyNames",
)  # fmt: skip
"""What the drafts up to 7 ignore beside ``$ref``."""

MAX_JSON_DEPTH = 32
"""How deeply values are inside each other where any JSON object is allowed."""

MAX_PATTERNS = 6
"""Patterns that one text has to match at once."""

MAX_STEP = 1_000
"""The largest step of ``multipleOf`` in units of its last digit: an automaton has as many states."""

_COUNTS = {"minLength": 2_000, "minItems": 500, "maxItems": 100_000}

_LARGEST = 9223372036854774784
"""The largest integer below 2^63 that is a 64-bit float."""

_EXACT = 2**53


def lower_schema(text: str, *, strict: bool, trial: Trial, style: JsonStyle = COMPACT) -> Lowered:
    """The first step of the chain that ``trial`` compiles.

    Raises ``InvalidConstraint`` for what is no schema and ``UnsupportedConstraint``, naming keyword and place, for
    what cannot be enforced: exactly, where ``strict`` is set.
    """
    root, found = read(text)
    steps: tuple[Step, ...] = ("strict",) if strict else ("strict", "coerced", "lenient")
    failure: ConstraintError | None = None
    for step in steps:
        if step != "strict":  # the step before has rewritten it
            root = parse(text)
            found = places(root)
        try:
            attempt = prepare(root, found, step, style)
        except UnsupportedConstraint as error:
            failure = error
            continue
        message = trial(attempt.grammar)
        if not message:
            return attempt
        failure = refusal(message, places(parse(text)))
        if isinstance(failure, InvalidConstraint):
            raise failure
    assert failure is not None
    raise failure


def parse(text: str) -> Node:
    """A schema out of its JSON text; ``true`` is the empty one. Raises ``ConstraintError``."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        text.encode()
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidConstraint(f"schema is not JSON: {error}", param="schema") from None
    if value is False:
        raise UnsupportedConstraint("nothing satisfies the schema false", param="schema")
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise InvalidConstraint("schema must be a JSON object", param="schema")
    return value


def read(text: str) -> tuple[Node, list[Place]]:
    """A schema and its subschemas.

    Raises ``UnsupportedConstraint`` for what would take too long at every step, and what ``parse`` raises.
    """
    root = parse(text)
    check_nesting(root)
    found = places(root)
    for place in found:
        _check_counts(place)
    _check_conjunctions(found)
    return root, found


def prepare(root: Node, found: list[Place], step: Step, style: JsonStyle = COMPACT) -> Lowered:
    """The grammar of one step; rewrites ``root``, whose subschemas are ``found``. Raises ``ConstraintError``."""
    pass_ = _PrePass(root, found, step)
    for place in found:
        pass_.visit(place)
    options: dict[str, Any] = {
        "whitespace_flexible": False,
        "item_separator": style.item_separator,
        "key_separator": style.key_separator,
        "json_allow_general_unicode_escapes": True,
        "coerce_one_of": step != "strict",
        "lenient": step == "lenient",
    }
    if pass_.plain_names:
        # Then every character has one spelling, and a name cannot be taken twice.
        options["json_allowed_escapes"] = 'nrbtf\\"'
    root["x-guidance"] = options
    hints = as_hints(pass_.hints)
    return Lowered(grammars([{"json_schema": root}]), "schema", step, tuple(pass_.relaxed[:32]), hints)


def any_json(style: JsonStyle = COMPACT) -> Lowered:
    """Any JSON object, its values at most ``MAX_JSON_DEPTH`` levels inside each other."""
    comma, colon = f'"{style.item_separator}"', f'"{style.key_separator}"'
    rules = ["start: o0", r'STRING: "\"" CHAR* "\""', r"CHAR: /[^\x00-\x1F\x7F\"\\]/ | ESCAPE"]
    rules.append(
        r"ESCAPE: /\\[bfnrt\"\\]/ | /\\u([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
        r"|[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})/"
    )
    rules.append(r"NUMBER: /-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/")
    rules.append('scalar: STRING | NUMBER | "true" | "false" | "null"')
    for depth in range(MAX_JSON_DEPTH):
        value = f"scalar | o{depth + 1} | a{depth + 1}" if depth < MAX_JSON_DEPTH - 1 else "scalar"
        rules.append(f"v{depth}: {value}")
        rules.append(f'o{depth}: "{{" (p{depth} ({comma} p{depth})*)? "}}"')
        rules.append(f"p{depth}: STRING {colon} v{depth}")
        if depth:
            rules.append(f'a{depth}: "[" (v{depth} ({comma} v{depth})*)? "]"')
    grammar = grammars([{"lark_grammar": "\n".join(rules)}])
    return Lowered(grammar, "response_format", hints=(b"{}", b"}"))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


class _PrePass:
    """Rewrites one schema in place for one step and collects what it has to say."""

    def __init__(self, root: Node, found: list[Place], step: Step) -> None:
        self.relaxed: list[str] = []
        self.hints: list[str] = []
        self.plain_names = False
        self._step = step
        root.pop("x-guidance", None)
        self.places = found
        if step == "strict" and "draft-03" in str(root.get("$schema")):
            self._refuse("$schema at /$schema names draft 3, which is not enforced")
        self._lone_references = str(root.get("$schema")).rstrip("#").endswith(_OLD_DRAFTS)

    def visit(self, place: Place) -> None:
        if self._lone_references and isinstance(place.node.get("$ref"), str):
            for keyword in place.node.keys() & set(_VALIDATING):
                del place.node[keyword]
        self._keywords(place)
        self._numbers(place)
        self._pattern(place)
        self._names(place)
        self._texts(place.node)

    def _refuse(self, message: str) -> None:
        raise UnsupportedConstraint(message, param="schema")

    def _keywords(self, place: Place) -> None:
        node = place.node
        if node.get("uniqueItems") is False:
            del node["uniqueItems"]
        name = node.get("format")
        if self._step != "strict":
            if isinstance(name, str) and name not in FORMATS:
                self.relaxed.append(f"format {name!r} at {place.pointer}/format is not enforced")
                del node["format"]
            if "oneOf" in node:
                self.relaxed.append(f"{place.at('oneOf')} is enforced as anyOf")
        if self._step == "lenient":
            self.relaxed += [f"{place.at(keyword)} is not enforced" for keyword in IGNORED if keyword in node]
            if {"minProperties", "maxProperties"} & node.keys():
                self.relaxed.append(f"{place.at('minProperties or maxProperties')} may not be enforced")

    def _numbers(self, place: Place) -> None:
        node = place.node
        for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            value = node.get(keyword)
            if _is_number(value):
                node[keyword] = _bound(value, upwards="inimum" in keyword)
        for value in [node.get("const"), *_list(node.get("enum"))]:
            if self._step == "strict" and _loses_digits(value):
                keyword = "const" if "const" in node else "enum"
                self._refuse(f"{place.at(keyword)} has a number that a 64-bit float cannot hold exactly")
        bounded = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const", "enum"}
        if node.get("type") == "integer" and not bounded & node.keys():
            node |= {"minimum": -_LARGEST, "maximum": _LARGEST}

    def _pattern(self, place: Place) -> None:
        pattern = place.node.get("pattern")
        if not isinstance(pattern, str):
            return
        try:
            place.node["pattern"] = translate(pattern, search=True, param="schema").regex
        except InvalidConstraint:
            # What only ECMAScript knows, such as \p{L}, is left to llguidance.
            return
        except UnsupportedConstraint as error:
            if self._step != "lenient":
                self._refuse(f"{place.at('pattern')} cannot be enforced: {error.message}")
            self.relaxed.append(f"{place.at('pattern')} is not enforced")
            del place.node["pattern"]

    def _names(self, place: Place) -> None:
        node = place.node
        least, required = node.get("minProperties"), node.get("required")
        if self._step == "strict" and isinstance(least, int):
            sure = len(set(map(str, required))) if isinstance(required, list) else 0
            if least - sure > 1:
                self._refuse(f"{place.at('minProperties')} cannot be enforced, as names may come twice")
        rest = node.get("additionalProperties", True)
        properties, patterns = node.get("properties"), node.get("patternProperties")
        if rest is False or not (properties or patterns):
            return
        if patterns or not (rest is True or rest == {}):
            self.plain_names = True
            return
        _close(node)

    def _texts(self, node: Node) -> None:
        values = [node.get("const"), *_list(node.get("enum"))]
        self.hints += [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values[:40]
                       if value is not None]  # fmt: skip
        for name in list(_dict(node.get("properties")))[:40]:
            self.hints.append(json.dumps(name, ensure_ascii=False) + ":")


def _close(node: Node) -> None:
    """Says "any other name" as a pattern, whose names llguidance spells in one way only.

    Both keywords follow ``properties`` at once: llguidance reads a schema in order and takes neighbours together.
    """
    items = [(name, value) for name, value in node.items() if name not in ("additionalProperties", "patternProperties")]
    node.clear()
    for name, value in items:
        node[name] = value
        if name == "properties":
            node["patternProperties"] = {_PLAIN_NAME: True}
            node["additionalProperties"] = False


def _bound(value: float, *, upwards: bool) -> float:
    """``value`` or the nearest on the inner side that survives a 64-bit float."""
    if abs(value) > _LARGEST:
        return math.copysign(_LARGEST, value) if isinstance(value, float) else (_LARGEST if value > 0 else -_LARGEST)
    if isinstance(value, float) or int(float(value)) == value:
        return value
    near = float(value)
    if upwards and near < value:
        near = math.nextafter(near, math.inf)
    elif not upwards and near > value:
        near = math.nextafter(near, -math.inf)
    return int(near)


def _loses_digits(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if _is_number(item) and (abs(item) > _EXACT if isinstance(item, int) else not math.isfinite(item)):
            return True
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def _check_counts(place: Place) -> None:
    """What takes llguidance, or the search for an end, longer than a request may last. Raises whatever the step."""
    for keyword, most in _COUNTS.items():
        value = place.node.get(keyword)
        if _is_number(value) and value > most:
            raise UnsupportedConstraint(f"{place.at(keyword)} is {value}; at most {most} is allowed", param="schema")
    step = place.node.get("multipleOf")
    if _is_number(step) and math.isfinite(step) and _units(step) > MAX_STEP:
        message = f"{place.at('multipleOf')} has too many digits: at most {MAX_STEP} of its last one can be enforced"
        raise UnsupportedConstraint(message, param="schema")


def _units(step: float) -> int:
    """How many of its last decimal digit ``step`` is: 12 for 0.12."""
    digits = f"{Decimal(repr(step)).normalize():f}".replace(".", "").strip("-").strip("0")
    return int(digits) if len(digits) < 10 else 10**10


def _check_conjunctions(found: list[Place]) -> None:
    """llguidance asks whether all patterns of a text can hold at once, which takes for ever for many of them."""
    for place in found:
        branches = _list(place.node.get("allOf"))
        if len(branches) < 2:
            continue
        counts: dict[str, set[str]] = {}
        for name, pattern in _patterns(branches):
            counts.setdefault(name, set()).add(pattern)
        most = max(map(len, counts.values()), default=0)
        steps = [p.node.get("multipleOf") for b in branches if isinstance(b, dict) for p in places(b)]
        if math.lcm(*(_units(step) for step in steps if _is_number(step) and math.isfinite(step))) > MAX_STEP:
            raise UnsupportedConstraint(f"{place.at('allOf')} joins steps of multipleOf to a large one", param="schema")
        if most > MAX_PATTERNS:
            message = f"{place.at('allOf')} joins {most} patterns; at most {MAX_PATTERNS} can hold at once"
            raise UnsupportedConstraint(message, param="schema")


def _patterns(branches: list[Any]) -> Iterator[tuple[str, str]]:
    """(property name, pattern) in every branch, whatever lies between."""
    for branch in branches:
        if isinstance(branch, dict):
            for place in places(branch):
                pattern = place.node.get("pattern")
                if isinstance(pattern, str):
                    yield place.pointer.rpartition("/properties/")[2], pattern


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
