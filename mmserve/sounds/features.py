"""Decoded sounds to what the tower takes, by transformers' own feature extractor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from mmserve.errors import CheckpointError, MMServeError
from mmserve.sounds.decode import Samples
from mmserve.sounds.geometry import SoundGeometry


@dataclass(frozen=True, slots=True, eq=False)
class Mels:
    """A sound ready for its encoder: log-mel ``values``, float32 ``(bins, window)`` on the host, of which the first
    ``frames`` have sound in them; the others are silence."""

    values: Tensor
    frames: int


class MelProcessor:
    """Log-mel spectra as whisper has them (Radford et al. 2022, arXiv 2212.04356, 2.2). Threads may share it."""

    def __init__(self, settings: Mapping[str, Any], geometry: SoundGeometry) -> None:
        """``settings`` are the feature extractor's, as read. Raises ``CheckpointError`` for what is not served."""
        if settings.get("dither"):
            raise CheckpointError("the feature extractor adds noise to sounds (dither), which is not served")
        if settings.get("do_normalize"):
            raise CheckpointError("the feature extractor normalises sounds (do_normalize), which is not served")
        try:
            self._extractor = WhisperFeatureExtractor(**settings)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the feature extractor's settings cannot be used: {error}") from error
        self._geometry = geometry

    def __call__(self, samples: Samples) -> Mels:
        """The frames of ``samples``, float32 ``(n,)`` at ``geometry.rate`` Hz, padded with silence to a whole window.

        Raises ``MMServeError`` if they come out as another number than ``geometry`` says.
        """
        made = self._extractor(
            samples,
            sampling_rate=self._geometry.rate,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="np",
        )
        frames, _ = self._geometry.measure(len(samples))
        if int(made["attention_mask"].sum()) != frames:
            raise MMServeError(
                f"the feature extractor made {made['attention_mask'].sum()} frames of the {frames} promised"
            )
        return Mels(torch.from_numpy(made["input_features"][0]), frames)
