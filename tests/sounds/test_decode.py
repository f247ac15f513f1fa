"""Sounds become the samples that they were made of, and as many as was promised."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from mmserve.config import Limits
from mmserve.errors import AudioError, CorruptAudio, UnsupportedAudio
from mmserve.sounds import decode as decoding
from mmserve.sounds.decode import Samples, count, decode, decoder_id
from mmserve.sounds.geometry import SoundGeometry
from mmserve.sounds.header import AudioHeader, probe
from tests.sounds.made import FORMATS, chirp, encoded, noise, rates, sine
from tests.sounds.test_header import wav_file

GEOMETRY = SoundGeometry(16_000, 160, 3000)
SHORT = SoundGeometry(16_000, 160, 100)
EXACT = ("wav", "wav-24", "wav-float", "flac", "ogg-flac")


def heard(data: bytes, geometry: SoundGeometry = GEOMETRY) -> Samples:
    """As the engine does it: promise, then decode."""
    header = probe(data, Limits())
    found = header.samples if header.samples is not None else count(data, header, geometry)
    return decode(data, header, geometry, geometry.resampled(geometry.heard(found, header.rate), header.rate))


class TestSamples:
    @pytest.mark.parametrize(("name", "rate"), rates(8_000, 16_000, 44_100, 48_000))
    @pytest.mark.parametrize("samples", [641, 12_345])
    def test_the_number_is_what_the_decoder_gives(self, name: str, rate: int, samples: int) -> None:
        data = encoded(chirp(samples, rate), rate, name)
        made = heard(data)
        assert made.dtype == np.float32
        if name != "vorbis":  # whose encoder in FFmpeg adds what it does not announce
            assert len(made) == -(-samples * 16_000 // rate)

    @pytest.mark.parametrize("name", EXACT)
    def test_at_the_models_own_rate_they_are_the_files(self, name: str) -> None:
        waves = noise(5_001)
        step = {"wav-24": 2**-23, "wav-float": 0.0}.get(name, 2**-15)
        assert np.abs(heard(encoded(waves, 16_000, name)) - waves).max() <= step

    @pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
    def test_resampled_tones_keep_time_and_pitch(self, rate: int) -> None:
        made = heard(encoded(sine(rate, rate), rate, "wav-float"))
        assert len(made) == 16_000
        assert np.abs(made - sine(16_000, 16_000))[100:-100].max() < 1e-4

    @pytest.mark.parametrize("name", ["mp3", "opus"])
    def test_encoders_delays_are_cut_off(self, name: str) -> None:
        made, wanted = heard(encoded(chirp(32_000, 16_000), 16_000, name)), chirp(32_000, 16_000)
        assert np.corrcoef(made, wanted)[0, 1] > 0.99

    def test_channels_are_averaged(self) -> None:
        left, right = noise(3_000, 1), noise(3_000, 2)
        made = heard(encoded(np.stack([left, right]), 16_000, "wav-float"))
        assert np.abs(made - (left + right) / 2).max() < 1e-7

    def test_a_byte_a_sample(self) -> None:
        data = wav_file(bytes([0, 128, 255] * 200), block=1, bits=8)
        assert heard(data)[:3].tolist() == [-1.0, 0.0, 127 / 128]

    def test_it_is_the_same_each_time(self) -> None:
        data = encoded(noise(20_000), 44_100, "mp3")
        assert np.array_equal(heard(data), heard(data))


class TestLength:
    @pytest.mark.parametrize("name", ["wav", "mp3", "flac", "opus"])
    @pytest.mark.parametrize("samples", [47_999, 48_000, 48_001, 200_000])
    def test_only_what_is_heard_is_decoded(self, name: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(chirp(samples, 48_000), 48_000, name)
        decoded: list[int] = []
        averaged = decoding._averaged

        def counted(frame: Any) -> Samples:
            decoded.append(frame.samples)
            return averaged(frame)

        monkeypatch.setattr(decoding, "_averaged", counted)
        assert len(heard(data, SHORT)) == 16_000
        passes = 2 if name in ("mp3", "opus") else 1  # one of them to count
        assert sum(decoded) <= passes * (48_000 + 8_192)

    @pytest.mark.parametrize("name", ["wav", "mp3"])
    def test_the_beginning_is_as_without_the_end(self, name: str) -> None:
        waves = chirp(32_000, 16_000)
        whole, part = (heard(encoded(w, 16_000, name), g) for w, g in ((waves, SHORT), (waves, GEOMETRY)))
        assert np.array_equal(whole, part[:16_000])


class TestDamage:
    def test_a_flac_that_is_cut_off(self) -> None:
        data = encoded(noise(48_000), 16_000, "flac")
        with pytest.raises(CorruptAudio):
            heard(data[: len(data) // 2])

    def test_a_flac_with_a_wrong_byte(self) -> None:
        data = bytearray(encoded(noise(48_000), 16_000, "flac"))
        data[-3000] ^= 0x55
        with pytest.raises(CorruptAudio):
            heard(bytes(data))

    @pytest.mark.parametrize("name", ["opus", "vorbis"])
    def test_an_ogg_with_a_hole(self, name: str) -> None:
        data = encoded(noise(16_000 * 8), 16_000, name, page_duration="200000")
        assert len(data) > 20_000
        with pytest.raises(CorruptAudio):
            heard(data[: len(data) // 4] + data[-len(data) // 4 :])

    def test_more_samples_than_promised(self) -> None:
        data = encoded(noise(5_000), 16_000)
        with pytest.raises(CorruptAudio, match="5,000 samples"):
            decode(data, probe(data, Limits()), GEOMETRY, 4_999)

    def test_another_rate_than_the_header_says(self) -> None:
        data = encoded(noise(5_000), 16_000, "flac")
        with pytest.raises(CorruptAudio, match="changes to"):
            decode(data, AudioHeader("FLAC", 8_000, 1, 5_000), GEOMETRY, 10_000)

    def test_mislabelled_content(self) -> None:
        """A demuxer is the one of the signature, so nothing else in the file decides what is opened."""
        header = AudioHeader("WAV", 16_000, 1, 5_000)
        with pytest.raises(CorruptAudio):
            decode(encoded(noise(5_000), 16_000, "flac"), header, GEOMETRY, 5_000)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
    def test_numbers_that_are_none(self, value: float) -> None:
        samples = struct.pack("<600f", *([0.1] * 599), value)
        with pytest.raises(CorruptAudio, match="no numbers"):
            heard(wav_file(samples, codec=3, block=4, bits=32))

    def test_loud_numbers_are_taken(self) -> None:
        assert heard(wav_file(struct.pack("<600f", *[30_000.0] * 600), codec=3, block=4, bits=32)).max() == 30_000

    def test_bits_that_no_decoder_knows(self) -> None:
        with pytest.raises((CorruptAudio, UnsupportedAudio)):
            heard(wav_file(bytes(1000), block=5, bits=40))


class TestIdentity:
    def test_the_decoder_has_a_name(self) -> None:
        assert decoder_id() == decoder_id()
        assert "rules 1" in decoder_id()
        assert "libswresample" in decoder_id()


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out or doubled; headers more often than the rest."""
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(len(made) * rng.random() ** 3)
        kind = rng.random()
        if kind < 0.6:
            made[at] = int(rng.integers(256))
        elif kind < 0.7:
            made[at : at + 4] = rng.bytes(4)
        elif kind < 0.8:
            del made[at : at + int(rng.integers(1, 200))]
        elif kind < 0.9:
            made[at:at] = made[at : at + int(rng.integers(1, 200))]
        else:
            del made[max(at, 1) :]
        made = made or bytearray(1)
    return bytes(made)


def check_mutations(number: int, seed: int) -> tuple[int, int]:
    """Each mutated file is heard, as many samples as promised, or refused by a typed error; how many of both."""
    rng = np.random.default_rng(seed)
    files = [encoded(noise(2_000, i), 16_000, name) for i, name in enumerate(FORMATS)]
    taken = refused = 0
    for index in range(number):
        try:
            made = heard(mutated(files[index % len(files)], rng), SHORT)
        except AudioError:
            refused += 1
            continue
        assert len(made) <= SHORT.most_samples
        assert np.isfinite(made).all()
        taken += 1
    return taken, refused


class TestMutations:
    def test_none_is_answered_by_anything_else(self) -> None:
        taken, refused = check_mutations(150, 0)
        assert min(taken, refused) > 20

    @pytest.mark.proof
    def test_five_thousand(self) -> None:
        import resource

        check_mutations(500, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken, refused = check_mutations(5_000, 2)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"5000 mutated sound files: {taken} heard, {refused} refused by typed errors; {grown:.0f} MiB grown")
        assert grown < 64
