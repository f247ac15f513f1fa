"""Every way in which clients ask for a constraint. Exactly one may hold; two are refused, and so is what is malformed.

OpenAI's ``response_format`` (with SGLang's and vLLM's ``structural_tag`` and LMDeploy's ``regex_schema``), vLLM's
``structured_outputs`` and its older ``guided_*``, SGLang's ``regex | ebnf | json_schema | structural_tag``, and
mmserve's own form fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from mmserve.errors import InvalidConstraint, InvalidField, UnsupportedConstraint
from mmserve.grammar.spec import AnyJson, Constraint, JsonSchema, Words, one_constraint
from web.constraints import leaves
from web.constraints.structural import structural_tag

Reader: TypeAlias = Callable[[object, str], Constraint | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A constraint, and the field that asked for it."""

    field: str
    constraint: Constraint


@contextmanager
def naming(wanted: Wanted | None) -> Iterator[None]:
    """A refusal of the constraint by the engine, which knows no fields, names the one that asked for it."""
    try:
        yield
    except (InvalidConstraint, UnsupportedConstraint) as error:
        if wanted is None or (isinstance(wanted.constraint, Words) and error.param is not None):
            raise
        raise type(error)(error.message, param=wanted.field) from error


def constraint_of(wanted: Wanted | None) -> Constraint | None:
    return None if wanted is None else wanted.constraint


def from_form(fields: Mapping[str, Any]) -> Wanted | None:
    """The constraint of the fields of ``POST /v1/vqa``; each is a string, list, boolean or number, or ``None``.

    Raises ``InvalidConstraint``, ``UnsupportedConstraint`` or ``InvalidField``.
    """
    if fields.get("strict") is not None and fields.get("schema") is None:
        raise InvalidField("strict says how schema is kept; give schema, or leave strict out", param="strict")
    found = _all(fields, _FORM)
    if fields.get("strict"):
        found = [(name, _strictly(constraint)) for name, constraint in found]
    return _one(found + _words(fields))


def from_chat(fields: Mapping[str, Any]) -> Wanted | None:
    """The constraint of a chat or completions body, in any client's spelling. Raises as :func:`from_form` does."""
    return _one(_all(fields, _CHAT) + _words(fields))


def from_sampling_params(params: Mapping[str, Any], path: str = "sampling_params") -> Wanted | None:
    """The constraint of SGLang's ``sampling_params``. Raises as :func:`from_form` does."""
    return _one(_all(params, _SAMPLING_PARAMS, f"{path}."))


def _one(found: list[tuple[str, Constraint]]) -> Wanted | None:
    return None if one_constraint(found) is None else Wanted(*found[0])


def _all(fields: Mapping[str, Any], readers: Mapping[str, Reader], prefix: str = "") -> list[tuple[str, Constraint]]:
    found = []
    for name, read in readers.items():
        value = fields.get(name)
        constraint = None if value is None else read(value, prefix + name)
        if constraint is not None:
            found.append((prefix + name, constraint))
    return found


def _words(fields: Mapping[str, Any]) -> list[tuple[str, Constraint]]:
    given = {name: fields[name] for name in WORD_FIELDS if fields.get(name) is not None}
    if not given:
        return []
    values: dict[str, Any] = {
        name: leaves.texts(value, name) if name in ("must_include", "must_not_include") else value
        for name, value in given.items()
    }
    return [(next(iter(given)), Words(**values))]


WORD_FIELDS = ("must_include", "must_not_include", "start_with", "max_words")


def _strictly(constraint: Constraint) -> Constraint:
    return JsonSchema(constraint.schema, strict=True) if isinstance(constraint, JsonSchema) else constraint


def _choices(value: object, path: str) -> Constraint:
    """Values of a repeated form field, or a single one that holds a JSON list."""
    given = leaves.texts(value, path)
    if len(given) == 1 and given[0].lstrip()[:1] == "[":
        return leaves.choice(leaves.decoded(given[0], path), path)
    return leaves.choice(given, path)


