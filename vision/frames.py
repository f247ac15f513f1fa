"""A video's frames, decoded: those that are to be seen, upright and in RGB, one after another. Torch-free.

The rules are part of every block's identity only through the pixels that they make: what is hashed is what was decoded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmserve.errors import CorruptVideo, UnsupportedVideo
from vision.identity import digest
from vision.video import Sampling, Video, VideoBlock, VideoHeader, opened

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Frame = npt.NDArray[np.uint8]
"""``(height, width, 3)``, as shown."""

BLOCK = 2
"""Frames of a block: Qwen-VL's ``temporal_patch_size``."""

MARGIN = 512
"""In pixels: decoders want that much room beside and below a frame, at most."""

_ROUNDING = 0.001
_LATE = 2.0
"""In seconds: how much earlier than its container says a video's last frame may come."""


def decoded(data: bytes, header: VideoHeader, sampling: Sampling) -> Iterator[Frame]:
    """The frames shown at each of ``sampling.times``, in order; one that is shown longer comes several times.

    Raises ``CorruptVideo`` where the data is damaged or cut off, and ``UnsupportedVideo`` where frames change size.
    """
    wanted = iter(sampling.times)
    target = next(wanted, None)
    with opened(data, header.format, (header.width + MARGIN) * (header.height + MARGIN)) as (container, stream):
        shown: Frame | None = None
        held = None
        for number, frame in enumerate(container.decode(stream)):
            if number == 0:
                start = frame.time or 0.0
            at = number / header.rate if frame.time is None else frame.time - start
            while target is not None and held is not None and at > target + _ROUNDING:
                shown = _pixels(held, header) if shown is None else shown
                yield shown
                target = next(wanted, None)
            if target is None:
                return
            held, shown, last = frame, None, at
        if held is None or (target is not None and target - last > max(_LATE, 2 / sampling.rate)):
            raise CorruptVideo("the video's frames end earlier than its header says: send the whole file")
        while target is not None:
            shown = _pixels(held, header) if shown is None else shown
            yield shown
            target = next(wanted, None)


def blocks(frames: Iterator[Frame]) -> Iterator[tuple[Frame, ...]]:
    """The frames in blocks of ``BLOCK``; the last is filled up with its last frame, as transformers does."""
    block: list[Frame] = []
    for frame in frames:
        block.append(frame)
        if len(block) == BLOCK:
            yield tuple(block)
            block = []
    if block:
        yield (*block, *[block[-1]] * (BLOCK - len(block)))


def frames_hash(block: tuple[Frame, ...]) -> bytes:
    """Identity of decoded frames: how they are stored, their shapes and their pixels."""
    shapes = ";".join(",".join(map(str, frame.shape)) for frame in block)
    return digest("mmserve/video-frames/1", b"RGB", shapes.encode(), *(frame.data for frame in block))


class BlockReader:
    """Blocks' frames where they are needed: decoded again from the file, and held against the digest.

    Blocks of a video are usually wanted in order, each once: so a few videos stay open where they were last read, and
    the blocks that were passed on the way are kept, ``keep`` of a video. Thread safe.
    """

    def __init__(self, videos: int = 4, keep: int = 4) -> None:
        self._videos = videos
        self._keep = keep
        self._open: OrderedDict[tuple[bytes, Sampling], _Reading] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, block: VideoBlock) -> tuple[Frame, ...]:
        """Raises ``VideoError`` where the file gives other frames than those that were hashed."""
        video = block.video
        key = (video.file, video.sampling)
        with self._lock:
            reading = self._open.setdefault(key, _Reading(video, self._keep))
            self._open.move_to_end(key)
            while len(self._open) > self._videos:
                self._open.popitem(last=False)
        try:
            frames = reading.take(block.index)
        except Exception:
            with self._lock:
                self._open.pop(key, None)
            raise
        if frames is None or frames_hash(frames) != block.frames:
            raise CorruptVideo("the video's frames came out differently when they were decoded again: encode it anew")
        return frames


class _Reading:
    """One video, decoded as far as it was wanted."""

    def __init__(self, video: Video, keep: int) -> None:
        self._video = video
        self._keep = keep
        self._lock = threading.Lock()
        self._passed: OrderedDict[int, tuple[Frame, ...]] = OrderedDict()
        self._restart()

    def take(self, index: int) -> tuple[Frame, ...] | None:
        with self._lock:
            if index in self._passed:
                return self._passed.pop(index)
            if index < self._next:
                self._restart()
            for frames in self._blocks:
                self._next += 1
                if self._next - 1 == index:
                    return frames
                self._passed[self._next - 1] = frames
                if len(self._passed) > self._keep:
                    self._passed.popitem(last=False)
            return None

    def _restart(self) -> None:
        video = self._video
        self._blocks = blocks(decoded(video.data, video.header, video.sampling))
        self._next = 0


def _pixels(frame: VideoFrame, header: VideoHeader) -> Frame:
    """``frame`` in RGB, turned as the container says."""
    if frame.is_corrupt:
        raise CorruptVideo("the video's data is damaged: send the whole, undamaged file")
    if (frame.width, frame.height) != (header.width, header.height):
        raise UnsupportedVideo(
            f"the video's frames change from {header.width}×{header.height} to {frame.width}×{frame.height} pixels: "
            "convert it to one size"
        )
    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(upright, dtype=np.uint8)
