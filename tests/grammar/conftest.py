from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmserve.grammar.compiler import CompiledGrammar, GrammarCompiler
from mmserve.grammar.spec import Constraint
from mmserve.grammar.vocabulary import Vocabulary
from tests.grammar.support import accepts, tiny_vocabulary


class Bench:
    """Compiles constraints against a tiny vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.compiler = GrammarCompiler(vocabulary, threads=1)

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        return self.compiler.submit(constraint).result(timeout=30)

    def accepts(self, constraint: Constraint, text: str) -> bool:
        return accepts(self.compile(constraint), self.vocabulary, text)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    found = Bench(tiny_vocabulary(tmp_path_factory.mktemp("vocabulary")))
    yield found
    found.compiler.close()
