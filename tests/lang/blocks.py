"""Python blocks of Markdown files, as the tests run them: one after the other in one namespace, like a notebook's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """``line`` is that of its first line in ``file``, so that tracebacks point there."""

    file: Path
    line: int
    source: str

    def run(self, namespace: dict[str, Any], replaced: dict[str, str] | None = None) -> None:
        source = self.source
        for old, new in (replaced or {}).items():
            source = source.replace(old, new)
        exec(compile("\n" * (self.line - 1) + source, str(self.file), "exec", dont_inherit=True), namespace)


def blocks_of(file: Path) -> list[Block]:
    text = file.read_text(encoding="utf-8")
    return [Block(file, text.count("\n", 0, found.start(1)) + 1, found[1]) for found in _BLOCK.finditer(text)]
