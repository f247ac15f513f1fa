"""Log-mel frames to embedding rows: Qwen2-Audio's tower and projector (Chu et al. 2024, arXiv 2407.10759).

The tower is whisper's encoder (Radford et al. 2022, arXiv 2212.04356), pooled by twos; the reference is
``Qwen2AudioEncoder`` in transformers' models/qwen2_audio/modeling_qwen2_audio.py, which computes a whole window for
every sound and masks the silence behind it. Here the silence is left out, so a second of sound costs a thirtieth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmserve.errors import CheckpointError
from mmserve.sounds.features import Mels


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """``(positions, C)`` of sounds of ``lengths`` positions, one after another, to the same; each sees itself."""
        shape = (len(x), self.heads, -1)
        q, k, v = (each(x).view(shape).transpose(0, 1) for each in (self.q_proj, self.k_proj, self.v_proj))
        parts = (part.split(lengths, 1) for part in (q, k, v))
        attended = [F.scaled_dot_product_attention(*sound) for sound in zip(*parts, strict=True)]
        out: Tensor = self.out_proj(torch.cat(attended, 1).transpose(0, 1).flatten(1))
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), lengths)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return out


class SoundTower(nn.Module):
    """Two convolutions, learned or sinusoidal positions (as the checkpoint has them), and transformer layers."""

    def __init__(self, bins: int, width: int, heads: int, inner: int, layers: int, positions: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(_Layer(width, heads, inner) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, sounds: Sequence[Mels]) -> list[Tensor]:
        """A sound's features, ``(rows, C)``, for each."""
        lengths = [(sound.frames + 1) // 2 for sound in sounds]
        x = torch.cat([self._embedded(sound.values, length) for sound, length in zip(sounds, lengths, strict=True)])
        for layer in self.layers:
            x = layer(x, lengths)
        pooled = [part[: len(part) // 2 * 2].reshape(-1, 2, part.shape[1]).mean(1) for part in torch.split(x, lengths)]
        return [self.layer_norm(part) for part in pooled]

    def _embedded(self, values: Tensor, length: int) -> Tensor:
        """The first ``length`` positions: they need no more frames than twice as many and the one behind."""
        weight = self.conv1.weight
        frames = values[:, : 2 * length + 1].to(weight.device, weight.dtype, non_blocking=True)
        x = F.gelu(self.conv2(F.gelu(self.conv1(frames))))[:, :length].T
        return x + self.embed_positions.weight[:length]


class SoundEncoder(nn.Module):
    """``tower`` and ``projector``. Parameters are made on the meta device, without memory: a weight loader gives them
    theirs."""

    def __init__(self, audio_config: Mapping[str, Any], hidden_size: int) -> None:
        """``audio_config`` is that part of ``config.json``, ``hidden_size`` the language model's.

        Raises ``CheckpointError`` for settings that are not served.
        """
        super().__init__()
        given = {**DEFAULTS, **audio_config}
        if given["activation_function"] != "gelu":
            raise CheckpointError(
                f"audio_config asks for the activation {given['activation_function']!r}; gelu is served"
            )
        names = ("num_mel_bins", "d_model", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layers")
        sizes = [_positive(given, name) for name in (*names, "max_source_positions")]
        width, heads = sizes[1:3]
        if width % heads:
            raise CheckpointError(f"audio_config splits a tower of width {width} into {heads} heads unevenly")
        with torch.device("meta"):
            self.tower = SoundTower(*sizes)
            self.projector = nn.Linear(width, hidden_size)
        self.row_width = hidden_size
        self.eval()

    @torch.inference_mode()
    def encode(self, sounds: Sequence[Mels]) -> list[Tensor]:
        """The rows of several sounds in one pass, ``(rows, hidden_size)`` each, in the encoder's dtype and on its
        device. Each attends to itself alone, and each tensor owns its memory."""
        return [self.projector(features) for features in self.tower(sounds)] if sounds else []


DEFAULTS: Mapping[str, Any] = {
    "activation_function": "gelu",
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "max_source_positions": 1500,
    "num_mel_bins": 128,
}
"""What ``audio_config`` may leave out, as in transformers' Qwen2AudioEncoderConfig."""


def rename(name: str) -> str | None:
    """The :class:`SoundEncoder` parameter that a published tensor goes to, ``model.`` before it or not; ``None`` if it
    is none of its own."""
    name = name.removeprefix("model.")
    if name.startswith("audio_tower."):
        return name.removeprefix("audio_")
    if name.startswith("multi_modal_projector.linear."):
        return "projector." + name.removeprefix("multi_modal_projector.linear.")
    return None


def _positive(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"audio_config must give {name} as a positive integer, got {value!r}")
    return value
