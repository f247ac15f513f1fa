"""XML out of an element schema, compact and always well-formed.

An element schema is JSON::

    {"element": "picture",
     "attributes": {"lang": {"enum": ["en", "zh"]}, "id": {"type": "integer", "required": false}},
     "children": [
        {"element": "caption", "text": {"type": "string", "max_length": 200}},
        {"element": "object", "min": 0, "max": null,
         "children": [{"element": "name", "text": {"pattern": "[a-z]+"}}, {"element": "count", "text": "integer"}]},
        {"choice": [{"element": "indoor"}, {"element": "outdoor", "text": {"enum": ["day", "night"]}}]}]}

An element has ``text`` or ``children`` or nothing. ``children`` come in their order, each from ``min`` to ``max`` times
(1 and 1 when left out; ``max: null`` is no limit); a ``choice`` is one of several elements each time. Text and
attributes are a ``type`` (``string``, ``integer``, ``number``, ``boolean``; the bare name will do), an ``enum`` of
strings, or a ``pattern`` for the whole text; strings take ``min_length`` and ``max_length`` in characters. Attributes
are written in their order, and are required unless ``required`` is false.

There is no white space between elements, no CDATA, no comment and no processing instruction; ``& < > "`` are
entities. Text under a ``pattern`` holds none of these four.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeAlias
from xml.sax.saxutils import escape

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.lowered import Lowered, as_hints, lark, quoted
from mmserve.grammar.regex import translate

MAX_DEPTH = 32
MAX_ELEMENTS = 1_000
MAX_LENGTH = 10_000
TYPES = {
    "integer": r"-?(?:0|[1-9][0-9]{0,17})",
    "number": r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?",
    "boolean": "true|false",
}
"""What the types other than ``string`` look like, for ``re.fullmatch`` too."""

_NAME = re.compile(r"[A-Za-z_\u4e00-\u9fa5][\w.\-]*")
# No control characters, no non-characters; the four that are entities stand beside.
_PLAIN = r'[^\x00-\x1F\x7F-\x9F"&<>\x{FFFE}\x{FFFF}]'
_STRING = rf"(?:{_PLAIN}|&(?:amp|lt|gt|quot);)"
_LINES = rf"(?:{_PLAIN}|\n|&(?:amp|lt|gt|quot);)"


@dataclass(frozen=True, slots=True)
class Text:
    """What a text may be: one of ``enum``, or what ``pattern`` matches, or ``type``."""

    type: str = "string"
    enum: tuple[str, ...] = ()
    pattern: str | None = None
    shortest: int = 0
    longest: int | None = None


@dataclass(frozen=True, slots=True)
class Element:
    name: str
    attributes: tuple[tuple[str, Text, bool], ...] = ()
    text: Text | None = None
    children: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One of ``options``, from ``least`` to ``most`` times."""

    options: tuple[Element, ...]
    least: int = 1
    most: int | None = 1


Path: TypeAlias = str


def read(schema: str) -> Element:
    """The element schema in JSON text. Raises ``InvalidConstraint`` and ``UnsupportedConstraint`` with the place."""
    try:
        value = json.loads(schema)
        schema.encode()
    except (ValueError, RecursionError) as error:
        raise InvalidConstraint(f"xml is not JSON: {error}", param="xml") from None
    return _Reader().element(value, "", 0)


def lower_xml(schema: str) -> Lowered:
    """Raises ``InvalidConstraint`` and ``UnsupportedConstraint``."""
    writer = _Writer()
    start = writer.element(read(schema))
    text = f"start: {start}\n" + "\n".join(writer.rules)
    return Lowered(lark(text), "xml", hints=as_hints(writer.hints))


def escaped(text: str) -> str:
    """``text`` as it stands in the output."""
    return escape(text, {'"': "&quot;"})


