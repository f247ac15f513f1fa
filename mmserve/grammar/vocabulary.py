"""The model's tokens as llguidance sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llguidance import LLTokenizer

from mmserve.errors import CheckpointError


class Vocabulary:
    """A checkpoint's tokenizer for grammars; immutable, and safe to use from several threads.

    ``size`` is the number of logits: ids behind the tokenizer's own are never allowed. Special tokens are no text: no
    grammar lets one into a string. ``eos_ids`` end an answer; the first of them stands for all in masks' tests.
    Raises ``CheckpointError`` for a tokenizer that llguidance cannot read.
    """

    def __init__(self, checkpoint: Path, *, size: int, eos_ids: Sequence[int]) -> None:
        path = checkpoint / "tokenizer.json"
        try:
            # The default slices are kept: without them masks take six times longer.
            self.tokenizer = LLTokenizer(str(path), n_vocab=size, eos_token=list(eos_ids))
        except Exception as error:  # llguidance raises plain ValueError and pyo3's panic
            raise CheckpointError(f"{path} cannot be used for constrained generation: {error}") from None
        self.size = size
        self.eos_ids = frozenset(eos_ids)
        self.eos_id = eos_ids[0]

    @property
    def mask_words(self) -> int:
        """32-bit words of one mask."""
        return (self.size + 31) // 32

    def bytes_of(self, token_ids: Sequence[int]) -> bytes:
        """The bytes that ordinary tokens stand for; those of special tokens are of no use to anybody."""
        data: bytes = self.tokenizer.decode_bytes(list(token_ids))
        return data

    def tokenize(self, data: bytes) -> list[int]:
        """Ordinary tokens whose bytes are ``data``, which may begin or end inside a character."""
        found = self._tokenize(data)
        if self.bytes_of(found) == data:
            return found
        # The tokenizer normalises (NFC), and what is forced or held must not change: byte for byte, then.
        return [id_ for byte in data for id_ in self.tokenizer.tokenize_bytes(bytes([byte]))]

    def _tokenize(self, data: bytes) -> list[int]:
        found: list[int] = []
        while True:
            ids: list[int] = self.tokenizer.tokenize_bytes(data)
            at = next((i for i, id_ in enumerate(ids) if self.tokenizer.is_special_token(id_)), None)
            if at is None:
                return found + ids
            # Text that is spelled like a special token is text all the same: cut inside the name, it is none.
            cut = len(self.bytes_of(ids[:at])) + 1
            found += self.tokenizer.tokenize_bytes(data[:cut])
            data = data[cut:]
