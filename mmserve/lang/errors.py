"""Errors of programs, beside those of ``mmserve.errors``.

::

    RequestError
    └── ProgramError             a program says what cannot be meant (a turn inside a turn, a gen in a user turn)
        └── NoSuchVariable       a name is read that nothing generates; also a KeyError
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from types import FrameType

from mmserve.errors import MMServeError, RequestError


class ProgramError(RequestError):
    code = "program_error"


class NoSuchVariable(ProgramError, KeyError):
    code = "no_such_variable"

    def __str__(self) -> str:  # KeyError would show the message's repr
        return self.message


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a program something was written; ``what`` is for people: ``gen "answer"``."""

    what: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.what} in {os.path.basename(self.file)}, line {self.line}"


class Failed(Exception):
    """How a failure travels between generations: the typed error, and where in the program it came from."""

    def __init__(self, error: BaseException, place: Place | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.place = place

    def fresh(self) -> MMServeError:
        """An exception to raise, a new one for each reader: of the error's own class, and with the program's line."""
        where = f" [{self.place}]" if self.place is not None else ""
        if isinstance(self.error, MMServeError):
            made = type(self.error)(f"{self.error.message}{where}", param=self.error.param)
        else:
            made = MMServeError(f"{type(self.error).__name__}: {self.error}{where}")
        made.__cause__ = self.error
        return made


def calling_place(what: str) -> Place:
    """The innermost line of a program, outside this package, that is being executed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(__package__ + "."):
        frame = frame.f_back
    if frame is None:
        return Place(what, "<unknown>", 0)
    return Place(what, frame.f_code.co_filename, frame.f_lineno)
