"""The pictures that the tour asks about: plain shapes, such as the embedded model surely knows.

``python -m tour.pictures FOLDER`` draws them.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

_SIZE = 64
_PAPER = (246, 244, 250)
_SHAPES = (
    ("red-circle", "circle", (255, 0, 0)),
    ("blue-rectangle", "rectangle", (0, 0, 255)),
    ("green-triangle", "triangle", (0, 128, 0)),
    ("black-circle", "circle", (0, 0, 0)),
    ("yellow-rectangle", "rectangle", (255, 255, 0)),
)


def draw(folder: Path) -> None:
    """Writes the pictures into ``folder``: five, a copy of one under another name, and one that is damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape, colour in _SHAPES:
        (folder / f"{name}.png").write_bytes(_png(shape, colour))
    first = _png(*_SHAPES[0][1:])
    (folder / "copy-of-red-circle.png").write_bytes(first)
    (folder / "damaged.png").write_bytes(first[: len(first) // 2])


def _png(shape: str, colour: tuple[int, int, int]) -> bytes:
    picture = Image.new("RGB", (_SIZE, _SIZE), _PAPER)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((14, 16, 46, 48), fill=colour)
    elif shape == "rectangle":
        pen.rectangle((10, 20, 50, 44), fill=colour)
    else:
        pen.polygon([(32, 12), (52, 48), (12, 48)], fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
