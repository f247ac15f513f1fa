"""A way for a constrained text to end: tokens that lead a matcher from its present state to one where it may stop.

llguidance tells what may come next, not what is short. Here a copy of the matcher walks byte by byte: it takes what is
forced, then what closes (quotes, brackets), then letters and digits, and steps back from dead ends. Bytes that do not
change what is allowed could go on for ever, so a walk makes each move only so often before it tries the next, as a
rotor-router walk does (Priezzhev et al., Phys. Rev. Lett. 77, 1996), and now and then looks around breadth first.
What it finds can then be made shorter, by cutting pieces out and by other turns at its forks. All effort is counted in
questions to the matcher, never in time, so that the same state always gives the same answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import TypeAlias

from llguidance import LLMatcher

from mmserve.grammar.cursor import Alphabet, Cursor, Move
from mmserve.grammar.rotor import CLOSERS, INSIDE, OUTSIDE, TEXT, Fork, Rotor
from mmserve.grammar.vocabulary import Vocabulary

_SEARCH_WORK = (40_000, 150_000)
"""Work for each walk from the start; a later one prefers at its forks what the earlier ones tried less."""
_CUT_WORK = 5_000
_TURNS_WORK = 12_000
_TURN_WORK = 600
_ENDING_WORK = 150
_LOOK_AROUND = {96: 3_000, 400: 10_000, 1200: 25_000}
"""Work for looking around, by the number of forks passed since something was closed."""

_BYTES_PER_TOKEN = 16
_LONGEST_WALK = 4096
_MAX_HINTS = 256
_HINT_ENDING_BYTES = 2048
_MAX_TURNS = 24


def find_completion(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    *,
    hints: Sequence[bytes] = (),
    budget: int,
    shorten: bool = True,
) -> list[int] | None:
    """Tokens (no end of sequence) that take ``matcher`` from its present state to one where the text may end.

    At most ``budget`` of them, or ``None`` where the bounded search finds none; the same state and arguments always
    give the same answer. ``hints`` are texts that may occur: literals of the constraint, or a completion held for an
    earlier state. Without ``shorten`` the first completion that fits will do. ``matcher`` is left as it is. Special
    tokens are used only where the grammar allows no text instead.
    """
    return Closer(vocabulary).find(matcher, hints=hints, budget=budget, shorten=shorten)


class Closer:
    """``find_completion`` for one vocabulary, whose single-byte tokens it looks up once; threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._alphabet = Alphabet(vocabulary)
        self._prepared = lru_cache(maxsize=256)(partial(_Hints.of, self._alphabet))

    def find(
        self,
        matcher: LLMatcher,
        *,
        hints: Sequence[bytes] = (),
        held: bytes = b"",
        budget: int,
        shorten: bool = True,
    ) -> list[int] | None:
        """As ``find_completion``; ``held`` is one more hint, which no other state has."""
        if matcher.is_error() or budget < 0:
            return None
        if matcher.is_accepting() or matcher.is_stopped():
            return []
        # A walk may be much longer than what is left of it once it is cut.
        texts = tuple(dict.fromkeys(hint for hint in hints if hint))[:_MAX_HINTS]
        known = self._prepared(texts).with_one(self._alphabet, held)
        search = _Search(self._alphabet, matcher, known, _LONGEST_WALK + budget * _BYTES_PER_TOKEN)
        found = search.first()
        if found is None:
            return None
        best = self._fitting(matcher, found, budget)
        if shorten or best is None:
            for path in search.shorter(found):
                tokens = self._fitting(matcher, path, budget)
                if tokens is not None and (best is None or len(tokens) < len(best)):
                    best = tokens
        return best

    def _fitting(self, matcher: LLMatcher, path: list[int], budget: int) -> list[int] | None:
        """``path`` in canonical tokens, or as it is where the matcher will not have those; ``None`` if too long."""
        for tokens in (self._canonical(path), path):
            if len(tokens) <= budget and matcher.validate_tokens([*tokens, self.vocabulary.eos_id]) == len(tokens) + 1:
                return tokens
        return None

    def _canonical(self, path: list[int]) -> list[int]:
        tokens: list[int] = []
        text: list[int] = []
        for id_ in path:
            if self.vocabulary.tokenizer.is_special_token(id_):
                tokens += [*self._alphabet.tokenize(text), id_]
                text = []
            else:
                text.append(id_)
        return tokens + self._alphabet.tokenize(text)


