"""The tour's source as parts, and results put into it."""

from __future__ import annotations

import pytest

from tour.script import Command, Console, Program, Prose, Shot, parse, render, without_output

SOURCE = """\
# Title

Some words.

```console
$ one
$ two \\
  more
```

```python
print(1)
```

<!-- if cats -->
![A cat](tour/a-cat.webp)
<!-- end -->
The end.
"""


def test_parts() -> None:
    parts = [part for part in parse(SOURCE, {"cats": True}) if part != Prose("")]
    assert parts == [
        Prose("# Title"),
        Prose("Some words."),
        Console((Command("one"), Command("two \\\n  more"))),
        Program("print(1)"),
        Shot("A cat", "a-cat"),
        Prose("The end."),
    ]
    assert not any(isinstance(part, Shot) for part in parse(SOURCE, {"cats": False}))


def test_results_come_behind_what_gave_them() -> None:
    tour = render(parse(SOURCE, {"cats": True}), ["1\n\n2\n", "", "x  \n"])
    assert "```console\n$ one\n1\n\n2\n$ two \\\n  more\n```\n" in tour
    assert "```python\nprint(1)\n```\n\n```text\nx\n```\n\n![A cat](tour/a-cat.webp)\nThe end.\n" in tour


def test_without_its_results_a_tour_is_its_source() -> None:
    for cats in (True, False):
        parts = parse(SOURCE, {"cats": cats})
        bare = render(parts)
        assert without_output(bare) == bare
        assert without_output(render(parts, ["a\nb", "c", "```js"[3:]])) == bare
    kept = SOURCE.replace("<!-- if cats -->\n", "").replace("<!-- end -->\n", "")
    assert render(parse(SOURCE, {"cats": True})) == kept


@pytest.mark.parametrize("output", ["$ again", "a\n```\nb", "```text"])
def test_results_that_would_be_taken_for_the_tours_text_are_refused(output: str) -> None:
    with pytest.raises(ValueError, match="cannot be told"):
        render(parse(SOURCE, {"cats": True}), [output])


@pytest.mark.parametrize(
    ("source", "what"), [("```js\n1\n```\n", "console or python"), ("```console\n$ a\n", "has no end")]
)
def test_blocks_of_other_kinds_and_without_an_end(source: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse(source, {})


def test_what_a_command_says_of_itself() -> None:
    assert Command("mmserve caption x  # one is damaged: exit status 1").status == 1
    assert Command("echo exit status 3").status == 0
    assert Command("mmserve serve").serves
    assert not Command("curl -s http://127.0.0.1:8000/mmserve serve").serves
