"""Structural tags: free text in which a trigger opens a constrained region.

A trigger in the text is always followed by one of its tags: the free text up to a trigger is one lazy terminal, and
the text behind the last tag holds no trigger at all. A region without content is any text up to the tag's end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from mmserve.errors import UnsupportedConstraint
from mmserve.grammar.lowered import Lowered, Step, as_hints, grammars, quoted
from mmserve.grammar.regex import literal, translate
from mmserve.grammar.spec import AnyJson, Choice, Grammar, JsonSchema, Regex, StructuralTag, Tag, XmlSchema

MAX_TAGS = 128

Content: TypeAlias = JsonSchema | AnyJson | Regex | Choice | Grammar | XmlSchema

_STEPS: tuple[Step, ...] = ("strict", "coerced", "lenient")


def lower_tags(constraint: StructuralTag, lower: Callable[[Content], Lowered]) -> Lowered:
    """``lower`` turns a region's content into a grammar of its own. Raises ``ConstraintError``."""
    if len(constraint.tags) > MAX_TAGS:
        message = f"structural_tag has {len(constraint.tags)} tags; at most {MAX_TAGS} are allowed"
        raise UnsupportedConstraint(message, param="structural_tag")
    return _Writer(constraint, lower).write()


def openers(triggers: tuple[str, ...]) -> tuple[str, ...]:
    """The triggers that come first in a text: none that begins with another.

    Raises ``UnsupportedConstraint`` for a trigger that holds another further inside.
    """
    firsts = [t for t in dict.fromkeys(triggers) if not any(t != o and t.startswith(o) for o in triggers)]
    for trigger in firsts:
        if inner := next((o for o in firsts if o != trigger and o in trigger), None):
            message = f"the trigger {trigger!r} holds the trigger {inner!r}, so it would never open a tag"
            raise UnsupportedConstraint(message, param="structural_tag")
    return tuple(firsts)


class _Writer:
    def __init__(self, constraint: StructuralTag, lower: Callable[[Content], Lowered]) -> None:
        self._constraint = constraint
        self._lower = lower
        self._rules: list[str] = []
        self._parts: list[dict[str, Any]] = []
        self._hints: list[bytes] = []
        self._relaxed: list[str] = []
        self._steps: list[Step] = ["strict"]

    def write(self) -> Lowered:
        constraint = self._constraint
        if constraint.bare:
            self._bare()
        else:
            self._among_text()
        main = {"lark_grammar": "\n".join(self._rules)}
        ends = as_hints([tag.end for tag in constraint.tags] + [tag.begin for tag in constraint.tags])
        step = max(self._steps, key=_STEPS.index)
        hints = tuple(dict.fromkeys([*ends, *self._hints]))[:64]
        return Lowered(grammars([main, *self._parts]), "structural_tag", step, tuple(self._relaxed), hints)

    def _bare(self) -> None:
        """Rules for tags without text around them, or what stands instead."""
        constraint = self._constraint
        starts = ["tag" if constraint.stop_after_first else 'tag ("\\n" tag)*']
        if constraint.instead is not None:
            starts.append(self._part("instead", constraint.instead, "instead of the tags"))
        bodies = " | ".join(self._body(tag, "") for tag in constraint.tags)
        self._rules[:0] = ["start: " + " | ".join(starts), f"tag: {bodies}"]

    def _among_text(self) -> None:
        constraint = self._constraint
        triggers = openers(constraint.triggers)
        either = "|".join(map(literal, triggers))
        heads = []
        for index, trigger in enumerate(triggers):
            options = [tag for tag in constraint.tags if tag.begin.startswith(trigger)]
            if not options:
                continue
            bodies = " | ".join(self._body(tag, trigger) for tag in options)
            self._rules += [
                f"h{index}[lazy]: H{index}",
                rf"H{index}: /(?s:.*){literal(trigger)}/ & ~/(?s:.*)(?:{either})(?s:.+)/",
                f"w{index}: h{index} ({bodies})",
            ]
            heads.append(f"w{index}")
        self._rules += ["tag: " + " | ".join(heads), "tail: TAIL", rf"TAIL: /(?s:.*)/ & ~/(?s:.*)(?:{either})(?s:.*)/"]
        self._rules.insert(0, f"start: {self._shape()}")

    def _shape(self) -> str:
        if self._constraint.stop_after_first:
            return "tag" if self._constraint.at_least_one else "tag | tail"
        return "tag+ tail" if self._constraint.at_least_one else "tag* tail"

    def _body(self, tag: Tag, trigger: str) -> str:
        begin, end = tag.begin[len(trigger) :], tag.end
        opening = quoted(begin) if begin else ""
        closing = quoted(end) if end else ""
        name = len(self._rules)
        content = tag.content
        if content is None or isinstance(content, Regex | Choice):
            regex = self._regex(content)
            if content is None and not end:
                return opening or '""'
            # With its end in the same terminal and lazy, a region cannot run over its end.
            lazy = "[lazy]" if end else ""
            self._rules += [f"b{name}{lazy}: B{name}", f"B{name}: /(?:{regex}){literal(end)}/"]
            return f"{opening} b{name}"
        return f"{opening} {self._part(f'c{name}', content, f'in the tag {tag.begin[:60]!r}')} {closing}"

    def _part(self, name: str, content: Content, where: str) -> str:
        """The name of a rule for ``content``, which is a grammar of its own."""
        lowered = self._lower(content)
        self._steps.append(lowered.step)
        self._relaxed += [f"{where}: {sentence}" for sentence in lowered.relaxed]
        self._hints += lowered.hints
        self._parts.append({"name": name, **json.loads(lowered.grammar)["grammars"][0]})
        self._rules.append(f"{name}: @{name}")
        return name

    def _regex(self, content: Regex | Choice | None) -> str:
        if content is None:
            return "(?s:.*)"
        if isinstance(content, Choice):
            self._hints += as_hints(content.options)
            return "|".join(map(literal, content.options))
        translation = translate(content.pattern, param="structural_tag")
        self._hints += as_hints(translation.literals)
        return translation.regex