_Endings: TypeAlias = Mapping[int, list[tuple[list[int], int]]]
"""Texts and places in them from which on they may end a path, by the token at the place."""


def _places(alphabet: Alphabet, texts: Iterable[list[int]]) -> _Endings:
    """Where endings of ``texts`` start, those that begin by closing something first, then the shortest."""
    closers = (move.tokens[0] for byte in CLOSERS if (move := alphabet.move(byte)) is not None)
    found: dict[int, list[tuple[list[int], int]]] = {first: [] for first in closers}
    for text in texts:
        for start in range(len(text) - 1, -1, -1):
            found.setdefault(text[start], []).append((text, start))
    return {first: places for first, places in found.items() if places}


@dataclass(frozen=True, slots=True)
class _Hints:
    """What hints are to a search, worked out once for a constraint: steps, and texts that may end a path.

    ``size`` is their bytes; of too many the endings are not tried.
    """

    moves: tuple[Move, ...]
    endings: _Endings
    size: int

    @classmethod
    def of(cls, alphabet: Alphabet, texts: tuple[bytes, ...]) -> _Hints:
        variants = [alphabet.ids(variant) for text in texts for variant in (text, b" " + text)]
        size = sum(map(len, texts))
        few = size <= _HINT_ENDING_BYTES
        endings = _places(alphabet, [alphabet.ids(text) for text in texts] if few else [])
        return cls(tuple(Move(256 + i, ids) for i, ids in enumerate(variants)), endings, size)

    def with_one(self, alphabet: Alphabet, text: bytes) -> _Hints:
        """These and one more."""
        if not text:
            return self
        size = self.size + len(text)
        variants = [alphabet.ids(text), alphabet.ids(b" " + text)]
        moves = tuple(Move(256 + len(self.moves) + i, ids) for i, ids in enumerate(variants))
        if size > _HINT_ENDING_BYTES:
            return _Hints(self.moves + moves, {}, size)
        own = _places(alphabet, variants[:1])
        firsts = dict.fromkeys((*self.endings, *own))
        endings = {first: [*self.endings.get(first, ()), *own.get(first, ())] for first in firsts}
        return _Hints(self.moves + moves, endings, size)


