"""Decisions about what comes next in a conversation: questions of the type ``continuation``, mmserve's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from mmserve.errors import InvalidField
from mmserve.types import Message
from web.decisions.questions import (
    MAX_OPTION_CHARACTERS,
    MAX_OPTIONS,
    MAX_QUESTIONS,
    Option,
    Question,
    check_questions,
)
from web.decisions.scoring import Row
from web.openai.turns import turns_of
from web.pictures import PictureShelf
from web.schemas import ChatMessage, ChatRequest, chat_messages, open_turn
from web.service import PromptBuilder


class Continuation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_OPTION_CHARACTERS)


def _as_continuation(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class ContinuationQuestion(BaseModel):
    """How likely is each option as what the assistant says next? ``ends_turn``: and says nothing more."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["continuation"]
    id: str = Field(min_length=1)
    options: list[Annotated[Continuation, BeforeValidator(_as_continuation)]] = Field(
        min_length=1, max_length=MAX_OPTIONS
    )
    ends_turn: bool = True

    def made(self) -> Question:
        return Question("continuation", self.id, "", tuple(Option(each.name, (each.name,)) for each in self.options))


class ContinuationBody(BaseModel):
    """A conversation as ``/v1/chat/completions`` has it, and questions about what comes next in it."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    continue_final_message: bool | None = Field(
        None, description="The last message, an assistant's, stays open: the options go on with it."
    )
    add_generation_prompt: bool | None = None
    questions: list[ContinuationQuestion] = Field(min_length=1, max_length=MAX_QUESTIONS)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    cache_salt: str = ""

    @field_validator("questions")
    @classmethod
    def _distinct(cls, questions: list[ContinuationQuestion]) -> list[ContinuationQuestion]:
        if len({question.id for question in questions}) < len(questions):
            raise ValueError("two questions have the same id")
        return questions

    @property
    def openai(self) -> bool:
        return False

    def asked(self) -> tuple[Question, ...]:
        """Raises ``InvalidField`` where an option comes twice or there is too much to score."""
        return check_questions([question.made() for question in self.questions])

    def conversation(self, shelf: PictureShelf) -> _Conversation:
        """Pictures read. Raises ``InvalidField`` or a ``PictureError``."""
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in ("messages", "continue_final_message", "add_generation_prompt")
        }
        chat = ChatRequest(**fields)
        chat.refuse_unsupported()
        messages = turns_of(chat_messages(chat, shelf)).messages
        if self.continue_final_message:
            return _Conversation(*open_turn(messages))
        if self.add_generation_prompt is False:
            raise InvalidField("the options begin a turn of the assistant's", param="add_generation_prompt")
        return _Conversation(messages, "")

    def rows(self, prompts: PromptBuilder, shelf: PictureShelf) -> list[Row]:
        """What is to be scored. CPU work in proportion to the pictures and options."""
        conversation = self.conversation(shelf)
        base = prompts.build(conversation.messages, cache_salt=self.cache_salt)
        rows = []
        for q, question in enumerate(self.questions):
            names = [option.name for option in question.options]
            said, start = prompts.append_choices(base, conversation.opening, names, end=question.ends_turn)
            rows += [Row(q, o, prompt, start) for o, prompt in enumerate(said)]
        return rows


@dataclass(frozen=True, slots=True)
class _Conversation:
    """Finished turns, and what the assistant has begun to say."""

    messages: Sequence[Message]
    opening: str
