"""Standing in a grammar and stepping through it a byte at a time, without moving the matcher that stands there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from llguidance import LLMatcher

from mmserve.grammar.vocabulary import Vocabulary

_MANY = 256


@dataclass(frozen=True, slots=True)
class Move:
    """Tokens to take at a fork; ``key`` is the byte that they are, or a number above 255."""

    key: int
    tokens: list[int]


class Alphabet:
    """The single-byte tokens of a vocabulary, each looked up when first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._moves: dict[int, Move | None] = {}

    def move(self, byte: int) -> Move | None:
        """The step by one byte, or ``None`` where no ordinary token stands for it."""
        try:
            return self._moves[byte]
        except KeyError:
            data = bytes((byte,))
            ids = self._vocabulary.tokenize(data)
            alone = len(ids) == 1 and self._vocabulary.bytes_of(ids) == data
            return self._moves.setdefault(byte, Move(byte, ids) if alone else None)

    def ids(self, data: bytes) -> list[int]:
        """Tokens for ``data``: one a byte, where the vocabulary has it."""
        ids = [id_ for byte in data if (move := self.move(byte)) is not None for id_ in move.tokens]
        return ids if len(ids) == len(data) else self._vocabulary.tokenize(data)

    def tokenize(self, ids: list[int]) -> list[int]:
        """The text of ordinary tokens in as few as the tokenizer would use."""
        return self._vocabulary.tokenize(self._vocabulary.bytes_of(ids)) if ids else []

    @property
    def eos_id(self) -> int:
        return self._vocabulary.eos_id

    def ends_text(self, id_: int) -> bool:
        return id_ in self._vocabulary.eos_ids


class Cursor:
    """A copy of a matcher, and the path of tokens that it took from where the original stands. Counts its work."""

    def __init__(self, origin: LLMatcher) -> None:
        self._origin = origin
        self._matcher = origin.deep_copy()
        self.path: list[int] = []
        self.work = 0

    def allows(self, tokens: list[int]) -> bool:
        taken: int = self._matcher.validate_tokens(tokens)
        self.work += 1 + taken // 8 + len(tokens) // 64
        return taken == len(tokens)

    def done(self) -> bool:
        return bool(self._matcher.is_accepting())

    def forced(self) -> bytes:
        data: bytes = self._matcher.compute_ff_bytes()
        return data

    def allowed_ids(self) -> list[int]:
        """The first allowed tokens, which cost a whole mask."""
        self.work += 50
        mask = self._matcher.compute_bitmask()
        ids = (8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1)
        return list(islice(ids, _MANY))

    def take(self, tokens: list[int]) -> bool:
        """Move on by ``tokens``, which are allowed; ``False``, and no move, if the matcher breaks on them."""
        self.work += 2 + len(tokens) // 4
        before = len(self.path)
        self.path += tokens
        if self._matcher.consume_tokens(tokens) and not self._matcher.is_error():
            return True
        self._replay(before)
        return False

    def back_to(self, length: int) -> None:
        """Undo all but the first ``length`` tokens of the path."""
        surplus = len(self.path) - length
        self.work += 1
        if surplus and (not self._matcher.rollback(surplus) or self._matcher.is_error()):
            self._replay(length)
        del self.path[length:]

    def go(self, path: list[int]) -> None:
        """Stand at ``path``, which the matcher is known to allow."""
        shared = len(self.path)
        if path[:shared] != self.path:
            pairs = zip(self.path, path, strict=False)
            shared = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(shared, len(path)))
        self.work += len(path) // 64
        self.back_to(shared)
        if shared < len(path):
            self.take(path[shared:])

    def _replay(self, length: int) -> None:
        self.work += 2 + length // 4
        self._matcher = self._origin.deep_copy()
        del self.path[length:]
        self._matcher.consume_tokens(self.path)
