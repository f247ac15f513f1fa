"""easy-vqa 1.0 on disk: pictures, questions, and the labels that the questions imply.

The recipe reads exactly one split at a time; ``load_split(root, "test")`` is called by ``evaluate.py`` alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

VERSION = "1.0"
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SIDE = 64

Split = Literal["train", "test"]

QUESTIONS_SHA256: dict[Split, str] = {
    "train": "bb67697636aed0e65631d4266824aebeae5c833b0f37ed781e20752e85617ec5",
    "test": "0d4630a51bafec65343e2f6af9cdd20cf8eae214344ef57636202eec409553f7",
}


class Question(NamedTuple):
    """One row of ``questions.json``: ``picture`` is an index into the split's pictures."""

    text: str
    answer: str
    picture: int


class Label(NamedTuple):
    """What a picture shows, as indices into ``SHAPES`` and ``COLORS``."""

    shape: int
    color: int

    @property
    def caption(self) -> str:
        return f"a {COLORS[self.color]} {SHAPES[self.shape]}"


@dataclass(frozen=True)
class VqaSplit:
    """One split. ``pictures`` is uint8 ``[n, 64, 64, 3]``; ``labels`` has the pictures whose questions tell."""

    name: Split
    pictures: npt.NDArray[np.uint8]
    questions: tuple[Question, ...]
    labels: dict[int, Label]


def find_root(data: Path | None) -> Path:
    """The folder with ``train/`` and ``test/``: the one given, or the installed ``easy_vqa`` package's.

    Raises:
        FileNotFoundError: neither is there.
    """
    if data is not None:
        return data
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"install easy-vqa=={VERSION}, or give its data folder with --data")
    return Path(spec.origin).parent / "data"


def load_split(root: Path, name: Split) -> VqaSplit:
    """Reads one split and nothing of the other.

    Raises:
        ValueError: the questions are not those of easy-vqa 1.0.
    """
    raw = (root / name / "questions.json").read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != QUESTIONS_SHA256[name]:
        raise ValueError(f"{root / name}: not easy-vqa {VERSION}: questions.json has sha256 {digest}")
    questions = tuple(Question(*row) for row in json.loads(raw))
    count = 1 + max(question.picture for question in questions)
    pictures = np.stack([read_picture(picture_path(root, name, i)) for i in range(count)])
    return VqaSplit(name, pictures, questions, infer_labels(questions))


def picture_path(root: Path, name: Split, index: int) -> Path:
    return root / name / "images" / f"{index}.png"


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def infer_labels(questions: Iterable[Question]) -> dict[int, Label]:
    """The label of every picture whose questions and answers determine both its shape and its colour."""
    shapes: dict[int, set[str]] = {}
    colors: dict[int, set[str]] = {}
    for question in questions:
        _narrow(shapes.setdefault(question.picture, set(SHAPES)), question)
        _narrow(colors.setdefault(question.picture, set(COLORS)), question)
    return {
        picture: Label(SHAPES.index(min(shapes[picture])), COLORS.index(min(colors[picture])))
        for picture in shapes
        if len(shapes[picture]) == 1 and len(colors[picture]) == 1
    }


def _narrow(candidates: set[str], question: Question) -> None:
    """Drops the candidates that ``question`` and its answer rule out. Every picture shows one shape."""
    words = question.text.rstrip("?").split()
    if question.answer not in ("yes", "no"):
        # "what color is the circle?" tells the shape in its text and the colour in its answer.
        told = candidates & ({question.answer} | set(words))
    else:
        named = candidates & set(words)
        present = (question.answer == "yes") != ("not" in words or "no" in words)
        told = named if present else candidates - named
    if told and (told != candidates):
        candidates.intersection_update(told)
