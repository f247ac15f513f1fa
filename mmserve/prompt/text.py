"""Text between special tokens to token ids, as the tokenizer would encode it inside a whole prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer


class TextEncoder:
    """Encodes text that is only text. Keeps nothing between calls, so several threads may share it.

    SentencePiece-like tokenizers put a blank before a text: before each piece between special tokens, or only where a
    prompt begins. ``opening`` are the ids that the tokenizer puts before a whole text (``<s>``), often none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """``tokenizer`` is not changed, and must have ``encode_special_tokens`` set."""
        self._tokenizer = tokenizer
        parts = [part.__getstate__() for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part is not None]
        found = [_prefixes(json.loads(part), lambda _: None) for part in parts]
        self._only_first = "first" in "".join(found)
        self._joined = _without_prefix(tokenizer) if any(found) else tokenizer
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
        self.opening = tuple(whole[: next((i for i in range(len(whole)) if whole[i:][: len(plain)] == plain), 0)])

    def encode(self, run: str, *, first: bool) -> list[int]:
        """The ids of a text between special tokens; ``first`` where nothing stands before it in the prompt."""
        tokenizer = self._tokenizer if first or not self._only_first else self._joined
        ids: list[int] = tokenizer.encode(run, add_special_tokens=False).ids
        return ids

    def continue_(self, text: str) -> list[int]:
        """The ids of a text that goes on where another has ended: no blank is put before it."""
        ids: list[int] = self._joined.encode(text, add_special_tokens=False).ids
        return ids


def _prefixes(part: Any, change: Callable[[dict[str, Any]], None]) -> str:
    """How a normalizer or pre-tokenizer, in its JSON form, puts a blank before texts: ``"first"``, ``"always"`` or not.

    ``change`` is called with every part that does.
    """
    if not isinstance(part, dict):
        return ""
    for each in [*part.get("normalizers", ()), *part.get("pretokenizers", ())]:
        found = _prefixes(each, change)
        if found:
            return found
    kind, scheme = part.get("type"), part.get("prepend_scheme")
    if kind == "Prepend" or (kind == "Metaspace" and scheme in ("always", "first")):
        change(part)
        return "first" if scheme == "first" else "always"
    if kind == "ByteLevel" and part.get("add_prefix_space"):
        change(part)
        return "always"
    return ""


def _without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    def change(part: dict[str, Any]) -> None:
        if part["type"] == "Prepend":
            part["prepend"] = ""
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        else:
            part["add_prefix_space"] = False

    whole = json.loads(tokenizer.to_str())
    for name in ("normalizer", "pre_tokenizer"):
        _prefixes(whole[name], change)
    other = Tokenizer.from_str(json.dumps(whole))
    other.encode_special_tokens = tokenizer.encode_special_tokens
    return other
