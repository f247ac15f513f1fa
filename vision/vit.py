"""The vision transformers of CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343), as far as their features go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmserve.errors import ConfigError
from vision.tiles import TOWERS


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
}
"""Activations by their names in ``config.json``."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Raises ``ConfigError`` for one that is not served."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json asks for the activation {name!r}; served are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Attention(nn.Module):
    """Full self-attention within each picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, patches, C)`` to the same."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (each(x).view(shape).transpose(1, 2) for each in (self.q_proj, self.k_proj, self.v_proj))
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, inner), nn.Linear(inner, width), act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and added to the stream."""

    def __init__(self, width: int, heads: int, inner: int, eps: float, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.self_attn, self.mlp = Attention(width, heads), MLP(width, inner, act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Embeddings(nn.Module):
    """Patches to vectors with a learned position each; CLIP's begin with a class token, SigLIP's have a bias."""

    def __init__(self, width: int, channels: int, image_size: int, patch_size: int, *, class_token: bool) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, patch_size, bias=not class_token)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2 + class_token, width)
        self.class_embedding = nn.Parameter(torch.empty(width)) if class_token else None

    def forward(self, pixels: Tensor) -> Tensor:
        """``(N, channels, image_size, image_size)`` to ``(N, positions, C)``."""
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), 1)
        out: Tensor = x + self.position_embedding.weight
        return out


class VisionTransformer(nn.Module):
    """A tower up to the last layer whose output is used; its parameters are on the meta device, without memory."""

    def __init__(self, vision_config: Mapping[str, Any], feature_layers: Sequence[int]) -> None:
        """``vision_config`` is that of one of ``vision.tiles.TOWERS``. ``feature_layers`` are indices into the hidden
        states, the first of which is the embeddings'; negative ones count from the last layer's. Raises
        ``ConfigError`` for settings that are not served."""
        super().__init__()
        kind = str(vision_config.get("model_type"))
        class_token = TOWERS[kind]
        given = {**_DEFAULTS[kind], **vision_config}
        total, width = _positive(given, "num_hidden_layers"), _positive(given, "hidden_size")
        heads, inner = _positive(given, "num_attention_heads"), _positive(given, "intermediate_size")
        self.feature_layers = [index + total + 1 if index < 0 else index for index in feature_layers]
        if not self.feature_layers or not all(0 <= index <= total for index in self.feature_layers):
            raise ConfigError(f"vision_feature_layer {list(feature_layers)} is not among the tower's {total} layers")
        if width % heads:
            raise ConfigError(f"config.json splits a vision tower of width {width} into {heads} heads unevenly")
        eps, act = given["layer_norm_eps"], activation(given["hidden_act"])
        sizes = (given.get("num_channels", 3), _positive(given, "image_size"), _positive(given, "patch_size"))
        with torch.device("meta"):
            self.embeddings = Embeddings(width, *sizes, class_token=class_token)
            self.pre_layrnorm = nn.LayerNorm(width, eps=eps) if class_token else None
            self.layers = nn.ModuleList(Layer(width, heads, inner, eps, act) for _ in range(max(self.feature_layers)))
        self.width = width * len(self.feature_layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(N, channels, image_size, image_size)`` to the chosen layers' features side by side: ``(N, P, width)``."""
        x = self.embeddings(pixels)
        if self.pre_layrnorm is not None:
            x = self.pre_layrnorm(x)
        states = [x]
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return torch.cat([states[index] for index in self.feature_layers], -1)

    def rename(self, name: str) -> str | None:
        """The parameter that a published tensor (``vision_model.…``, or without it) goes to; ``None`` where what it
        belongs to is not computed."""
        name = name.removeprefix("vision_model.").removeprefix("encoder.")
        head, _, rest = name.partition(".")
        if head in ("post_layernorm", "head") or name.endswith("position_ids"):
            return None
        if head == "layers" and int(rest.partition(".")[0]) >= len(self.layers):
            return None
        return name


def _positive(values: Mapping[str, Any], field: str) -> int:
    value = values.get(field)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json's vision_config must give {field} as a positive integer, got {value!r}")
    return value
