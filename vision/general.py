"""Pictures of the models that transformers itself computes: what their own processors make of a size, and of pixels.

A processor cuts a picture and writes what takes its place in a prompt. Nothing here repeats that: a picture of the size
in question, which has no pixels (torch's meta device), is given to the processor, once for each size, and what it wrote
is kept. Processors that look at pixels get a blank picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from mmserve.errors import CheckpointError, ConfigError, MMServeError, UnsupportedPicture
from mmserve.types import Grid
from vision.pixels import Pixels, check_grid
from vision.tiles import MAX_ASPECT_RATIO

SIZES_KEPT = 4096
"""For so many sizes of pictures what a processor makes of them is kept, some hundred bytes each."""

_OF_THE_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_SMALL, _WIDE = (60, 44), (97, 31)
"""Two sizes that are told apart by whoever cuts pictures by their size."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands for a picture: ``runs`` of a token id and how often it comes, the row token's being ``row_id``; and
    the text ``before`` and ``behind`` them, which is encoded together with its neighbours."""

    grid: Grid
    runs: tuple[tuple[int, int], ...]
    row_id: int
    before: str = ""
    behind: str = ""

    @property
    def rows(self) -> int:
        return sum(count for id_, count in self.runs if id_ == self.row_id)


class PictureProcessor:
    """A checkpoint's own processor, for one picture at a time. Safe to call from several threads, which take turns."""

    def __init__(self, checkpoint: Path, row_id: int | None, patch_size: int) -> None:
        """``row_id`` is the token that stands at each row; ``None`` leaves it to the processor. ``patch_size`` is the
        vision tower's. Raises ``CheckpointError`` and ``ConfigError``."""
        self._patch_size = patch_size
        self._lock = Lock()
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(
                checkpoint, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # missing packages and files, unknown classes, settings that they do not take
            raise CheckpointError(f"the processor in {checkpoint} cannot be read: {_line(error)}") from error
        mark = getattr(self._processor, "image_token", None)
        if mark is None or getattr(self._processor, "tokenizer", None) is None:
            raise ConfigError(
                f"the processor of this model, {type(self._processor).__name__}, names no token that stands for a "
                "picture, so its prompts cannot be planned"
            )
        self.mark = str(mark)
        given = row_id if row_id is not None else getattr(self._processor, "image_token_id", None)
        self.row_id = int(self._processor.tokenizer.convert_tokens_to_ids(self.mark) if given is None else given)
        special = {id_ for id_, token in self._processor.tokenizer.added_tokens_decoder.items() if token.special}
        self._own = special | {self.row_id}
        self._needs_pixels = True
        self._check()
        self._needs_pixels = not self._works_without_pixels()
        self.shape: Callable[[int, int], Shape] = lru_cache(SIZES_KEPT)(self._shape)

    @property
    def settings(self) -> str:
        """Everything that it is set to, and whose code it is."""
        return json.dumps([transformers.__version__, self._processor.to_dict()], sort_keys=True, default=str)

    def pixels(self, image: Image.Image) -> tuple[Grid, Tensor, dict[str, Tensor]]:
        """The grid of an RGB picture, its ``pixel_values``, and what else the model takes with them."""
        made = self._call(image)
        values = made["pixel_values"]
        extras = {
            name: value
            for name, value in made.items()
            if isinstance(value, Tensor) and name not in (*_OF_THE_TEXT, "pixel_values")
        }
        return self._grid(values, extras), values, extras

    def inputs(self, *images: Image.Image) -> dict[str, Any]:
        """What the model takes for a prompt of these pictures alone."""
        return self._call(*images)

    def _shape(self, width: int, height: int) -> Shape:
        made = None if self._needs_pixels else self._outlined(width, height)
        if made is None:
            made = self._call(Image.new("RGB", (width, height)))
        grid = self._grid(made["pixel_values"], made)
        ids = made["input_ids"][0].tolist()
        if self.row_id not in ids:
            raise UnsupportedPicture(
                f"the picture is {width}×{height} pixels, of which this model makes nothing at all: scale it up"
            )
        own = [i for i, id_ in enumerate(ids) if id_ in self._own]
        runs = tuple((id_, len(list(run))) for id_, run in groupby(ids[own[0] : own[-1] + 1]))
        return Shape(grid, runs, self.row_id, self._text(ids[: own[0]]), self._text(ids[own[-1] + 1 :]))

    def _outlined(self, width: int, height: int) -> dict[str, Any] | None:
        """What becomes of a picture without pixels; ``None`` where that fails, for whatever reason."""
        outline = torch.empty((3, height, width), dtype=torch.uint8, device="meta")
        try:
            # Not every way to resample is there for such tensors; none of them changes a size.
            return self._call(outline, input_data_format="channels_first", resample=Image.Resampling.BILINEAR)
        except Exception:
            return None

    def _works_without_pixels(self) -> bool:
        wanted = [self._shape(*size) for size in (_SMALL, _WIDE)]
        self._needs_pixels = False
        made = [self._outlined(*size) is not None and self._shape(*size) for size in (_SMALL, _WIDE)]
        return made == wanted

    def _text(self, ids: list[int]) -> str:
        """The text that these tokens are."""
        if not ids:
            return ""
        tokenizer = self._processor.tokenizer
        text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if tokenizer.encode(text, add_special_tokens=False) != ids:
            raise ConfigError(f"the processor writes {text!r} beside a picture, which is encoded in another way")
        return text

    def _call(self, *images: Image.Image | Tensor, **settings: Any) -> dict[str, Any]:
        text = self.mark * len(images)
        with self._lock:  # tokenizers change when they are called
            made = self._processor(
                images=list(images), text=text, add_special_tokens=False, return_tensors="pt", **settings
            )
        return dict(made)

    def _grid(self, values: Tensor, others: Mapping[str, Any]) -> Grid:
        """In patches; the first axis counts tiles where there are several."""
        sizes = others.get("image_grid_thw")
        if sizes is not None:
            return Grid(*sizes[0].tolist())
        if values.ndim < 4:
            return Grid(1, 1, math.prod(values.shape[:-1]))
        *tiles, _, height, width = values.shape
        return Grid(math.prod(tiles), height // self._patch_size, width // self._patch_size)

    def _check(self) -> None:
        """Raise ``ConfigError`` where pictures cannot be planned one by one from their sizes."""
        try:
            shapes = [self._shape(*size) for size in (_SMALL, _WIDE)]
            made = self._call(*(Image.new("RGB", size) for size in (_SMALL, _WIDE)))["input_ids"][0].tolist()
        except Exception as error:
            raise ConfigError(f"this model's processor cannot be used for pictures: {_line(error)}") from error
        wanted = [id_ for shape in shapes for id_, count in shape.runs for _ in range(count)]
        if [id_ for id_ in made if id_ in self._own] != [id_ for id_ in wanted if id_ in self._own]:
            raise ConfigError("this model's processor cuts a picture in another way where it shares a prompt")


@dataclass(frozen=True, eq=False)
class ProcessorGeometry:
    """Sizes as a model's own processor measures them; ``settings`` are everything that it is set to."""

    settings: str
    processor: InitVar[PictureProcessor]

    def __post_init__(self, processor: PictureProcessor) -> None:
        object.__setattr__(self, "_processor", processor)  # no part of what pictures are told apart by

    def measure(self, width: int, height: int) -> tuple[Grid, int]:
        shape = self.shape(width, height)
        return shape.grid, shape.rows

    def resized(self, _: Grid) -> None:
        """What the processor makes of a picture is its own affair."""

    def shape(self, width: int, height: int) -> Shape:
        """Raises ``UnsupportedPicture`` where the processor refuses a picture of this size."""
        long, short = max(width, height), min(width, height)
        if long > MAX_ASPECT_RATIO * short:
            raise UnsupportedPicture(
                f"the picture is {width}×{height} pixels: one side is more than {MAX_ASPECT_RATIO:,} times the other, "
                "which this model does not take; crop it or cut it into pieces"
            )
        processor: PictureProcessor = self._processor  # type: ignore[attr-defined]
        try:
            return processor.shape(width, height)
        except UnsupportedPicture:
            raise
        except Exception as error:  # whatever arithmetic on such a size runs into
            raise UnsupportedPicture(
                f"the picture is {width}×{height} pixels, which this model does not take ({_line(error)}): "
                "crop it or scale it"
            ) from error


class ProcessorPixels:
    """A ``vision.pixels.PixelProcessor``."""

    def __init__(self, processor: PictureProcessor) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image, grid: Grid) -> Pixels:
        try:
            made, values, extras = self._processor.pixels(image)
        except Exception as error:
            raise MMServeError(f"the processor failed on a picture: {_line(error)}") from error
        check_grid(made, grid)
        return Pixels(values, grid, image.size, extras)


def architecture(config: Mapping[str, Any]) -> Any:
    """The class that ``config.json`` names. Raises ``ConfigError`` where transformers has none for this task."""
    names = [str(name) for name in config.get("architectures") or ()]
    known = set(transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    for name in names:
        if name in known and hasattr(transformers, name):
            return getattr(transformers, name)
    raise ConfigError(
        f"models of architecture {', '.join(names)} are not served: neither mmserve nor transformers "
        f"{transformers.__version__} computes them"
    )


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