def _any_json(value: object, path: str) -> Constraint | None:
    return AnyJson() if leaves.flag(value, path) else None


# -- OpenAI and LMDeploy ----------------------------------------------------------------------------------------


def _response_format(value: object, path: str) -> Constraint | None:
    if not isinstance(value, Mapping):
        raise InvalidConstraint(f"{path} must be a JSON object", param=path)
    kind = leaves.text(leaves.needed(value, "type", path), f"{path}.type")
    match kind:
        case "text":
            return None
        case "json_object":
            body = leaves.mapping(value, path, ("type", "schema"))
            return leaves.schema(body["schema"], f"{path}.schema") if "schema" in body else AnyJson()
        case "json_schema":
            body = leaves.mapping(value, path, ("type", "json_schema"))
            return _named_schema(leaves.needed(body, "json_schema", path), f"{path}.json_schema")
        case "structural_tag":
            return structural_tag(value, path)
        case "regex_schema":
            body = leaves.mapping(value, path, ("type", "regex_schema"))
            return leaves.regex(leaves.needed(body, "regex_schema", path), f"{path}.regex_schema")
    known = "text, json_object, json_schema, structural_tag, regex_schema"
    raise InvalidConstraint(f'{path}.type "{kind[:64]}" is not known; there are: {known}', param=f"{path}.type")


def _named_schema(value: object, path: str) -> JsonSchema:
    body = leaves.mapping(value, path, ("name", "description", "schema", "strict"))
    strict = leaves.flag(body.get("strict", False), f"{path}.strict")
    return leaves.schema(leaves.needed(body, "schema", path), f"{path}.schema", strict=strict)


# -- vLLM -------------------------------------------------------------------------------------------------------


def _structured_outputs(value: object, path: str) -> Constraint:
    """``disable_fallback`` chooses among vLLM's own backends and changes nothing that is promised, so it may be there.

    JSON is written compactly here, so ``disable_any_whitespace`` holds as it is.
    """
    body = leaves.mapping(value, path, (*_STRUCTURED_OUTPUTS, *_HARMLESS, *_REFUSED_IF_TRUE))
    for name in _REFUSED_IF_TRUE:
        if body.get(name):
            raise UnsupportedConstraint(f"{path}.{name} cannot be honoured here; leave it out", param=f"{path}.{name}")
    constraint = one_constraint(_all(body, _STRUCTURED_OUTPUTS, f"{path}."))
    if constraint is None:
        raise InvalidConstraint(f"{path} names no constraint; give one of {', '.join(_STRUCTURED_OUTPUTS)}", param=path)
    return constraint


_HARMLESS = ("disable_fallback", "disable_any_whitespace")
_REFUSED_IF_TRUE = ("whitespace_pattern", "disable_additional_properties")

_STRUCTURED_OUTPUTS: Mapping[str, Reader] = {
    "json": leaves.schema,
    "regex": leaves.regex,
    "choice": leaves.choice,
    "grammar": leaves.grammar,
    "json_object": _any_json,
    "structural_tag": structural_tag,
}

# -- which fields there are -------------------------------------------------------------------------------------

_FORM: Mapping[str, Reader] = {
    "schema": leaves.schema,
    "json": _any_json,
    "regex": leaves.regex,
    "choices": _choices,
    "grammar": leaves.grammar,
    "xml": leaves.xml,
    "structural_tag": structural_tag,
}
_SAMPLING_PARAMS: Mapping[str, Reader] = {
    "json_schema": leaves.schema,
    "regex": leaves.regex,
    "ebnf": leaves.grammar,
    "structural_tag": structural_tag,
}
_CHAT: Mapping[str, Reader] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": leaves.schema,
    "guided_regex": leaves.regex,
    "guided_choice": leaves.choice,
    "guided_grammar": leaves.grammar,
    "xml": leaves.xml,
    **_SAMPLING_PARAMS,
}
