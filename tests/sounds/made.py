"""Sounds that the tests make: sines, chirps and noise in every accepted format."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Waves = npt.NDArray[np.float32]

FORMATS: dict[str, tuple[str, str]] = {
    "wav": ("wav", "pcm_s16le"),
    "wav-24": ("wav", "pcm_s24le"),
    "wav-float": ("wav", "pcm_f32le"),
    "wav-mulaw": ("wav", "pcm_mulaw"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "opus": ("ogg", "libopus"),
    "vorbis": ("ogg", "vorbis"),
    "ogg-flac": ("ogg", "flac"),
}
"""Container and codec by the names that the tests use. FFmpeg's own Vorbis encoder knows two channels only."""


def sine(samples: int, rate: int, hz: float = 440.0) -> Waves:
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(samples) / rate)).astype(np.float32)


def chirp(samples: int, rate: int, start: float = 100.0, end: float = 3000.0) -> Waves:
    t = np.arange(samples) / rate
    rise = (end - start) / max(samples / rate, 1e-9)
    return (0.4 * np.sin(2 * np.pi * (start * t + rise * t * t / 2))).astype(np.float32)


def noise(samples: int, seed: int = 0) -> Waves:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def encoded(waves: Waves, rate: int, name: str = "wav", **options: str) -> bytes:
    """A file of one or (``(channels, n)``) several channels in one of :data:`FORMATS`."""
    container, codec = FORMATS[name]
    channels = np.atleast_2d(waves)
    if name == "vorbis" and len(channels) == 1:
        channels = np.repeat(channels, 2, 0)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2", **options})
        wanted = stream.codec_context
        wanted.open()
        fits = av.AudioResampler(wanted.format, wanted.layout, rate, frame_size=wanted.frame_size or 4096)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for source in (frame, None):
            for piece in fits.resample(source):
                output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def rates(*hz: int) -> list[tuple[str, int]]:
    """Every format at each of these rates that it has; Opus lacks those of compact discs."""
    return [(name, rate) for name in FORMATS for rate in hz if name != "opus" or rate % 11_025]
