"""What is asked about many pictures: one text with places for what is known of each. A leaf: no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import PurePath

from mmserve.errors import InvalidField

DEFAULT_CAPTION_PROMPT = "Describe this picture in one sentence."

_PLACE = re.compile(r"\\([{}])|\{(\w+)\}")


class Template:
    """Text in which ``{name}`` and the like stand for values; ``\\{`` and ``\\}`` are braces that stand for nothing.

    Other braces, those of JSON for instance, stay as they are. Raises InvalidField (``param="prompt"``) for a
    ``{word}`` that is none of ``known``.
    """

    def __init__(self, text: str, known: tuple[str, ...]) -> None:
        self._text = text
        self.used = frozenset(name for _, name in _PLACE.findall(text) if name)
        """The names that the text has places for."""
        for name in sorted(self.used.difference(known)):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {{{near[0]}}}?" if near else ""
            there = ", ".join(f"{{{each}}}" for each in known)
            raise InvalidField(
                f"nothing is known here for {{{name}}}{hint} There are {there}; "
                f"write \\{{{name}\\}} for the text itself",
                param="prompt",
            )

    def render(self, values: Mapping[str, str]) -> str:
        """The text with each place filled once; what is filled in is not looked at again."""
        return _PLACE.sub(lambda place: place[1] or values[place[2]], self._text)


def file_values(file: str) -> dict[str, str]:
    """What a file's name tells: ``name`` (no folder, no ending), ``directory`` and ``folder`` (the innermost folder's
    name, or nothing)."""
    path = PurePath(file.replace("\\", "/"))
    directory = path.parent.name
    return {"name": path.stem, "directory": directory, "folder": directory}