class _Search:
    """Walks of one cursor from one state."""

    def __init__(self, alphabet: Alphabet, matcher: LLMatcher, hints: _Hints, longest: int) -> None:
        self._alphabet = alphabet
        self._cursor = Cursor(matcher)
        self._longest = longest
        self._hints = list(hints.moves)
        self._orders: dict[bool, list[Move]] = {}
        self._endings = hints.endings
        quotes = [move.tokens for byte in b'"<' if (move := alphabet.move(byte)) is not None]
        self._quotes = quotes if hints.size <= _HINT_ENDING_BYTES else []

    def first(self) -> list[int] | None:
        """The completion that walks from the start find."""
        rotor = Rotor()
        for work in _SEARCH_WORK:
            self._cursor.back_to(0)
            rotor.restart()
            found = self._walk(rotor, self._longest, work, self._endings)
            if found is not None:
                return found
        return None

    def shorter(self, path: list[int]) -> Iterator[list[int]]:
        """Completions made from ``path``, each of fewer bytes than the one before."""
        best = self._cut(path)
        if len(best) < len(path):
            yield best
        until = self._cursor.work + _TURNS_WORK
        at = 0
        while (fork := self._next_fork(best, at, until)) is not None:
            turned = self._turn(best, fork)
            if turned is None:
                at = fork + 1
            else:
                at = fork
                best = self._cut(turned)
                yield best

    def _walk(self, rotor: Rotor, longest: int, work: int, endings: _Endings) -> list[int] | None:
        """Depth first from where the cursor stands: the whole path of a completion of at most ``longest`` tokens."""
        cursor = self._cursor
        until = cursor.work + work
        forks: list[Fork] = []
        while cursor.work < until:
            before = len(cursor.path)
            alive = self._settle(longest)
            if alive and (cursor.done() or self._rejoin(endings, longest)):
                return list(cursor.path)
            if alive and len(cursor.path) < longest:
                forks.append(Fork(len(cursor.path), self._in_text()))
                rotor.enter(forks[-1], forced=len(cursor.path) > before)
                if rotor.at_text(forks[-1]) and self._close_by_hint(longest):
                    rotor.closed()
                    continue
                allowance = min(_LOOK_AROUND.get(rotor.turns, 0), until - cursor.work)
                if allowance > 0 and self._look_around(rotor.run_start, allowance):
                    while forks and forks[-1].at > rotor.run_start:
                        forks.pop()
                    continue
            if not self._advance(forks, rotor):
                return None
        return None

    def _advance(self, forks: list[Fork], rotor: Rotor) -> bool:
        """Make a move at the last fork that has one left; ``False`` if none has."""
        while forks:
            fork = forks[-1]
            self._cursor.back_to(fork.at)
            move = self._next(fork, rotor)
            if move is None:
                forks.pop()
                continue
            rotor.made(fork, move)
            if self._cursor.take(move.tokens):
                return True
        return False

    def _next(self, fork: Fork, rotor: Rotor) -> Move | None:
        """The move to try at ``fork``: the first whose turn it is, or else the first."""
        untried = (move for move in self._ordered(fork.in_text) if move.key not in fork.tried)
        waiting: list[Move] = []
        for move in untried:
            if not rotor.has_turn(fork, move):
                waiting.append(move)
            elif self._cursor.allows(move.tokens):
                return move
        for move in waiting:
            if self._cursor.allows(move.tokens):
                return move
        return next((move for move in self._odd_moves(fork.in_text) if move.key not in fork.tried), None)

    def _settle(self, longest: int) -> bool:
        """Take what is forced; ``False`` if that makes the path too long or breaks the matcher."""
        forced = self._cursor.forced()
        if not forced:
            return len(self._cursor.path) <= longest
        ids = self._alphabet.ids(forced)
        if len(self._cursor.path) + len(ids) > longest:
            return False
        # Forced special tokens have no bytes that say so; they are found among the moves.
        return not self._cursor.allows(ids) or self._cursor.take(ids)

    def _in_text(self) -> bool:
        return len(list(islice(filter(self._allows_byte, TEXT), 2))) == 2

    def _allows_byte(self, byte: int) -> bool:
        move = self._alphabet.move(byte)
        return move is not None and self._cursor.allows(move.tokens)

    def _moves(self, in_text: bool) -> list[Move]:
        """The moves that the state allows, best first."""
        allowed = [move for move in self._ordered(in_text) if self._cursor.allows(move.tokens)]
        return allowed or self._odd_moves(in_text)

    def _odd_moves(self, in_text: bool) -> list[Move]:
        """Where no byte is allowed by itself: the vocabulary lacks it, or the grammar wants a special token."""
        if any(self._cursor.allows(move.tokens) for move in self._ordered(in_text)):
            return []
        ids = self._cursor.allowed_ids()
        return [Move(256 + 2 * _MAX_HINTS + id_, [id_]) for id_ in ids if not self._alphabet.ends_text(id_)]

    def _ordered(self, in_text: bool) -> list[Move]:
        """All moves, best first, whether or not the state allows them."""
        if in_text not in self._orders:
            order, first = (INSIDE, 1) if in_text else (OUTSIDE, len(CLOSERS))
            moves = [move for byte in order if (move := self._alphabet.move(byte)) is not None]
            self._orders[in_text] = moves[:first] + self._hints + moves[first:]
        return self._orders[in_text]

    def _rejoin(self, endings: _Endings, longest: int) -> bool:
        """Take the shortest of ``endings`` that ends the text from here."""
        found = self._ending(endings, [self._alphabet.eos_id], longest)
        return found is not None and self._cursor.take(found)

    def _close_by_hint(self, longest: int) -> bool:
        """Where a quote does not end the text, take the rest of a hint with which one does."""
        for quote in self._quotes:
            if self._cursor.allows(quote):
                return False
            found = self._ending(self._endings, quote, longest - 1)
            if found is not None:
                return self._cursor.take(found + quote)
        return False

    def _ending(self, endings: _Endings, then: list[int], longest: int) -> list[int] | None:
        """The first of ``endings`` that is allowed with ``then`` after it, as far as some work goes."""
        cursor = self._cursor
        room = longest - len(cursor.path)
        until = cursor.work + _ENDING_WORK
        for first, places in endings.items():
            if cursor.allows([first]):
                for text, start in places:
                    if len(text) - start <= room and cursor.allows(text[start:] + then):
                        return text[start:]
                    if cursor.work >= until:
                        return None
        return None

    def _look_around(self, start: int, work: int) -> bool:
        """Breadth first from path length ``start`` to where something can be closed that could not be there.

        Leaves the cursor there, or where it was before.
        """
        cursor = self._cursor
        until = cursor.work + work
        before = list(cursor.path)
        cursor.back_to(start)
        known = self._closable()
        queue = deque([list(cursor.path)])
        while queue and cursor.work < until:
            path = queue.popleft()
            cursor.go(path)
            for move in list(self._moves(self._in_text())):
                if cursor.take(move.tokens) and self._settle(self._longest):
                    if cursor.done() or self._closable() - known:
                        return True
                    queue.append(list(cursor.path))
                cursor.back_to(len(path))
        cursor.go(before)
        return False

    def _closable(self) -> set[int]:
        return {byte for byte in CLOSERS if self._allows_byte(byte)}

    def _cut(self, path: list[int]) -> list[int]:
        """``path`` without the pieces, longest first, that can be left out."""
        cursor = self._cursor
        path = list(path)
        until = cursor.work + _CUT_WORK
        start = 0
        while (at := self._next_fork(path, start, until)) is not None:
            allowed: dict[int, bool] = {}
            for resume in range(len(path) - 1, at, -1):
                first = path[resume]
                if first not in allowed:
                    allowed[first] = cursor.allows([first])
                if allowed[first] and cursor.allows([*path[resume:], self._alphabet.eos_id]):
                    del path[at:resume]
                    break
                if cursor.work >= until:
                    return path
            start = at + 1
        return path

    def _next_fork(self, path: list[int], at: int, until: int) -> int | None:
        """The first place of ``path`` from ``at`` on where the matcher has a choice, with the cursor there."""
        cursor = self._cursor
        cursor.go(path[:at])
        while len(cursor.path) < len(path) and cursor.work < until:
            forced = len(self._alphabet.ids(cursor.forced()))
            if not forced:
                return len(cursor.path)
            cursor.take(path[len(cursor.path) : len(cursor.path) + forced])
        return None

    def _turn(self, path: list[int], at: int) -> list[int] | None:
        """A shorter completion than ``path`` that makes another move at its fork ``at``, or ``None``."""
        cursor = self._cursor
        moves = [move for move in self._moves(self._in_text()) if move.tokens[0] != path[at]]
        if len(moves) > _MAX_TURNS:
            return None
        endings = _places(self._alphabet, [path[at + 1 :]])
        for move in moves:
            cursor.go(path[:at])
            if cursor.take(move.tokens):
                found = self._walk(Rotor(), len(path) - 1, _TURN_WORK, endings)
                if found is not None:
                    return found
        return None
