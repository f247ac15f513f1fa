"""Small PNG files for the engine's tests."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image


@cache
def png(colour: str, size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture of one colour, or of ``noise``, ``size`` being width and height in pixels."""
    if colour == "noise":
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    else:
        image = Image.new("RGB", size, colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
