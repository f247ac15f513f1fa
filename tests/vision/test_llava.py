"""LLaVA's pixels and picture rows against transformers', and what they promise besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmserve.errors import CheckpointError, MMServeError
from mmserve.models.families import build_model
from mmserve.prompt import layout_for
from mmserve.types import Grid
from tests.checkpoints import LLAVAS, tiny_llava
from tests.models.equality import resolve
from tests.vision.files import noise
from vision.encoder import PictureEncoder
from vision.llava import LlavaEncoder
from vision.pixels import PixelProcessor, Pixels, TilePixels

SIZES = [(90, 50), (30, 200), (42, 42), (3, 1), (200, 190)]


class Family:
    """One of the LLaVAs, here and in transformers."""

    def __init__(self, path: Path) -> None:
        checkpoint = resolve(path)
        self.layout = layout_for(checkpoint)
        model = build_model(checkpoint, torch.float32, torch.device("cpu"))
        assert model.encoder is not None
        assert model.pixels is not None
        self.encoder: PictureEncoder = model.encoder
        self.pixels: PixelProcessor = model.pixels
        self.reference: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.processor: Any = AutoProcessor.from_pretrained(path).image_processor

    def cut(self, images: list[Image.Image]) -> list[Pixels]:
        geometry = self.layout.geometry_among(len(images))
        assert geometry is not None
        return [self.pixels(image, geometry.measure(*image.size)[0]) for image in images]


@pytest.fixture(scope="module", params=LLAVAS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tiny_llava(tmp_path_factory.mktemp(request.param), request.param))


@pytest.mark.parametrize("count", [1, 2])
def test_pixels_and_rows_are_those_of_transformers(family: Family, count: int) -> None:
    for first in range(len(SIZES) - count + 1):
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES[first : first + count])]
        batch = family.processor(images=[images], return_tensors="pt")
        made = family.cut(images)
        for mine, theirs in zip(made, batch["pixel_values"], strict=True):
            theirs = theirs if theirs.ndim == 4 else theirs[None]
            assert torch.equal(mine.values, theirs[: len(mine.values)])
            assert not theirs[len(mine.values) :].any()  # transformers pads with tiles of zeros
        known = {name: batch[name] for name in ("image_sizes", "batch_num_images") if name in batch}
        if not isinstance(batch["pixel_values"], torch.Tensor) or batch["pixel_values"].ndim != 5:
            known = {}
        with torch.inference_mode():
            expected = family.reference.get_image_features(batch["pixel_values"], **known).pooler_output
        for ours, theirs in zip(family.encoder.encode(made), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
            assert ours.std() > 0.1


def test_a_picture_gives_the_same_rows_alone_and_among_others(family: Family) -> None:
    made = [family.cut([noise(*size)])[0] for size in SIZES]
    for picture, rows in zip(made, family.encoder.encode(made), strict=True):
        torch.testing.assert_close(family.encoder.encode([picture])[0], rows, atol=1e-5, rtol=0)
        assert rows.untyped_storage().nbytes() == rows.nbytes
        assert rows.shape[1] == family.encoder.row_width == 64
    assert family.encoder.encode([]) == []


def test_another_grid_than_the_promised_one_is_an_error(family: Family) -> None:
    with pytest.raises(MMServeError, match="was promised"):
        family.pixels(noise(90, 50), Grid(9, 3, 3))


def test_parameters_are_made_without_memory(family: Family) -> None:
    assert isinstance(family.encoder, LlavaEncoder)
    config = {
        "vision_config": family.reference.config.vision_config.to_dict(),
        "vision_feature_layer": -2,
    }
    encoder = LlavaEncoder(config, 64, drops_first=True)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    assert len(encoder.tower.layers) == 2  # of three: the last one's features are not used
    assert not encoder.training


def test_a_folder_without_a_processor_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="image processor"):
        TilePixels(tmp_path, 14)
