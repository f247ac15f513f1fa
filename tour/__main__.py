"""``python -m tour``: run the tour's source and write docs/tour.md and the pictures in docs/tour."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tour.commands import ROOT, Terminal, TourError
from tour.script import Console, Part, Program, Shot, parse, render
from tour.shots import EXAMPLES, boxed, check_fonts, chromium, take

SOURCE = Path(__file__).with_name("source.md")
TOUR = ROOT / "docs" / "tour.md"


def parts() -> list[Part]:
    """The tour's source as it applies today."""
    return parse(SOURCE.read_text(encoding="utf-8"), {"boxes": boxed() is not None})


def make(parts: list[Part], folder: Path, shots: Path) -> str:
    """The tour with its results; its pictures go into ``shots``. Raises ``TourError``."""
    folder.mkdir(parents=True)
    shutil.copytree(EXAMPLES, folder / "mmserve" / "assets" / "examples")
    outputs: list[str] = []
    with Terminal(folder) as terminal, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for part in parts:
            match part:
                case Console(commands):
                    for command in commands:
                        print(f"$ {command.text}", file=sys.stderr, flush=True)
                        outputs.append(terminal.run(command))
                case Program(text):
                    outputs.append(terminal.run_program(text))
                case Shot(_, name):
                    print(f"  {name}.webp", file=sys.stderr, flush=True)
                    take(browser, terminal.url, name, folder / "pictures", shots)
        browser.close()
    return render(parts, outputs)


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        shots = root / "shots"
        try:
            check_fonts()
            text = make(parts(), root / "tour", shots)
        except TourError as error:
            print(f"the tour ends here: {error}", file=sys.stderr)
            return 1
        shutil.rmtree(TOUR.with_suffix(""), ignore_errors=True)
        shutil.copytree(shots, TOUR.with_suffix(""))
        TOUR.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
