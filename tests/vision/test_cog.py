"""CogVLM's squares and the rows that come of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mmserve.errors import ConfigError, MMServeError
from mmserve.models.loader import materialise
from mmserve.types import Grid
from tests.checkpoints.cogvlm import PUBLISHED
from vision.cog import CogGeometry, cog_geometry
from vision.eva import MEAN, STD, CogEncoder, CogPixels
from vision.pixels import Pixels

GEOMETRY = CogGeometry(56, 14, 2)
VISION = {
    "hidden_size": 8,
    "num_heads": 2,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "image_size": 56,
    "patch_size": 14,
    "num_positions": 17,
}
CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_multi_query_heads": 2,
    "vision_config": VISION,
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoder(dtype: torch.dtype = torch.float32) -> CogEncoder:
    made = CogEncoder(CONFIG, GEOMETRY)
    materialise(made, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def test_published_geometries() -> None:
    assert cog_geometry(PUBLISHED["cogvlm"]) == CogGeometry(490, 14, 1)
    assert cog_geometry(PUBLISHED["cogvlm2"]) == CogGeometry(1344, 14, 2)
    assert CogGeometry(490, 14, 1).measure(3001, 17) == (Grid(1, 35, 35), 1227)
    assert CogGeometry(1344, 14, 2).measure(1, 1000) == (Grid(1, 96, 96), 2306)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": "56"}, "'56' pixels a side"),
        ({"patch_size": 0}, "in patches of 0"),
        ({"image_size": 42, "num_positions": 10}, "3 patches a side, which are no blocks of 2 by 2"),
        ({"num_positions": 16}, "16 positions, but .* 16 patches and a class token"),
        ({"num_positions": None}, "None positions"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cog_geometry({**CONFIG, "vision_config": {**VISION, **changes}})


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (28, 28), (56, 56), (333, 250), (1, 1)])
def test_pixels_are_what_training_saw(size: tuple[int, int]) -> None:
    """Bit for bit as torchvision's transforms on Pillow's pictures, which the published code calls."""
    image = picture(*size)
    right = transforms.Compose(
        [
            transforms.Resize((56, 56), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )(image)
    made = CogPixels(GEOMETRY)(image, Grid(1, 4, 4))
    assert made.values.dtype == torch.float32
    assert made.size == size
    assert torch.equal(made.values[0], right)


def test_a_grid_that_was_not_promised() -> None:
    with pytest.raises(MMServeError, match="was promised"):
        CogPixels(GEOMETRY)(picture(20, 20), Grid(1, 35, 35))


def test_rows_in_a_batch_are_those_alone_and_own_their_memory() -> None:
    pixels = [CogPixels(GEOMETRY)(picture(40, 30, seed), Grid(1, 4, 4)) for seed in range(3)]
    made = encoder()
    together = made.encode(pixels)
    assert made.encode([]) == []
    for one, rows in zip(pixels, together, strict=True):
        assert rows.shape == (6, made.row_width) == (6, 17)
        assert rows.untyped_storage().nbytes() == rows.nbytes
        (alone,) = made.encode([one])
        assert alone.untyped_storage().nbytes() == alone.nbytes
        torch.testing.assert_close(rows, alone)


def test_marks_survive_half_precision() -> None:
    (rows,) = encoder(torch.bfloat16).encode([CogPixels(GEOMETRY)(picture(40, 30), Grid(1, 4, 4))])
    assert rows.dtype == torch.bfloat16
    assert rows[:, -1].tolist() == [1, 1, 1, 1, 1, 0]


def test_blocks_of_patches_become_one_row() -> None:
    """A change in one corner of the tower's output reaches one row. The tower mixes patches: here it has no layers."""
    made = encoder()
    made.transformer.layers = torch.nn.ModuleList()
    values = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    other = values.clone()
    other[..., 28:42, 14:28] += 1  # the patch in row 2, column 1: the block in row 1, column 0
    grid = Grid(1, 4, 4)
    one, two = (made.encode([Pixels(each, grid)])[0] for each in (values, other))
    assert [bool((a != b).any()) for a, b in zip(one, two, strict=True)] == [False, False, False, True, False, False]
