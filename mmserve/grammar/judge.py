"""Whether a finished text is what was asked for, found out without llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

from jsonschema import Draft4Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from jsonschema_specifications import REGISTRY

from mmserve.grammar import words, xml
from mmserve.grammar.spec import (
    AnyJson,
    Choice,
    Constraint,
    Grammar,
    JsonSchema,
    Regex,
    StructuralTag,
    Tag,
    Words,
    XmlSchema,
)

_MOST_ENDS = 200


def judge(constraint: Constraint, text: str) -> bool | None:
    """Whether ``text`` satisfies ``constraint``; ``None`` for what only its own grammar can tell.

    Formats of a JSON Schema are annotations, and nothing that it refers to is fetched. A caller's constraint can make
    this run very long: see ``mmserve.grammar.judging``.
    """
    if isinstance(constraint, JsonSchema):
        return _schema(constraint.schema, text)
    if isinstance(constraint, AnyJson):
        value = _json(text)
        return isinstance(value, dict)
    if isinstance(constraint, Regex):
        try:
            return re.fullmatch(constraint.pattern, text) is not None
        except re.error:
            return None
    if isinstance(constraint, Choice):
        return text in constraint.options
    if isinstance(constraint, XmlSchema):
        return _xml(constraint.schema, text)
    if isinstance(constraint, StructuralTag):
        return _tags(constraint, text)
    if isinstance(constraint, Words):
        return _words(constraint, text)
    assert isinstance(constraint, Grammar)
    return None


def _json(text: str) -> Any:
    """The value, or ``...`` for what is no JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return ...


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _schema(schema: str, text: str) -> bool | None:
    value = _json(text)
    if value is ...:
        return False
    try:
        return bool(validator(json.loads(schema)).is_valid(value))
    except (SchemaError, re.error, RecursionError, ValueError, ArithmeticError):
        return None
    except Exception as error:
        # A reference that leads nowhere comes as an error of the library's library.
        if type(error).__module__.startswith(("referencing", "jsonschema")):
            return None
        raise


def validator(schema: Any) -> Validator:
    """For the draft that ``schema`` names or else fits. Raises ``SchemaError`` where it fits none."""
    named = validator_for(schema, default=Draft202012Validator)
    failure: SchemaError | None = None
    drafts: tuple[Any, ...] = (named, Draft201909Validator, Draft7Validator, Draft4Validator)
    for draft in dict.fromkeys(drafts):
        try:
            draft.check_schema(schema)
        except SchemaError as error:
            failure = failure or error
        else:
            make: Any = extend
            exact: Validator = make(draft, {"multipleOf": _multiple_of})(schema, registry=REGISTRY)
            return exact
    assert failure is not None
    raise failure


def _multiple_of(validator: Validator, step: float, instance: Any, _: Any) -> Iterator[ValidationError]:
    """As decimals: 4.35 is a multiple of 0.01, though the nearest floats are none."""
    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(step)):
        yield ValidationError(f"{instance!r} is not a multiple of {step}")


def _xml(schema: str, text: str) -> bool:
    if "<!" in text or "<?" in text:
        return False
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return False
    return _element(xml.read(schema), root)


def _element(wanted: xml.Element, found: ElementTree.Element) -> bool:
    known = {name: (text, required) for name, text, required in wanted.attributes}
    if found.tag != wanted.name or not found.attrib.keys() <= known.keys():
        return False
    for name, (text, required) in known.items():
        value = found.get(name)
        if required if value is None else not _text(text, value):
            return False
    if any(child.tail for child in found):
        return False
    if wanted.text is not None:
        return len(found) == 0 and _text(wanted.text, found.text or "")
    return not found.text and len(found) in _matches(wanted.children, list(found))


def _matches(items: Sequence[xml.Item], children: Sequence[ElementTree.Element]) -> set[int]:
    """How many of ``children`` the items can take."""
    ends = {0}
    for item in items:
        reached, times = set(ends) if item.least == 0 else set(), 0
        while ends and (item.most is None or times < item.most):
            ends = {e + 1 for e in ends if e < len(children) and any(_element(o, children[e]) for o in item.options)}
            times += 1
            if times >= item.least:
                reached |= ends
        ends = reached
    return ends


def _text(wanted: xml.Text, text: str) -> bool:
    if wanted.enum:
        return text in wanted.enum
    if wanted.pattern is not None:
        return re.fullmatch(wanted.pattern, text) is not None
    if wanted.type in xml.TYPES:
        return re.fullmatch(xml.TYPES[wanted.type], text) is not None
    return len(text) >= wanted.shortest and (wanted.longest is None or len(text) <= wanted.longest)


def _tags(constraint: StructuralTag, text: str) -> bool | None:
    if any(isinstance(tag.content, Grammar) for tag in constraint.tags):
        return None
    try:
        if not constraint.bare:
            return any(_rest(constraint, text, 0, 0))
        if any(_bare(constraint, text, 0)):
            return True
        return constraint.instead is not None and judge(constraint.instead, text)
    except RecursionError:
        return None


def _rest(constraint: StructuralTag, text: str, at: int, seen: int) -> Iterator[bool]:
    """``True`` for each way in which the text from ``at`` on is free text and whole tags."""
    starts = [place for trigger in constraint.triggers if (place := text.find(trigger, at)) >= 0]
    if constraint.stop_after_first and seen:
        if at == len(text):
            yield True
        return
    if not starts:
        if seen or not constraint.at_least_one:
            yield True
        return
    opening = min(starts)
    for tag in constraint.tags:
        if text.startswith(tag.begin, opening):
            for end in _ends(tag, text, opening + len(tag.begin)):
                yield from _rest(constraint, text, end, seen + 1)


def _bare(constraint: StructuralTag, text: str, at: int) -> Iterator[bool]:
    """``True`` for each way in which the text from ``at`` on is whole tags with a line end between two."""
    for tag in constraint.tags:
        if text.startswith(tag.begin, at):
            for end in _ends(tag, text, at + len(tag.begin)):
                if end == len(text):
                    yield True
                elif not constraint.stop_after_first and text[end] == "\n":
                    yield from _bare(constraint, text, end + 1)


def _ends(tag: Tag, text: str, start: int) -> Iterator[int]:
    """Where ``tag`` can be over, its content beginning at ``start``."""
    end, tries = text.find(tag.end, start), 0
    while end >= 0 and tries < _MOST_ENDS:
        content = text[start:end]
        if tag.content is None or judge(tag.content, content):
            yield end + len(tag.end)
            if tag.content is None:
                return
        if end >= len(text):
            return
        end, tries = text.find(tag.end, end + 1), tries + 1


def _words(constraint: Words, text: str) -> bool:
    said = text.split()
    return (
        bool(said)
        and text.startswith(constraint.start_with)
        and all(words.contains(text, word) for word in constraint.must_include)
        and not any(words.contains(text, word) for word in constraint.must_not_include)
        and (constraint.max_words is None or len(said) <= constraint.max_words)
    )
