"""Prompts with places."""

from __future__ import annotations

import pytest

from mmserve.errors import InvalidField
from mmserve.template import Template, file_values

KNOWN = ("name", "directory", "folder", "tags")


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("What is it?", "What is it?"),
        ("{name} in {directory}/{folder}", "tom in cats/cats"),
        ('Answer as {"name": {"a": 1}}', 'Answer as {"name": {"a": 1}}'),
        ("\\{name\\} {name}", "{name} tom"),
        ("{ name } {} {", "{ name } {} {"),
        ("{{name}}", "{tom}"),
        ("\\\\n", "\\\\n"),
    ],
)
def test_places_are_filled_and_other_braces_stay(text: str, rendered: str) -> None:
    assert Template(text, KNOWN).render(file_values("photos/cats/tom.jpg")) == rendered


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    assert Template("{name}", KNOWN).render({"name": "{tags} \\{"}) == "{tags} \\{"


def test_used_says_which_places_there_are() -> None:
    assert Template("{name} {tags} {name} \\{folder\\}", KNOWN).used == {"name", "tags"}


@pytest.mark.parametrize(
    ("text", "hint"), [("{nmae}", "did you mean {name}"), ("{x}", "There are {name}, {directory}")]
)
def test_unknown_places_are_refused(text: str, hint: str) -> None:
    with pytest.raises(InvalidField, match=hint) as caught:
        Template(text, KNOWN)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("file", "name", "directory"),
    [
        ("a.png", "a", ""),
        ("x/y/a.b.png", "a.b", "y"),
        ("C:\\photos\\a.png", "a", "photos"),
        ("/a.png", "a", ""),
        ("../a.png", "a", ".."),
        ("", "", ""),
    ],
)
def test_what_a_name_tells(file: str, name: str, directory: str) -> None:
    assert file_values(file) == {"name": name, "directory": directory, "folder": directory}
