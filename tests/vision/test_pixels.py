from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from mmserve.checkpoint import Checkpoint
from mmserve.errors import CheckpointError, MMServeError
from tests.vision.files import noise
from vision.geometry import QwenGeometry
from vision.pixels import QwenPixels

SIZES = [(50, 90), (200, 30), (28, 28), (1, 1), (640, 480)]


@pytest.fixture(scope="module")
def geometry(checkpoint: Checkpoint) -> QwenGeometry:
    return QwenGeometry.from_configs(checkpoint.vision_config, checkpoint.processor)


@pytest.fixture(scope="module")
def pixels(checkpoint: Checkpoint, geometry: QwenGeometry) -> QwenPixels:
    return QwenPixels(checkpoint.path, geometry)


@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_transformers_processor(
    pixels: QwenPixels, geometry: QwenGeometry, checkpoint: Checkpoint, size: tuple[int, int]
) -> None:
    image = noise(*size)
    made = pixels(image, geometry.grid(*size))
    values, grid = made.values, made.grid
    batch = AutoProcessor.from_pretrained(checkpoint.path).image_processor(images=[image], return_tensors="pt")
    assert torch.equal(values, batch["pixel_values"])
    assert [list(grid)] == batch["image_grid_thw"].tolist()
    assert (grid, made.size) == (geometry.grid(*size), size)
    assert (values.dtype, values.shape) == (torch.float32, (grid.h * grid.w, 3 * 2 * 14 * 14))


def test_threads_do_not_disturb_each_other(pixels: QwenPixels, geometry: QwenGeometry) -> None:
    images = [noise(*size, seed=seed) for seed, size in enumerate(SIZES * 4)]
    grids = [geometry.grid(*image.size) for image in images]
    alone = [pixels(*each).values for each in zip(images, grids, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = [made.values for made in pool.map(pixels, images, grids)]
    assert all(map(torch.equal, alone, together))


def test_a_grid_other_than_the_promised_one_is_an_error(pixels: QwenPixels, geometry: QwenGeometry) -> None:
    with pytest.raises(MMServeError, match="was promised"):
        pixels(noise(100, 50), geometry.grid(50, 100))


def test_a_folder_without_a_processor_is_a_checkpoint_error(tmp_path: Path, geometry: QwenGeometry) -> None:
    with pytest.raises(CheckpointError, match="image processor"):
        QwenPixels(tmp_path, geometry)
