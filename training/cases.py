"""What the evaluation asks: the whole easy-vqa test split, and the recipe's own questions about its pictures."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from training import phrases
from training.data import SHAPES, Question, VqaSplit
from training.questions import ANYWHERE, Asked, Scene, ask, ask_two

SEED = 11
Picture = Image.Image


@dataclass(frozen=True)
class Case:
    """One prompt and its only right answer; ``group`` is the row of the table that it counts in."""

    messages: list[dict[str, Any]]
    pictures: list[Picture] = field(repr=False)
    expected: str
    group: str

    @property
    def question(self) -> str:
        return str(self.messages[-1]["content"][-1]["text"])

    def cost(self) -> int:
        return sum(p.width * p.height for p in self.pictures) + len(str(self.messages))


def suites(split: VqaSplit) -> dict[str, list[Case]]:
    """All suites by name; ``easy-vqa`` is the split's own questions, nothing left out."""
    tester = Tester(split)
    return {
        "easy-vqa": tester.originals(),
        "captions": tester.captions(),
        "wordings": tester.wordings(1500),
        "follow-ups": tester.follow_ups(500),
        "two pictures": tester.two_pictures(1000),
        "other sizes": tester.sizes(400),
        "small talk": tester.small_talk(),
    }


def sample(cases: Sequence[Case], count: int) -> list[Case]:
    return Random(SEED).sample(list(cases), min(count, len(cases)))


class Tester:
    """Writes cases about the pictures of one split."""

    def __init__(self, split: VqaSplit) -> None:
        self._questions = split.questions
        self._pictures = [Image.fromarray(pixels) for pixels in split.pictures]
        cells = [find_cell(pixels) for pixels in split.pictures]
        self._scenes = [Scene(i, label, cells[i]) for i, label in split.labels.items()]

    def originals(self) -> list[Case]:
        return [
            Case([user(1, q.text)], [self._pictures[q.picture]], q.answer, question_type(q)) for q in self._questions
        ]

    def captions(self) -> list[Case]:
        return [
            Case([user(1, text)], [self._pictures[scene.picture]], scene.label.caption, text)
            for text in ("Describe the picture.", "What is this?")
            for scene in self._scenes
        ]

    def wordings(self, count: int) -> list[Case]:
        """Questions in the recipe's other wordings, positions and JSON among them."""
        rng = Random(SEED)
        cases = []
        for _ in range(count):
            scene = rng.choice(self._scenes)
            asked = ask(scene, rng)
            cases.append(Case([user(1, asked.text)], [self._pictures[scene.picture]], asked.answer, answer_type(asked)))
        return cases

    def follow_ups(self, count: int) -> list[Case]:
        """A second and a third question about the same picture, the answers before them given."""
        rng = Random(SEED + 1)
        cases = []
        for _ in range(count):
            scene = rng.choice(self._scenes)
            turns = [ask(scene, rng) for _ in range(rng.choice((2, 3)))]
            messages = [user(1, turns[0].text)]
            for before, after in itertools.pairwise(turns):
                messages += [assistant(before.answer), user(0, after.text)]
            group = f"question {len(turns)}"
            cases.append(Case(messages, [self._pictures[scene.picture]], turns[-1].answer, group))
        return cases

    def two_pictures(self, count: int) -> list[Case]:
        rng = Random(SEED + 2)
        cases: list[Case] = []
        while len(cases) < count:
            first, second = rng.choice(self._scenes), rng.choice(self._scenes)
            if first.label == second.label:
                continue
            asked = ask_two(first, second, rng)
            shown = [self._pictures[first.picture], self._pictures[second.picture]]
            cases.append(Case([user(2, asked.text)], shown, asked.answer, answer_type(asked)))
        return cases

    def sizes(self, count: int) -> list[Case]:
        """easy-vqa questions about the same pictures in other sizes, aspects and encodings."""
        questions = Random(SEED + 3).sample(self._questions, count)
        return [
            Case([user(1, q.text)], [change(self._pictures[q.picture])], q.answer, name)
            for name, change in CHANGES.items()
            for q in questions
        ]

    def small_talk(self) -> list[Case]:
        return [
            Case([user(0, text)], [], answer, "greetings and thanks")
            for texts, answer in phrases.SMALL_TALK
            for text in texts
        ]


def user(pictures: int, text: str) -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def question_type(question: Question) -> str:
    """easy-vqa's kinds of question."""
    words = question.text.rstrip("?").split()
    if question.answer not in ("yes", "no"):
        return "which shape" if question.answer in SHAPES else "which color"
    topic = "shape" if any(word in SHAPES for word in words) else "color"
    negated = "not" in words or "no" in words
    return f"yes or no, {topic}{', negated' if negated else ''}"


def answer_type(asked: Asked) -> str:
    """The recipe's kinds of question, told apart by their answers."""
    answer = asked.answer
    if answer in ("yes", "no"):
        return "yes or no"
    if answer.startswith("{"):
        return "JSON"
    if answer.endswith("."):
        return "detailed description" if "light background" in answer else "one sentence"
    if " and " in answer:
        return "both captions"
    if answer.startswith("a "):
        return "caption"
    if answer in phrases.ORDINALS:
        return "first or second"
    return "position" if answer in phrases.CELLS else "one word"


def find_cell(pixels: npt.NDArray[np.uint8], margin: float = 0.05) -> int:
    """The ninth of the picture that the shape's centre lies in; ``ANYWHERE`` within ``margin`` of a border of two."""
    values = pixels.astype(np.int64)
    background = np.median(values.reshape(-1, 3), axis=0)
    rows, columns = np.nonzero(np.abs(values - background).sum(-1) > 60)
    cell = 0
    for places, extent in ((rows, pixels.shape[0]), (columns, pixels.shape[1])):
        center = (int(places.min()) + int(places.max()) + 1) / 2 / extent
        if min(abs(center - 1 / 3), abs(center - 2 / 3)) < margin:
            return ANYWHERE
        cell = cell * 3 + int(center * 3)
    return cell


def _resized(width: int, height: int) -> Callable[[Picture], Picture]:
    return lambda picture: picture.resize((width, height), Image.Resampling.BICUBIC)


def _on_canvas(picture: Picture) -> Picture:
    """400 x 400 in the middle of 640 x 480 of the picture's own background."""
    background = np.median(np.asarray(picture).reshape(-1, 3), axis=0).astype(int)
    canvas = Image.new("RGB", (640, 480), tuple(int(value) for value in background))
    canvas.paste(_resized(400, 400)(picture), (120, 40))
    return canvas


def _as_jpeg(picture: Picture) -> Picture:
    buffer = io.BytesIO()
    _resized(224, 224)(picture).save(buffer, "JPEG", quality=75)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "96 x 96": _resized(96, 96),
    "128 x 128": _resized(128, 128),
    "224 x 224": _resized(224, 224),
    "448 x 448": _resized(448, 448),
    "1000 x 1000": _resized(1000, 1000),
    "stretched to 160 x 100": _resized(160, 100),
    "stretched to 200 x 320": _resized(200, 320),
    "on a 640 x 480 canvas": _on_canvas,
    "224 x 224, JPEG": _as_jpeg,
}
