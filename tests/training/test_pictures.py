"""Pictures made for training are those that the processor would make; drawn shapes look like their labels."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from training import pictures
from training.cases import find_cell
from training.data import COLORS, SHAPES, VqaSplit
from training.draw import PALETTE
from training.pictures import Renderer
from training.questions import ANYWHERE
from training.tokenizer import image_processor

SIZES = [(64, 64), (112, 112), (60, 130), (300, 200), (500, 700)]


@pytest.fixture(scope="module")
def renderer(train_split: VqaSplit) -> Renderer:
    tensor = torch.from_numpy(train_split.pictures).permute(0, 3, 1, 2).contiguous()
    return Renderer(tensor, Generator().manual_seed(3))


def scenes(rows: list[tuple[int, int, int, int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int16)


@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_the_image_processor(renderer: Renderer, size: tuple[int, int]) -> None:
    drawn = renderer.render(scenes([(-1, 0, 5, -1), (7, 0, 0, -1), (-1, 2, 1, 4)]), size)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in drawn]

    expected = image_processor()(images, return_tensors="pt")
    actual = pictures.patches(drawn)

    assert actual.shape[1] == pictures.patch_count(size) == int(expected["image_grid_thw"][0].prod())
    torch.testing.assert_close(actual.flatten(0, 1), expected["pixel_values"], atol=1e-5, rtol=1e-5)


def test_plain_pictures_are_untouched(renderer: Renderer, train_split: VqaSplit) -> None:
    plain = renderer.render_plain(scenes([(5, 0, 0, -1)]))
    assert np.array_equal(plain[0].permute(1, 2, 0).numpy(), train_split.pictures[5])


def test_most_small_placements_change_no_pixel_but_by_mirroring(renderer: Renderer, train_split: VqaSplit) -> None:
    placed = renderer.render(scenes([(5, 0, 0, -1)] * 200), (64, 64)).permute(0, 2, 3, 1).numpy()
    original = train_split.pictures[5]
    same = [np.array_equal(p, original) or np.array_equal(p, original[:, ::-1]) for p in placed]
    assert sum(same) > 50


def test_placed_pictures_keep_their_color(renderer: Renderer, train_split: VqaSplit) -> None:
    known = [(picture, label) for picture, label in train_split.labels.items()][:60]
    placed = renderer.render(scenes([(picture, 0, 0, -1) for picture, _ in known]), (150, 220))
    for image, (_, label) in zip(placed, known, strict=True):
        pixels = image.flatten(1).T.float()
        distances = torch.cdist(pixels, torch.tensor([PALETTE[name][0] for name in COLORS]).float())
        nearest = distances.argmin(1)[distances.min(1).values < 40]
        assert nearest.mode().values == label.color


def test_drawn_shapes_cover_what_their_form_covers(renderer: Renderer) -> None:
    """Of its bounding box, an upright rectangle covers all, a circle pi/4, a triangle half."""
    cover = {"rectangle": 1.0, "circle": 0.785, "triangle": 0.5}
    for shape, expected in cover.items():
        drawn = renderer.render(scenes([(-1, SHAPES.index(shape), 0, -1)] * 40), (200, 200)).permute(0, 2, 3, 1)
        shares = [box_share(image.numpy()) for image in drawn]
        assert np.median(shares) == pytest.approx(expected, abs=0.06)


def box_share(image: np.ndarray) -> float:
    ink = image.sum(-1) < 330
    rows, columns = np.nonzero(ink)
    return float(ink.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))


@pytest.mark.parametrize("size", [(64, 64), (120, 260), (300, 200)])
def test_shapes_lie_in_their_cell(renderer: Renderer, size: tuple[int, int]) -> None:
    for cell in range(9):
        drawn = renderer.render(scenes([(-1, shape % 3, 0, cell) for shape in range(12)]), size)
        cells = [find_cell(image.permute(1, 2, 0).numpy(), margin=0.0) for image in drawn]
        assert sum(found == cell for found in cells) >= 11


def test_shapes_without_a_cell_lie_anywhere(renderer: Renderer) -> None:
    drawn = renderer.render(scenes([(-1, shape % 3, 0, ANYWHERE) for shape in range(150)]), (90, 120))
    assert {find_cell(image.permute(1, 2, 0).numpy(), margin=0.0) for image in drawn} == set(range(9))


def test_sizes_stay_in_bounds() -> None:
    rng = Random(0)
    for _ in range(500):
        height, width = pictures.choose_size([rng.random() for _ in range(3)])
        assert min(height, width) >= 40
        assert max(height, width) <= 720
        assert 64 <= pictures.patch_count((height, width)) <= 1024
