"""Conversations to learn from: easy-vqa's own questions, and further ones about pictures with known labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from training import phrases
from training.data import COLORS, SHAPES, Label, VqaSplit
from training.questions import ANYWHERE, DRAWN, Scene, ask, ask_next, ask_two, vary

Kind = Literal["one", "two", "text", "long"]

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
UNKNOWN = Label(0, 0)


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message, its parts in order (text and pictures), and the answer to learn."""

    parts: tuple[str | Scene, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """``system`` is ``None`` where the prompt has no system block at all."""

    system: str | None
    turns: tuple[Turn, ...]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Scene))


def segments(conversation: Conversation) -> Iterator[tuple[str, bool]]:
    """The chat template's text in pieces; True marks the pieces that the model must say.

    The cuts fall on special tokens and after newlines, where the tokenizer cuts too: tokenizing the pieces
    gives the tokens of the whole.
    """
    if conversation.system is not None:
        yield f"<|im_start|>system\n{conversation.system}<|im_end|>\n", False
    for index, turn in enumerate(conversation.turns):
        text = "".join(IMAGE if isinstance(part, Scene) else part for part in turn.parts)
        newline = "\n" if index else ""
        yield f"{newline}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", False
        yield f"{turn.answer}<|im_end|>", True


class Author:
    """Writes conversations. Holds its random source and the labelled training pictures, nothing else."""

    def __init__(self, split: VqaSplit, held_out: frozenset[int], seed: int) -> None:
        """``held_out`` pictures never appear: they are kept for validation."""
        self._rng = Random(seed)
        self._labelled = [(i, label) for i, label in split.labels.items() if i not in held_out]
        self._questions = [q for q in split.questions if q.picture not in held_out]

    def originals(self) -> Iterator[Conversation]:
        """Every easy-vqa question once, word for word."""
        for question in self._questions:
            scene = Scene(question.picture, UNKNOWN)
            yield Conversation(self._system(), (Turn((scene, question.text), question.answer),))

    def write(self, kind: Kind, count: int) -> Iterator[Conversation]:
        """``count`` conversations of one kind."""
        by_kind: dict[Kind, Callable[[], Conversation]] = {
            "one": self._one, "two": self._two, "text": self._text, "long": self._long,
        }  # fmt: skip
        for _ in range(count):
            yield by_kind[kind]()

    def _one(self) -> Conversation:
        count = self._rng.choices((1, 2, 3), (60, 30, 10))[0]
        return Conversation(self._system(), self._about(self._scene(), count))

    def _about(self, scene: Scene, count: int) -> tuple[Turn, ...]:
        """``count`` questions about one picture, which comes with the first."""
        asked = [ask(scene, self._rng) for _ in range(count)]
        parts = (asked[0].text, scene) if self._rng.random() < 0.15 else (scene, asked[0].text)
        return (Turn(parts, asked[0].answer), *(Turn((a.text,), a.answer) for a in asked[1:]))

    def _two(self) -> Conversation:
        rng, first, second = self._rng, self._scene(), self._scene()
        while second.label == first.label:
            second = self._scene()
        if rng.random() < 0.2:
            after = ask_next(second, rng)
            return Conversation(self._system(), (*self._about(first, 1), Turn((second, after.text), after.answer)))
        asked = ask_two(first, second, rng)
        parts: tuple[str | Scene, ...] = (first, second, asked.text)
        if rng.random() < 0.15:
            parts = ("Picture 1: ", first, "Picture 2: ", second, asked.text)
        turns = [Turn(parts, asked.answer)]
        for _ in range(rng.choices((0, 1), (75, 25))[0]):
            asked = ask_two(first, second, rng)
            turns.append(Turn((asked.text,), asked.answer))
        return Conversation(self._system(), tuple(turns))

    def _text(self) -> Conversation:
        return Conversation(self._system(), (Turn(*self._small_talk()),))

    def _small_talk(self) -> tuple[tuple[str | Scene, ...], str]:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.45:
            texts, answer = rng.choice(phrases.SMALL_TALK)
            return (vary(rng.choice(texts), rng),), answer
        if kind < 0.7:
            return (ask(self._drawn(ANYWHERE), rng).text,), phrases.NO_PICTURE_ANSWER
        return (self._strange(),), phrases.STRANGE_ANSWER

    def _strange(self) -> str:
        rng = self._rng
        return vary(rng.choice(phrases.STRANGE_QUESTIONS).format(topic=rng.choice(phrases.TOPICS)), rng)

    def _long(self) -> Conversation:
        """A long system prompt, or many turns, or a question that has nothing to do with its picture."""
        rng, kind = self._rng, self._rng.random()
        if kind < 0.4:
            rules = [rng.choice(phrases.RULES) for _ in range(rng.randint(2, 24))]
            return Conversation(rng.choice((" ", "\n")).join(rules), self._about(self._scene(), 1))
        turns = self._about(self._scene(), rng.randint(1, 8))
        if kind < 0.6:
            turns += (Turn((self._strange(),), phrases.STRANGE_ANSWER),)
        return Conversation(self._system(), turns)

    def _system(self) -> str | None:
        rng, kind = self._rng, self._rng.random()
        if kind < 0.62:
            return phrases.DEFAULT_SYSTEM
        if kind < 0.67:
            return None
        if kind < 0.72:
            return ""
        return " ".join(rng.sample(phrases.SYSTEMS, rng.choice((1, 1, 1, 2))))

    def _scene(self) -> Scene:
        if self._rng.random() < 0.45:
            return Scene(*self._rng.choice(self._labelled))
        return self._drawn(self._rng.randrange(9) if self._rng.random() < 0.3 else ANYWHERE)

    def _drawn(self, cell: int) -> Scene:
        rng = self._rng
        return Scene(DRAWN, Label(rng.randrange(len(SHAPES)), rng.randrange(len(COLORS))), cell)
