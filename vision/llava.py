"""Tiles to embedding rows: the LLaVA families' picture encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.pixels import Pixels
from vision.projectors import TwoLayerProjector
from vision.tiles import AnyResGeometry
from vision.vit import VisionTransformer, activation


class LlavaEncoder(nn.Module):
    """A tower, LLaVA's projector, and (with ``geometry``) tiles put together again with a newline row behind each line.

    Parameters are made on the meta device, without memory: a weight loader gives them theirs.
    """

    def __init__(
        self, config: Mapping[str, Any], hidden_size: int, *, drops_first: bool, geometry: AnyResGeometry | None = None
    ) -> None:
        """``config`` is ``config.json``, ``hidden_size`` the language model's; ``drops_first`` leaves out each tile's
        first row. Raises ``ConfigError``."""
        super().__init__()
        chosen = config.get("vision_feature_layer", -2)
        self.tower = VisionTransformer(config["vision_config"], [chosen] if isinstance(chosen, int) else chosen)
        act, bias = (
            activation(config.get("projector_hidden_act", "gelu")),
            config.get("multimodal_projector_bias", True),
        )
        with torch.device("meta"):
            self.projector = TwoLayerProjector(self.tower.width, hidden_size, act, bias=bias)
            self.image_newline = nn.Parameter(torch.empty(hidden_size)) if geometry is not None else None
        self.row_width = hidden_size
        self._first = int(drops_first)
        self._geometry = geometry
        self.eval()

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Pixels]) -> list[Tensor]:
        if not pictures:
            return []
        weight = self.projector.linear_1.weight
        tiles = torch.cat([picture.values for picture in pictures]).to(weight.device, weight.dtype, non_blocking=True)
        rows = self.projector(self.tower(tiles)[:, self._first :])
        parts = torch.split(rows, [len(picture.values) for picture in pictures])
        return [self._packed(part, picture) for part, picture in zip(parts, pictures, strict=True)]

    def _packed(self, tiles: Tensor, picture: Pixels) -> Tensor:
        """A picture's rows, of a memory of their own: ``tiles`` is (tiles, patches, hidden_size)."""
        if self._geometry is None or self.image_newline is None:
            return tiles[0].clone()
        if len(tiles) == 1:
            return torch.cat((tiles[0], self.image_newline[None]))
        lines = self._joined(tiles[1:], self._geometry, picture.size)
        newlines = self.image_newline.expand(len(lines), 1, -1)
        return torch.cat((tiles[0], torch.cat((lines, newlines), 1).flatten(0, 1)))

    def _joined(self, tiles: Tensor, geometry: AnyResGeometry, size: tuple[int, int]) -> Tensor:
        """The tiles side by side, without what was padded, scaled down if they are too many: (lines, columns, C)."""
        (down, across), side = geometry.tiles(*size), geometry.side
        whole = tiles.view(down, across, side, side, -1).transpose(1, 2).reshape(down * side, across * side, -1)
        above, beside = geometry.padding(*size)
        whole = whole[above : len(whole) - above, beside : whole.shape[1] - beside]
        wanted = geometry.shape(*size)
        if whole.shape[:2] == wanted:
            return whole
        return F.interpolate(whole.permute(2, 0, 1)[None], wanted, mode="bilinear")[0].permute(1, 2, 0)

    def rename(self, name: str) -> str | None:
        """The parameter that a published tensor goes to, ``model.`` before it or not; ``None`` if it is none."""
        name = name.removeprefix("model.")
        if name.startswith("vision_tower."):
            inner = self.tower.rename(name.removeprefix("vision_tower."))
            return inner and f"tower.{inner}"
        if name.startswith("multi_modal_projector."):
            return "projector." + name.removeprefix("multi_modal_projector.")
        return name if name == "image_newline" else None
