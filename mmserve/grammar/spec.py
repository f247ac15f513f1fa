"""What a caller may ask an answer to look like: plain frozen values, checked for shape and size. No llguidance here.

A constraint travels in a ``Request`` and is the key under which its compiled form is cached, so every field is
hashable: schemas are JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mmserve.errors import InvalidConstraint

MAX_SOURCE_BYTES = 1024 * 1024
"""The longest schema, pattern or grammar that is looked at."""

MAX_CHOICES = 10_000


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON value that a JSON Schema accepts. ``schema`` is its JSON text, with the order of properties that was sent.

    ``strict`` refuses what cannot be enforced exactly; otherwise it is relaxed step by step, and the answer says so.
    """

    schema: str
    strict: bool = False

    def __post_init__(self) -> None:
        _check_size(self.schema, "schema")

    @classmethod
    def of(cls, schema: Mapping[str, Any] | bool, *, strict: bool = False) -> JsonSchema:
        """From a schema as Python values. Raises ``InvalidConstraint`` for what JSON cannot say."""
        return cls(_json_text(schema, "schema"), strict)


@dataclass(frozen=True, slots=True)
class AnyJson:
    """Any JSON object (OpenAI's ``json_object``)."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that ``pattern`` matches as a whole, as Python's ``re.fullmatch`` would have it."""

    pattern: str

    def __post_init__(self) -> None:
        _check_size(self.pattern, "regex")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``options``, exactly."""

    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise InvalidConstraint("choices is empty; give at least one", param="choices")
        if len(self.options) > MAX_CHOICES:
            raise InvalidConstraint(f"at most {MAX_CHOICES} choices are allowed", param="choices")
        if "" in self.options:
            raise InvalidConstraint("a choice must not be empty", param="choices")
        if len(set(self.options)) < len(self.options):
            raise InvalidConstraint("a choice is given twice", param="choices")
        _check_size("".join(self.options), "choices")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A context-free grammar: Lark as llguidance reads it, or GBNF / W3C EBNF with a ``root`` rule (``::=``)."""

    text: str

    def __post_init__(self) -> None:
        _check_size(self.text, "grammar")


@dataclass(frozen=True, slots=True)
class XmlSchema:
    """An XML element; ``schema`` is the JSON text of an element schema (see ``mmserve.grammar.xml``)."""

    schema: str

    def __post_init__(self) -> None:
        _check_size(self.schema, "xml")

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> XmlSchema:
        """From an element schema as Python values. Raises ``InvalidConstraint`` for what JSON cannot say."""
        return cls(_json_text(schema, "xml"))


@dataclass(frozen=True, slots=True)
class Tag:
    """A region of a structural tag: after the text ``begin`` comes what ``content`` accepts, then ``end``."""

    begin: str
    content: JsonSchema | AnyJson | Regex | Choice | Grammar | XmlSchema | None
    end: str


@dataclass(frozen=True, slots=True)
class StructuralTag:
    """Free text in which each ``triggers`` text opens one of the ``tags`` whose ``begin`` starts with it.

    ``at_least_one`` wants a tag before the text may end; ``stop_after_first`` ends it with the first. With ``bare``
    there is no free text: one tag or more (only one with ``stop_after_first``), a line end between two; or, where it is
    given, what ``instead`` accepts in their place. ``instead`` needs ``bare``.
    """

    tags: tuple[Tag, ...]
    triggers: tuple[str, ...]
    at_least_one: bool = False
    stop_after_first: bool = False
    bare: bool = False
    instead: JsonSchema | AnyJson | Regex | Choice | Grammar | XmlSchema | None = None

    def __post_init__(self) -> None:
        if self.instead is not None and not self.bare:
            raise InvalidConstraint("what stands instead of tags needs tags without text", param="structural_tag")
        if not self.tags:
            raise InvalidConstraint("structural_tag has no tags; give at least one", param="structural_tag")
        if not self.triggers or "" in self.triggers:
            raise InvalidConstraint("structural_tag needs triggers that are not empty", param="structural_tag")
        for tag in self.tags:
            if not any(tag.begin.startswith(trigger) for trigger in self.triggers):
                raise InvalidConstraint(
                    f"no trigger is the start of the tag {tag.begin[:60]!r}, so nothing would open it",
                    param="structural_tag",
                )
        _check_size("".join(tag.begin + tag.end for tag in self.tags), "structural_tag")


@dataclass(frozen=True, slots=True)
class Words:
    """Text with words that it must or must not have, as captions need them.

    ``must_include`` and ``must_not_include`` are found as whole words, whatever their case; ``start_with`` is the
    text's exact beginning; words are what white space separates.
    """

    must_include: tuple[str, ...] = ()
    must_not_include: tuple[str, ...] = ()
    start_with: str = ""
    max_words: int | None = None

    def __post_init__(self) -> None:
        for name in ("must_include", "must_not_include"):
            words = getattr(self, name)
            if len(words) > 64:
                raise InvalidConstraint(f"at most 64 entries are allowed in {name}", param=name)
            if any(not word.strip() or len(word) > 200 for word in words):
                raise InvalidConstraint(f"each entry of {name} must have 1 to 200 characters", param=name)
        if len(self.start_with) > 2000:
            raise InvalidConstraint("start_with may have at most 2000 characters", param="start_with")
        if self.max_words is not None and not 1 <= self.max_words <= 1000:
            raise InvalidConstraint(f"max_words must be between 1 and 1000, got {self.max_words}", param="max_words")
        if not (self.must_include or self.must_not_include or self.start_with or self.max_words):
            raise InvalidConstraint("nothing is asked of the words; leave the constraint out", param="must_include")


Constraint: TypeAlias = JsonSchema | AnyJson | Regex | Choice | Grammar | XmlSchema | StructuralTag | Words


def one_constraint(found: Sequence[tuple[str, Constraint]]) -> Constraint | None:
    """The one constraint of ``(field, constraint)`` pairs, or ``None``. Raises ``InvalidConstraint`` for more."""
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise InvalidConstraint(f"only one constraint can hold, and these are given: {names}", param=found[1][0])
    return found[0][1] if found else None


def _json_text(value: object, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConstraint(f"{name} is not JSON: {error}", param=name) from None


def _check_size(text: str, name: str) -> None:
    if not text:
        raise InvalidConstraint(f"{name} is empty", param=name)
    if len(text) > MAX_SOURCE_BYTES or len(text.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        raise InvalidConstraint(f"{name} is longer than {MAX_SOURCE_BYTES} bytes", param=name)
