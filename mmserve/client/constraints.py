"""What an answer shall look like: Python values -> the fields of a request, and its text -> a Python object.

A ``schema`` may be a pydantic model, a dataclass, a ``TypedDict`` (of ``typing_extensions`` before Python 3.12) or any
other type that pydantic knows, a JSON Schema as a dict, or one as JSON text; ``choices`` a list of strings, an ``Enum``
class or a ``Literal``.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args, get_origin

from mmserve.client.answer import Answer, AnswerNotValid
from mmserve.errors import InvalidConstraint


class Constraints(TypedDict, total=False):
    """What the answer must look like; at most one kind, and the server sees to it that it does.

    ``Answer.parsed`` is then an instance of ``schema``, the decoded JSON, or the chosen one of ``choices``. ``strict``
    refuses a schema that cannot be enforced exactly, instead of relaxing it. ``grammar`` is Lark or EBNF (GBNF);
    ``xml`` an element schema; ``structural_tag`` free text with constrained regions. ``must_include``,
    ``must_not_include``, ``start_with`` and ``max_words`` are for captions, and go together.
    """

    schema: Any
    strict: bool | None
    json: bool | None
    regex: str | re.Pattern[str] | None
    choices: Any
    grammar: str | None
    xml: Mapping[str, Any] | str | None
    structural_tag: Mapping[str, Any] | str | None
    must_include: str | Sequence[str] | None
    must_not_include: str | Sequence[str] | None
    start_with: str | None
    max_words: int | None


_KINDS = ("schema", "json", "regex", "choices", "grammar", "xml", "structural_tag")
_WORDS = ("must_include", "must_not_include", "start_with", "max_words")


@dataclass(frozen=True, slots=True)
class Shape:
    """A constraint, ready to be sent: ``form`` for ``/v1/vqa``, ``body`` for chat completions.

    ``parse`` makes a finished text into the caller's object; None where there is nothing to make.
    """

    form: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    parse: Callable[[str], Any] | None = None

    def finish(self, answer: Answer) -> Answer[Any]:
        """``answer`` with ``parsed``. Raises :class:`AnswerNotValid`, which keeps the answer."""
        if self.parse is None:
            return answer
        try:
            return answer.with_parsed(self.parse(answer.text))
        except Exception as error:  # whatever a type's own validators raise, the text is not lost
            message = f"the answer is not what was asked for ({error}); it is: {answer.text}"
            raise AnswerNotValid(message, answer=answer) from error


def shape_of(wanted: Mapping[str, Any]) -> Shape:
    """Reads the :class:`Constraints` of a call. Raises ``InvalidConstraint`` or TypeError for what cannot be meant."""
    given = {name: value for name, value in wanted.items() if value is not None and value is not False}
    words = {name: given[name] for name in _WORDS if name in given}
    kinds = [name for name in _KINDS if name in given] + ([next(iter(words))] if words else [])
    if len(kinds) > 1:
        raise InvalidConstraint(
            f"only one constraint can hold, and these are given: {', '.join(kinds)}", param=kinds[1]
        )
    if "strict" in given and "schema" not in given:
        raise InvalidConstraint("strict says how schema is kept; give schema too", param="strict")
    if not kinds:
        return Shape()
    if words:
        listed = {name: _listed(value) if name.startswith("must") else value for name, value in words.items()}
        return Shape(listed, listed)
    return _READERS[kinds[0]](given[kinds[0]], bool(given.get("strict")))


def _schema(value: Any, strict: bool) -> Shape:
    name, shown, parse = _readable(value)
    form = {"schema": json.dumps(shown, ensure_ascii=False)} | ({"strict": True} if strict else {})
    named = {"name": name, "schema": shown} | ({"strict": True} if strict else {})
    return Shape(form, {"response_format": {"type": "json_schema", "json_schema": named}}, parse)


def _readable(value: Any) -> tuple[str, Any, Callable[[str], Any]]:
    """A schema's name, the schema as JSON values, and how text becomes what the caller asked for."""
    if isinstance(value, str):
        try:
            return "answer", json.loads(value), json.loads
        except ValueError as error:
            raise InvalidConstraint(f"schema is not valid JSON: {error}", param="schema") from None
    if isinstance(value, Mapping):
        return "answer", value, json.loads
    from pydantic import PydanticUserError, TypeAdapter  # not for those who need none

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(value)
        shown = adapter.json_schema()
    except PydanticUserError as error:
        why = str(error).partition("\n")[0]  # what follows it is an address
        raise TypeError(
            f"schema is a type that pydantic knows, a dict or JSON text, not {value!r:.80}: {why}"
        ) from error
    name = re.sub(r"[^a-zA-Z0-9_-]+", "_", getattr(value, "__name__", "answer"))[:64]
    return name, _closed(shown), adapter.validate_json


