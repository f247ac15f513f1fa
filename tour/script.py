"""The tour's source as parts, and the tour as text. Pure: nothing is run here.

The source is Markdown. In ``console`` blocks the lines behind ``$`` are commands, and what they print is put behind
each; a ``python`` block is a program, and what it prints follows in a ``text`` block; ``![words](tour/name.webp)`` is a
picture of the page. What stands between ``<!-- if boxes -->`` and ``<!-- end -->`` is there when an example of the
gallery is answered with a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

PROMPT = "$ "
SHOT = re.compile(r"!\[([^\]]+)\]\(tour/([a-z-]+)\.webp\)")
_EXIT = re.compile(r"#.*\bexit status (\d+)$")
_CONDITION = re.compile(r"<!-- if (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prose:
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command line; one that goes on behind a backslash has several lines."""

    text: str

    @property
    def status(self) -> int:
        """The exit status that the command's comment tells of, or 0."""
        found = _EXIT.search(self.text)
        return int(found[1]) if found else 0

    @property
    def serves(self) -> bool:
        """Whether it goes on until the tour's end, as in another terminal."""
        return self.text.startswith("mmserve serve")


@dataclass(frozen=True, slots=True)
class Console:
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Program:
    text: str


@dataclass(frozen=True, slots=True)
class Shot:
    words: str
    name: str


Part: TypeAlias = Prose | Console | Program | Shot


def parse(source: str, facts: Mapping[str, bool]) -> list[Part]:
    """The parts in order. Raises ValueError for a block that is none of these."""
    chosen = _CONDITION.sub(lambda found: found[2] if facts[found[1]] else "", source)
    return list(_parts(iter(chosen.splitlines())))


def _parts(lines: Iterator[str]) -> Iterator[Part]:
    for line in lines:
        fence = re.fullmatch(r"```(\w*)", line)
        if fence is None:
            shot = SHOT.fullmatch(line)
            yield Shot(shot[1], shot[2]) if shot else Prose(line)
            continue
        inside = list(_until_fence(lines))
        if fence[1] == "console":
            yield Console(tuple(Command(text) for text in commands_of(inside)))
        elif fence[1] == "python":
            yield Program("\n".join(inside))
        else:
            raise ValueError(f"a block of the tour is console or python, not {fence[1]!r}")


def _until_fence(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "```":
            return
        yield line
    raise ValueError("a block of the tour has no end")


def commands_of(lines: Iterable[str]) -> list[str]:
    """The commands among the lines of a console block; the others are what they printed."""
    found: list[str] = []
    going_on = False
    for line in lines:
        if going_on:
            found[-1] += f"\n{line}"
        elif line.startswith(PROMPT):
            found.append(line.removeprefix(PROMPT))
        going_on = bool(found) and (going_on or line.startswith(PROMPT)) and line.endswith("\\")
    return found


def render(parts: Sequence[Part], outputs: Iterable[str] = ()) -> str:
    """The tour with what each command and program printed, in order; nothing where ``outputs`` is too short.

    Raises ValueError for output that looks like a command or ends a block.
    """
    lines: list[str] = []
    printed = iter(outputs)
    for part in parts:
        match part:
            case Prose(text):
                lines.append(text)
            case Shot(words, name):
                lines.append(f"![{words}](tour/{name}.webp)")
            case Console(commands):
                lines.append("```console")
                for command in commands:
                    lines.append(PROMPT + command.text)
                    lines += _lines(next(printed, ""))
                lines.append("```")
            case Program(text):
                lines += ["```python", text, "```"]
                if said := _lines(next(printed, "")):
                    lines += ["", "```text", *said, "```"]
    return "\n".join(lines) + "\n"


def _lines(output: str) -> list[str]:
    lines = [line.rstrip() for line in output.rstrip("\n").splitlines()]
    if any(line.startswith((PROMPT, "```")) for line in lines):
        raise ValueError(f"this output cannot be told from the tour's own text: {output!r}")
    return lines


def without_output(tour: str) -> str:
    """A rendered tour as it would be if nothing had printed anything."""
    text = re.sub(r"(?<=^```\n)\n```text\n.*?\n```\n", "", tour, flags=re.DOTALL | re.MULTILINE)

    def only_commands(block: re.Match[str]) -> str:
        commands = commands_of(block[1].splitlines())
        return "```console\n" + "".join(f"{PROMPT}{command}\n" for command in commands) + "```"

    return re.sub(r"```console\n(.*?)```", only_commands, text, flags=re.DOTALL)
