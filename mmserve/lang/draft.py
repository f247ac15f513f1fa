"""A conversation as a program writes it: turns whose generated pieces may not be known yet.

Immutable, so that a fork is another reference to it, whatever is in the open turn.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeAlias

from mmserve.lang.calls import Context, Part, Said, Shown, Turn
from mmserve.lang.errors import ProgramError
from mmserve.lang.slots import Slot

Piece: TypeAlias = Said | Shown | Slot[Said] | Slot[Shown]
"""What is known, or will be."""


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """``explicit`` turns are those that the program gave a role."""

    role: str
    pieces: tuple[Piece, ...]
    explicit: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """``open`` says that what comes next goes into the last turn.

    What stands outside any role is the user's up to the first generation, and the assistant's from there on; a picture
    then opens another user turn. So a program that only concatenates text and ``gen`` reads as one prompt, and the
    model continues its own text.
    """

    turns: tuple[DraftTurn, ...] = ()
    open: bool = False

    @property
    def last(self) -> DraftTurn | None:
        return self.turns[-1] if self.turns else None

    @property
    def open_role(self) -> str | None:
        """The role that the program has begun and not ended."""
        return self.turns[-1].role if self.open and self.turns[-1].explicit else None

    def begin(self, role: str) -> Draft:
        if self.open_role is not None:
            raise ProgramError(f"the {role} turn begins inside the {self.open_role} turn; end that one first")
        return self._with_turn(role, explicit=True)

    def end(self, role: str) -> Draft:
        if self.open_role != role:
            state = f"the open turn is the {self.open_role}'s" if self.open_role else "no turn is open"
            raise ProgramError(f"the {role} turn cannot end here: {state}")
        return dataclasses.replace(self, open=False)

    def add(self, piece: Piece, *, picture: bool = False) -> Draft:
        """With ``piece`` behind all else. Raises ``ProgramError`` for a picture in a turn that is not the user's."""
        draft = self
        if not self.open:
            draft = self._with_turn("user", explicit=False)
        elif picture and self.turns[-1].role != "user":
            if self.open_role is not None:
                raise ProgramError(f"a picture cannot be in the {self.open_role} turn; put it into a user turn")
            draft = self._with_turn("user", explicit=False)
        last = draft.turns[-1]
        grown = dataclasses.replace(last, pieces=(*last.pieces, piece))
        return dataclasses.replace(draft, turns=(*draft.turns[:-1], grown))

    def for_answer(self) -> Draft:
        """With an assistant's turn open. Raises ``ProgramError`` inside another role's turn."""
        if self.open and self.turns[-1].role == "assistant":
            return self
        if self.open_role is not None:
            raise ProgramError(
                f"the model writes the assistant's turns, and here the {self.open_role} turn is open; "
                "put this into sgl.assistant(...)"
            )
        return self._with_turn("assistant", explicit=False)

    def _with_turn(self, role: str, *, explicit: bool) -> Draft:
        return Draft((*self.turns, DraftTurn(role, (), explicit)), open=True)


async def resolve(draft: Draft) -> Context:
    """The conversation once all of its pieces are there. Raises ``Failed`` for one that will never be."""
    turns = [Turn(turn.role, tuple([await _known(piece) for piece in turn.pieces])) for turn in draft.turns]
    if not (draft.open and turns[-1].role == "assistant"):
        return Context(tuple(turns))
    opening = tuple(part for part in turns[-1].parts if isinstance(part, Said))
    return Context(tuple(turns[:-1]), opening)


async def _known(piece: Piece) -> Part:
    return await piece.wait() if isinstance(piece, Slot) else piece


def known_turns(draft: Draft) -> tuple[Turn, ...]:
    """All turns, waiting for what is still to come; for other threads than the loop's. Raises typed errors."""
    return tuple(
        Turn(turn.role, tuple(piece.get() if isinstance(piece, Slot) else piece for piece in turn.pieces))
        for turn in draft.turns
    )
