"""Where one answer stands in its grammar: what may follow, what is forced, and how it can still be completed in time.

The state always holds a completion: tokens that would make the answer whole within its budget. A token after which none
is found is not taken; the completion is, so that an answer parses whatever ends it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from llguidance import LLMatcher

from mmserve.grammar.closing import Closer
from mmserve.grammar.spec import AnyJson, Constraint, JsonSchema, StructuralTag, XmlSchema
from mmserve.types import ConstraintReport

LONGEST_NUMBER = 40
"""Digits, signs, points and exponents in a row after which a number that could end is ended."""

LOOP_TOKENS = 48
"""A text that could end is ended when its last so many tokens repeat one period of at most a quarter of them."""

_NUMBER = frozenset(b"0123456789+-.eE")
_CLOSERS = frozenset(b'"}]>),')
_BEHIND_NUMBER = (b",", b"}", b"]")
_LOOK_EVERY = 8
_VALUES = (JsonSchema, AnyJson, XmlSchema, StructuralTag)


class Compiled(Protocol):
    """What a state needs of a compiled constraint."""

    @property
    def constraint(self) -> Constraint: ...
    @property
    def step(self) -> str: ...
    @property
    def relaxed(self) -> tuple[str, ...]: ...
    @property
    def hints(self) -> tuple[bytes, ...]: ...
    @property
    def completion(self) -> tuple[int, ...]: ...
    def matcher(self) -> LLMatcher: ...


@dataclass(frozen=True, slots=True)
class Advance:
    """What choosing a token led to: the ``tokens`` to append, the chosen one first if it was ``taken``.

    ``ended`` says that the answer is whole; ``silent`` that the last token marks its end and is no text.
    """

    tokens: tuple[int, ...]
    taken: bool = True
    ended: bool = False
    silent: bool = False


class GrammarState:
    """One answer of at most ``budget`` tokens under a compiled constraint.

    ``fast_forward`` appends forced tokens at once. ``stop_ids`` end the answer where the grammar accepts. Not thread
    safe; nothing may touch ``matcher`` while a mask is filled from it.
    """

    def __init__(
        self,
        compiled: Compiled,
        closer: Closer,
        *,
        budget: int,
        fast_forward: bool = True,
        stop_ids: Collection[int] = (),
    ) -> None:
        self._compiled = compiled
        self._closer = closer
        self._vocabulary = vocabulary = closer.vocabulary
        self._budget = budget
        self._fast_forward = fast_forward
        self._stop_ids = frozenset(stop_ids) - vocabulary.eos_ids
        self._guarded = isinstance(compiled.constraint, _VALUES)
        self._held = list(compiled.completion)
        self._run: list[int] = []
        self._count = 0
        self._forced_count = 0
        self._closed_early = False
        self._asked: tuple[str, LLMatcher | None] = ("", None)
        self.matcher = compiled.matcher()
        if len(self._held) > budget:
            raise ValueError(f"a completion takes {len(self._held)} tokens and the budget is {budget}")

    @property
    def held(self) -> tuple[int, ...]:
        """The completion that is held: ordinary tokens, without an end of sequence."""
        return tuple(self._held)

    @property
    def remaining(self) -> int:
        return self._budget - self._count

    def report(self) -> ConstraintReport:
        return ConstraintReport(self._compiled.step, self._compiled.relaxed, self._closed_early, self._forced_count)

    def begin(self) -> tuple[int, ...]:
        """The tokens that are forced before any is chosen. Call it first, once, or not at all.

        None where nothing is left to choose behind them: some step must end the answer.
        """
        forced = self._take_forced(0)
        if not self.matcher.is_stopped() and self.remaining:
            return tuple(forced)
        self.matcher = self._compiled.matcher()
        self._held = list(self._compiled.completion)
        self._count = self._forced_count = 0
        return ()

    def advance(self, token: int) -> Advance:
        """Take a token that was chosen under this state's mask."""
        if (token in self._vocabulary.eos_ids or token in self._stop_ids) and self.matcher.is_accepting():
            self._count += 1
            return Advance((token,), ended=True, silent=True)
        if self._vocabulary.tokenizer.is_special_token(token) and not self.matcher.validate_tokens([token]):
            # Where text is forced that is spelled like a special token, llguidance's mask has only the token itself.
            forced = self._take_forced(0)
            return Advance(tuple(forced), taken=False, ended=self._ends()) if forced else self._close()
        held = self._held_after(token)
        if held is None or len(held) >= self.remaining:
            return self._close()
        self._held = held
        self._count += 1
        forced = self._take_forced(self._run_away())
        if self.matcher.is_error():  # it calls itself stopped then
            return Advance((token, *forced, *self._close().tokens), ended=True)
        return Advance((token, *forced), ended=self._ends())

    def accepts(self, text: str) -> bool:
        """Whether ``text`` would be a whole answer. Asked about longer and longer texts, it reads each part once."""
        known, matcher = self._asked
        if matcher is None or not text.startswith(known):
            known, matcher = "", self._compiled.matcher()
        rest = self._vocabulary.tokenize(text[len(known) :].encode())
        taken = bool(matcher.consume_tokens(rest))
        self._asked = (text, matcher) if taken else ("", None)
        return taken and bool(matcher.is_accepting())

    # -- inside -------------------------------------------------------------------------------------------------

    def _held_after(self, token: int) -> list[int] | None:
        """A completion behind ``token``, which the matcher takes; ``None`` where it cannot be or none is found."""
        matcher = self.matcher
        if matcher.is_error() or not matcher.consume_token(token):
            return None
        if self._held and self._held[0] == token:
            self._run.clear()
            return self._held[1:]
        if len(self._held) < self.remaining and self._completes(self._held):
            self._run.append(token)
            return self._held
        self._run.clear()
        spelled, rest = self._vocabulary.bytes_of([token]), self._vocabulary.bytes_of(self._held)
        if spelled and rest.startswith(spelled):
            return self._vocabulary.tokenize(rest[len(spelled) :])
        for tail in self._tails():
            if len(tail) < self.remaining and self._completes(tail):
                return tail
        return self._closer.find(
            matcher, hints=self._compiled.hints, held=rest, budget=self.remaining - 1, shorten=False
        )

    def _tails(self) -> Iterator[list[int]]:
        """Ends of the held completion that are likely to do when all of it does not: less filling, or from a closer on.

        Trying one costs some microseconds, a search some hundreds.
        """
        dropped = 1
        while dropped < len(self._held):
            yield self._held[dropped:]
            dropped *= 2
        closers = (i for i, id_ in enumerate(self._held) if not _CLOSERS.isdisjoint(self._vocabulary.bytes_of([id_])))
        for at in islice(closers, 4):
            yield self._held[at:]

    def _completes(self, tokens: Sequence[int]) -> bool:
        return bool(self.matcher.validate_tokens([*tokens, self._vocabulary.eos_id]) > len(tokens))

    def _close(self) -> Advance:
        """Say what is held instead of a token that would leave no time."""
        tokens = tuple(self._held)
        self._held = []
        self._count += len(tokens)
        self._closed_early = True
        return Advance(tokens, taken=False, ended=True)

    def _ends(self) -> bool:
        if self.matcher.is_stopped():
            return True
        if self.remaining:
            return False
        self._closed_early = True
        return True

    def _take_forced(self, at_least: int) -> list[int]:
        """Append what must follow, and the first ``at_least`` tokens that are held."""
        taken: list[int] = []
        if at_least:
            taken = self._take(self._held[:at_least])
        while forced := self._forced():
            more = self._take(forced)
            taken += more
            if not more:
                break
        return taken

    def _forced(self) -> list[int]:
        data = self.matcher.compute_ff_bytes()
        if not data:
            return []
        ids = self.matcher.compute_ff_tokens()
        if any(self._vocabulary.tokenizer.is_special_token(id_) for id_ in ids):
            return self._vocabulary.tokenize(data)
        return ids if self._fast_forward else []

    def _take(self, tokens: list[int]) -> list[int]:
        """Commit tokens that the held completion begins with, if they leave room for the rest of it."""
        rest = self._vocabulary.bytes_of(self._held)
        spelled = self._vocabulary.bytes_of(tokens)
        if self._held[: len(tokens)] == tokens:
            held = self._held[len(tokens) :]
        elif rest.startswith(spelled):
            held = self._vocabulary.tokenize(rest[len(spelled) :])
        else:
            return []
        if len(tokens) + len(held) > self.remaining or self.matcher.validate_tokens(tokens) < len(tokens):
            return []
        if not self.matcher.consume_tokens(tokens):
            return []
        self._held = held
        self._count += len(tokens)
        self._forced_count += len(tokens)
        self._run.clear()
        return tokens

    def _run_away(self) -> int:
        """How many held tokens to take because a number or a text goes on without end: 1, or 0."""
        if not self._guarded or not self._held or not self._run or len(self._run) % _LOOK_EVERY:
            return 0
        tail = self._vocabulary.bytes_of(self._run[-LONGEST_NUMBER:])[-LONGEST_NUMBER:]
        in_number = self._vocabulary.bytes_of(self._held[:1])[:1] in _BEHIND_NUMBER
        if in_number and len(tail) >= LONGEST_NUMBER and _NUMBER.issuperset(tail):
            return 1
        last = self._run[-LOOP_TOKENS:]
        if len(last) < LOOP_TOKENS:
            return 0
        return int(any(last[period:] == last[:-period] for period in range(1, LOOP_TOKENS // 4 + 1)))
