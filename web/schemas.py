"""What requests may say, checked by pydantic; values of sampling fields are judged by ``SamplingParams`` itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mmserve.errors import InvalidField
from mmserve.sampling import SamplingParams
from mmserve.types import MediaKind, Message, Part, TextPart
from web.constraints import Wanted, from_chat, from_form
from web.media import check_number, part_of
from web.openai.refusals import CHAT, refuse
from web.openai.tools import MAX_TOOLS, Tool, Toolbox, ToolCall, calls_text, toolbox_of
from web.parts import ContentPart, DetailFields, FrameFields
from web.pictures import PictureShelf


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_listed)]


class SamplingFields(BaseModel):
    """The sampling fields of every route; ``None`` means the service's default. Ranges: see ``SamplingParams``."""

    max_tokens: int | None = Field(
        None, description="Most tokens to answer with; by default what the context has room for."
    )
    min_tokens: int | None = None
    temperature: float | None = Field(None, description="0 is greedy.")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Texts | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(
        None, description="false leaves special tokens in the text, such as those that Qwen-VL puts around a box."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def sampling(self, default: SamplingParams) -> SamplingParams:
        """``default`` with what the caller said. Raises ``InvalidField``."""
        changes: dict[str, object] = self._said()
        changes |= {name: tuple(value) for name, value in changes.items() if isinstance(value, list)}
        return default.replace(**changes)

    def _said(self) -> dict[str, object]:
        said: dict[str, object] = {
            name: value for name in _PLAIN_SAMPLING_FIELDS if (value := getattr(self, name)) is not None
        }
        if self.logprobs is not None:
            said["logprobs"] = (self.top_logprobs or 0) if self.logprobs else None
        return said


_PLAIN_SAMPLING_FIELDS = tuple(name for name in SamplingFields.model_fields if name not in ("logprobs", "top_logprobs"))


class WordFields(BaseModel):
    """Words that an answer must or must not have; see ``mmserve.grammar.spec.Words``."""

    must_include: Texts | None = Field(None, description="Words or phrases that the answer must have.")
    must_not_include: Texts | None = Field(None, description="Words or phrases that it must not have.")
    start_with: str | None = Field(None, description="The answer's exact beginning.")
    max_words: int | None = Field(None, description="The most words that the answer may have.")


def bias_said(biases: Mapping[str, float] | None) -> dict[str, object]:
    """``logit_bias`` as ``SamplingParams`` has it. Raises ``InvalidField`` for a key that is no token id."""
    for key in biases or ():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidField(f"the keys of logit_bias are token ids, and {key[:40]!r} is none", param="logit_bias")
    return {"logit_bias": tuple(sorted((int(key), bias) for key, bias in biases.items()))} if biases else {}


class VqaFields(SamplingFields, WordFields, DetailFields, FrameFields):
    """The text fields of ``POST /v1/vqa``. At most one constraint may be asked for."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(description="What to ask about the pictures.")
    system: str | None = Field(None, description="A system prompt that comes before the pictures.")
    model: str | None = None
    stream: bool = False
    cache_salt: str = Field("", description="Requests with another salt share no cached work.")
    schema_: str | None = Field(None, alias="schema", description="A JSON Schema that the answer keeps, as JSON text.")
    strict: bool | None = Field(None, description="Refuse a schema that cannot be enforced exactly.")
    json_: bool | None = Field(None, alias="json", description="Answer with a JSON object of any shape.")
    regex: str | None = Field(None, description="A regular expression that matches the whole answer.")
    choices: Texts | None = Field(None, description="The answer is one of these: repeat the part, or one JSON list.")
    grammar: str | None = Field(None, description="A grammar of the answer: Lark, or EBNF (GBNF) with a root rule.")
    xml: str | None = Field(None, description="An element schema, as JSON text: the answer is that XML element.")
    structural_tag: str | None = Field(None, description="Free text with constrained regions, as JSON text.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields as they are called in a form."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    def wanted(self) -> Wanted | None:
        """What the answer must look like. Raises a ``ConstraintError`` or ``InvalidField``."""
        return from_form(self.model_dump(by_alias=True))

    @classmethod
    def from_form(cls, fields: Mapping[str, tuple[str, ...]]) -> VqaFields:
        """Raises pydantic's ``ValidationError``, or ``InvalidField`` for an empty question."""
        values = {name: texts if name in VQA_REPEATED else texts[0] for name, texts in fields.items()}
        parsed = cls.model_validate(values)
        if not parsed.question.strip():
            raise InvalidField("question is empty; ask something about the picture", param="question")
        return parsed

    def messages(self, media: Iterable[tuple[MediaKind, bytes]]) -> list[Message]:
        """The optional system message, then one user message: all files in order, then the question."""
        system = [Message("system", (TextPart(self.system),))] if self.system else []
        detail = self.looking()
        shown = [self.watching(data) if kind == "video" else part_of(kind, data, detail) for kind, data in media]
        return [*system, Message("user", (*shown, TextPart(self.question)))]


VQA_REPEATED = ("stop", "stop_token_ids", "choices", "must_include", "must_not_include")


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ChatMessage(BaseModel):
    """One turn. ``content`` is a string or a list of parts; only an assistant's may be null.

    A turn of the role "tool" is the result of the call ``tool_call_id``, which an assistant's turn before it made.
    """

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts)] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        extra = self.model_extra or {}
        if extra.get("function_call") or extra.get("audio"):
            raise ValueError("function_call and audio are not supported; send tool_calls, or text")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id says which call a message of the role tool answers; the two belong together")
        if not self.content and self.role != "assistant":
            raise ValueError("content is missing or empty; write a string or a list of parts")
        return self


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if self.include_obfuscation:
            raise ValueError("include_obfuscation is not supported here: leave it out")
        return self