def _closed(schema: Any) -> Any:
    """``schema``, with objects that have the type's own fields and no others: what else a model may invent, the type
    would drop."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: value if name in ("default", "const", "enum", "examples") else _closed(value)
             for name, value in schema.items()}  # fmt: skip
    if inner.get("type") == "object" and isinstance(inner.get("properties"), dict):
        inner.setdefault("additionalProperties", False)
    return inner


def _json(_: Any, __: bool) -> Shape:
    return Shape({"json": True}, {"response_format": {"type": "json_object"}}, json.loads)


def _regex(value: Any, _: bool) -> Shape:
    pattern = value.pattern if isinstance(value, re.Pattern) else value
    return Shape({"regex": pattern}, {"structured_outputs": {"regex": pattern}})


def _grammar(value: Any, _: bool) -> Shape:
    return Shape({"grammar": value}, {"structured_outputs": {"grammar": value}})


def _xml(value: Any, _: bool) -> Shape:
    return Shape({"xml": _json_text(value)}, {"xml": value})


def _structural_tag(value: Any, _: bool) -> Shape:
    return Shape({"structural_tag": _json_text(value)}, {"structural_tag": value})


def _choices(value: Any, _: bool) -> Shape:
    options = options_of(value)
    texts = list(options)
    return Shape(
        {"choices": json.dumps(texts, ensure_ascii=False)},
        {"structured_outputs": {"choice": texts}},
        lambda text: chosen(options, text),
    )


def options_of(choices: Any) -> Mapping[str, Any]:
    """The text of each choice, and the object that it stands for: itself, a member of an Enum, a Literal's value."""
    if isinstance(choices, type) and issubclass(choices, enum.Enum):
        pairs = [(_said(member.value), member) for member in choices]
    elif get_origin(choices) is Literal:
        pairs = [(_said(value), value) for value in get_args(choices)]
    elif isinstance(choices, Iterable) and not isinstance(choices, str | bytes):
        pairs = [(choice, choice) for choice in choices]
        if not all(isinstance(text, str) for text, _ in pairs):
            raise TypeError("choices is a list of strings, an Enum class or a Literal")
    else:
        raise TypeError(f"choices is a list of strings, an Enum class or a Literal, not {choices!r:.80}")
    if len({text for text, _ in pairs}) < len(pairs):
        raise InvalidConstraint("a choice is given twice", param="choices")
    return dict(pairs)


def chosen(options: Mapping[str, Any], text: str) -> Any:
    if text not in options:
        raise ValueError("the text is none of the choices")
    return options[text]


def _said(value: object) -> str:
    """What stands for a value in an answer: as JSON would have it, but for strings, which are as they are."""
    return value if isinstance(value, str) else json.dumps(value)


def _json_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


_READERS: Mapping[str, Callable[[Any, bool], Shape]] = {
    "schema": _schema,
    "json": _json,
    "regex": _regex,
    "choices": _choices,
    "grammar": _grammar,
    "xml": _xml,
    "structural_tag": _structural_tag,
}
