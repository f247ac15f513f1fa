"""A small vocabulary, and what tests do to a compiled grammar with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mmserve.grammar.closing import find_completion
from mmserve.grammar.compiler import CompiledGrammar
from mmserve.grammar.vocabulary import Vocabulary
from tests.checkpoints import tiny_tokenizer_json

SIZE = 504


def tiny_vocabulary(folder: Path) -> Vocabulary:
    text = tiny_tokenizer_json(SIZE)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    ends = [token["id"] for token in json.loads(text)["added_tokens"] if token["content"] == "<|im_end|>"]
    return Vocabulary(folder, size=SIZE, eos_ids=ends)


def accepts(grammar: CompiledGrammar, vocabulary: Vocabulary, text: str) -> bool:
    """Whether ``text`` is a whole answer."""
    matcher = grammar.matcher()
    tokens = vocabulary.tokenize(text.encode())
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def generate(grammar: CompiledGrammar, vocabulary: Vocabulary, seed: int, most: int = 40) -> str:
    """An answer whose tokens are chance up to ``most``, then closed."""
    rng = np.random.default_rng(seed)
    matcher = grammar.matcher()
    tokens: list[int] = []
    for _ in range(int(rng.integers(0, most + 1))):
        if matcher.is_stopped():
            break
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.setdiff1d(np.flatnonzero(bits), list(vocabulary.eos_ids))
        if not len(allowed):
            break
        tokens.append(int(rng.choice(allowed)))
        assert matcher.consume_token(tokens[-1]), matcher.get_error()
    rest = find_completion(matcher, vocabulary, hints=[*grammar.hints], budget=400, shorten=False)
    assert rest is not None, vocabulary.bytes_of(tokens)
    return vocabulary.bytes_of([*tokens, *rest]).decode()
