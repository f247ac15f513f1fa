"""Which byte a walk through a grammar tries next, so that it closes what is open and repeats nothing for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmserve.grammar.cursor import Move

CLOSERS = b"\"}])>'/\n"
_QUOTE, _LESS, _LETTER = b'"<a'
_CLOSER_KEYS = frozenset(CLOSERS)
TEXT = b"aoz "
"""Bytes that begin no JSON literal: where two of them are allowed, a walk is inside text."""

_REST = (
    b"ntfTZ"
    + bytes(byte for byte in b"bcdeghijklmopqrsuvwxyz")
    + b"ABCDEFGHIJKLMNOPQRSUVWXY:;.-_ +=!#$%&*?@^`|~\t\r([{\\"
    + bytes(range(0x80, 0x100))
    + b"\x7f"
    + bytes(byte for byte in range(0x20) if byte not in b"\t\n\r")
)
OUTSIDE = CLOSERS + b",1023456789" + b"a" + _REST + b"<"
INSIDE = b'"<a' + CLOSERS[1:] + b"1023456789" + _REST + b","
"""Bytes as a walk prefers them, outside and inside text: what closes first, what opens last, as it may never end."""

_FAVOURITES_OUTSIDE = dict.fromkeys(CLOSERS + b",", 64) | dict.fromkeys(b"1023456789", 4)
_FAVOURITES_INSIDE = {_LETTER: 256}
"""How often a move is made before others have their turn; once, where nothing is said. Runs of "a" are few tokens."""

_LONG_RUN = 32


@dataclass(slots=True)
class Fork:
    """A place on a walk's path where it has a choice; ``tried`` are the keys of the moves made from it."""

    at: int
    in_text: bool
    tried: set[int] = field(default_factory=set)


class _Quota:
    """How often each move was made, and whether it is another's turn: the rotor of a rotor-router walk."""

    def __init__(self, favourites: Mapping[int, int]) -> None:
        self._favourites = favourites
        self._level = 1
        self._made: Counter[int] = Counter()

    def left(self, key: int) -> bool:
        return self._made[key] < self._level * self._favourites.get(key, 1)

    def made(self, key: int) -> int:
        return self._made[key]

    def spend(self, key: int) -> None:
        while not self.left(key):
            self._level *= 2
        self._made[key] += 1


class Rotor:
    """Says among the moves at a walk's forks whose turn it is, so that none is made for ever.

    A run is what lies between two closers that closed something. Counts of moves inside text last for a run at most,
    those outside for the walk, so that recursion ends.
    """

    def __init__(self) -> None:
        self._outside = _Quota(_FAVOURITES_OUTSIDE)
        self.restart()

    def restart(self) -> None:
        """A walk begins; what the ones before did outside text still counts."""
        self._inside = _Quota(_FAVOURITES_INSIDE)
        self._after_closer = False
        self._was_in_text = False
        self._entered_text = False
        self.turns = 0
        self.run_start = 0

    def enter(self, fork: Fork, *, forced: bool) -> None:
        """A walk came to ``fork``, after forced bytes or straight from its last move."""
        closed = self._after_closer and (forced or not fork.in_text)
        if closed:
            self.turns, self.run_start = 0, fork.at
        if closed or not fork.in_text:
            self._inside = _Quota(_FAVOURITES_INSIDE)
        self._entered_text = fork.in_text and (forced or not self._was_in_text)
        self._was_in_text = fork.in_text
        self.turns += 1

    def at_text(self, fork: Fork) -> bool:
        """Whether ``fork``, the last one entered, is where text begins, or far into a text that does not end."""
        return self._entered_text or (fork.in_text and self.turns % _LONG_RUN == 0)

    def has_turn(self, fork: Fork, move: Move) -> bool:
        if fork.in_text and move.key == _LESS and not self._inside.made(_QUOTE):
            # "<" ends text that a quote did not end: in XML. In a JSON string that is still too short it is no help.
            return not self._inside.left(_LETTER)
        return self._of(fork).left(move.key)

    def made(self, fork: Fork, move: Move) -> None:
        self._of(fork).spend(move.key)
        fork.tried.add(move.key)
        self._after_closer = move.key in _CLOSER_KEYS

    def closed(self) -> None:
        """Something was closed without a move of the rotor's."""
        self._after_closer = True

    def _of(self, fork: Fork) -> _Quota:
        return self._inside if fork.in_text else self._outside