class _Reader:
    def __init__(self) -> None:
        self._count = 0

    def element(self, value: Any, path: Path, depth: int) -> Element:
        fields = self._fields(value, path, {"element", "attributes", "text", "children", "min", "max"})
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_ELEMENTS:
            message = f"xml has more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels, at {path or '/'}"
            raise UnsupportedConstraint(message, param="xml")
        if "text" in fields and "children" in fields:
            raise _invalid(path, "an element has text or children, not both")
        attributes = fields.get("attributes", {})
        if not isinstance(attributes, dict):
            raise _invalid(f"{path}/attributes", "must be an object")
        found = tuple(self._attribute(name, item, f"{path}/attributes/{name}") for name, item in attributes.items())
        text = self._text(fields["text"], f"{path}/text") if "text" in fields else None
        children = fields.get("children", [])
        if not isinstance(children, list):
            raise _invalid(f"{path}/children", "must be a list")
        items = [self._item(child, f"{path}/children/{index}", depth + 1) for index, child in enumerate(children)]
        return Element(_name(fields.get("element"), f"{path}/element"), found, text, tuple(items))

    def _fields(self, value: Any, path: Path, known: set[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _invalid(path, "must be an object")
        if unknown := value.keys() - known:
            raise _invalid(f"{path}/{min(unknown)}", "is not known")
        return value

    def _item(self, value: Any, path: Path, depth: int) -> Item:
        if isinstance(value, dict) and "choice" in value:
            self._fields(value, path, {"choice", "min", "max"})
            options = value["choice"]
            if not isinstance(options, list) or not options:
                raise _invalid(f"{path}/choice", "must be a list of elements")
            elements = [self.element(o, f"{path}/choice/{i}", depth) for i, o in enumerate(options)]
        else:
            elements = [self.element(value, path, depth)]
        least = value.get("min", 1)
        most = value.get("max", max(1, least) if _count(least) else 1)
        if not _count(least) or not (most is None or (_count(most) and most >= max(least, 1))):
            raise _invalid(path, "min and max must be counts of at most 10000, min not above max")
        return Item(tuple(elements), least, most)

    def _attribute(self, name: str, value: Any, path: Path) -> tuple[str, Text, bool]:
        required = value.get("required", True) if isinstance(value, dict) else True
        if not isinstance(required, bool):
            raise _invalid(f"{path}/required", "must be true or false")
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key != "required"}
        return _name(name, path), self._text(value, path), required

    def _text(self, value: Any, path: Path) -> Text:
        if isinstance(value, str):
            value = {"type": value}
        fields = self._fields(value, path, {"type", "enum", "pattern", "min_length", "max_length"})
        kind, enum, pattern = fields.get("type", "string"), fields.get("enum", []), fields.get("pattern")
        if kind != "string" and kind not in TYPES:
            raise _invalid(f"{path}/type", "must be string, integer, number or boolean")
        if not isinstance(enum, list) or any(not isinstance(x, str) or not _sayable(x) for x in enum):
            raise _invalid(f"{path}/enum", "must be strings that XML can hold")
        if not (pattern is None or isinstance(pattern, str)):
            raise _invalid(f"{path}/pattern", "must be a string")
        shortest, longest = fields.get("min_length", 0), fields.get("max_length")
        if not _count(shortest) or not (longest is None or (_count(longest) and longest >= shortest)):
            raise _invalid(path, "min_length and max_length must be counts of at most 10000")
        return Text(kind, tuple(enum), pattern, shortest, longest)


class _Writer:
    def __init__(self) -> None:
        self.rules: list[str] = []
        self.hints: list[str] = []

    def element(self, element: Element) -> str:
        parts = [quoted("<" + element.name)]
        for name, text, required in element.attributes:
            part = f'{quoted(f" {name}=" + chr(34))} {self._text(text, _STRING)} "\\""'
            parts.append(part if required else f"({part})?")
        closing = f"</{element.name}>"
        if element.text is None and not element.children:
            parts.append('"/>"')
        else:
            parts.append('">"')
            parts += [self._text(element.text, _LINES)] if element.text else map(self._item, element.children)
            parts.append(quoted(closing))
            self.hints.append(closing)
        return self._rule(f"e{len(self.rules)}", " ".join(parts))

    def _rule(self, name: str, body: str) -> str:
        self.rules.append(f"{name}: {body}")
        return name

    def _item(self, item: Item) -> str:
        group = "(" + " | ".join(map(self.element, item.options)) + ")"
        if (item.least, item.most) == (1, 1):
            return group
        return f"{group}{{{item.least},{'' if item.most is None else item.most}}}"

    def _text(self, text: Text, string: str) -> str:
        self.hints += [escaped(value) for value in text.enum]
        if text.enum:
            return self._rule(f"t{len(self.rules)}", " | ".join(quoted(escaped(value)) for value in text.enum))
        name = f"T{len(self.rules)}"
        if text.pattern is not None:
            translation = translate(text.pattern, param="xml")
            self.hints += translation.literals
            return self._rule(name, f"/(?:{translation.regex})/ & /{_PLAIN}*/")
        if text.type in TYPES:
            return self._rule(name, f"/{TYPES[text.type]}/")
        longest = "" if text.longest is None else text.longest
        return self._rule(name, f"/{string}{{{text.shortest},{longest}}}/")


def _sayable(text: str) -> bool:
    return all(char >= " " and char not in "\x7f\ufffe\uffff" and not "\ud800" <= char <= "\udfff" for char in text)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LENGTH


def _name(value: Any, path: Path) -> str:
    if not isinstance(value, str) or len(value) > 200 or not _NAME.fullmatch(value) or value.lower().startswith("xml"):
        raise _invalid(path, "must be an XML name of at most 200 characters, without a colon")
    return value


def _invalid(path: Path, message: str) -> InvalidConstraint:
    return InvalidConstraint(f"xml{path and ' at ' + path}: {message}", param="xml")
