"""What headers say, and which files are refused before anything is decoded."""

from __future__ import annotations

import struct
import wave
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from mmserve.config import MIB, Limits
from mmserve.errors import AudioError, AudioTooLarge, AudioTooLong, CorruptAudio, UnsupportedAudio
from mmserve.sounds.header import AudioHeader, probe
from tests.sounds.made import FORMATS, encoded, noise, rates, sine

LIMITS = Limits()
NAMES = {"wav": "WAV", "mp3": "MP3", "flac": "FLAC", "ogg": "Ogg"}


def wav_file(samples: bytes = bytes(640), *, size: int | None = None, **form: Any) -> bytes:
    """A WAV written by hand: ``size`` is what its header says of ``samples``."""
    given = {"codec": 1, "channels": 1, "rate": 16_000, "block": 2, "bits": 16} | form
    fields = struct.pack("<HHLLHH", given["codec"], given["channels"], given["rate"], 0, given["block"], given["bits"])
    size = len(samples) if size is None else size
    body = b"WAVE" + b"LIST\5\0\0\0abcde\0" + b"fmt \x10\0\0\0" + fields + b"data" + struct.pack("<L", size) + samples
    return b"RIFF" + struct.pack("<L", len(body)) + body


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


class TestFormats:
    @pytest.mark.parametrize(("name", "rate"), rates(8_000, 44_100, 48_000))
    def test_rate_channels_and_length(self, name: str, rate: int) -> None:
        data = encoded(np.stack([sine(12_345, rate), noise(12_345)]), rate, name)
        header = probe(data, LIMITS)
        assert (header.format, header.channels) == (NAMES[FORMATS[name][0]], 2)
        assert header.rate == (48_000 if name == "opus" else rate)  # Opus always decodes to this rate
        assert header.seconds == pytest.approx(12_345 / rate, abs=0.2)
        assert header.samples == (12_345 if name.startswith(("wav", "flac")) else None)

    def test_six_channels(self) -> None:
        assert probe(encoded(np.stack([noise(100, i) for i in range(6)]), 48_000), LIMITS).channels == 6

    def test_a_wav_of_pythons_own(self) -> None:
        file = BytesIO()
        with wave.open(file, "wb") as output:
            output.setparams((2, 3, 22_050, 0, "NONE", ""))
            output.writeframes(bytes(6 * 777))
        assert probe(file.getvalue(), LIMITS) == AudioHeader("WAV", 22_050, 2, 777, 777 / 22_050)

    def test_a_wav_whose_writer_could_not_go_back(self) -> None:
        assert probe(wav_file(bytes(642), size=0xFFFFFFFF), LIMITS).samples == 321

    def test_bytes_behind_the_last_whole_sample_are_none(self) -> None:
        assert probe(wav_file(bytes(643)), LIMITS).samples == 321

    def test_an_mp3_without_tags_before_it(self) -> None:
        data = encoded(sine(16_000, 16_000), 16_000, "mp3")
        size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        assert probe(data[10 + size :], LIMITS) == probe(data, LIMITS)

    def test_an_mp3_that_does_not_say_how_long_it_is(self) -> None:
        header = probe(encoded(sine(16_000, 16_000), 16_000, "mp3", write_xing="0"), LIMITS)
        assert header.rate == 16_000


