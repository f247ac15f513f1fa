"""What a sound file says of itself, format by format. Torch-free, PyAV-free.

Each reader takes the whole file and returns a ``Track``. It looks at headers (and an Ogg's last page) only, in time
that hostile files cannot stretch. Damage raises one of ``DAMAGE``, and ``Unknown`` what no reader here knows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

DAMAGE = (ValueError, IndexError, struct.error)
_MAX_CHUNKS = 4096
_MAX_TAGS = 16
_STREAMED = 0xFFFFFFFF
"""The size that programs write into a WAV's header when they cannot go back to correct it."""


class Unknown(Exception):
    """The container is known, what is in it is not accepted; the message names it."""


class Track(NamedTuple):
    """``rate`` is in Hz; ``samples``, for each channel, is exact where it is given. ``seconds`` is how long the file
    says that it lasts, if it does; ``whole`` is False where it says that more bytes belong to it."""

    rate: int
    channels: int
    samples: int | None = None
    seconds: float | None = None
    whole: bool = True


_WAV_CODECS = {1: "PCM", 3: "floating point", 6: "A-law", 7: "µ-law"}


def read_wav(data: bytes) -> Track:
    """The chunks ``fmt`` and ``data`` (Multimedia Programming Interface and Data Specifications 1.0; WAVE_FORMAT_
    EXTENSIBLE has the codec's number at the head of its SubFormat)."""
    form: tuple[int, int, int] | None = None
    at = 12
    for _ in range(_MAX_CHUNKS):
        name, size = struct.unpack_from("<4sL", data, at)
        at += 8
        if name == b"fmt ":
            form = _wav_form(data, at)
        elif name == b"data":
            if form is None:
                raise ValueError("no fmt chunk before the samples")
            channels, rate, block = form
            size = len(data) - at if size == _STREAMED else size
            samples = size // block
            return Track(rate, channels, samples, samples / max(rate, 1), whole=at + size <= len(data))
        at += size + size % 2
    raise ValueError("too many chunks")


def _wav_form(data: bytes, at: int) -> tuple[int, int, int]:
    """Channels, Hz, and bytes of one sample of all channels."""
    codec, channels, rate, _, block, bits = struct.unpack_from("<HHLLHH", data, at)
    if codec == 0xFFFE:
        (codec,) = struct.unpack_from("<H", data, at + 24)
    if codec not in _WAV_CODECS:
        raise Unknown(f"a WAV of codec number {codec}; those of {', '.join(_WAV_CODECS.values())} samples are accepted")
    if block == 0 or block != channels * ((bits + 7) // 8):
        raise ValueError(f"{channels} channels of {bits} bits do not make blocks of {block} bytes")
    return channels, rate, block


def read_flac(data: bytes) -> Track:
    """STREAMINFO, which comes first (RFC 9639, 8.2)."""
    if data[4] & 0x7F:
        raise ValueError("the first block is not STREAMINFO")
    return _stream_info(data, 8)


def _stream_info(data: bytes, at: int) -> Track:
    bits = int.from_bytes(data[at + 10 : at + 18], "big")
    if at + 34 > len(data):
        raise ValueError("STREAMINFO is cut off")
    rate, channels, samples = bits >> 44, (bits >> 41 & 7) + 1, bits & (1 << 36) - 1
    return Track(rate, channels, samples or None, samples / max(rate, 1) if samples else None)


_MP3_RATES = (44_100, 48_000, 32_000)
_MP3_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLES_OF = {1: 1152, 2: 576}


def read_mp3(data: bytes) -> Track:
    """The first frame's header (ISO/IEC 11172-3, 2.4.2.3) and, where it holds one, the Xing header with the number of
    frames and bytes. How many samples there are the decoder must say: encoders' delays and paddings are cut off."""
    at = _behind_id3(data)
    header = int.from_bytes(data[at : at + 4], "big")
    if at + 4 > len(data) or not _is_layer_3(header):
        raise ValueError("no MPEG frame where the first should be")
    version, table = {3: (1, 1), 2: (2, 2), 0: (4, 2)}[header >> 19 & 3]
    if (header >> 10 & 3) == 3 or not 0 < (header >> 12 & 15) < 15:
        raise ValueError("the first frame has no sample rate or bit rate")
    rate, mono = _MP3_RATES[header >> 10 & 3] // version, (header >> 6 & 3) == 3
    side = {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[table, mono]
    frames, size = _xing(data, at + 4 + side)
    seconds = None if frames is None else frames * _SAMPLES_OF[table] / rate
    return Track(rate, 1 if mono else 2, None, seconds, whole=size is None or at + size <= len(data))


def _is_layer_3(header: int) -> bool:
    return header >> 21 == 0x7FF and (header >> 19 & 3) != 1 and (header >> 17 & 3) == 1


def _behind_id3(data: bytes) -> int:
    """Where the first frame begins: ID3v2 tags stand in front, their length in four times seven bits."""
    at = 0
    for _ in range(_MAX_TAGS):
        if data[at : at + 3] != b"ID3":
            return at
        size = data[at + 6 : at + 10]
        at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))
    raise ValueError("too many tags before the sound")


