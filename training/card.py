"""The model card: what the checkpoint is, can and cannot do, and the figures that the evaluation measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.evaluate import share

Results = dict[str, Any]

TITLES = {
    "easy-vqa": "easy-vqa 1.0, the whole test split (9,673 questions about 1,000 pictures)",
    "captions": "Captions of test pictures, one word off counts as wrong",
    "wordings": "Test pictures, the recipe's other wordings and kinds of answer",
    "follow-ups": "Test pictures, the last question of a conversation",
    "two pictures": "Two test pictures in one prompt",
    "other sizes": "Test pictures and questions, in other sizes and forms",
    "small talk": "No picture (wordings seen in training)",
}


def write(results: Results) -> str:
    """The card's text: ``model_card.md`` with the figures of ``results`` filled in."""
    text = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    figures = {
        "parameters": f"{results['parameters'] / 1e6:.1f} million",
        "megabytes": f"{results['bytes'] / 1e6:.1f} MB",
        "accuracy": f"{100 * share(results['suites']['easy-vqa']):.2f} %",
        "tables": "\n\n".join(table(TITLES[name], suite) for name, suite in results["suites"].items()),
    }
    for name, figure in figures.items():
        text = text.replace("{{" + name + "}}", figure)
    return text


def table(title: str, suite: Results) -> str:
    """A Markdown table: group, right answers, questions, share."""
    lines = [f"| {title} | right | of | |", "| --- | ---: | ---: | ---: |"]
    groups = suite["groups"]
    lines += [row(name, *pair) for name, pair in groups.items()]
    if len(groups) > 1:
        lines.append(row("**all**", *(sum(column) for column in zip(*groups.values(), strict=True))))
    return "\n".join(lines)


def row(name: str, right: int, total: int) -> str:
    return f"| {name} | {right:,} | {total:,} | {100 * right / total:.2f} % |"
