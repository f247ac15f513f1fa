"""Token ids back to text, a few at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

from mmserve.errors import CheckpointError, ConfigError

_BLANK = "\u2581"
"""What SentencePiece writes for a blank."""

_LONE_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenTable:
    """The bytes that each token of a vocabulary stands for: byte-level BPE's, or SentencePiece's with bytes to fall
    back to.

    Shared by all requests, and safe to use from several threads: entries are computed when first asked for.
    ``opening_blank`` says that the tokenizer puts a blank before every text, which is no part of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ``ConfigError`` for a tokenizer of another kind."""
        kinds = _decoder_kinds(tokenizer)
        byte_level = "ByteLevel" in kinds
        if not byte_level and "ByteFallback" not in kinds:
            raise ConfigError(
                "only byte-level tokenizers and those that fall back to bytes are served, "
                f"and this one decodes by {tokenizer.decoder}"
            )
        self.opening_blank = "Strip" in kinds or "Metaspace" in kinds
        self._tokenizer = tokenizer
        self._byte_of = _byte_alphabet() if byte_level else {}
        self._bytes: dict[int, bytes] = {}
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)

    @classmethod
    def load(cls, checkpoint: Path) -> TokenTable:
        """From a checkpoint folder's ``tokenizer.json``. Raises ``CheckpointError`` and ``ConfigError``."""
        return cls(load_tokenizer(checkpoint))

    def bytes_of(self, token_id: int) -> bytes:
        """A token's bytes; a special token's are its name, and an id that belongs to no token has none."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._spell(token_id)
        return found

    def text_of(self, token_id: int) -> str:
        """A single token as text, for display: bytes that are no whole character become U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def _spell(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if not self._byte_of:
            lone = _LONE_BYTE.fullmatch(token)
            return bytes([int(lone[1], 16)]) if lone else token.replace(_BLANK, " ").encode()
        try:
            return bytes(self._byte_of[character] for character in token)
        except KeyError:  # an added token, which is spelled as it is
            return token.encode()


class Detokenizer:
    """One request's text so far. Each token costs its own length; nothing is decoded twice.

    The pieces that :meth:`push` and :meth:`flush` return make up what the tokenizer decodes from all ids at once,
    special tokens skipped, or with ``special`` spelled out: bytes of a character that is not complete are held back,
    and those that cannot become one are U+FFFD. With ``opens``, where a text begins, the tokenizer's own opening blank
    is left out.
    """

    def __init__(self, table: TokenTable, *, special: bool = False, opens: bool = False) -> None:
        self._table = table
        self._skipped = frozenset[int]() if special else table.special_ids
        self._blank = opens and table.opening_blank
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        table, skipped = self._table, self._skipped
        data = b"".join([table.bytes_of(id_) for id_ in token_ids if id_ not in skipped])
        if self._blank and data:
            data, self._blank = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is still held back, once no more tokens come."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises ``CheckpointError``."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: this is not a whole Hugging Face checkpoint folder, "
            "or it needs a tokenizer from elsewhere: name that as `tokenizer` in models.yaml"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    """The types of the steps that a tokenizer's decoder takes."""
    decoder = tokenizer.decoder
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {str(step.get("type")) for step in [state, *state.get("decoders", ())]}


def _byte_alphabet() -> dict[str, int]:
    """Which byte each of the 256 characters of byte-level BPE stands for (GPT-2's ``bytes_to_unicode``).

    Printable Latin-1 characters stand for their own code; the other bytes, in order, for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert alphabet.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet
