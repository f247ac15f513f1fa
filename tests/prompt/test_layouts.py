"""Prompts of families whose pictures are more than one run of one token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from mmserve.checkpoint import FAMILIES, GENERAL, TEXT_FAMILIES, Checkpoint
from mmserve.config import Limits
from mmserve.errors import ConfigError, InvalidField, UnsupportedPicture
from mmserve.models.families import BUILDERS
from mmserve.prompt import PromptBuilder, layout_for
from mmserve.prompt.layout import Layout, Rows, Segment
from mmserve.prompt.layouts import LAYOUTS
from mmserve.prompt.positions import plain_positions
from mmserve.types import Grid, ImagePart, Message, Picture, Prompt, TextPart
from tests.engine.pictures import png

MARK = "<<PICTURE>>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}" + MARK + "{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """So many tiles of two rows each."""

    tiles: int

    def measure(self, width: int, height: int) -> tuple[Grid, int]:
        return Grid(self.tiles, 2, 2), 2 * self.tiles * (width > 0 < height)

    def resized(self, _: Grid) -> None:
        """The picture is never seen as a whole."""


def rows_in_brackets(picture: Picture) -> Sequence[Segment]:
    inside = [segment for tile in range(picture.grid.t) for segment in (f"[{tile}", Rows(2), "]")]
    return ("\n", 490, *inside, 492)


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(Tiles(2), 502, MARK, among_others=Tiles(1), expand=rows_in_brackets)


@pytest.fixture(scope="module")
def builder(checkpoint: Checkpoint, layout: Layout) -> PromptBuilder:
    return PromptBuilder(dataclasses.replace(checkpoint, template=TEMPLATE), Limits(), layout)


def ask(builder: PromptBuilder, *parts: str | bytes) -> Prompt:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts)
    return builder.build([Message("user", content)])


def ids_of(builder: PromptBuilder, text: str) -> list[int]:
    ids: list[int] = builder.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_text_of_an_expansion_is_encoded_with_its_neighbours(builder: PromptBuilder) -> None:
    prompt = ask(builder, "Look", png("red"), "What?")
    expected = [*ids_of(builder, "user: Look\n"), 490, *ids_of(builder, "[0"), 502, 502, *ids_of(builder, "][1")]
    expected += [502, 502, *ids_of(builder, "]"), 492, *ids_of(builder, "What?")]
    assert prompt.token_ids.tolist() == expected
    assert [(r.end - r.start, r.item) for r in prompt.ranges] == [(2, 0), (2, 0)]
    assert prompt.picture_tokens == prompt.pictures[0].rows == 4


def test_a_picture_among_others_is_cut_otherwise_and_is_another_to_the_caches(builder: PromptBuilder) -> None:
    alone = ask(builder, png("red"), "What?").pictures[0]
    first, second = ask(builder, png("red"), png("blue"), "What?").pictures
    assert (alone.rows, first.rows, second.rows) == (4, 2, 2)
    assert alone.content != first.content
    assert first.content == ask(builder, png("red"), png("red"), "?").pictures[1].content


def test_a_mark_that_callers_type_is_text(builder: PromptBuilder) -> None:
    prompt = ask(builder, MARK, png("red"), MARK[:5], MARK[5:])
    assert len(prompt.ranges) == 2
    assert not (prompt.token_ids < 0).any()
    assert builder.decode(prompt.token_ids.tolist()).count(MARK) == 2


def test_templates_that_know_lists_only_keep_messages_of_text_alone(builder: PromptBuilder) -> None:
    assert "What now?" in builder.decode(ask(builder, "What now?").token_ids.tolist())


def test_raw_prompts_with_marks_and_with_all_rows_written_out(builder: PromptBuilder) -> None:
    marked = builder.build_text(f"Look{MARK}What?", [png("red")])
    assert [(r.end - r.start, r.item) for r in marked.ranges] == [(2, 0), (2, 0)]
    assert builder.decode(marked.token_ids.tolist()) == "Look\n[0][1]What?"
    written = builder.build_ids(marked.token_ids.tolist(), [png("red")])
    assert written.ranges == marked.ranges
    assert np.array_equal(written.token_ids, marked.token_ids)
    with pytest.raises(InvalidField, match=f"2 placeholders for 1 pictures: write one {MARK}"):
        builder.build_text(MARK * 2, [png("red")])


def test_the_opening_is_written_once(checkpoint: Checkpoint, layout: Layout) -> None:
    opening = dataclasses.replace(layout, opens=True)
    for template in (TEMPLATE, "<|endoftext|>" + TEMPLATE):
        builder = PromptBuilder(dataclasses.replace(checkpoint, template=template), Limits(), opening)
        builder._text.opening = (490,)
        assert ask(builder, "What?").token_ids[:2].tolist() == [490, ids_of(builder, "user")[0]]


def test_text_only_models_refuse_pictures_by_name(checkpoint: Checkpoint) -> None:
    reader = dataclasses.replace(checkpoint, family="qwen2", image_token_id=None)
    builder = PromptBuilder(reader, Limits())
    assert not ask(builder, "What?").ranges
    with pytest.raises(UnsupportedPicture, match="tiny reads text only") as caught:
        ask(builder, "What?", png("red"))
    assert caught.value.param == "messages[0].content[1]"
    with pytest.raises(UnsupportedPicture, match="reads text only"):
        builder.build_text("What?", [png("red")])


def test_plain_positions_count_every_token(builder: PromptBuilder) -> None:
    prompt = ask(builder, png("red"), "What?")
    positions, following = plain_positions(prompt)
    assert positions.tolist() == [list(range(len(prompt)))]
    assert following == len(prompt)


def test_every_family_has_both_halves(checkpoint: Checkpoint) -> None:
    assert set(LAYOUTS) == set(BUILDERS) == {*FAMILIES.values(), GENERAL} > TEXT_FAMILIES
    with pytest.raises(ConfigError, match="gpt5_vl"):
        layout_for(dataclasses.replace(checkpoint, family="gpt5_vl"))
