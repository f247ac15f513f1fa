"""Videos: what their container says, checked against the limits before anything is decoded; and which frames are seen.

MP4 and MOV, WebM and Matroska, and AVI, told apart by their signature alone. Each is opened by the one demuxer that the
signature names, and its video stream by one of the decoders below: FFmpeg's others are never asked, since some of them
open further files or addresses. Torch-free; PyAV is imported on first use.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from mmserve.config import MIB, Limits
from mmserve.errors import CorruptVideo, UnsupportedVideo, VideoTooLarge, VideoTooLong
from mmserve.types import ContentHash, Grid, MediaKind, VideoPart
from vision.pyav import require_pyav

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

ACCEPTED = "MP4, MOV, WebM, MKV or AVI"
CODECS = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "prores", "ffv1"}
)
FPS = 2.0
"""Frames a second where a caller does not say (Qwen-VL's own default)."""

MOST_PACKETS_A_SECOND = 480
"""A container with more for each second that is allowed is refused before it is read through."""

_ROUNDING = 0.001
"""In seconds: containers round times to a thousandth of a second."""


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """What a container says of its video, without decoding it.

    ``times`` are the frames' in seconds, ascending, the first 0; ``rate`` is frames a second where they come evenly.
    ``width`` and ``height`` are in pixels as stored.
    """

    format: str
    width: int
    height: int
    rate: float
    times: tuple[float, ...] = field(repr=False)

    @property
    def duration(self) -> float:
        """In seconds, to the end of the last frame."""
        return self.times[-1] + 1 / self.rate


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video are seen: those shown at ``times`` seconds, ascending, which are ``1 / rate`` apart."""

    times: tuple[float, ...]
    rate: float


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A video of a prompt, as it was uploaded. ``file`` is the digest of its bytes.

    ``sampling`` says which of its frames the model sees; ``width`` and ``height`` are in pixels as shown.
    """

    data: bytes = field(repr=False)
    file: bytes
    header: VideoHeader
    sampling: Sampling
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class VideoBlock:
    """A few consecutive frames of a video, which a tower takes as one: number ``index`` of those that the model sees.

    ``frames`` is the digest of the decoded frames, and ``content`` that of everything that makes rows and their
    positions of them: not the file, nor where in it they stand. ``grid`` has one step in time, and the next block's
    rows stand ``interval`` positions later on the time axis.
    """

    video: Video
    index: int
    frames: bytes
    content: ContentHash
    grid: Grid
    rows: int
    interval: float

    @property
    def kind(self) -> MediaKind:
        return "video"

    @property
    def work(self) -> int:
        return self.grid.t * self.grid.h * self.grid.w

    @property
    def data(self) -> bytes:
        return self.video.data

    @property
    def source(self) -> bytes:
        return self.video.file

    def with_data(self, data: bytes, /) -> VideoBlock:
        return replace(self, video=replace(self.video, data=data))


def sniff(data: bytes) -> str | None:
    """FFmpeg's name of the container's demuxer, by the file's first bytes."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        brand = data[8:12]
        return None if data[4:8] == b"ftyp" and brand[:3] in (b"hei", b"hev", b"mif", b"msf", b"avi", b"M4A") else "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def probe(data: bytes, limits: Limits) -> VideoHeader:
    """The header of a video, and the times of its frames, for which it is read through without decoding.

    Checked in this order: that there are bytes, their number, the format, the length and the size in pixels that the
    header gives; then the frames' times against these. Raises ``UnsupportedVideo``, ``VideoTooLarge``, ``VideoTooLong``
    and ``CorruptVideo``. A header that reads well is no promise that the frames do.
    """
    if not data:
        raise UnsupportedVideo("the video is empty (0 bytes): send the content of the file")
    if len(data) > limits.max_video_bytes:
        raise VideoTooLarge(
            f"the video has {len(data) / MIB:.1f} MiB, more than the {limits.max_video_bytes / MIB:.1f} MiB allowed: "
            "cut it, or compress it more strongly"
        )
    format_ = sniff(data)
    if format_ is None:
        raise UnsupportedVideo(f"the file is not a video in an accepted format: send {ACCEPTED}")
    with opened(data, format_, 4 * limits.max_video_pixels) as (container, stream):
        _check_length((container.duration or 0) / 1_000_000, limits)
        width, height = stream.width, stream.height
        if width <= 0 or height <= 0:
            raise CorruptVideo("the video's header gives no size in pixels that makes sense: send the whole file")
        if width * height > limits.max_video_pixels:
            raise VideoTooLarge(
                f"the video has {width}×{height} pixels, more than the {limits.max_video_pixels:,} allowed: "
                "scale it down"
            )
        times = _times(container, stream, limits)
        rate = _rate(stream, times)
    header = VideoHeader(format_, width, height, rate, times)
    _check_length(header.duration, limits)
    return header


@contextmanager
def opened(data: bytes, format_: str, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream, whose decoder takes no more than ``max_pixels`` a frame.

    Raises ``CorruptVideo`` for whatever goes wrong inside, and ``UnsupportedVideo`` where there is no video that can be
    decoded.
    """
    require_pyav(UnsupportedVideo)
    import av

    options = {"max_pixels": str(max_pixels)}
    try:
        with av.open(io.BytesIO(data), "r", format=format_, options=options, metadata_errors="ignore") as container:
            stream = next((each for each in container.streams.video), None)
            codec = stream.codec_context.name if stream is not None and stream.codec_context is not None else None
            if stream is None and not container.streams.audio:
                raise CorruptVideo("the video's header is damaged or cut off: send the whole file")
            if stream is None:
                raise UnsupportedVideo("the file has no video in it: send it as a sound, or send a video")
            if codec not in CODECS:
                raise UnsupportedVideo(
                    f"the video is coded as {codec}, which is not accepted: convert it to H.264 or VP9"
                )
            # One thread: with several, what a decoder makes of damaged data may differ from time to time.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = options
            yield container, stream
    except (UnsupportedVideo, VideoTooLarge, VideoTooLong, CorruptVideo):
        raise
    except Exception as error:  # on hostile bytes PyAV raises whatever its parsers happen to run into
        reason = str(error)[:200] or type(error).__name__
        raise CorruptVideo(f"the video could not be read ({reason}): send the whole, undamaged file") from error


def sample(header: VideoHeader, part: VideoPart, limits: Limits) -> Sampling:
    """The frames that a caller asks for, within the limits. Raises ``VideoTooLong`` for a wish beyond them.

    Frames are taken at a fixed stride from the beginning, so a longer cut of the same video begins with the same. Where
    there would be more than ``max_frames``, the stride is as many times as long as is needed.
    """
    for name in ("num_frames", "max_frames"):
        wish = getattr(part, name)
        if wish is not None and wish > limits.max_video_frames:
            raise VideoTooLong(
                f"{name}={wish} is more than the {limits.max_video_frames} frames that a video may have here"
            )
    if part.num_frames is not None:
        rate = min(part.num_frames, len(header.times)) / header.duration
        return Sampling(tuple(k / rate for k in range(min(part.num_frames, len(header.times)))), rate)
    rate = min(FPS if part.fps is None else part.fps, header.rate)
    last = header.times[-1] + _ROUNDING
    most = limits.max_video_frames if part.max_frames is None else part.max_frames
    rate /= math.ceil((math.floor(last * rate) + 1) / most)
    return Sampling(tuple(k / rate for k in range(math.floor(last * rate) + 1)), rate)


def _check_length(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_video_seconds:
        raise VideoTooLong(
            f"the video is {seconds:,.0f} seconds long, more than the {limits.max_video_seconds:,.0f} allowed: cut it"
        )


def _times(container: InputContainer, stream: VideoStream, limits: Limits) -> tuple[float, ...]:
    """The frames' times, by reading all packets. Raises ``CorruptVideo`` where some that were promised are missing."""
    base = float(stream.time_base or 0)
    ticks: list[int] = []
    end, packets, own = 0.0, 0, 0
    for packet in container.demux():
        packets += 1
        if packets > limits.max_video_seconds * MOST_PACKETS_A_SECOND:
            raise VideoTooLong("the video has more frames than its length allows: lower its frame rate, or cut it")
        at = packet.pts if packet.pts is not None else packet.dts
        own += at is not None and packet.stream_index == stream.index  # empty ones repeat a frame, and count as one
        if at is None or not packet.size:
            continue
        end = max(end, float((at + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and not packet.is_discard:
            ticks.append(at)
    if not ticks or not base:
        raise CorruptVideo("the video has no frames: send the whole file")
    start = (container.start_time or 0) / 1_000_000
    promised = (container.duration or 0) / 1_000_000
    if own < stream.frames - 1 or end - start < promised * 0.9 - 1.0:
        raise CorruptVideo(
            f"the video ends after {max(0.0, end - start):.1f} of its {promised:.1f} seconds: send the whole file"
        )
    ticks.sort()
    return tuple((tick - ticks[0]) * base for tick in ticks)


def _rate(stream: VideoStream, times: tuple[float, ...]) -> float:
    """Frames a second, as the header says; where that is absurd, as most of the frames come."""
    steps = sorted(b - a for a, b in pairwise(times))
    usual = 1 / steps[len(steps) // 2] if steps and steps[len(steps) // 2] > 0 else None
    for given in (stream.guessed_rate, stream.average_rate):
        said = float(given) if given else 0.0
        if 0.01 <= said <= 1000 and (usual is None or 0.5 < said / usual < 2):
            return said
    return min(1000.0, max(0.01, usual or 1.0))
