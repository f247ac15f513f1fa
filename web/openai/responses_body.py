"""The body of ``POST /v1/responses``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from mmserve.errors import ConstraintError, InvalidField
from web.constraints import Wanted, from_chat
from web.errors import explain
from web.openai.refusals import RESPONSES, refuse
from web.openai.tools import MAX_TOOLS, Function, Toolbox, toolbox_of
from web.schemas import SamplingFields, StreamOptions, bias_said

LOGPROBS = "message.output_text.logprobs"
_HARMLESS_INCLUDES = ("reasoning.encrypted_content", "message.input_image.image_url")


class FlatTool(Function):
    """A function, as the Responses API writes it."""

    type: Literal["function"]

    def function(self) -> Function:
        return Function(**self.model_dump(exclude={"type"}))


class TextSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: dict[str, Any] | None = Field(None, description="text, json_object, or json_schema with name and schema.")
    verbosity: Literal["medium"] | None = None


class Reasoning(BaseModel):
    """Models here do not reason apart from their answer."""

    model_config = ConfigDict(extra="forbid")

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponsesRequest(SamplingFields):
    """Unknown fields are kept in ``model_extra``."""

    model_config = ConfigDict(extra="allow")

    input: str | list[Any] = Field(description="What to answer: text, or items.")
    instructions: str | None = Field(None, description="A system prompt, for this answer alone.")
    model: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = Field(None, description="Keep the answer for previous_response_id, a while; true by default.")
    previous_response_id: str | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    tools: list[FlatTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    metadata: (
        dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]] | None
    ) = Field(None, max_length=16)
    user: str | None = None
    cache_salt: str | None = None
    logit_bias: dict[str, float] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _text_or_items(cls, value: object) -> object:
        if not isinstance(value, str | list):
            raise ValueError("send text, or a list of items")
        return value

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        return self  # here ``include`` asks for them, or the number alone

    @classmethod
    def parse(cls, body: bytes) -> ResponsesRequest:
        """Raises ``InvalidField``, also for a field whose silent loss would change the answer or mislead."""
        try:
            asked = cls.model_validate_json(body, strict=True)
        except ValidationError as error:
            raise explain(error.errors(include_url=False, include_context=False, include_input=False)) from None
        refuse(asked.model_extra or {}, RESPONSES)
        for name, hint in (("max_tokens", "max_output_tokens"), ("logprobs", f'include: ["{LOGPROBS}"]')):
            if getattr(asked, name) is not None:
                raise InvalidField(f"{name} is not a field here; send {hint}", param=name)
        for i, name in enumerate(asked.include or ()):
            if name not in (LOGPROBS, *_HARMLESS_INCLUDES):
                raise InvalidField(f'include knows only "{LOGPROBS}" here', param=f"include[{i}]")
        if asked.stream_options is not None and not asked.stream:
            raise InvalidField("stream_options is for streams; set stream, or leave it out", param="stream_options")
        return asked

    @property
    def kept(self) -> bool:
        return self.store is not False

    @property
    def items(self) -> list[Any]:
        """The input as items; nobody has looked into a caller's own."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": self.input}]}]
        return self.input

    def toolbox(self) -> Toolbox | None:
        """Raises ``InvalidField``."""
        named = [(tool.function(), f"tools[{i}]") for i, tool in enumerate(self.tools or ())]
        return toolbox_of(named, self.tool_choice, self.parallel_tool_calls)

    def wanted(self) -> Wanted | None:
        """What the answer's text must look like. Raises a ``ConstraintError``."""
        asked = self.text.format if self.text is not None else None
        if asked is None:
            return None
        if asked.get("type") == "json_schema":
            inner = {name: value for name, value in asked.items() if name != "type"}
            asked = {"type": "json_schema", "json_schema": inner}
        try:
            found = from_chat({"response_format": asked})
        except ConstraintError as error:
            path = (error.param or "").replace("response_format.json_schema", "text.format")
            path = path.replace("response_format", "text.format")
            raise type(error)(_renamed(error.message), param=path) from None
        return None if found is None else Wanted("text.format", found.constraint)

    def unknown_fields(self) -> list[str]:
        """Fields that have no meaning here and are ignored."""
        return [name for name in self.model_extra or {} if name not in RESPONSES]

    def _said(self) -> dict[str, object]:
        said = super()._said()
        if self.max_output_tokens is not None:
            said["max_tokens"] = self.max_output_tokens
        if self.top_logprobs is not None or LOGPROBS in (self.include or ()):
            said["logprobs"] = self.top_logprobs or 0
        return said | bias_said(self.logit_bias)


def _renamed(message: str) -> str:
    return message.replace("response_format.json_schema", "text.format").replace("response_format", "text.format")