class TestRefusals:
    def test_empty(self) -> None:
        with pytest.raises(UnsupportedAudio, match="empty"):
            probe(b"", LIMITS)

    def test_too_many_bytes(self) -> None:
        with pytest.raises(AudioTooLarge, match=r"25\.1 MiB"):
            probe(wav_file(bytes(25 * MIB + MIB // 10)), LIMITS)

    @pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "vorbis"])
    def test_too_long(self, name: str) -> None:
        with pytest.raises(AudioTooLong, match="lasts 3 seconds"):
            probe(encoded(sine(48_000, 16_000), 16_000, name), Limits(max_sound_seconds=2))

    def test_hours_by_their_headers_alone(self) -> None:
        with pytest.raises(AudioTooLong, match="134,218 seconds"):
            probe(wav_file(size=0xFFFFFFFE), LIMITS)
        flac = encoded(sine(1000, 16_000), 16_000, "flac")
        with pytest.raises(AudioTooLong):
            probe(replaced(flac, 21, bytes([flac[21] | 15])), LIMITS)  # the high bits of the number of samples
        ogg = encoded(sine(1000, 16_000), 16_000, "opus")
        with pytest.raises(AudioTooLong):
            probe(replaced(ogg, ogg.rfind(b"OggS") + 6, struct.pack("<q", 2**62)), LIMITS)
        mp3 = encoded(sine(1000, 16_000), 16_000, "mp3")
        with pytest.raises(AudioTooLong):
            probe(replaced(mp3, mp3.find(b"Info") + 8, b"\x7f\xff\xff\xff"), LIMITS)

    @pytest.mark.parametrize("name", ["wav", "mp3", "opus", "vorbis", "ogg-flac"])
    @pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
    def test_a_file_that_says_it_is_cut_off(self, name: str, part: float) -> None:
        data = encoded(noise(48_000), 16_000, name)
        with pytest.raises(CorruptAudio, match="cut off"):
            probe(data[: int(len(data) * part)], LIMITS)

    @pytest.mark.parametrize("name", FORMATS)
    def test_headers_that_are_cut_off(self, name: str) -> None:
        data = encoded(noise(4_800), 16_000, name)
        for end in range(1, 40):
            with pytest.raises(AudioError):
                probe(data[:end], LIMITS)

    @pytest.mark.parametrize(
        ("form", "message"),
        [
            ({"rate": 0}, "0 Hz"),
            ({"rate": 3_999}, "3,999 Hz"),
            ({"rate": 400_000}, "400,000 Hz"),
            ({"channels": 9, "block": 18}, "9 channels"),
            ({"codec": 2}, "codec number 2"),
        ],
    )
    def test_what_a_wav_may_not_be(self, form: dict[str, Any], message: str) -> None:
        with pytest.raises(UnsupportedAudio, match=message):
            probe(wav_file(**form), LIMITS)

    @pytest.mark.parametrize("form", [{"block": 0}, {"block": 3}, {"channels": 0}])
    def test_what_makes_no_sense(self, form: dict[str, Any]) -> None:
        with pytest.raises(CorruptAudio):
            probe(wav_file(**form), LIMITS)

    def test_no_samples(self) -> None:
        with pytest.raises(CorruptAudio, match="no samples"):
            probe(wav_file(b""), LIMITS)

    def test_two_streams_in_an_ogg(self) -> None:
        one, other = (encoded(noise(1600, seed), 16_000, "opus") for seed in (0, 1))
        other = other.replace(one[14:18], b"abcd") if one[14:18] == other[14:18] else other
        with pytest.raises(UnsupportedAudio, match="several streams"):
            probe(one + other, LIMITS)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"\x89PNG\r\n\x1a\n" + bytes(40), "a picture"),
            (b"\xff\xd8\xff\xe0" + bytes(40), "a picture"),
            (b"\0\0\0\x18ftypmp42" + bytes(40), "a video"),
            (b"\0\0\0\x18ftypM4A " + bytes(40), "M4A"),
            (b"\x1a\x45\xdf\xa3" + bytes(40), "WebM"),
            (b"\xff\xf1\x50\x80" + bytes(40), "AAC"),
            (b"FORM\0\0\0\0AIFF", "AIFF"),
            (b"%PDF-1.7", "document"),
            (b"just some text", "not a sound"),
            (b"OggS" + bytes(23) + b"\x80theora", "Ogg"),
        ],
    )
    def test_what_it_is_instead(self, data: bytes, message: str) -> None:
        with pytest.raises(UnsupportedAudio, match=message):
            probe(data, LIMITS)

    def test_tags_without_end(self) -> None:
        with pytest.raises(CorruptAudio, match="tags"):
            probe(b"ID3\3\0\0\0\0\0\0" * 1000, LIMITS)
