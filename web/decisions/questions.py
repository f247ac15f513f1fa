"""The body of ``POST /v1/decisions`` -> messages and questions.

SGLang's questions have an ``id`` and a ``question``; OpenAI's have ``instructions``. A body keeps to one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from mmserve.config import MIB
from mmserve.errors import InvalidField, TooManyPictures
from mmserve.types import Detail, ImagePart, Message, TextPart
from web.errors import explain
from web.parts import DetailFields, ImageUrl
from web.pictures import PictureShelf

MAX_QUESTIONS = 400
MAX_OPTIONS = 255
MAX_SCORED = 1024
"""Answers that one body may have scored, over all questions; each is a request of its own to the engine."""

MAX_OPTION_CHARACTERS = 2000

MAX_HASHED_BYTES = 2 * 1024 * MIB
"""Pictures' bytes times questions: each question's prompt is built, and its pictures hashed, anew."""

JsonText = str | dict[str, Any] | list[Any]
"""Text, or a JSON value that is shown to the model as compact JSON."""


@dataclass(frozen=True, slots=True)
class Option:
    """One allowed answer: ``value`` as the caller calls it, and the ``texts`` that say it, whose probabilities add up.

    ``level`` is what it counts in a score, ``label`` its name on OpenAI's scale.
    """

    value: str | bool
    texts: tuple[str, ...]
    level: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """``key`` is the caller's id or name; ``text`` is what the model is asked."""

    kind: Literal["choice", "score", "yes_no", "continuation"]
    key: str | None
    text: str
    options: tuple[Option, ...]


def check_questions(questions: Sequence[Question]) -> tuple[Question, ...]:
    """Raises ``InvalidField`` where an option comes twice or there is too much to score."""
    for i, question in enumerate(questions):
        texts = [text for option in question.options for text in option.texts]
        if len(set(texts)) < len(texts):
            raise InvalidField("two options say the same", param=f"questions[{i}]")
    total = sum(len(option.texts) for question in questions for option in question.options)
    if total > MAX_SCORED:
        raise InvalidField(f"the questions have {total} answers; at most {MAX_SCORED} at once", param="questions")
    return tuple(questions)


