"""Videos: what containers say, which frames are sampled, and that they are those that PyAV decodes."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from mmserve.config import Limits
from mmserve.errors import (
    CorruptVideo,
    MediaError,
    PromptTooLong,
    UnsupportedMedia,
    UnsupportedVideo,
    VideoTooLarge,
    VideoTooLong,
)
from mmserve.prompt.video import VideoReader, qwen_interval, video_geometry
from mmserve.registry import load_registry
from mmserve.types import VideoPart
from tests.checkpoints.qwen2_vl import tiny_qwen2_vl
from tests.checkpoints.qwen_vl import tiny_qwen_vl
from tests.engine.pictures import png
from tests.vision.clips import CODECS, Frame, clip, cut, encode, pictures
from vision.frames import BlockReader, blocks, decoded, frames_hash
from vision.video import VideoBlock, VideoHeader, probe, sample

LIMITS = Limits()


def frames_of(data: bytes, **wish: float) -> list[Frame]:
    header = probe(data, LIMITS)
    return list(decoded(data, header, sample(header, VideoPart(data, **wish), LIMITS)))  # type: ignore[arg-type]


def all_frames(data: bytes) -> list[Frame]:
    with av.open(io.BytesIO(data), "r") as container:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], VideoReader]:
    checkpoint = load_registry().resolve(str(tiny_qwen2_vl(tmp_path_factory.mktemp("video") / "q")))
    geometry = video_geometry(checkpoint.vision_config, checkpoint.video_processor)
    return lambda: VideoReader(checkpoint, geometry, qwen_interval(checkpoint))


def read(reader: VideoReader, part: VideoPart, salt: str = "", limits: Limits = LIMITS) -> tuple[VideoBlock, ...]:
    return reader(part, limits=limits, cache_salt=salt)


class TestHeaders:
    @pytest.mark.parametrize("container", CODECS)
    def test_of_every_container(self, container: str) -> None:
        header = probe(clip(2.0, container=container), LIMITS)
        assert (header.width, header.height, header.rate) == (64, 48, 10.0)
        assert len(header.times) == 20
        assert header.times == pytest.approx([k / 10 for k in range(20)])
        assert header.duration == pytest.approx(2.0)

    def test_frames_that_are_stored_out_of_order(self) -> None:
        data = encode(pictures(20), codec="libx264")
        assert probe(data, LIMITS).times == pytest.approx([k / 10 for k in range(20)])
        assert len(frames_of(data, fps=10)) == 20

    def test_a_sound_alone_is_no_video(self) -> None:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as output:
            stream = output.add_stream("aac", rate=16_000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 16_000
            output.mux(stream.encode(sound))
            output.mux(stream.encode(None))
        with pytest.raises(UnsupportedVideo, match="no video in it"):
            probe(file.getvalue(), LIMITS)


class TestSampling:
    def header(self, seconds: float, rate: float = 25.0) -> VideoHeader:
        return VideoHeader("mov", 64, 48, rate, tuple(k / rate for k in range(round(seconds * rate))))

    @pytest.mark.parametrize(
        ("wish", "times"),
        [
            ({}, [0, 0.5, 1, 1.5]),
            ({"fps": 1}, [0, 1]),
            ({"fps": 0.4}, [0]),
            ({"fps": 2, "max_frames": 2}, [0, 1]),
            ({"fps": 2, "max_frames": 3}, [0, 1]),
            ({"max_frames": 1}, [0]),
            ({"num_frames": 3}, [0, 2 / 3, 4 / 3]),
            ({"num_frames": 1}, [0]),
        ],
    )
    def test_at_a_fixed_stride_from_the_beginning(self, wish: dict[str, float], times: list[float]) -> None:
        sampling = sample(self.header(2.0), VideoPart(b"", **wish), LIMITS)  # type: ignore[arg-type]
        assert sampling.times == pytest.approx(times)

    def test_never_more_often_than_there_are_frames(self) -> None:
        assert len(sample(self.header(2.0, rate=5.0), VideoPart(b"", fps=60), LIMITS).times) == 10
        assert len(sample(self.header(2.0, rate=5.0), VideoPart(b"", num_frames=60), LIMITS).times) == 10

    def test_a_longer_cut_begins_with_the_same(self) -> None:
        rng = random.Random(0)
        for _ in range(200):
            rate, fps = rng.choice((10.0, 24.0, 25.0, 29.97, 30.0)), rng.choice((0.3, 0.5, 1.0, 1.7, 2.0, 5.0))
            short, long = sorted(rng.uniform(0.2, 30.0) for _ in range(2))
            first, second = (
                sample(self.header(each, rate), VideoPart(b"", fps=fps), LIMITS).times for each in (short, long)
            )
            assert second[: len(first)] == first

    def test_a_wish_beyond_the_limits_is_refused_and_the_default_kept_within(self) -> None:
        few = Limits(max_video_frames=4)
        for wish in ({"num_frames": 5}, {"max_frames": 5}):
            with pytest.raises(VideoTooLong, match="more than the 4 frames"):
                sample(self.header(9.0), VideoPart(b"", **wish), few)
        assert len(sample(self.header(60.0), VideoPart(b""), few).times) <= 4


class TestDecoding:
    @pytest.mark.parametrize("container", CODECS)
    def test_gives_the_frames_shown_at_the_sampled_times(self, container: str) -> None:
        data = clip(2.0, container=container)
        whole = all_frames(data)
        for wish, chosen in (({}, [0, 5, 10, 15]), ({"fps": 10}, range(20)), ({"num_frames": 3}, [0, 6, 13])):
            for ours, number in zip(frames_of(data, **wish), chosen, strict=True):
                assert np.array_equal(ours, whole[number])

    def test_a_last_block_is_filled_up_with_its_last_frame(self) -> None:
        made = list(blocks(iter(list(pictures(3)))))
        assert [len(block) for block in made] == [2, 2]
        assert np.array_equal(made[1][0], made[1][1])

    def test_frames_are_turned_as_the_container_says(self) -> None:
        data = clip(1.0, size=(64, 48))
        at = data.index(b"tkhd") + 4 + 40
        turned = data[:at] + struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30) + data[at + 36 :]
        plain, upright = frames_of(data)[0], frames_of(turned)[0]
        assert upright.shape == (64, 48, 3)
        assert np.array_equal(upright, np.rot90(plain, -1))

    def test_hashes_tell_shapes_and_order_apart(self) -> None:
        a, b = list(pictures(2))
        flat = np.ascontiguousarray(a.reshape(64, 48, 3))
        assert len({frames_hash(each) for each in ((a, b), (b, a), (a, a), (flat, flat))}) == 4

    def test_blocks_may_be_read_again_in_any_order(self, reader: Callable[[], VideoReader]) -> None:
        data = clip(6.0)
        found, again = read(reader(), VideoPart(data)), BlockReader(videos=1, keep=1)
        made = list(blocks(iter(frames_of(data))))
        for number in (0, 1, 4, 2, 5, 0, 3):
            frames = again.read(pickle.loads(pickle.dumps(found[number])))
            assert all(np.array_equal(a, b) for a, b in zip(frames, made[number], strict=True))
        with pytest.raises(CorruptVideo, match="came out differently"):
            again.read(VideoBlock(found[0].video, 0, b"other", found[0].content, found[0].grid, 4, 1.0))


class TestIdentity:
    def test_is_the_frames_and_not_the_file(self, reader: Callable[[], VideoReader]) -> None:
        lossless = encode(pictures(20), container="matroska")
        copied = cut(lossless, 9.0, "mp4")
        assert lossless != copied
        one, other = (read(reader(), VideoPart(data)) for data in (lossless, copied))
        assert [block.content for block in one] == [block.content for block in other]

    def test_tenants_and_the_place_in_a_video_are_kept_apart(self, reader: Callable[[], VideoReader]) -> None:
        made = reader()
        part = VideoPart(encode([next(pictures(1))] * 20, container="matroska"), fps=5)
        still = read(made, part)
        assert len({block.frames for block in still}) == 1
        assert len({block.content for block in still}) == 2  # a video's first block may not stand for a later one
        assert {b.content for b in still}.isdisjoint(b.content for b in read(made, part, salt="other"))

    def test_where_positions_tell_time_so_does_the_identity(self, tmp_path: Path) -> None:
        checkpoint = load_registry().resolve(str(tiny_qwen_vl(tmp_path / "q", "qwen2.5-vl")))
        geometry = video_geometry(checkpoint.vision_config, checkpoint.video_processor)
        made = VideoReader(checkpoint, geometry, qwen_interval(checkpoint))
        slow, fast = (
            read(made, VideoPart(encode(pictures(4), fps=fps, container="matroska"), fps=fps)) for fps in (2, 1)
        )
        assert [block.frames for block in slow] == [block.frames for block in fast]
        assert {block.content for block in slow}.isdisjoint(block.content for block in fast)

    def test_a_video_is_decoded_once_for_each_tenant_and_sampling(self, reader: Callable[[], VideoReader]) -> None:
        made, data = reader(), clip(2.0)
        for part, salt, count in (
            (VideoPart(data), "", 1),
            (VideoPart(bytes(bytearray(data))), "", 1),
            (VideoPart(data, fps=1.0), "", 2),
            (VideoPart(data), "tenant", 3),
        ):
            read(made, part, salt)
            assert made.decoded == count


def double(value: float) -> bytes:
    return struct.pack(">d", value)


def hours_long(data: bytes) -> bytes:
    """A WebM whose header says that it goes on for ten hours."""
    at = data.index(b"\x44\x89\x88") + 3
    return data[:at] + double(36_000_000.0) + data[at + 8 :]


REFUSED: Sequence[tuple[str, Callable[[], bytes], type[MediaError]]] = (
    ("empty", lambda: b"", UnsupportedVideo),
    ("a picture", lambda: png("red"), UnsupportedVideo),
    ("text", lambda: b"#EXTM3U\nhttp://example.com/a.ts\n", UnsupportedVideo),
    ("a list of files", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", UnsupportedVideo),
    ("a signature and nothing behind it", lambda: b"\x00\x00\x00\x1cftypisom", CorruptVideo),
    ("an MP4 without its end", lambda: clip(2.0)[:-700], CorruptVideo),
    ("a WebM without its end", lambda: (d := clip(6.0, container="webm"))[: len(d) // 2], CorruptVideo),
    ("an AVI without its end", lambda: (d := clip(6.0, container="avi"))[: len(d) // 2], CorruptVideo),
    ("hours, says the header", lambda: hours_long(clip(2.0, container="webm")), VideoTooLong),
    ("too many bytes", lambda: clip(2.0) + bytes(300_000), VideoTooLarge),
    ("too many pixels", lambda: clip(0.2, size=(640, 640)), VideoTooLarge),
    ("too many seconds", lambda: clip(11.0), VideoTooLong),
    ("a strip", lambda: clip(0.2, size=(3300, 16)), UnsupportedVideo),
)


@pytest.mark.parametrize(("make", "error"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_what_is_refused(make: Callable[[], bytes], error: type[MediaError], reader: Callable[[], VideoReader]) -> None:
    limits = Limits(max_video_bytes=300_000, max_video_pixels=400_000, max_video_seconds=10.0)
    made = reader()
    with pytest.raises(error) as caught:
        read(made, VideoPart(make()), limits=limits)
    assert type(caught.value) is error
    assert made.decoded == 0 or error is CorruptVideo
    assert not isinstance(caught.value, UnsupportedMedia)


def test_what_cannot_fit_the_context_is_refused_before_it_is_decoded(reader: Callable[[], VideoReader]) -> None:
    made = reader()
    with pytest.raises(PromptTooLong, match="ask for fewer with max_frames"):
        read(made, VideoPart(clip(9.0, size=(320, 320)), fps=10))
    assert made.decoded == 0


def mutated(rng: random.Random) -> bytes:
    data = bytearray(clip(1.0, container=rng.choice(list(CODECS)), seed=rng.randrange(3)))
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 200)]
        return bytes(data)
    for _ in range(rng.choice((1, 4, 40))):
        # Headers matter more than frames do.
        at = rng.randrange(min(len(data), 600)) if rng.random() < 0.6 else rng.randrange(len(data))
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(data)


def survive(reader: VideoReader, number: int, seed: int) -> int:
    """Read so many damaged files; returns how many could be read all the same."""
    rng, fine = random.Random(seed), 0
    for _ in range(number):
        try:
            found = read(reader, VideoPart(mutated(rng), fps=10))
        except (MediaError, PromptTooLong):
            continue
        fine += bool(found)
    return fine


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_damaged_files_never_crash(reader: Callable[[], VideoReader]) -> None:
    assert 0 < survive(reader(), 100, seed=0) < 100


@pytest.mark.proof
def test_thousands_of_damaged_files_leave_nothing_behind(reader: Callable[[], VideoReader]) -> None:
    made = reader()
    survive(made, 1000, seed=1)
    before = resident()
    fine = survive(made, 4000, seed=2)
    grown = (resident() - before) / 2**20
    print(f"5,000 damaged videos: {fine} of the last 4,000 were read, {grown:.1f} MiB more in use after them")
    assert grown < 32


def test_pictures_alone_do_not_load_pyav() -> None:
    program = "import sys, mmserve.prompt, vision.frames, web; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
