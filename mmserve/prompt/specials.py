"""Special tokens belong to the template alone: text that a caller supplies never becomes one.

Where a caller's text holds a special token, or could complete one together with what stands beside it, it is
*defused* before the template is rendered, by a noncharacter inside or before it. So every special token in the
rendered text is the template's own. What lies between them is restored to exactly what the caller wrote, and encoded as
text. (Encoding each part by itself would be simpler, but would break the merges of BPE at the seams.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tokenizers import AddedToken

from mmserve.errors import ConfigError

NO_ID = -1
"""What stands for a mark that is no token of the vocabulary."""

_INSIDE = "\ufdd0"
_BEFORE = "\ufdd1"
_MARKS = re.compile(f"{_INSIDE}+|{_BEFORE}+")


class SpecialTokens:
    """The special tokens of one tokenizer. Immutable; its methods are pure."""

    def __init__(self, tokens: Mapping[int, AddedToken], mark: str | None = None) -> None:
        """``tokens`` are a tokenizer's added tokens by id; those that are not special are ordinary text here.

        ``mark`` is what templates write for a picture: if it is none of these, it is a special token of id ``NO_ID``.
        """
        special = {id_: token for id_, token in tokens.items() if token.special}
        if mark is not None and all(token.content != mark for token in special.values()):
            special[NO_ID] = AddedToken(mark, normalized=False, special=True)
        self.ids: Mapping[str, int] = {token.content: id_ for id_, token in special.items()}
        if any(len(content) < 2 for content in self.ids):
            raise ConfigError(
                "a special token of a single character cannot be told from text; such models are not served"
            )
        longest_first = sorted(special.values(), key=lambda token: -len(token.content))
        self._own = re.compile("|".join(map(_with_white_space, longest_first)) or r"(?!)")
        self._openings = re.compile("|".join(map(_opening, self.ids)) or r"(?!)")
        self._endings = tuple({content[cut:] for content in self.ids for cut in range(1, len(content))})

    def defuse(self, text: str) -> str:
        """``text`` marked so that no special token arises in it or across its edges; :meth:`split` undoes it.

        Marks that the caller typed are doubled. Between two other characters at most one of each kind is added, so
        the count of a kind tells how many the caller typed: half, rounded down.
        """
        marked = text.replace(_INSIDE, _INSIDE * 2).replace(_BEFORE, _BEFORE * 2)
        marked = self._openings.sub(rf"\g<0>{_INSIDE}", marked)
        if text.startswith(self._endings) or (text and any(text in content for content in self.ids)):
            return _BEFORE + marked
        return marked

    def split(self, rendered: str) -> Iterator[tuple[str, int | None]]:
        """``(text, id)`` in order: a maximal run of text (maybe empty), then the special token that ends it.

        The text is restored; the last pair's id is ``None``.
        """
        return ((_restore(run), special) for run, special in self.cut(rendered))

    def cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """:meth:`split` of text that was never defused: special tokens written in it are special tokens."""
        start = 0
        for match in self._own.finditer(text):
            own = match[0]
            yield text[start : match.start()], self.ids[own if own in self.ids else own.strip()]
            start = match.end()
        yield text[start:], None


def _restore(run: str) -> str:
    return _MARKS.sub(lambda marks: marks[0][: len(marks[0]) // 2], run)


def _with_white_space(token: AddedToken) -> str:
    """A token and the white space that it takes with it."""
    return (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")


def _opening(content: str) -> str:
    """The first character where all of ``content`` follows, or as much of it as the text has left."""
    rest = re.escape(content[-1])
    for character in reversed(content[1:-1]):
        rest = rf"{re.escape(character)}(?:\Z|{rest})"
    return rf"{re.escape(content[0])}(?=\Z|{rest})"
