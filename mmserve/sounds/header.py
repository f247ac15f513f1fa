"""What a sound's header says, checked against the limits before anything is decoded. Torch-free, PyAV-free.

Accepted: WAV (PCM, floating point, A-law, µ-law), MP3, FLAC, and Ogg with Vorbis, Opus or FLAC, told apart by their
signature alone; names and media types are not looked at. Other sounds, videos and pictures are refused with a sentence
that says what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmserve.config import MIB, Limits
from mmserve.errors import AudioTooLarge, AudioTooLong, CorruptAudio, UnsupportedAudio
from mmserve.sounds.containers import DAMAGE, READERS, Track, Unknown, sniff

ACCEPTED = "WAV, MP3, FLAC or Ogg (Vorbis, Opus)"
RATES = (4_000, 384_000)
"""The lowest and the highest sample rate that is accepted, in Hz."""
MAX_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """``format`` is one of ``containers.READERS``, ``rate`` in Hz. ``samples`` is how many each channel has; ``None``
    where only decoding tells. ``seconds`` is how long the file says that it lasts, ``None`` where it does not."""

    format: str
    rate: int
    channels: int
    samples: int | None = None
    seconds: float | None = None


def probe(data: bytes, limits: Limits) -> AudioHeader:
    """The header of an encoded sound. Microseconds, and in memory that does not grow with the sound's length.

    Checked in this order: that there are bytes, their number, the format, sample rate and channels, the length that the
    header gives, and that the bytes which it announces are there. Raises ``UnsupportedAudio``, ``AudioTooLarge``,
    ``AudioTooLong`` and ``CorruptAudio``. A header that reads well is no promise that the samples do.
    """
    if not data:
        raise UnsupportedAudio("the sound is empty (0 bytes): send the content of the file")
    if len(data) > limits.max_sound_bytes:
        raise AudioTooLarge(
            f"the sound has {len(data) / MIB:.1f} MiB, more than the {limits.max_sound_bytes / MIB:.1f} MiB allowed: "
            "send a shorter or more strongly compressed one"
        )
    format_ = sniff(data)
    if format_ is None:
        raise UnsupportedAudio(_what_it_is(data))
    try:
        track = READERS[format_](data)
    except Unknown as error:
        raise UnsupportedAudio(f"the file is {error}: convert it to one of {ACCEPTED}") from None
    except DAMAGE as error:
        raise CorruptAudio(
            f"the sound's {format_} header is damaged or cut off ({error}): send the whole file"
        ) from None
    _check(format_, track, limits)
    return AudioHeader(format_, track.rate, track.channels, track.samples, track.seconds)


def _check(format_: str, track: Track, limits: Limits) -> None:
    if not RATES[0] <= track.rate <= RATES[1] or not 1 <= track.channels <= MAX_CHANNELS:
        raise UnsupportedAudio(
            f"the sound's {format_} header gives {track.channels} channels at {track.rate:,} Hz; accepted are 1 to "
            f"{MAX_CHANNELS} at {RATES[0]:,} to {RATES[1]:,} Hz: convert it to 16,000 Hz mono"
        )
    if track.seconds is not None and track.seconds > limits.max_sound_seconds:
        raise AudioTooLong(
            f"the sound lasts {track.seconds:,.0f} seconds, more than the {limits.max_sound_seconds:,.0f} allowed: "
            "send the part that matters"
        )
    if not track.whole:
        raise CorruptAudio(f"the {format_} file is cut off, its end is missing: send the whole file")
    if track.samples == 0:
        raise CorruptAudio(f"the {format_} file holds no samples: record it again")


_CONVERT = f"convert it to one of {ACCEPTED}"
_SIGNATURES: tuple[tuple[str, str], ...] = (
    (r"....ftyp(M4A|M4B|mp4a)", f"an M4A sound: {_CONVERT}"),
    (r"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", f"a video or WebM: send it as a video, or {_CONVERT}"),
    (r"RF64|RIFX|riff", f"a WAV of an uncommon form: {_CONVERT}"),
    (r"FORM....AIF", f"an AIFF sound: {_CONVERT}"),
    (r"\xff[\xe2-\xff]", f"an AAC or MPEG layer I or II sound: {_CONVERT}"),
    (r"#!AMR|caff|MThd|MAC |wvpk|0&\xb2u", f"a sound in another format: {_CONVERT}"),
    (r"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP", "a picture: send it as a picture"),
    (r"%PDF-|PK\x03\x04|\x1f\x8b", "a document or an archive: send the sound that is in it"),
)


def _what_it_is(data: bytes) -> str:
    """A sentence for bytes that no accepted signature begins."""
    head = data[:64].decode("latin-1")
    for pattern, kind in _SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return f"the file looks like {kind}"
    return f"the file is not a sound in an accepted format: send {ACCEPTED}"