class ConstraintFields(WordFields):
    """Every spelling of a constraint that JSON bodies have; see ``web.constraints``."""

    response_format: dict[str, Any] | None = Field(
        None, description="OpenAI's: text, json_object, json_schema; also structural_tag and regex_schema."
    )
    structured_outputs: dict[str, Any] | None = Field(None, description="vLLM's spelling of a constraint.")
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = Field(None, description="SGLang's spelling, and so are ebnf, json_schema, structural_tag.")
    ebnf: str | None = None
    json_schema: dict[str, Any] | bool | str | None = None
    structural_tag: dict[str, Any] | str | None = None
    xml: dict[str, Any] | str | None = Field(None, description="An element schema: the answer is that XML element.")

    def wanted(self) -> Wanted | None:
        """What the answer must look like. Raises a ``ConstraintError`` or ``InvalidField``."""
        return from_chat({name: getattr(self, name) for name in type(self).model_fields})


class ChatRequest(SamplingFields, ConstraintFields):
    """The body of ``POST /v1/chat/completions``; unknown fields are kept in ``model_extra``."""

    model_config = ConfigDict(extra="allow")

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    n: int | None = Field(None, ge=1, le=16)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token id -> what its logit gets, -100 to 100.")
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Any = Field(
        None, description='"none", "auto", "required", or {"type": "function", "function": {"name": ...}}.'
    )
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = Field(
        None,
        description="Go on writing the last message, an assistant's, instead of starting a new one (vLLM's field).",
    )
    add_generation_prompt: bool | None = None

    def _said(self) -> dict[str, object]:
        said = super()._said()
        if self.max_completion_tokens is not None:
            said["max_tokens"] = self.max_completion_tokens
        return said | bias_said(self.logit_bias)

    def toolbox(self) -> Toolbox | None:
        """The tools and how they may be used. Raises ``InvalidField``."""
        named = [(tool.function, f"tools[{i}].function") for i, tool in enumerate(self.tools or ())]
        return toolbox_of(named, self.tool_choice, self.parallel_tool_calls)

    def refuse_unsupported(self) -> None:
        """Raises ``InvalidField`` for a field that is not supported and whose silent loss would change the answer."""
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(self.continue_final_message):
            raise InvalidField(
                "the answer begins a turn (add_generation_prompt) or goes on with the last one "
                "(continue_final_message): exactly one of the two",
                param="add_generation_prompt",
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidField("stream_options is for streams; set stream, or leave it out", param="stream_options")
        if self.continue_final_message and self.messages[-1].tool_calls:
            raise InvalidField(
                "a message that ends in calls is finished and cannot be continued", param="continue_final_message"
            )
        refuse(self.model_extra or {}, CHAT)

    def unknown_fields(self) -> list[str]:
        """Fields that have no meaning here and are ignored."""
        return [name for name in self.model_extra or {} if name not in CHAT]


def chat_messages(request: ChatRequest, shelf: PictureShelf) -> list[Message]:
    """The turns with their media read, one for one; calls are text, and results have the role "tool".

    Raises ``InvalidField`` or a ``MediaError`` that names the part.
    """
    messages: list[Message] = []
    called: set[str] = set()
    counts: Counter[MediaKind] = Counter()
    for i, message in enumerate(request.messages):
        parts: list[Part] = []
        for j, part in enumerate(message.content or ()):
            media = part.media()
            if media is None:
                parts.append(TextPart((part.refusal if part.type == "refusal" else part.text) or ""))
                continue
            kind, address = media
            where = f"messages[{i}].content[{j}].{part.type}"
            counts[kind] += 1
            check_number(kind, counts[kind], shelf.limits, where)
            parts.append(part.carrying(kind, shelf.read(address, where, kind), where))
        if message.tool_calls:
            called.update(call.id for call in message.tool_calls)
            parts.append(TextPart(("\n" if parts else "") + calls_text(message.tool_calls)))
        if message.role == "tool" and message.tool_call_id not in called:
            raise InvalidField(
                "tool_call_id names no call of an assistant's message before it", param=f"messages[{i}].tool_call_id"
            )
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role, tuple(parts)))
    return messages


def open_turn(messages: list[Message]) -> tuple[list[Message], str]:
    """The finished turns, and the text of the assistant's that is to be continued. Raises ``InvalidField``."""
    last = messages[-1]
    texts = [part.text for part in last.parts if isinstance(part, TextPart)]
    if last.role != "assistant" or len(texts) < len(last.parts) or len(messages) == 1:
        raise InvalidField(
            "continue_final_message needs a conversation whose last message is the assistant's and only text",
            param="continue_final_message",
        )
    return messages[:-1], "".join(texts)


class IgnoredFields:
    """Remembers which unknown fields were reported, so that each is logged once. Bounded: callers choose the names."""

    def __init__(self, capacity: int = 1000) -> None:
        self._seen: set[str] = set()
        self._capacity = capacity

    def new(self, names: list[str]) -> list[str]:
        """Those of ``names`` that were not reported before, and are now."""
        room = self._capacity - len(self._seen)
        fresh = [name for name in dict.fromkeys(names) if len(name) <= 200 and name not in self._seen][:room]
        self._seen.update(fresh)
        return fresh


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a request for the API description, without references: it is put inside another document."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(definitions[value["$ref"].removeprefix("#/$defs/")])
        return {key: inlined(item) for key, item in value.items()}

    whole = inlined(schema)
    assert isinstance(whole, dict)
    return whole
