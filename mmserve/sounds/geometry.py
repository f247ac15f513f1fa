"""From a sound's number of samples to its frames and its number of embedding rows. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmserve.errors import CheckpointError, UnsupportedAudio


@dataclass(frozen=True, slots=True)
class SoundGeometry:
    """How Qwen2-Audio hears (arXiv:2407.10759, 2): whisper's log-mel frames, halved by a convolution, and by pooling.

    ``rate`` is in Hz, ``hop`` in samples, ``window`` the most frames that are heard. What of a sound lies behind these
    is not heard, as in transformers' processor. Its fields enter every sound's identity.
    """

    rate: int
    hop: int
    window: int

    @classmethod
    def from_configs(cls, audio_config: Mapping[str, Any], processor: Mapping[str, Any]) -> SoundGeometry:
        """From ``config.json``'s ``audio_config`` and the feature extractor's settings. Raises ``CheckpointError``."""
        rate, hop = _positive(processor, "sampling_rate", 16_000), _positive(processor, "hop_length", 160)
        window = _positive(processor, "chunk_length", 30) * rate // hop
        frames = 2 * _positive(audio_config, "max_source_positions", 1500)
        if window != frames:
            raise CheckpointError(
                f"the feature extractor makes windows of {window} frames, but the tower takes {frames}"
            )
        return cls(rate, hop, window)

    @property
    def most_samples(self) -> int:
        """How many samples at ``rate`` are heard."""
        return self.window * self.hop

    def heard(self, samples: int, rate: int) -> int:
        """How many of a channel's ``samples`` at ``rate`` Hz are heard."""
        return min(samples, self.window * self.hop * rate // self.rate)

    def resampled(self, samples: int, rate: int) -> int:
        """How many samples so many at ``rate`` Hz become at ``self.rate``: the time that they take, rounded up."""
        return min(-(-samples * self.rate // rate), self.most_samples)

    def measure(self, samples: int) -> tuple[int, int]:
        """The frames and the embedding rows of so many samples at ``self.rate``.

        (Qwen2AudioProcessor in transformers; its encoder's pooling leaves an odd last position out.) Raises
        ``UnsupportedAudio`` where it is too short for a row.
        """
        frames = min(-(-samples // self.hop), self.window)
        rows = ((frames + 1) // 2) // 2
        if rows == 0:
            raise UnsupportedAudio(
                f"the sound lasts no more than {2 * self.hop * 1000 // self.rate} milliseconds, too short to be heard: "
                "send a longer one"
            )
        return frames, rows


def _positive(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"the model's files must give {name} as a positive integer, got {value!r}")
    return value
