"""One choice of a chat answer: its text, the calls in it, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmserve.grammar.spec import Constraint, StructuralTag
from web.constraints import Verdict
from web.generation import Tally
from web.openai.calls import ArgumentsSaid, CallBegun, CallEnded, CallReader, Piece, Said
from web.openai.tools import Toolbox


@dataclass(slots=True)
class Call:
    """A call as far as it is known; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(slots=True)
class Reply:
    """Text and calls, put together from their pieces."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Said(text):
                    self.text += text
                case CallBegun(_, id_, name):
                    self.calls.append(Call(id_, name))
                case ArgumentsSaid(index, text):
                    self.calls[index].arguments += text
                case CallEnded():
                    pass


def reader_of(toolbox: Toolbox | None, constraint: Constraint | None) -> CallReader:
    return CallReader(toolbox, bare=isinstance(constraint, StructuralTag) and constraint.bare)


def reply_of(text: str, toolbox: Toolbox | None, constraint: Constraint | None) -> Reply:
    """What a finished answer says and calls."""
    reader, reply = reader_of(toolbox, constraint), Reply()
    reply.add(reader.push(text))
    reply.add(reader.flush())
    return reply


def finish_of(tally: Tally, called: bool, toolbox: Toolbox | None, verdict: Verdict | None) -> str | None:
    """OpenAI's ``finish_reason``.

    Text beside tools is under a grammar too, which closes it where the budget ends; to the caller that is "length".
    """
    if called:
        return "tool_calls"
    if toolbox is not None and verdict is not None and verdict.report.closed_early:
        return "length"
    return tally.finish_reason


def message_json(reply: Reply, toolbox: Toolbox | None) -> dict[str, Any]:
    """The assistant's message of a choice."""
    content = None if toolbox is not None and not reply.text and reply.calls else reply.text
    calls = {"tool_calls": [call.as_json() for call in reply.calls]} if reply.calls else {}
    return {"role": "assistant", "content": content, "refusal": None, **calls}


def delta_of(piece: Piece) -> dict[str, Any] | None:
    """The ``delta`` of a chunk, as OpenAI streams it; ``None`` for a piece that nobody is told of."""
    match piece:
        case Said(text):
            return {"content": text}
        case CallBegun(index, id_, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": id_, "type": "function", "function": function}]}
        case ArgumentsSaid(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case CallEnded():
            return None
