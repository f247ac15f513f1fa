"""Encoded sound to samples, by PyAV (FFmpeg's libraries), which is imported when the first sound comes. Torch-free.

The rules, which are part of every sound's identity (:func:`decoder_id`):

- the container's first audio stream; the demuxer is the one of the format that the signature announces;
- encoders' delays and paddings are cut off where the file gives them, as FFmpeg does;
- channels are averaged, each sample of all channels in one;
- only as much is decoded as the model hears, from the start;
- another rate is resampled by libswresample's default filter to the time that the samples take, rounded up to a sample.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmserve.errors import CorruptAudio, MMServeError, UnsupportedAudio
from mmserve.sounds.geometry import SoundGeometry
from mmserve.sounds.header import AudioHeader
from vision.pyav import require_pyav

if TYPE_CHECKING:
    from av import AudioFrame

RULES = 1
"""Raised by one whenever the rules above change."""

Samples = npt.NDArray[np.float32]

_DEMUXERS = {"WAV": "wav", "MP3": "mp3", "FLAC": "flac", "Ogg": "ogg"}
_CODECS = ("mp3", "mp3float", "flac", "vorbis", "opus")
_STRICT = {"flac": {"err_detect": "crccheck+explode"}}
"""FLAC has check sums that show damage; the others' decoders go on where they can, as players do."""
_LOUDEST = float(2**31)
"""Above what integers reach; squares of what is much larger are no numbers any more."""
_SHORTFALL = 0.25
"""Seconds by which a file may be shorter than it says. Those that lack more have holes."""


def decoder_id() -> str:
    """Name of the rules and of the libraries that carry them out, for the fingerprint."""
    require_pyav(UnsupportedAudio)
    import av

    libraries = (f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items()))
    return ", ".join((f"rules {RULES}", f"pyav {av.__version__}", *libraries))


def count(data: bytes, header: AudioHeader, geometry: SoundGeometry) -> int:
    """How many of the sound's samples, in each channel and at its own rate, the model hears: by decoding these.

    Exactly as many as :func:`decode` uses. Raises as it does.
    """
    return sum(len(piece) for piece in _heard(data, header, geometry))


def decode(data: bytes, header: AudioHeader, geometry: SoundGeometry, samples: int) -> Samples:
    """What the model hears, float32 ``(samples,)`` at ``geometry.rate`` Hz, mono. Safe to call from several threads.

    ``samples`` is what was promised. Raises ``CorruptAudio`` if the data is damaged, cut off or disagrees with the
    header, and ``UnsupportedAudio`` for a codec that is not accepted.
    """
    mono = np.concatenate([np.zeros(0, np.float32), *_heard(data, header, geometry)])
    if geometry.resampled(len(mono), header.rate) != samples:
        raise CorruptAudio(
            f"the {header.format} file decodes to {len(mono):,} samples, which is not what its header says: "
            "save it again with a sound editor"
        )
    with _damage_told(header):
        return _resampled(mono, header.rate, geometry.rate, samples)


def _heard(data: bytes, header: AudioHeader, geometry: SoundGeometry) -> Iterator[Samples]:
    """The sound in one channel, piece by piece, as far as it is heard."""
    left = geometry.heard(2**62, header.rate)
    with _damage_told(header):
        for piece in _mono(data, header):
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return


def _mono(data: bytes, header: AudioHeader) -> Iterator[Samples]:
    """All of the sound, if the caller reads so far; raises at the end where much less came than was announced."""
    require_pyav(UnsupportedAudio)
    import av

    got = 0
    file, demuxer = io.BytesIO(data), _DEMUXERS[header.format]
    with av.open(file, "r", format=demuxer, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise CorruptAudio(f"the {header.format} file has no sound in it: send another file")
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec.name not in _CODECS and not codec.name.startswith("pcm_"):
            raise UnsupportedAudio(f"the sound is of codec {codec.name}: convert it to WAV, MP3, FLAC or Ogg")
        codec.options = _STRICT.get(codec.name, {})
        codec.thread_count = 1
        for frame in container.decode(stream):
            if (frame.sample_rate, frame.layout.nb_channels) != (header.rate, header.channels):
                raise CorruptAudio(
                    f"the sound changes to {frame.layout.nb_channels} channels at {frame.sample_rate:,} Hz, its header "
                    f"says {header.channels} at {header.rate:,} Hz: save it again with a sound editor"
                )
            got += frame.samples
            yield _averaged(frame)
        length = stream.duration and float(stream.duration * (stream.time_base or 0))
    if header.seconds is not None and length and got < (length - _SHORTFALL) * header.rate:
        raise CorruptAudio(f"parts of the {header.format} file are missing or damaged: send the whole file")


def _averaged(frame: AudioFrame) -> Samples:
    """A frame's samples as float32 in one channel; integers become fractions of the loudest."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "u":
        values = values.astype(np.float32) / 128 - 1
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / -float(np.iinfo(values.dtype.str).min)
    mono: Samples = values.astype(np.float32, copy=False).mean(0, dtype=np.float32)
    if not bool((np.abs(mono) <= _LOUDEST).all()):  # also refuses NaN
        raise CorruptAudio("the sound has samples that are no numbers, or too large: save it again with a sound editor")
    return mono


def _resampled(mono: Samples, rate: int, wanted: int, samples: int) -> Samples:
    if rate == wanted or not len(mono):
        return mono
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    pieces = [made.to_ndarray()[0] for source in (frame, None) for made in resampler.resample(source)]
    found = np.concatenate([mono[:0], *pieces])[:samples]
    return np.pad(found, (0, samples - len(found)))  # the filter may end one sample early


@contextmanager
def _damage_told(header: AudioHeader) -> Iterator[None]:
    try:
        yield
    except MMServeError:
        raise
    except Exception as error:  # on hostile bytes PyAV raises whatever its parsers happen to run into
        reason = str(error)[:200] or type(error).__name__
        raise CorruptAudio(
            f"the {header.format} sound could not be decoded ({reason}): send the whole, undamaged file"
        ) from error
