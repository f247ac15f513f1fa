"""What a person does with the page."""

from __future__ import annotations

import base64

from playwright.sync_api import FilePayload, Locator, Page

from tests.web.fakes import png

RED = png(64, 48, "firebrick")
BLUE = png(48, 64, "steelblue")


def file(name: str, data: bytes, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


def pick(page: Page, *files: FilePayload) -> None:
    page.get_by_label("Choose pictures").set_input_files(list(files))


def ask(page: Page, question: str) -> None:
    box = page.get_by_label("Your question")
    box.fill(question)
    box.press("Enter")


def transfer(page: Page, event: str, name: str, data: bytes, kind: str) -> None:
    """Drops or pastes a file on the middle of the page."""
    page.evaluate(
        """([event, name, data, type]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            const options = { bubbles: true, cancelable: true };
            if (event === "paste") {
                document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: dataTransfer }));
                return;
            }
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, { ...options, dataTransfer }));
        }""",
        [event, name, base64.b64encode(data).decode(), kind],
    )


def answers(page: Page) -> Locator:
    return page.locator(".answer-text")


def want(page: Page, kind: str) -> None:
    """Chooses the shape of the answer: "Text", "Choice" or "JSON"."""
    page.get_by_role("radio", name=kind).check(force=True)


def field(page: Page, number: int, name: str, kind: str = "text", values: str = "") -> None:
    """Fills in a field of the schema builder, which is there already."""
    page.get_by_label(f"Name {number}").fill(name)
    page.get_by_label(f"Type {number}").select_option(label=kind)
    if values:
        page.get_by_label(f"Values {number}").fill(values)


def catch_copies(page: Page) -> None:
    """Writes what is copied into ``window.copied`` instead of the machine's clipboard."""
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")


def copied(page: Page) -> str:
    text = page.evaluate("window.copied")
    assert isinstance(text, str)
    return text
