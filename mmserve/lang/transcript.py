"""Transcript: all that one state of a program has written, and its variables. What ``s += …`` does happens here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from mmserve.lang.calls import Said
from mmserve.lang.draft import Draft
from mmserve.lang.errors import NoSuchVariable
from mmserve.lang.execution import Run
from mmserve.lang.expressions import Audio, Begin, End, Expr, Gen, Image, Joined, Media, Select, Text, Video, leaves
from mmserve.lang.log import Log
from mmserve.lang.slots import Variable

Named: TypeAlias = "Variable | tuple[Variable, ...]"
"""What a name stands for; several where branches of a fork each have it."""


class Transcript:
    """One line of a program, from its start. Changed by one thread, the program's; read by any.

    ``items`` is its text in order, what is not known yet as variables; turns are apart by a line break.
    """

    def __init__(self, run: Run, draft: Draft = Draft(), items: tuple[str | Variable, ...] = ()) -> None:  # noqa: B008
        self.run = run
        self.draft = draft
        self.items: Log[str | Variable] = Log()
        for item in items:
            self.items.append(item)
        self.variables: dict[str, Named] = {}
        run.owns(self.items)

    def branch(self) -> Transcript:
        """Another line that goes on from here; both share what is written already, known or not."""
        made = Transcript(self.run, self.draft, self.items.snapshot())
        made.variables = dict(self.variables)
        return made

    def add(self, expr: Expr) -> None:
        """Raises ``ProgramError``."""
        parts = list(leaves(expr))
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            match part:
                case Text(text):
                    if text:
                        self._move(self.draft.add(Said(text)), text)
                case Begin(role):
                    self._move(self.draft.begin(role))
                case End(role):
                    self._move(self.draft.end(role))
                case Image() | Video() | Audio():
                    self._add_media(part)
                case Gen():
                    draft = self.draft.for_answer()
                    self._add_variable(part.name, draft, self.run.generate(part, draft))
                case Select():
                    draft = self.draft.for_answer()
                    chosen = self.run.select(part, draft, ends_turn=isinstance(following, End))
                    self._add_variable(part.name, draft, chosen)
                case Joined(group):
                    self.adopt(group.variables())

    def adopt(self, variables: Mapping[str, Named]) -> None:
        """Take over variables of other lines, by name."""
        with self.run.changed:
            self.variables.update(variables)
            self.run.changed.notify_all()

    def find(self, name: str, *, wait: bool) -> Variable:
        """The variable. With ``wait`` the program may still define it, so its end is waited for.

        Raises ``NoSuchVariable``, or what ended the program.
        """
        with self.run.changed:
            if wait:
                self.run.changed.wait_for(lambda: name in self.variables or self.run.finished)
            found = self.variables.get(name)
        if isinstance(found, Variable):
            return found
        if found is not None:
            raise NoSuchVariable(
                f"{len(found)} branches have generated {name!r}: read forks[{name!r}] for all of them, "
                f"or forks[i][{name!r}] for one"
            )
        if self.run.failure is not None:
            raise self.run.failure
        names = ", ".join(map(repr, self.variables)) or "nothing has a name yet"
        raise NoSuchVariable(f"nothing generates {name!r} on the way that this program took; there is: {names}")

    def _add_media(self, media: Media) -> None:
        if isinstance(media.source, bytes):
            self._move(self.draft.add(media.shown(media.source), picture=True))
            return
        self.draft.add(Said(""), picture=True)  # refuses before anything is fetched
        self._move(self.draft.add(self.run.fetch(media), picture=True))

    def _add_variable(self, name: str | None, draft: Draft, variable: Variable) -> None:
        self._move(draft.add(variable), variable)
        if name is not None:
            self.adopt({name: variable})

    def _move(self, draft: Draft, item: str | Variable | None = None) -> None:
        before = self.draft.last
        if len(draft.turns) > len(self.draft.turns) and before is not None:
            assert draft.last is not None
            if before.explicit or draft.last.explicit:
                self.items.append("\n")
        self.draft = draft
        if item is not None:
            self.items.append(item)