def shown(value: JsonText | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _not_blank(value: Any) -> Any:
    if not (value.strip() if isinstance(value, str) else value):
        raise ValueError("must not be empty")
    return value


RequiredText = Annotated[JsonText, BeforeValidator(_not_blank)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


# -- SGLang's questions -----------------------------------------------------------------------------------------


class NamedOption(_Strict):
    name: str = Field(min_length=1, max_length=MAX_OPTION_CHARACTERS)
    description: JsonText | None = None


def _as_option(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class ChoiceQuestion(_Strict):
    """Which of the options? A plain string stands for an option without a description."""

    type: Literal["choice"]
    id: str = Field(min_length=1)
    question: RequiredText
    options: list[Annotated[NamedOption, BeforeValidator(_as_option)]] = Field(min_length=2, max_length=MAX_OPTIONS)

    def made(self) -> Question:
        lines = [(option.name, shown(option.description)) for option in self.options]
        options = tuple(Option(option.name, (option.name,)) for option in self.options)
        return Question("choice", self.id, _asking(shown(self.question), lines), options)


class ScoreQuestion(_Strict):
    """How much? Either described ``levels``, counted from 0, or whole numbers from ``min`` to ``max``."""

    type: Literal["score"]
    id: str = Field(min_length=1)
    question: RequiredText
    levels: list[RequiredText] | None = Field(None, min_length=2, max_length=MAX_OPTIONS)
    min: int | None = Field(None, ge=-1000, le=1000)
    max: int | None = Field(None, ge=-1000, le=1000)

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if (self.levels is None) == (self.min is None or self.max is None):
            raise ValueError("give either levels, or both min and max")
        if self.levels is not None and (self.min is not None or self.max is not None):
            raise ValueError("give either levels, or both min and max")
        if self.min is not None and self.max is not None and not 1 <= self.max - self.min < MAX_OPTIONS:
            raise ValueError(f"max must be 1 to {MAX_OPTIONS - 1} above min")
        return self

    def made(self) -> Question:
        if self.levels is not None:
            return _levels(self.id, shown(self.question), [("", shown(level)) for level in self.levels])
        assert self.min is not None
        assert self.max is not None
        options = tuple(Option(str(n), (str(n),), n, str(n)) for n in range(self.min, self.max + 1))
        text = f"{shown(self.question)}\nAnswer with a whole number from {self.min} to {self.max}."
        return Question("score", self.id, text, options)


class YesNoQuestion(_Strict):
    """Is it so? ``yes`` and ``no`` may say what counts as which."""

    type: Literal["yes_no"]
    id: str = Field(min_length=1)
    question: RequiredText
    yes: JsonText | None = None
    no: JsonText | None = None

    def made(self) -> Question:
        lines = [("yes", shown(self.yes)), ("no", shown(self.no))]
        return Question("yes_no", self.id, _asking(shown(self.question), lines), _YES_NO)


# -- OpenAI's questions -----------------------------------------------------------------------------------------


class TextPiece(_Strict):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Any = None


Instructions = Annotated[str | list[TextPiece], BeforeValidator(_not_blank)]


def _said(instructions: str | list[TextPiece]) -> str:
    if isinstance(instructions, str):
        return instructions
    return "\n".join(piece.text for piece in instructions)


class Predicate(_Strict):
    type: Literal["predicate"]
    name: str | None = None
    instructions: Instructions

    def made(self) -> Question:
        return Question("yes_no", self.name, _said(self.instructions), _YES_NO)


class ValueOption(_Strict):
    value: Annotated[str, Field(min_length=1, max_length=MAX_OPTION_CHARACTERS)] | bool
    description: str | None = None

    @property
    def text(self) -> str:
        return self.value if isinstance(self.value, str) else json.dumps(self.value)


class Selection(_Strict):
    type: Literal["choice"]
    name: str | None = None
    instructions: Instructions
    choices: list[ValueOption] = Field(min_length=2, max_length=MAX_OPTIONS)

    def made(self) -> Question:
        lines = [(choice.text, choice.description or "") for choice in self.choices]
        options = tuple(Option(choice.value, (choice.text,)) for choice in self.choices)
        return Question("choice", self.name, _asking(_said(self.instructions), lines), options)


class Level(_Strict):
    label: str
    description: str | None = None


class Rating(_Strict):
    type: Literal["score"]
    name: str | None = None
    instructions: Instructions
    levels: list[Level] = Field(min_length=2, max_length=MAX_OPTIONS)

    def made(self) -> Question:
        lines = [(level.label, level.description or "") for level in self.levels]
        return _levels(self.name, _said(self.instructions), lines)


# -- wording ----------------------------------------------------------------------------------------------------

_YES_NO = (Option("yes", ("yes", "Yes")), Option("no", ("no", "No")))


def _asking(question: str, options: Sequence[tuple[str, str]]) -> str:
    """Options are shown to the model where one of them is described: their own names are scored, not labels."""
    if not any(description for _, description in options):
        return question
    listed = [f"- {name}: {description}" if description else f"- {name}" for name, description in options]
    return "\n".join([question, "Answer with one of these, and nothing else:", *listed])


def _levels(key: str | None, question: str, levels: Sequence[tuple[str, str]]) -> Question:
    """``levels`` are labels and descriptions, lowest first; the model answers with a level's number."""
    listed = [f"{i}: {': '.join(filter(None, level))}" for i, level in enumerate(levels)]
    text = "\n".join([question, *listed, "Answer with one of these numbers, and nothing else."])
    options = tuple(Option(str(i), (str(i),), i, label) for i, (label, _) in enumerate(levels))
    return Question("score", key, text, options)


# -- the body ---------------------------------------------------------------------------------------------------


class ImagePiece(_Strict):
    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    prompt_cache_breakpoint: Any = None

    def sent(self, where: str) -> _Sent:
        return _Sent(self.image_url, f"{where}image_url", DetailFields(detail=self.detail).looking(where))


class Turn(_Strict):
    """A message of OpenAI's ``input``."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: str | list[Annotated[TextPiece | ImagePiece, Field(discriminator="type")]]


def _dialect(question: Any) -> str:
    theirs = "instructions" in question if isinstance(question, dict) else hasattr(question, "instructions")
    kind = question.get("type") if isinstance(question, dict) else getattr(question, "type", None)
    return f"openai.{kind}" if theirs or kind == "predicate" else f"sglang.{kind}"


AnyQuestion = Annotated[
    Annotated[ChoiceQuestion, Tag("sglang.choice")]
    | Annotated[ScoreQuestion, Tag("sglang.score")]
    | Annotated[YesNoQuestion, Tag("sglang.yes_no")]
    | Annotated[Predicate, Tag("openai.predicate")]
    | Annotated[Selection, Tag("openai.choice")]
    | Annotated[Rating, Tag("openai.score")],
    Discriminator(
        _dialect,
        custom_error_type="question_type",
        custom_error_message="be a question: its type is choice, score or yes_no (predicate with instructions)",
    ),
]


def _as_image_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class DecisionBody(_Strict):
    """The body of ``POST /v1/decisions``.

    ``temperature`` flattens (above 1) or sharpens the probabilities, never ``label_mass``.
    """

    model: str | None = None
    input: JsonText | None = Field(None, description="What to judge: text or JSON, or OpenAI's messages.")
    images: list[Annotated[ImageUrl, BeforeValidator(_as_image_url)]] = Field(
        default_factory=list, description="Pictures as data URIs; they come before the input."
    )
    questions: list[AnyQuestion] = Field(min_length=1, max_length=MAX_QUESTIONS)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    cache_salt: str = ""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt_format_version: int | None = None
    return_prompt_token_ids: bool | None = None

    @field_validator("chat_template_kwargs", "prompt_format_version", "return_prompt_token_ids")
    @classmethod
    def _asks_for_nothing(cls, value: object) -> object:
        if value:
            raise ValueError("is not supported here; leave it out")
        return value

    @field_validator("questions")
    @classmethod
    def _one_dialect_and_distinct(cls, questions: list[Any]) -> list[Any]:
        if len({hasattr(question, "instructions") for question in questions}) > 1:
            raise ValueError("questions with instructions (OpenAI's) and without (SGLang's) cannot be mixed")
        ids = [question.id for question in questions if hasattr(question, "id")]
        if len(set(ids)) < len(ids):
            raise ValueError("two questions have the same id")
        return questions

    @property
    def openai(self) -> bool:
        """Whether the caller speaks OpenAI's dialect, and gets its answers."""
        return hasattr(self.questions[0], "instructions")

    def asked(self) -> tuple[Question, ...]:
        """Raises ``InvalidField`` where an option comes twice or there is too much to score."""
        return check_questions([question.made() for question in self.questions])

    def messages(self, shelf: PictureShelf) -> list[Message]:
        """The turns before the question, pictures read. Raises ``InvalidField`` or a ``PictureError``."""
        pictures = [
            _Sent(image.url, f"images[{i}].url", image.looking(f"images[{i}].")) for i, image in enumerate(self.images)
        ]
        turns: list[tuple[str, list[TextPart | _Sent]]] = [("user", list(pictures))]
        if self.openai and isinstance(self.input, list):
            turns += [_turn(turn, f"input[{i}]") for i, turn in enumerate(self.input)]
        elif text := shown(self.input):
            turns[0][1].append(TextPart(text))
        addresses = [part for _, parts in turns for part in parts if isinstance(part, _Sent)]
        most = shelf.limits.max_pictures
        if len(addresses) > most:
            raise TooManyPictures(f"a request may have at most {most} pictures", param=addresses[most].where)
        messages = [Message(role, tuple(_read(part, shelf) for part in parts)) for role, parts in turns if parts]
        size = sum(len(part.data) for message in messages for part in message.parts if isinstance(part, ImagePart))
        if size * len(self.questions) > MAX_HASHED_BYTES:
            raise InvalidField("so many questions about so large pictures are too much at once", param="questions")
        return messages


class _Sent(NamedTuple):
    """A picture as it came: its address, the field that it came in, and how closely to look at it."""

    url: str
    where: str
    detail: Detail


def _turn(value: Any, where: str) -> tuple[str, list[TextPart | _Sent]]:
    try:
        turn = Turn.model_validate(value)
    except ValidationError as error:
        refused = explain(error.errors())
        raise InvalidField(f"{where}: {refused.message}", param=where) from None
    role = "system" if turn.role == "developer" else turn.role
    if isinstance(turn.content, str):
        return role, [TextPart(turn.content)]
    return role, [
        TextPart(piece.text) if isinstance(piece, TextPiece) else piece.sent(f"{where}.content[{i}].")
        for i, piece in enumerate(turn.content)
    ]


def _read(part: TextPart | _Sent, shelf: PictureShelf) -> TextPart | ImagePart:
    return part if isinstance(part, TextPart) else ImagePart(shelf.read(part.url, part.where), part.detail)


def with_question(messages: Sequence[Message], question: Question) -> list[Message]:
    """``messages`` and the question, in the last turn where that is the user's."""
    asked = TextPart(question.text)
    if not messages or messages[-1].role != "user":
        return [*messages, Message("user", (asked,))]
    last = messages[-1]
    gap = (TextPart("\n\n"),) if last.parts and isinstance(last.parts[-1], TextPart) else ()
    return [*messages[:-1], Message("user", (*last.parts, *gap, asked))]
