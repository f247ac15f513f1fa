"""Pictures on the device: training pictures placed and resized, shapes drawn, and the processor's patches.

Everything works on whole batches and takes its random numbers from a ``torch.Generator`` of the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from training.data import SIDE
from training.draw import draw_shapes
from training.model import MERGE, PATCH, TEMPORAL
from training.random_tensors import chance, uniform
from training.tokenizer import MAX_PIXELS, MIN_PIXELS

Size = tuple[int, int]


class Renderer:
    """Draws scenes. Owns the training pictures on its device and the random generator."""

    def __init__(self, pictures: Tensor, generator: Generator) -> None:
        """``pictures`` is uint8 ``[n, 3, 64, 64]`` on the generator's device."""
        self._pictures = pictures
        self._backgrounds = _backgrounds(pictures)
        self._generator = generator

    def render(self, scenes: Tensor, size: Size) -> Tensor:
        """uint8 ``[batch, 3, *size]`` for ``scenes`` ``[batch, 4]`` (picture, shape, colour, cell)."""
        canvas = torch.empty(len(scenes), 3, *size, device=scenes.device)
        photographed = scenes[:, 0] >= 0
        old, new = photographed.nonzero().flatten(), (~photographed).nonzero().flatten()
        if len(old):
            canvas[old] = self._place(scenes[old, 0].long(), size)
        if len(new):
            canvas[new] = draw_shapes(scenes[new, 1:].long(), size, self._generator)
        return self._add_noise(canvas).round().clamp(0, 255).to(torch.uint8)

    def render_plain(self, scenes: Tensor) -> Tensor:
        """The training pictures of ``scenes`` untouched, uint8 ``[batch, 3, 64, 64]``."""
        return self._pictures[scenes[:, 0].long()]

    def _place(self, index: Tensor, size: Size) -> Tensor:
        """Training pictures scaled, moved and mirrored on a canvas of their own background colour."""
        background = self._backgrounds[index][:, :, None, None]
        foreground = self._pictures[index].float() - background
        grid = self._sampling_grid(len(index), size)
        modes = ("bilinear", "bilinear", "bicubic", "nearest")
        mode = modes[int(torch.randint(len(modes), (), generator=self._generator, device=index.device))]
        placed = F.grid_sample(foreground, grid, mode=mode, padding_mode="zeros", align_corners=False)
        return self._jitter(placed + background)

    def _sampling_grid(self, batch: int, size: Size) -> Tensor:
        """``[batch, h, w, 2]``: where in the 64 x 64 picture each pixel of the canvas comes from."""
        height, width = size
        generator, device = self._generator, self._pictures.device
        short = min(size)
        smallest = 0.8 if short < 100 else 0.55
        fill = torch.where(chance(batch, 0.5, generator), 1.0, uniform(batch, smallest, 1.0, generator))
        stretch = chance(batch, 0.4, generator)
        mirror = 1 - 2 * chance(batch, 0.5, generator).float()
        turn = 1 - 2 * chance(batch, 0.05, generator).float()
        untouched = chance(batch, 0.65, generator) & (height == width == SIDE)
        axes = []
        for extent, sign in ((height, turn), (width, mirror)):
            whole = torch.where(stretch, float(min(extent, 2 * short)), float(short))
            box = (whole * fill * uniform(batch, -0.18, 0.18, generator).exp()).clamp(max=extent)
            box = torch.where(untouched, float(extent), box)
            offset = (extent - box) * uniform(batch, 0.0, 1.0, generator)
            pixels = torch.arange(extent, device=device) + 0.5
            axes.append(sign[:, None] * ((pixels - offset[:, None]) / box[:, None] * 2 - 1))
        rows, columns = axes
        shape = (batch, height, width)
        return torch.stack((columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)), dim=-1)

    def _jitter(self, canvas: Tensor) -> Tensor:
        """Slightly other colours for a third of the pictures; too little to change a colour's name."""
        batch, generator = len(canvas), self._generator
        gain = uniform((batch, 3, 1, 1), 0.94, 1.06, generator)
        lift = uniform((batch, 3, 1, 1), -6.0, 6.0, generator)
        changed = chance(batch, 0.33, generator)[:, None, None, None]
        return torch.where(changed, canvas * gain + lift, canvas)

    def _add_noise(self, canvas: Tensor) -> Tensor:
        """Noise about as strong as a JPEG encoder's on a fifth of the pictures."""
        strength = uniform((len(canvas), 1, 1, 1), 0.0, 5.0, self._generator)
        strength = strength * chance(len(canvas), 0.2, self._generator)[:, None, None, None]
        noise = torch.randn(canvas.shape, generator=self._generator, device=canvas.device)
        return canvas + noise * strength


def _backgrounds(pictures: Tensor) -> Tensor:
    """The most frequent colour of each picture, float ``[n, 3]``: a shape never covers half of it."""
    return pictures.flatten(2).float().median(dim=2).values


def choose_size(uniforms: Sequence[float]) -> Size:
    """A picture size ``(h, w)`` in pixels from three numbers in [0, 1): half of all are easy-vqa's own."""
    kind, scale, shape = uniforms
    if kind < 0.5:
        return SIDE, SIDE
    if kind < 0.68:
        side = round(48 * (160 / 48) ** scale)
        return side, side
    side = 60 * (480 / 60) ** scale
    aspect = 2.2 ** (shape - 0.5)
    return round(side / aspect), round(side * aspect)


def target_size(size: Size) -> Size:
    """The size to which the processor resizes a picture."""
    height, width = smart_resize(*size, factor=PATCH * MERGE, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return height, width


def patches(pictures: Tensor) -> Tensor:
    """What ``Qwen2VLImageProcessor`` makes of uint8 ``[batch, 3, h, w]``: ``[batch, patches, 1176]``."""
    resized = resize(
        pictures, list(target_size((pictures.shape[2], pictures.shape[3]))), InterpolationMode.BICUBIC, antialias=True
    )
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=pictures.device)[:, None, None]
    std = torch.tensor(OPENAI_CLIP_STD, device=pictures.device)[:, None, None]
    return patchify((resized.float() / 255 - mean) / std)


def patchify(pixels: Tensor) -> Tensor:
    """Float ``[batch, 3, h, w]`` in the processor's patch order; a still picture is two equal frames."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    blocks = pixels.view(batch, channels, rows, MERGE, PATCH, columns, MERGE, PATCH)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, TEMPORAL, -1, -1)
    return frames.reshape(batch, rows * columns * MERGE**2, channels * TEMPORAL * PATCH**2)


def patch_count(size: Size) -> int:
    height, width = target_size(size)
    return math.prod((height // PATCH, width // PATCH))
