"""A person at the page, in one language or the other: looks for words as the page has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Locator, Page, expect


class Reader:
    """Does what people do, by the names that they see. ``language`` is "en" or "zh"."""

    def __init__(self, page: Page, language: str) -> None:
        self.page = page
        self.language = language

    def says(self, key: str, **values: object) -> str:
        """The page's words for ``key``, in the page's language."""
        text = self.page.evaluate(
            "([key, values]) => import('/static/js/i18n.js').then((m) => m.t(key, values))", [key, values]
        )
        assert isinstance(text, str)
        return text

    def button(self, key: str) -> Locator:
        return self.page.get_by_role("button", name=self.says(key), exact=True)

    def field(self, key: str) -> Locator:
        return self.page.get_by_label(self.says(key))

    def open_tab(self, key: str) -> None:
        self.page.get_by_role("tab", name=self.says(key)).click()

    def pick(self, *pictures: Path) -> None:
        self.page.locator("#files").set_input_files(list(pictures))

    def want(self, kind: str) -> None:
        """The answer as "text", "choice" or "json"."""
        self.page.get_by_role("radio", name=self.says(f"shape_{kind}")).check(force=True)

    def fill_row(self, number: int, name: str, kind: str, values: str = "") -> None:
        """A field of the schema builder that is there already; ``kind`` as in ``type_…``."""
        self.page.get_by_label(f"{self.says('fieldName')} {number}").fill(name)
        self.page.get_by_label(f"{self.says('fieldType')} {number}").select_option(label=self.says(f"type_{kind}"))
        if values:
            self.page.get_by_label(f"{self.says('fieldValues')} {number}").fill(values)

    def ask(self, question: str) -> None:
        """Asks, and waits until the answer is complete."""
        lines = self.page.locator(".meta")
        before = lines.count()
        self.field("yourQuestion").fill(question)
        self.field("yourQuestion").press("Enter")
        expect(lines).to_have_count(before + 1)

    def start_over(self) -> None:
        self.button("newConversation").click()

    @property
    def answers(self) -> Locator:
        return self.page.locator(".answer-text")

    @property
    def line(self) -> Locator:
        """The quiet line under the newest answer."""
        return self.page.locator(".meta").last


def line(reader: Reader, keys: Sequence[str], **values: object) -> re.Pattern[str]:
    """A quiet line that has these words, in this order, whatever the times."""
    parts = [re.escape(reader.says(key, **values)) for key in keys]
    return re.compile(".*".join(parts))
