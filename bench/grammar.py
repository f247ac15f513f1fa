"""Constrained generation on a vocabulary of real size: compile times, mask times, and how many schemas are covered.

The schemas are the sample of JSONSchemaBench that the tests use. ``--tokenizer`` is a tiktoken file (one base64 token
and its rank a line), such as the ``qwen.tiktoken`` that the PyPI package ``dashscope`` carries, or a folder with a
``tokenizer.json``. Compiles are timed whole: lowering, llguidance and the first mask, on one thread, without the search
for the shortest answer, which is timed beside them. Masks are timed at every token of every valid instance.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from mmserve.errors import ConstraintError
from mmserve.grammar.closing import find_completion
from mmserve.grammar.compiler import CompiledGrammar, GrammarCompiler
from mmserve.grammar.spec import JsonSchema
from mmserve.grammar.vocabulary import Vocabulary

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "jsonschemabench.jsonl.gz"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BARS = {"mask p50 µs": 30.0, "mask p99 µs": 1100.0, "compile p99 ms": 30.0}


@dataclass(frozen=True, slots=True)
class Figures:
    """``times`` are named with their unit; ``steps`` counts schemas by the step that took them, or ``refused``."""

    vocabulary: int
    tokens: int
    times: dict[str, float]
    steps: dict[str, int]


class TiktokenVocabulary(Vocabulary):
    """Qwen's vocabulary out of its published ranks, with the special tokens behind them."""

    def __init__(self, path: Path) -> None:
        ranks = {}
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
        special = {name: len(ranks) + index for index, name in enumerate(SPECIAL)}
        make: Any = LLTokenizer
        self.size = len(ranks) + len(special)
        self.eos_id = special["<|im_end|>"]
        self.eos_ids = frozenset((self.eos_id,))
        self.tokenizer = make.from_tiktoken(
            encoder=ranks,
            special_tokens=special,
            pattern=PATTERN,
            eos_token=[self.eos_id],
            n_vocab=self.size,
            slices=None,
        )


def load_vocabulary(path: Path) -> Vocabulary:
    """A tiktoken file, or a folder with a ``tokenizer.json`` that has ``<|im_end|>``."""
    if not path.is_dir():
        return TiktokenVocabulary(path)
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    size = max([*content["model"]["vocab"].values(), *added.values()]) + 1
    return Vocabulary(path, size=size, eos_ids=[added["<|im_end|>"]])


def measure(vocabulary: Vocabulary, rows: Sequence[dict[str, Any]]) -> Figures:
    """Compiles every schema and walks its valid instances."""
    compiler = GrammarCompiler(vocabulary, threads=1, capacity=1, completion=lambda *_: [])
    steps: Counter[str] = Counter()
    compiles, masks, searches = [], [], []
    for row in rows:
        start = time.perf_counter()
        try:
            grammar = compiler.submit(JsonSchema(json.dumps(row["schema"]))).result()
        except ConstraintError:
            steps["refused"] += 1
            continue
        finally:
            compiles.append(time.perf_counter() - start)
        steps[grammar.step] += 1
        start = time.perf_counter()
        find_completion(grammar.matcher(), vocabulary, hints=grammar.hints, budget=2048)
        searches.append(time.perf_counter() - start)
        for instance in row["valid"]:
            masks += mask_times(grammar, vocabulary, json.dumps(instance, ensure_ascii=False, separators=(",", ":")))
    compiler.close()
    times = quantiles("mask", "µs", masks, 1e6)
    times |= quantiles("compile", "ms", compiles, 1e3) | quantiles("shortest", "ms", searches, 1e3)
    return Figures(vocabulary.size, len(masks), times, dict(steps))


def mask_times(grammar: CompiledGrammar, vocabulary: Vocabulary, text: str) -> list[float]:
    """Seconds for the mask before each token, as far as the grammar takes ``text``."""
    matcher: LLMatcher = grammar.matcher()
    words = np.zeros(vocabulary.mask_words, np.int32)
    found = []
    for token in vocabulary.tokenize(text.encode()):
        start = time.perf_counter()
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        found.append(time.perf_counter() - start)
        if not matcher.consume_token(token):
            break
    return found


def quantiles(name: str, unit: str, seconds: Sequence[float], scale: float) -> dict[str, float]:
    values = np.array(seconds) * scale
    found = {f"{name} {label} {unit}": float(np.quantile(values, q)) for label, q in (("p50", 0.5), ("p99", 0.99))}
    return found | {f"{name} max {unit}": float(values.max())}


def table(figures: Figures) -> str:
    rows = [f"vocabulary {figures.vocabulary:,}; {figures.tokens:,} masks"]
    for name, value in figures.times.items():
        bar = f"   bar {BARS[name]:g}" if name in BARS else ""
        rows.append(f"{name:<18} {value:>10.2f}{bar}")
    total = sum(figures.steps.values())
    rows += [f"{step:<18} {count:>6} = {count / total:.1%}" for step, count in sorted(figures.steps.items())]
    return "\n".join(rows)


def load_rows() -> list[dict[str, Any]]:
    import gzip

    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a tiktoken file, or a folder with a tokenizer.json"
    )
    parser.add_argument("--limit", type=int, help="only the first schemas")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(load_vocabulary(arguments.tokenizer), load_rows()[: arguments.limit])
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    missed = [name for name, bar in BARS.items() if figures.times[name] > bar]
    for name in missed:
        print(f"over the bar: {name}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
