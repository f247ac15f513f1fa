"""What each picture is asked, and what becomes of the answer's text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmserve.template import Template, file_values

PLACES = ("name", "directory", "folder", "tags")


class PicturePrompts:
    """A template's prompts for pictures under ``root``.

    ``{name}`` is the file's name without its ending, ``{directory}`` (or ``{folder}``) the name of the folder it lies
    in, and ``{tags}`` what is in the text file beside it, separated by commas, or nothing. Raises InvalidField for
    another place.
    """

    def __init__(self, text: str, root: Path, *, tags_suffix: str = ".txt") -> None:
        self._template = Template(text, PLACES)
        self._root = root
        self._tags_suffix = tags_suffix

    def of(self, file: str) -> str:
        """The prompt for one picture; reads its tags where the template has a place for them."""
        values = file_values((self._root / file).absolute().as_posix())
        if "tags" in self._template.used:
            values["tags"] = self._tags(file)
        return self._template.render(values)

    def _tags(self, file: str) -> str:
        try:
            text = (self._root / file).with_suffix(self._tags_suffix).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        tags = (tag.strip() for line in text.splitlines() for tag in line.split(","))
        return ", ".join(tag for tag in tags if tag)


@dataclass(frozen=True, slots=True)
class Finish:
    """An answer's text -> the caption: what repeats between separators is dropped, then come prefix and postfix."""

    prefix: str = ""
    postfix: str = ""
    separator: str = ", "
    unique: bool = False

    def __call__(self, text: str) -> str:
        text = text.strip()
        if self.unique:
            first: dict[str, str] = {}
            for part in filter(None, map(str.strip, text.split(self.separator.strip()))):
                first.setdefault(part.casefold(), part)
            text = self.separator.join(first.values())
        return f"{self.prefix}{text}{self.postfix}"
