"""Functions that a model may call, in the form that Hermes models were taught and Qwen's chat templates write.

The functions' signatures stand in the system prompt, a call is ``<tool_call>`` with JSON in it, and a result
``<tool_response>``. It is written as text for every model, so that it does not depend on what a chat template knows
of tools, and a grammar keeps the calls whole: names are those of the tools, and arguments follow their schemas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmserve.errors import InvalidConstraint, InvalidField
from mmserve.grammar.spec import JsonSchema, StructuralTag, Tag, Words
from web.constraints import Wanted
from web.constraints.leaves import at

MAX_TOOLS = 128
OPEN, CLOSE = "<tool_call>", "}\n</tool_call>"

_NAME = r"^[a-zA-Z0-9_.:-]{1,64}$"
_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_FOOT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


class Function(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of an object; left out: no parameters.")
    strict: bool | None = Field(None, description="Refuse a schema that cannot be enforced exactly.")


class Tool(BaseModel):
    """A tool of a chat body; only functions exist."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call in the history."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The functions that are ``shown`` to the model, and those that it is ``allowed`` to call.

    With ``required`` the answer is calls and nothing else; ``single`` allows one call at most. ``paths`` name each
    allowed function's field in the body.
    """

    shown: tuple[Function, ...]
    allowed: tuple[Function, ...]
    paths: tuple[str, ...]
    required: bool
    single: bool

    @property
    def begins(self) -> dict[str, str]:
        """What comes before a call's arguments, by the function's name."""
        return {function.name: _begin(function.name) for function in self.allowed}

    def system_text(self) -> str:
        """The functions' signatures, for the system prompt."""
        lines = "".join("\n" + _signature(function) for function in self.shown)
        return _HEAD + lines + _FOOT

    def wanted(self, other: Wanted | None) -> Wanted:
        """The constraint of the whole answer; ``other`` is that of an answer which calls nothing.

        Raises ``InvalidConstraint`` for a function's schema, or an ``other`` that does not combine with calls.
        """
        tags = tuple(map(self._tag, self.allowed, self.paths))
        if self.required:
            return Wanted("tools", StructuralTag(tags, (OPEN,), stop_after_first=self.single, bare=True))
        if other is None:
            return Wanted("tools", StructuralTag(tags, (OPEN,), stop_after_first=self.single))
        if isinstance(other.constraint, StructuralTag | Words):
            raise InvalidConstraint(
                f"{other.field} and tools cannot hold together; set tool_choice to none or required, or leave one out",
                param=other.field,
            )
        instead = other.constraint
        tag = StructuralTag(tags, (OPEN,), stop_after_first=self.single, bare=True, instead=instead)
        return Wanted("tools", tag)

    def _tag(self, function: Function, path: str) -> Tag:
        with at(f"{path}.parameters"):
            return Tag(
                _begin(function.name), JsonSchema.of(_schema(function, path), strict=function.strict or False), CLOSE
            )


def toolbox_of(tools: Sequence[tuple[Function, str]], choice: object, parallel: bool | None) -> Toolbox | None:
    """``tools`` are functions and their fields' names, ``choice`` the body's ``tool_choice``; ``None`` for no tools.

    Raises ``InvalidField``.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidField("tool_choice needs tools; send some, or leave it out", param="tool_choice")
        return None
    names = [function.name for function, _ in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidField(f'two tools are called "{name}"; give each its own name', param=f"{tools[i][1]}.name")
    mode, allowed = _choice(choice, names)
    if mode == "none":
        return None
    callable_ = [(function, path) for function, path in tools if allowed is None or function.name in allowed]
    return Toolbox(
        shown=tuple(function for function, _ in tools),
        allowed=tuple(function for function, _ in callable_),
        paths=tuple(path for _, path in callable_),
        required=mode != "auto",
        single=mode == "named" or parallel is False,
    )


def _choice(choice: object, names: Sequence[str]) -> tuple[str, set[str] | None]:
    """The mode, and the names that may be called, or ``None`` for all."""
    if choice is None or choice == "auto":
        return "auto", None
    if isinstance(choice, str):
        if choice not in ("none", "required"):
            raise _bad_choice()
        return choice, None
    if not isinstance(choice, dict):
        raise _bad_choice()
    if choice.get("type") == "function":
        return "named", {_known(choice, names)}
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        listed = inner.get("tools") if isinstance(inner, dict) else None
        if not isinstance(listed, list) or not listed or inner.get("mode") not in ("auto", "required"):
            raise _bad_choice()
        return inner["mode"], {_known(each, names) for each in listed}
    raise _bad_choice()


def _known(value: object, names: Sequence[str]) -> str:
    inner = value.get("function", value) if isinstance(value, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        raise _bad_choice()
    if name not in names:
        raise InvalidField(
            f'tool_choice names "{name[:64]}", which is none of the tools: {", ".join(names)}', param="tool_choice"
        )
    return name


def _bad_choice() -> InvalidField:
    return InvalidField(
        'tool_choice must be "none", "auto" or "required", or name a function: '
        '{"type": "function", "function": {"name": "..."}}; hosted tools do not exist here',
        param="tool_choice",
    )


def _schema(function: Function, path: str) -> dict[str, Any]:
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if function.parameters.get("type", "object") != "object":
        raise InvalidConstraint(
            f'{path}.parameters must be a JSON Schema of an object: "type": "object"', param=f"{path}.parameters"
        )
    return {"type": "object", **function.parameters}


def _signature(function: Function) -> str:
    said = function.model_dump(exclude_none=True, exclude={"strict"})
    return json.dumps({"type": "function", "function": said}, ensure_ascii=False)


def _begin(name: str) -> str:
    return f'{OPEN}\n{{"name": {json.dumps(name)}, "arguments": '


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Calls of the history, as the model would have written them."""
    return "\n".join(_begin(call.function.name) + call.function.arguments + CLOSE for call in calls)
