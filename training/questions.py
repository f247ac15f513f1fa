"""Questions with true answers about known scenes. Pure: random numbers come in, text goes out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from training import phrases
from training.data import COLORS, SHAPES, Label

DRAWN = -1
ANYWHERE = -1


@dataclass(frozen=True, slots=True)
class Scene:
    """What the renderer must show.

    ``picture`` is a training picture's index or ``DRAWN``; then ``label`` says what to draw, and ``cell``
    (0..8, row by row, or ``ANYWHERE``) in which ninth of the canvas.
    """

    picture: int
    label: Label
    cell: int = ANYWHERE

    @property
    def shape(self) -> str:
        return SHAPES[self.label.shape]

    @property
    def color(self) -> str:
        return COLORS[self.label.color]


@dataclass(frozen=True, slots=True)
class Asked:
    text: str
    answer: str


def ask(scene: Scene, rng: Random) -> Asked:
    """A question about ``scene``, of a random kind."""
    if scene.cell != ANYWHERE and rng.random() < 0.5:
        return rng.choice((_where, _detail))(scene, rng)
    kinds = (_caption, _shape, _color, _present, _adjective, _sentence, _json)
    return rng.choices(kinds, (20, 15, 15, 32, 8, 5, 5))[0](scene, rng)


def ask_two(first: Scene, second: Scene, rng: Random) -> Asked:
    """A question that needs both pictures, or names one of the two."""
    kinds = (_which, _ordinal, _both, _same)
    return rng.choices(kinds, (35, 40, 10, 15))[0](first, second, rng)


def ask_next(scene: Scene, rng: Random) -> Asked:
    """A follow-up that brings a new picture with it."""
    return _fill(phrases.NEXT_PICTURE_QUESTIONS, scene, rng, scene.label.caption)


def vary(text: str, rng: Random) -> str:
    """The way people type: with a capital or without, now and then without the final mark."""
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if len(text) > 8 and rng.random() < 0.12:
        text = text.rstrip("?.")
    return text


def _fill(templates: tuple[str, ...], scene: Scene, rng: Random, answer: str, **names: str) -> Asked:
    words = {"shape": scene.shape, "color": scene.color, "pic": rng.choice(phrases.PICTURE_WORDS), **names}
    return Asked(vary(rng.choice(templates).format(**words), rng), answer)


def _caption(scene: Scene, rng: Random) -> Asked:
    return _fill(phrases.CAPTION_QUESTIONS, scene, rng, scene.label.caption)


def _sentence(scene: Scene, rng: Random) -> Asked:
    return _fill(phrases.SENTENCE_QUESTIONS, scene, rng, f"The picture shows {scene.label.caption}.")


def _json(scene: Scene, rng: Random) -> Asked:
    return _fill(phrases.JSON_QUESTIONS, scene, rng, json.dumps({"color": scene.color, "shape": scene.shape}))


def _detail(scene: Scene, rng: Random) -> Asked:
    answer = (
        f"The picture shows one shape on a light background. It is a {scene.shape}. "
        f"Its color is {scene.color}. Its position is {phrases.CELLS[scene.cell]}."
    )
    return _fill(phrases.DETAIL_QUESTIONS, scene, rng, answer)


def _where(scene: Scene, rng: Random) -> Asked:
    return _fill(phrases.WHERE_QUESTIONS, scene, rng, phrases.CELLS[scene.cell])


def _shape(scene: Scene, rng: Random) -> Asked:
    return _fill(phrases.SHAPE_QUESTIONS, scene, rng, scene.shape)


def _color(scene: Scene, rng: Random) -> Asked:
    return _fill(phrases.COLOR_QUESTIONS, scene, rng, scene.color)


def _adjective(scene: Scene, rng: Random) -> Asked:
    color = scene.color if rng.random() < 0.4 else rng.choice(COLORS)
    return _fill(phrases.ADJECTIVE_QUESTIONS, scene, rng, _yes(color == scene.color), color=color)


def _present(scene: Scene, rng: Random) -> Asked:
    thing, there = _thing(scene, rng)
    if rng.random() < 0.35:
        return _fill(phrases.ABSENT_QUESTIONS, scene, rng, _yes(not there), thing=thing)
    return _fill(phrases.PRESENT_QUESTIONS, scene, rng, _yes(there), thing=thing)


def _thing(scene: Scene, rng: Random) -> tuple[str, bool]:
    """A noun phrase, and whether ``scene`` shows one."""
    kind = rng.random()
    if kind < 0.08:
        return rng.choice(phrases.STRANGERS), False
    shape = scene.shape if rng.random() < 0.45 else rng.choice(SHAPES)
    color = scene.color if rng.random() < 0.4 else rng.choice(COLORS)
    if kind < 0.38:
        return shape, shape == scene.shape
    if kind < 0.72:
        return f"{color} shape", color == scene.color
    return f"{color} {shape}", (shape, color) == (scene.shape, scene.color)


def _which(first: Scene, second: Scene, rng: Random) -> Asked:
    """Names what only one of the two pictures shows; the two must differ."""
    chosen, other = rng.choice(((first, second), (second, first)))
    things = [f"{chosen.color} {chosen.shape}"]
    if chosen.shape != other.shape:
        things.append(chosen.shape)
    if chosen.color != other.color:
        things += [f"{chosen.color} shape", f"{chosen.color} one"]
    answer = phrases.ORDINALS[0 if chosen is first else 1]
    return _fill(phrases.WHICH_QUESTIONS, chosen, rng, answer, thing=rng.choice(things))


def _ordinal(first: Scene, second: Scene, rng: Random) -> Asked:
    index = rng.randrange(2)
    scene, names = (first, second)[index], {"ordinal": phrases.ORDINALS[index]}
    templates, answer = rng.choice(
        (
            (phrases.ORDINAL_SHAPE_QUESTIONS, scene.shape),
            (phrases.ORDINAL_COLOR_QUESTIONS, scene.color),
            (phrases.ORDINAL_CAPTION_QUESTIONS, scene.label.caption),
        )
    )
    return _fill(templates, scene, rng, answer, **names)


def _both(first: Scene, second: Scene, rng: Random) -> Asked:
    return _fill(phrases.BOTH_QUESTIONS, first, rng, f"{first.label.caption} and {second.label.caption}")


def _same(first: Scene, second: Scene, rng: Random) -> Asked:
    if rng.random() < 0.5:
        return _fill(phrases.SAME_SHAPE_QUESTIONS, first, rng, _yes(first.shape == second.shape))
    return _fill(phrases.SAME_COLOR_QUESTIONS, first, rng, _yes(first.color == second.color))


def _yes(true: bool) -> str:
    return "yes" if true else "no"