def _xing(data: bytes, at: int) -> tuple[int | None, int | None]:
    """The numbers of frames and of bytes, of which either may be left out."""
    if data[at : at + 4] not in (b"Xing", b"Info"):
        return None, None
    flags, *given = struct.unpack_from(">LLL", data, at + 4)
    frames = given.pop(0) if flags & 1 else None
    return frames, given.pop(0) if flags & 2 else None


_PAGE = struct.Struct("<4sBBqLLLB")


def read_ogg(data: bytes) -> Track:
    """The first packet, which names the codec (RFC 3533; Vorbis I, 4.2.2; RFC 7845; FLAC-to-Ogg mapping), and the last
    page, which has the stream's length and says that it is the last."""
    *_, serial, _, _, segments = _PAGE.unpack_from(data)
    packet = data[27 + segments : 27 + segments + 64]
    if packet.startswith(b"\x01vorbis"):
        channels, rate = struct.unpack_from("<BL", packet, 11)
    elif packet.startswith(b"OpusHead"):
        channels, rate = packet[9], 48_000
    elif packet.startswith(b"\x7fFLAC"):
        rate, channels, *_ = _stream_info(packet, 17)
    else:
        raise Unknown("an Ogg file of another kind; Vorbis, Opus and FLAC are accepted, and one stream")
    granule, whole = _last_page(data, serial)
    return Track(rate, channels, None, granule / max(rate, 1), whole)


def _last_page(data: bytes, serial: int) -> tuple[int, bool]:
    """The position in samples after the last page, and whether it ends the stream and is all there."""
    at = len(data)
    for _ in range(_MAX_CHUNKS):
        at = data.rfind(b"OggS", 0, at)
        if at < 0:
            break
        if at + _PAGE.size > len(data) or data[at + 4]:  # cut off, or no page but a sample's bytes
            continue
        _, _, flags, granule, owner, _, _, segments = _PAGE.unpack_from(data, at)
        if owner != serial:
            raise Unknown("an Ogg file of several streams; one stream is accepted")
        lengths = data[at + 27 : at + 27 + segments]
        end = at + 27 + segments + sum(lengths)
        return max(granule, 0), bool(flags & 4) and len(lengths) == segments and end <= len(data)
    raise ValueError("no page is whole")


READERS: Mapping[str, Callable[[bytes], Track]] = {"WAV": read_wav, "FLAC": read_flac, "MP3": read_mp3, "Ogg": read_ogg}
"""Reader by the format's name."""


def sniff(data: bytes) -> str | None:
    """Which accepted format the signature announces, or ``None``."""
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return "WAV"
    if data.startswith(b"fLaC"):
        return "FLAC"
    if data.startswith(b"OggS"):
        return "Ogg"
    if data.startswith(b"ID3") or _is_layer_3(int.from_bytes(data[:4].ljust(4, b"\0"), "big")):
        return "MP3"
    return None
