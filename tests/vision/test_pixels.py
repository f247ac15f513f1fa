from __future__ import annotations

import dataclasses
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
    values, grid = pixels(image)
    batch = AutoProcessor.from_pretrained(checkpoint.path).image_processor(images=[image], return_tensors="pt")
    assert torch.equal(values, batch["pixel_values"])
    assert [list(grid)] == batch["image_grid_thw"].tolist()
    assert grid == geometry.grid(*size)
    assert (values.dtype, values.shape) == (torch.float32, (grid.h * grid.w, 3 * 2 * 14 * 14))


def test_threads_do_not_disturb_each_other(pixels: QwenPixels) -> None:
    images = [noise(*size, seed=seed) for seed, size in enumerate(SIZES * 4)]
    alone = [pixels(image)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = [values for values, _ in pool.map(pixels, images)]
    assert all(map(torch.equal, alone, together))


def test_a_grid_other_than_the_promised_one_is_an_error(checkpoint: Checkpoint, geometry: QwenGeometry) -> None:
    class Broken(QwenGeometry):
        def grid(self, width: int, height: int):  # type: ignore[no-untyped-def]
            return geometry.grid(height, width)

    pixels = QwenPixels(checkpoint.path, Broken(**dataclasses.asdict(geometry)))
    with pytest.raises(MMServeError, match="was promised"):
        pixels(noise(100, 50))


def test_a_folder_without_a_processor_is_a_checkpoint_error(tmp_path: Path, geometry: QwenGeometry) -> None:
    with pytest.raises(CheckpointError, match="image processor"):
        QwenPixels(tmp_path, geometry)
