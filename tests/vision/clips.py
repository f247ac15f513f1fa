"""Small videos for the tests, made with PyAV: moving patterns, so that no two frames are alike."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache

import av
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]

CODECS = {"mp4": "mpeg4", "webm": "libvpx-vp9", "matroska": "ffv1", "avi": "mjpeg"}
"""A codec that PyAV can write, for each container."""


def pictures(count: int, size: tuple[int, int] = (64, 48), seed: int = 0) -> Iterator[Frame]:
    """So many frames: coarse noise that moves to the right, brighter as time goes on. ``size`` is width and height."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 200, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    whole = noise.repeat(8, 0).repeat(8, 1)[:height, :width]
    for number in range(count):
        yield np.roll(whole, 3 * number, axis=1) + np.uint8(number % 50)


def encode(
    frames: Iterator[Frame] | Sequence[Frame], *, fps: int = 10, container: str = "mp4", codec: str | None = None
) -> bytes:
    """A video file. Every tenth frame is a keyframe, so that a copy can be cut between them."""
    file = io.BytesIO()
    codec = codec or CODECS[container]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 10
        stream.codec_context.thread_count = 1
        stream.bit_rate = 400_000
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


@cache
def clip(
    seconds: float = 2.0, *, fps: int = 10, size: tuple[int, int] = (64, 48), container: str = "mp4", seed: int = 0
) -> bytes:
    """A video of so many seconds; two of one ``seed`` begin alike."""
    return encode(pictures(round(seconds * fps), size, seed), fps=fps, container=container)


def cut(data: bytes, seconds: float, container: str = "mp4") -> bytes:
    """The beginning of a video, its packets copied as they are."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format=container) as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None and packet.size and float(packet.pts * packet.time_base) < seconds - 1e-6:
                packet.stream = copy
                output.mux(packet)
    return file.getvalue()
