"""Calls in a model's text, found as the text comes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from web.openai.tools import CLOSE, OPEN, Toolbox


@dataclass(frozen=True, slots=True)
class Said:
    """More of the text around the calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """Call number ``index`` of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsSaid:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    index: int


Piece: TypeAlias = Said | CallBegun | ArgumentsSaid | CallEnded


class CallReader:
    """Cuts an answer into text and calls; without a toolbox it is all text.

    White space before a call, and behind the last one, belongs to neither. The text of a call cannot be in its
    arguments, since JSON has no raw line end inside a string. What is no whole call stays text. Where nothing stands
    around calls (``bare``), an answer that does not begin with one has none.
    """

    def __init__(self, toolbox: Toolbox | None, *, bare: bool = False) -> None:
        self._begins = toolbox.begins if toolbox is not None else {}
        self._bare = bare
        self._held = ""
        self._count = 0
        self._state = "text" if toolbox is not None else "plain"
        self._steps = {"plain": self._plain, "text": self._text, "head": self._head, "arguments": self._arguments}

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return list(self._advance())

    def flush(self) -> list[Piece]:
        """What was held back, once no more text comes; an unfinished call is not ended."""
        rest, self._held = self._held, ""
        if self._state == "arguments":
            return [ArgumentsSaid(self._count - 1, rest)] if rest else []
        if self._count:
            rest = rest.rstrip()
        return [Said(rest)] if rest else []

    def _advance(self) -> Iterator[Piece]:
        while True:
            before = self._state, len(self._held)
            yield from self._steps[self._state]()
            if (self._state, len(self._held)) == before or not self._held:
                return

    def _plain(self) -> Iterator[Piece]:
        if self._held:
            yield Said(self._held)
            self._held = ""

    def _text(self) -> Iterator[Piece]:
        if self._bare:
            if OPEN.startswith(self._held):
                return
            self._bare = False
            if not self._held.startswith(OPEN):
                self._state = "plain"
                return
        at = self._held.find(OPEN)
        if at >= 0:
            said = self._held[:at].rstrip()
            self._held, self._state = self._held[at:], "head"
        else:
            said = self._held[: len(self._held) - _overlap(self._held, OPEN)].rstrip()
            self._held = self._held[len(said) :]
        if said:
            yield Said(said)

    def _head(self) -> Iterator[Piece]:
        for name, begin in self._begins.items():
            if self._held.startswith(begin):
                self._held, self._state = self._held[len(begin) :], "arguments"
                self._count += 1
                yield CallBegun(self._count - 1, new_call_id(), name)
                return
        if not any(begin.startswith(self._held) for begin in self._begins.values()):
            self._state = "text"
            said, self._held = self._held[: len(OPEN)], self._held[len(OPEN) :]
            yield Said(said)

    def _arguments(self) -> Iterator[Piece]:
        index, at = self._count - 1, self._held.find(CLOSE)
        end = at if at >= 0 else len(self._held) - _overlap(self._held, CLOSE)
        if end:
            yield ArgumentsSaid(index, self._held[:end])
        self._held = self._held[end:]
        if at >= 0:
            self._held, self._state = self._held[len(CLOSE) :], "text"
            yield CallEnded(index)


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of ``text`` with which ``mark`` could begin."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
