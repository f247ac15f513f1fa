"""From bytes to sounds: lengths, rows, identity, and what is remembered."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from mmserve.config import Limits
from mmserve.errors import AudioError, AudioTooLong, CheckpointError, CorruptAudio, UnsupportedAudio
from mmserve.sounds import sound as reading
from mmserve.sounds.decode import Samples, decode
from mmserve.sounds.geometry import SoundGeometry
from mmserve.sounds.identity import sound_fingerprint, sound_hash
from mmserve.sounds.sound import Sound, SoundReader
from mmserve.types import AudioPart
from tests.sounds.made import encoded, noise, sine
from vision.identity import content_hash

GEOMETRY = SoundGeometry.from_configs({}, {})
PRINT = bytes(32)


def reader() -> SoundReader:
    return SoundReader(GEOMETRY, lambda: PRINT)


def read(sounds: SoundReader, data: bytes, cache_salt: str = "", **limits: Any) -> Sound:
    (sound,) = sounds(AudioPart(data), limits=Limits(**limits), cache_salt=cache_salt)
    return sound


class TestGeometry:
    def test_rows_are_transformers(self) -> None:
        lengths = [321, 480, 481, 640, 641, 1_601, 4_799, 479_840, 479_841, 480_000, 480_001, 1_000_000]
        for samples in [*lengths, *range(330, 20_000, 997)]:
            mask = -(-min(samples, 480_000) // 160)  # the attention mask has every 160th sample's
            _, rows = Qwen2AudioEncoder._get_feat_extract_output_lengths(None, mask)
            assert GEOMETRY.measure(samples) == (mask, rows)

    def test_frames_are_the_feature_extractors(self) -> None:
        extractor = WhisperFeatureExtractor(feature_size=4, chunk_length=1)
        geometry = SoundGeometry(16_000, 160, 100)
        for samples in (321, 480, 481, 15_999, 16_000, 20_000):
            made = extractor(noise(samples), sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
            assert geometry.measure(samples)[0] == made["attention_mask"].sum()

    @pytest.mark.parametrize("samples", [0, 1, 320])
    def test_too_short_for_a_row(self, samples: int) -> None:
        with pytest.raises(UnsupportedAudio, match="20 milliseconds"):
            GEOMETRY.measure(samples)

    def test_windows_that_do_not_fit(self) -> None:
        with pytest.raises(CheckpointError, match="3000 frames"):
            SoundGeometry.from_configs({"max_source_positions": 100}, {})
        with pytest.raises(CheckpointError, match="hop_length"):
            SoundGeometry.from_configs({}, {"hop_length": 0})


class TestReading:
    @pytest.mark.parametrize(("name", "decoded"), [("wav", 0), ("flac", 0), ("mp3", 1), ("opus", 1)])
    def test_what_a_header_does_not_give_is_counted_once(
        self, name: str, decoded: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sounds, data = reader(), encoded(sine(48_000, 48_000), 48_000, name)
        first = read(sounds, data)
        assert (first.samples, first.frames, first.rows) == (16_000, 100, 25)
        assert sounds.decoded == decoded
        monkeypatch.setattr(reading, "count", None)
        assert read(sounds, data).rows == first.rows

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "REMEMBERED", 2)
        sounds = reader()
        files = [encoded(sine(1600, 16_000, hz), 16_000, "mp3") for hz in (300, 400, 500)]
        for data in (*files, files[2], files[1], files[0]):
            read(sounds, data)
        assert sounds.decoded == 4  # the first was forgotten

    def test_one_tenants_counts_tell_another_nothing(self) -> None:
        sounds, data = reader(), encoded(sine(1600, 16_000), 16_000, "mp3")
        for salt in ("a", "b", "a"):
            read(sounds, data, cache_salt=salt)
        assert sounds.decoded == 2

    def test_a_sound_beyond_the_window_has_the_windows_rows(self) -> None:
        for name in ("wav", "mp3"):
            assert read(reader(), encoded(sine(8_000 * 31, 8_000), 8_000, name)).rows == 750

    def test_limits_hold(self) -> None:
        with pytest.raises(AudioTooLong):
            read(reader(), encoded(sine(16_000, 16_000), 16_000), max_sound_seconds=0.5)

    @pytest.mark.parametrize("name", ["wav", "mp3", "flac", "opus"])
    def test_damage_is_found_when_it_is_read_or_decoded(self, name: str) -> None:
        data = encoded(noise(32_000), 16_000, name)
        with pytest.raises(AudioError):
            whole(read(reader(), data[:100]))

    def test_damaged_sounds_are_not_remembered(self) -> None:
        sounds, data = reader(), encoded(noise(128_000), 16_000, "opus", page_duration="200000")
        broken = data[: len(data) // 4] + data[-len(data) // 4 :]
        for _ in range(2):
            with pytest.raises(CorruptAudio):
                read(sounds, broken)
        assert sounds.decoded == 0

    def test_it_crosses_processes(self) -> None:
        sound = read(reader(), encoded(sine(1600, 16_000), 16_000))
        again = pickle.loads(pickle.dumps(sound))
        assert dataclasses.asdict(again) == dataclasses.asdict(sound)
        assert (again.kind, again.work) == ("audio", sound.frames)


def whole(sound: Sound) -> Samples:
    return decode(sound.data, sound.header, GEOMETRY, sound.samples)


class TestIdentity:
    def test_every_part_counts(self) -> None:
        data = encoded(sine(1600, 16_000), 16_000)
        settings: dict[str, Any] = {
            "weights": b"w",
            "audio_config": {"d_model": 8},
            "processor": {"hop_length": 160},
            "geometry": GEOMETRY,
            "decoder": "rules 1",
        }
        changes: list[dict[str, Any]] = [
            {},
            {"weights": b"v"},
            {"audio_config": {"d_model": 9}},
            {"processor": {"hop_length": 161}},
            {"geometry": SoundGeometry(16_000, 160, 2999)},
            {"decoder": "rules 2"},
        ]
        prints = [sound_fingerprint(**settings | change) for change in changes]
        assert len(set(prints)) == len(prints)
        hashes = {sound_hash(data, each, salt) for each in prints for salt in ("", "a")}
        assert len(hashes) == 2 * len(prints)
        assert all(len(each) == 32 for each in hashes)

    def test_a_file_that_is_a_picture_too_is_another_item(self) -> None:
        assert sound_hash(b"data", PRINT) != content_hash(b"data", PRINT)


def test_what_plans_loads_neither_torch_nor_pyav() -> None:
    heavy = "('torch', 'transformers', 'av')"
    code = f"import sys, json, mmserve.sounds.sound; print(json.dumps([n for n in {heavy} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ.copy()
    )
    assert json.loads(done.stdout) == []
