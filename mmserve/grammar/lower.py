"""From what a caller may ask for to llguidance's grammars."""

from __future__ import annotations

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar import ebnf
from mmserve.grammar.larktext import check_lark
from mmserve.grammar.lowered import COMPACT, JsonStyle, Lowered, Trial, as_hints, lark, quoted
from mmserve.grammar.regex import translate
from mmserve.grammar.schema import any_json, lower_schema
from mmserve.grammar.spec import AnyJson, Choice, Constraint, Grammar, JsonSchema, Regex, StructuralTag, XmlSchema
from mmserve.grammar.tags import lower_tags
from mmserve.grammar.words import lower_words
from mmserve.grammar.xml import lower_xml

MAX_GRAMMAR = 200_000
"""The longest grammar that is read, in characters."""


def lower(constraint: Constraint, trial: Trial, style: JsonStyle = COMPACT) -> Lowered:
    """The grammar of ``constraint``. ``trial`` is asked about JSON Schemas, whose steps depend on its answer.

    ``style`` is of the JSON in it, but for that of a caller's own grammar, which is compact.

    Raises ``InvalidConstraint`` for what is not well-formed and ``UnsupportedConstraint`` for what is not enforced.
    """
    if isinstance(constraint, JsonSchema):
        return lower_schema(constraint.schema, strict=constraint.strict, trial=trial, style=style)
    if isinstance(constraint, AnyJson):
        return any_json(style)
    if isinstance(constraint, Regex):
        return _regex(constraint)
    if isinstance(constraint, Choice):
        return _choice(constraint)
    if isinstance(constraint, Grammar):
        return _grammar(constraint)
    if isinstance(constraint, XmlSchema):
        return lower_xml(constraint.schema)
    if isinstance(constraint, StructuralTag):
        return lower_tags(constraint, lambda content: lower(content, trial, style))
    return lower_words(constraint)


def _regex(constraint: Regex) -> Lowered:
    translation = translate(constraint.pattern)
    text = f"start: TEXT\nTEXT: /(?:{translation.regex})/"
    return Lowered(lark(text), "regex", hints=as_hints(translation.literals))


def _choice(constraint: Choice) -> Lowered:
    for option in constraint.options:
        if any("\ud800" <= char <= "\udfff" for char in option):
            raise InvalidConstraint(f"the choice {option[:60]!a} has half of a surrogate pair", param="choices")
    shortest = min(constraint.options, key=len)
    if len(shortest) > 4000:
        raise UnsupportedConstraint("every choice has more than 4000 characters", param="choices")
    text = "start: TEXT\nTEXT: " + " | ".join(map(quoted, constraint.options))
    return Lowered(lark(text), "choices", hints=as_hints(sorted(constraint.options, key=len)))


def _grammar(constraint: Grammar) -> Lowered:
    try:
        constraint.text.encode()
    except UnicodeEncodeError:
        raise InvalidConstraint("the grammar has half of a surrogate pair", param="grammar") from None
    if len(constraint.text) > MAX_GRAMMAR:
        message = f"the grammar has {len(constraint.text)} characters; at most {MAX_GRAMMAR} are allowed"
        raise UnsupportedConstraint(message, param="grammar")
    if ebnf.is_ebnf(constraint.text):
        converted = ebnf.convert(constraint.text)
        text, _ = check_lark(converted.lark)
        return Lowered(lark(text), "grammar", hints=as_hints(converted.texts))
    text, texts = check_lark(constraint.text)
    return Lowered(lark(text), "grammar", hints=as_hints(texts))
